//! Answers the authentication challenges of registries.
//!
//! The first request to a repository has no credentials. What the registry's challenge requires (Basic, or a token of
//! its token service) is obtained once and sent with all requests until one is refused. The request that notices this
//! renews it; the others wait.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    credentials::{CredentialSource, RegistryCredential},
    error::{RegistryError, out_of_reach},
    retry::{AttemptFailure, verdict},
};
use crate::platform::{
    http::{bounded_body, is_loopback},
    reach::CheckedClient,
};

const LARGEST_TOKEN: usize = 256 << 10;

pub(super) struct Authorizer {
    registry: String,
    /// The scope of the token if the registry's challenge has none; `None`: only to authenticate.
    repository: Option<String>,
    /// Whether a token service may be used over plain HTTP.
    plain_http: bool,
    source: Arc<dyn CredentialSource>,
    /// Scopes that every token requests, so that a token with fewer permissions does not replace one with more.
    scopes: Vec<String>,
    state: Mutex<AuthState>,
}

#[derive(Default)]
struct AuthState {
    /// Generation of `header`, so that a refused request can say which one was refused.
    generation: u64,
    header: Option<HeaderValue>,
    /// The header contains the credential itself, not a token.
    basic: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct BearerToken {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
}

impl Authorizer {
    pub fn new(
        registry: &str,
        repository: Option<&str>,
        plain_http: bool,
        source: Arc<dyn CredentialSource>,
        scopes: Vec<String>,
    ) -> Authorizer {
        Authorizer {
            registry: registry.to_owned(),
            repository: repository.map(str::to_owned),
            plain_http,
            source,
            scopes,
            state: Mutex::default(),
        }
    }

    pub async fn current(&self) -> (u64, Option<HeaderValue>) {
        let state = self.state.lock().await;
        (state.generation, state.header.clone())
    }

    /// Replaces the header of this generation after it was refused. `again`: a new one was refused, too.
    pub async fn renew(
        &self,
        http: &CheckedClient,
        refused: u64,
        headers: &HeaderMap,
        again: bool,
    ) -> Result<(), AttemptFailure> {
        let mut state = self.state.lock().await;
        if state.generation != refused {
            // Another request was refused, too, and has renewed it during the wait.
            return Ok(());
        }
        let challenge = challenge(headers).map_err(|found| {
            AttemptFailure::last(RegistryError::Answer {
                registry: self.registry.clone(),
                what: "WWW-Authenticate, expected Basic or Bearer".into(),
                found,
            })
        })?;
        let renew = again || state.basic;
        let header = match &challenge {
            Challenge::Basic => {
                let credential = self.credential(renew).await?;
                basic(&credential.ok_or_else(|| self.denied("it asks for a password, and none is known for it"))?)
                    .map_err(|what| self.denied(what))?
            }
            Challenge::Bearer { realm, service, scope } => {
                self.bearer(http, realm, service.as_deref(), scope.as_deref(), renew).await?
            }
        };
        *state = AuthState { generation: refused + 1, header: Some(header), basic: challenge == Challenge::Basic };
        Ok(())
    }

    async fn credential(&self, renew: bool) -> Result<Option<RegistryCredential>, AttemptFailure> {
        self.source.get(&self.registry, renew).await.map_err(|e| AttemptFailure::last(e.into()))
    }

    fn denied(&self, what: impl Into<String>) -> AttemptFailure {
        AttemptFailure::last(RegistryError::Denied { registry: self.registry.clone(), what: what.into() })
    }

    async fn bearer(
        &self,
        http: &CheckedClient,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        renew: bool,
    ) -> Result<HeaderValue, AttemptFailure> {
        let mut url = Url::parse(realm).map_err(|e| self.denied(format!("its token service has no address: {e}")))?;
        // The registry names the service to which the password is sent. In plain text it is sent only to this host.
        let private = url.scheme() == "https"
            || url.scheme() == "http" && (self.plain_http || url.host_str().is_some_and(is_loopback));
        if !private || !url.username().is_empty() || url.password().is_some() {
            return Err(self.denied("its token service is not at an https address"));
        }
        url.set_fragment(None);
        let default_scope = self.repository.as_ref().map(|repository| format!("repository:{repository}:pull"));
        let asked = scope.or(default_scope.as_deref());
        // The address may have parameters of its own, such as a tenant.
        let own: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(name, _)| !matches!(name.as_ref(), "scope" | "service"))
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        if !own.is_empty() {
            url.query_pairs_mut().extend_pairs(own);
        }
        for scope in
            asked.into_iter().chain(self.scopes.iter().map(String::as_str).filter(|scope| Some(*scope) != asked))
        {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let credential = self.credential(renew).await?;
        match self.token(http, &url, credential.as_ref()).await {
            // The credential may have been replaced since it was last queried.
            Err(AttemptFailure { error: RegistryError::Denied { .. }, .. }) if credential.is_some() && !renew => {
                let credential = self.credential(true).await?;
                self.token(http, &url, credential.as_ref()).await
            }
            other => other,
        }
    }

