//! Answers the authentication challenges of registries.
//!
//! The first request to a repository has no credentials. What the registry's challenge requires (Basic, or a token of
//! its token service) is obtained once and sent with all requests until one is refused. The request that notices this
//! renews it; the others wait.
//!
//! A refusal is believed only after the credentials were renewed once, because some registries answer 403 when a password or
//! token has expired. A registry that hides its repositories answers requests without credentials with 403 or 404, and no
//! challenge. If credentials for it are known, they are sent before that is believed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    body::{LeastRate, MeteredBody},
    credentials::{CredentialSource, RegistryCredential},
    error::{RegistryError, describe, out_of_reach},
};
use crate::platform::{clock, http::is_loopback, reach::CheckedClient, retry::retry_after};

const LARGEST_TOKEN: usize = 256 << 10;

/// How often one request may be refused for its credentials: two for a new token and a new credential, and one for a
/// token that expired in transit.
const REFUSALS: usize = 3;

pub(super) struct Authorizer {
    registry: String,
    /// The scope of the token if the registry's challenge has none; `None`: only to authenticate.
    repository: Option<String>,
    /// Whether a token service may be used over plain HTTP.
    plain_http: bool,
    source: Arc<dyn CredentialSource>,
    /// Scopes that every token requests, so that a token with fewer permissions does not replace one with more.
    scopes: Vec<String>,
    least: LeastRate,
    state: Mutex<AuthState>,
    /// The latest generation with which a request was answered without a refusal.
    accepted: AtomicU64,
}

#[derive(Default)]
struct AuthState {
    /// Generation of `header`, so that a refused request can say which one was refused.
    generation: u64,
    header: Option<HeaderValue>,
    /// What `header` answers.
    challenge: Option<Challenge>,
    /// `header` replaced one that was answered with 403.
    after_forbidden: bool,
    /// Credentials were sent, or looked for in vain, although the registry had not asked for any.
    volunteered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// How one request was refused so far.
#[derive(Default)]
pub(super) struct Refusals {
    times: usize,
    forbidden: bool,
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
        least: LeastRate,
    ) -> Authorizer {
        Authorizer {
            registry: registry.to_owned(),
            repository: repository.map(str::to_owned),
            plain_http,
            source,
            scopes,
            least,
            state: Mutex::default(),
            accepted: AtomicU64::new(0),
        }
    }

    pub async fn current(&self) -> (u64, Option<HeaderValue>) {
        let state = self.state.lock().await;
        (state.generation, state.header.clone())
    }

    /// Records how a request with the header of this generation was answered.
    pub fn answered(&self, generation: u64, status: StatusCode) {
        if status.is_success() || status.is_redirection() {
            self.accepted.fetch_max(generation, Ordering::Relaxed);
        }
    }

    /// Obtains what this challenge requires, with credentials that are not cached.
    pub async fn log_in(&self, http: &CheckedClient, headers: &HeaderMap) -> Result<(), RegistryError> {
        let challenge = challenge(headers).map_err(|found| self.no_challenge(found))?;
        let mut state = self.state.lock().await;
        self.replace(http, &mut state, challenge, true).await.map(|_| ())
    }