    async fn token(
        &self,
        http: &CheckedClient,
        url: &Url,
        credential: Option<&RegistryCredential>,
    ) -> Result<HeaderValue, AttemptFailure> {
        const WHAT: &str = "a token";
        // The registry names the token service.
        let request = http.get(url.clone());
        let mut request =
            request.map_err(|e| AttemptFailure::last(out_of_reach(&self.registry, "its token service", &e)))?;
        if let Some(credential) = credential {
            request = request.header(AUTHORIZATION, basic(credential).map_err(|what| self.denied(what))?);
        }
        let unreachable = |e| AttemptFailure::unanswered(&self.registry, WHAT, e);
        let response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = bounded_body(response, LARGEST_TOKEN).await.map_err(unreachable)?;
        let body = Zeroizing::new(body.unwrap_or_default());
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let with = if credential.is_some() { "the credentials it was sent" } else { "access without credentials" };
            return Err(self.denied(format!("its token service refused {with} ({})", status.as_u16())));
        }
        if status != StatusCode::OK {
            let error = RegistryError::Refused {
                registry: self.registry.clone(),
                status: status.as_u16(),
                what: WHAT.into(),
                said: String::new(),
            };
            return Err(AttemptFailure { error, verdict: verdict(status, &headers) });
        }
        // Neither the body nor the parser's message is shown: both may contain the token.
        let token = serde_json::from_slice::<BearerToken>(&body).ok().and_then(|t| t.token.or(t.access_token));
        let header = token.and_then(|t| {
            let text = Zeroizing::new(format!("Bearer {}", t.expose_secret()));
            HeaderValue::from_str(&text).ok()
        });
        let Some(mut header) = header else {
            return Err(AttemptFailure::again(RegistryError::Answer {
                registry: self.registry.clone(),
                what: WHAT.into(),
                found: format!("{} bytes without a JSON object that has `token` or `access_token`", body.len()),
            }));
        };
        header.set_sensitive(true);
        Ok(header)
    }
}

fn basic(credential: &RegistryCredential) -> Result<HeaderValue, &'static str> {
    if credential.username.contains(':') {
        return Err("the user name has a colon, which cannot be sent");
    }
    let plain = Zeroizing::new(format!("{}:{}", credential.username, credential.secret.expose_secret()));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(plain.as_bytes())));
    let mut header = HeaderValue::from_str(&text).map_err(|_| "the credentials cannot be sent")?;
    header.set_sensitive(true);
    Ok(header)
}

/// The parts of a challenge; a token is preferred to the password itself.
fn challenge(headers: &HeaderMap) -> Result<Challenge, String> {
    let mut basic = false;
    let mut found = String::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let text = value.to_str().unwrap_or_default();
        found.push_str(&format!("{:?} ", text.chars().take(200).collect::<String>()));
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = true;
            }
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                return Ok(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
            }
        }
    }
    if basic { Ok(Challenge::Basic) } else { Err(if found.is_empty() { "nothing".into() } else { found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|v| (WWW_AUTHENTICATE, HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn challenges_are_read() {
        assert_eq!(challenge(&headers(&[r#"Basic realm="x""#])), Ok(Challenge::Basic));
        let bearer = Challenge::Bearer {
            realm: "https://auth.example.com/token".into(),
            service: Some("registry.example.com".into()),
            scope: Some("repository:acme/macos:pull".into()),
        };
        let text = r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:acme/macos:pull""#;
        assert_eq!(challenge(&headers(&[text])).as_ref(), Ok(&bearer));
        assert_eq!(challenge(&headers(&[r#"Basic realm="x""#, text])), Ok(bearer));
        assert_eq!(challenge(&headers(&["Bearer scope=\"x\""])).unwrap_err(), "\"Bearer scope=\\\"x\\\"\" ");
        assert_eq!(challenge(&headers(&[])).unwrap_err(), "nothing");
        assert!(challenge(&headers(&["Negotiate"])).unwrap_err().contains("Negotiate"));
    }

    #[test]
    fn the_password_is_encoded_and_hidden() {
        let credential = |username: &str| RegistryCredential {
            username: username.into(),
            secret: "open: sesame".to_owned().into(),
            expires_at: None,
        };
        let header = basic(&credential("aladdin")).unwrap();
        assert_eq!(header, format!("Basic {}", STANDARD.encode("aladdin:open: sesame")).as_str());
        assert!(header.is_sensitive() && !format!("{header:?}").contains("Basic"));
        assert!(basic(&credential("a:b")).is_err());
    }
}