    /// Whether a request is worth repeating after this answer to the header of this generation: another header is sent from
    /// now on. Otherwise the answer is to be believed.
    pub async fn after_refusal(
        &self,
        http: &CheckedClient,
        base: &Url,
        refused: u64,
        answer: &Response,
        so_far: &mut Refusals,
    ) -> Result<bool, RegistryError> {
        let status = answer.status();
        if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            return Ok(false);
        }
        let mut state = self.state.lock().await;
        let sent_some = state.header.is_some();
        if so_far.times == REFUSALS || status == StatusCode::NOT_FOUND && sent_some && state.generation == refused {
            return Ok(false);
        }
        so_far.times += 1;
        if state.generation != refused {
            // Another request was refused, too, and has renewed it during the wait.
            return Ok(true);
        }
        if status == StatusCode::UNAUTHORIZED {
            match challenge(answer.headers()) {
                Ok(challenge) => {
                    let renew = so_far.times > 1 || state.challenge == Some(Challenge::Basic);
                    return self.replace(http, &mut state, challenge, renew).await;
                }
                Err(found) if sent_some => return Err(self.no_challenge(found)),
                Err(found) => {
                    return match self.volunteer(http, base, &mut state).await? {
                        true => Ok(true),
                        false => Err(self.no_challenge(found)),
                    };
                }
            }
        }
        let Some(challenge) = state.challenge.clone() else {
            return self.volunteer(http, base, &mut state).await;
        };
        // One renewal for each request, and one for all of them as long as none was accepted since.
        let renewed_in_vain = state.after_forbidden && self.accepted.load(Ordering::Relaxed) < state.generation;
        if so_far.forbidden || renewed_in_vain {
            return Ok(false);
        }
        so_far.forbidden = true;
        let replaced = self.replace(http, &mut state, challenge, true).await?;
        state.after_forbidden = true;
        Ok(replaced)
    }

    /// Replaces the header. `false`: the same credentials again, which are not sent twice, because repeated wrong passwords
    /// may lock the account.
    async fn replace(
        &self,
        http: &CheckedClient,
        state: &mut AuthState,
        challenge: Challenge,
        renew: bool,
    ) -> Result<bool, RegistryError> {
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
        let replaced = state.header.as_ref() != Some(&header);
        let volunteered = state.volunteered;
        *state = AuthState {
            generation: state.generation + u64::from(replaced),
            header: Some(header),
            challenge: Some(challenge),
            after_forbidden: false,
            volunteered,
        };
        Ok(replaced)
    }

    /// Sends the credentials that are known for this registry, if any, although it has not asked for them.
    async fn volunteer(&self, http: &CheckedClient, base: &Url, state: &mut AuthState) -> Result<bool, RegistryError> {
        const WHAT: &str = "its entrance, /v2/";
        if state.volunteered {
            return Ok(false);
        }
        if self.credential(false).await?.is_none() {
            state.volunteered = true;
            return Ok(false);
        }
        let mut root = base.clone();
        root.set_path("/v2/");
        let request = http.get(root).map_err(|e| out_of_reach(&self.registry, WHAT, &e))?;
        let answer = request.send().await.map_err(|e| describe(&self.registry, WHAT, e))?;
        let asked = match answer.status() {
            StatusCode::UNAUTHORIZED => challenge(answer.headers()).ok(),
            _ => None,
        };
        let replaced = self.replace(http, state, asked.unwrap_or(Challenge::Basic), false).await?;
        state.volunteered = true;
        Ok(replaced)
    }

    async fn credential(&self, renew: bool) -> Result<Option<RegistryCredential>, RegistryError> {
        Ok(self.source.get(&self.registry, renew).await?)
    }

    fn denied(&self, what: impl Into<String>) -> RegistryError {
        RegistryError::Denied { registry: self.registry.clone(), what: what.into() }
    }

    fn no_challenge(&self, found: String) -> RegistryError {
        let (registry, what) = (self.registry.clone(), "WWW-Authenticate, expected Basic or Bearer".to_owned());
        RegistryError::Unusable { registry, what, found }
    }

    async fn bearer(
        &self,
        http: &CheckedClient,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        renew: bool,
    ) -> Result<HeaderValue, RegistryError> {
        let mut url = Url::parse(realm).map_err(|e| self.denied(format!("its token service has no address: {e}")))?;
        // The registry names the service to which the password is sent. In plain text it is sent only to this host.
        let private = url.scheme() == "https"
            || url.scheme() == "http" && (self.plain_http || url.host_str().is_some_and(is_loopback));
        if !private || !url.username().is_empty() || url.password().is_some() {
            return Err(self.denied("its token service is not at an https address"));
        }
        url.set_fragment(None);
        // The address may have parameters of its own, such as a tenant or a signature. They stay as they are, except those
        // that the challenge replaces.
        let own = url.query().unwrap_or_default().to_owned();
        let named =
            |pair: &str, name: &str| pair == name || pair.strip_prefix(name).is_some_and(|v| v.starts_with('='));
        let replaced =
            |pair: &str| service.is_some() && named(pair, "service") || scope.is_some() && named(pair, "scope");
        let kept: Vec<&str> = own.split('&').filter(|pair| !pair.is_empty() && !replaced(pair)).collect();
        let default_scope = self.repository.as_ref().map(|repository| format!("repository:{repository}:pull"));
        let default_scope = default_scope.filter(|_| !kept.iter().any(|pair| named(pair, "scope")));
        let asked = scope.or(default_scope.as_deref());
        url.set_query((!kept.is_empty()).then(|| kept.join("&")).as_deref());
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
            Err(denied @ RegistryError::Denied { .. }) if !renew && let Some(old) = credential => {
                match self.credential(true).await? {
                    // Repeated wrong passwords may lock the account.
                    Some(new) if new.is_same(&old) => Err(denied),
                    new => self.token(http, &url, new.as_ref()).await,
                }
            }
            other => other,
        }
    }

    async fn token(
        &self,
        http: &CheckedClient,
        url: &Url,
        credential: Option<&RegistryCredential>,
    ) -> Result<HeaderValue, RegistryError> {
        const WHAT: &str = "a token";
        // The registry names the token service.
        let request = http.get(url.clone());
        let mut request = request.map_err(|e| out_of_reach(&self.registry, "its token service", &e))?;
        if let Some(credential) = credential {
            request = request.header(AUTHORIZATION, basic(credential).map_err(|what| self.denied(what))?);
        }
        let response = request.send().await.map_err(|e| describe(&self.registry, WHAT, e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = MeteredBody::new(response, self.least).read_to_end(LARGEST_TOKEN).await;
        let body = body.map_err(|e| e.into_error(&self.registry, WHAT))?;
        let body = Zeroizing::new(body.unwrap_or_default());
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let with = if credential.is_some() { "the credentials it was sent" } else { "access without credentials" };
            return Err(self.denied(format!("its token service refused {with} ({})", status.as_u16())));
        }
        if status != StatusCode::OK {
            return Err(RegistryError::Refused {
                registry: self.registry.clone(),
                status: status.as_u16(),
                what: WHAT.into(),
                said: String::new(),
                retry_after: retry_after(&headers, clock::now()),
            });
        }
        // Neither the body nor the parser's message is shown: both may contain the token.
        let token = serde_json::from_slice::<BearerToken>(&body).ok().and_then(|t| t.token.or(t.access_token));
        let header = token.and_then(|t| {
            let text = Zeroizing::new(format!("Bearer {}", t.expose_secret()));
            HeaderValue::from_str(&text).ok()
        });
        let Some(mut header) = header else {
            return Err(RegistryError::Answer {
                registry: self.registry.clone(),
                what: WHAT.into(),
                found: format!("{} bytes without a JSON object that has `token` or `access_token`", body.len()),
            });
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
