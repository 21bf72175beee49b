//! Amazon's private registries: a token from `ecr:GetAuthorizationToken`, valid for twelve hours.
//!
//! Who we are to Amazon is found as by every tool of theirs: environment, profile (which may name the instance's role or
//! another role to assume), web identity, container, instance metadata. The registry's name says the region to ask in.
//! `AWS_ENDPOINT_URL_ECR`, `AWS_PROFILE` and their like count.

mod host;

use std::{error::Error as StdError, fmt::Write, time::Duration};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::{
    config::{Credentials, ProvideCredentials},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_authorization_token::GetAuthorizationTokenError,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use super::{Credential, CredentialError, CredentialSource};
use host::EcrHost;

/// Off Amazon's machines nobody answers at the metadata service's address, which costs some seconds of its own time limits.
const WHO_WE_ARE: Duration = Duration::from_secs(20);
const TOKEN: Duration = Duration::from_secs(30);

/// Keeps nothing: a new role or profile counts at once, and `Chain` keeps the token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ecr;

#[async_trait]
impl CredentialSource for Ecr {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<Credential>, CredentialError> {
        let Some(at) = EcrHost::of(registry) else { return Ok(None) };
        token(&at).await.map(Some).map_err(|what| CredentialError::new(registry, "Amazon ECR", what))
    }
}

async fn token(at: &EcrHost) -> Result<Credential, String> {
    // With the region given, none has to be found, which off Amazon's machines would wait for the metadata service too.
    let shared = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new(at.region.clone()))
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(5))
                .operation_attempt_timeout(Duration::from_secs(10))
                .build(),
        )
        .load();
    let late = |d: Duration, what: &str| format!("{what} within {} s", d.as_secs());
    let (shared, identity) = timeout(WHO_WE_ARE, async {
        let shared = shared.await;
        let identity = who_we_are(&shared).await;
        (shared, identity)
    })
    .await
    .map_err(|_| late(WHO_WE_ARE, "no AWS credentials were found"))?;

    let mut config = aws_sdk_ecr::config::Builder::from(&shared).credentials_provider(identity?);
    if at.fips {
        config = config.use_fips(true);
    }
    let answer = timeout(TOKEN, aws_sdk_ecr::Client::from_conf(config.build()).get_authorization_token().send())
        .await
        .map_err(|_| late(TOKEN, &format!("ECR in {} did not answer", at.region)))?
        .map_err(|e| refusal(&e, at))?;
    let data = answer
        .authorization_data()
        .first()
        .ok_or_else(|| format!("ECR in {} answered without authorization data (expected one token)", at.region))?;
    let (username, secret) = decode(data.authorization_token().unwrap_or_default())?;
    let expires_at = data.expires_at().and_then(|t| Timestamp::from_second(t.secs()).ok());
    // Told to have ended when it was made: the clocks disagree. The registry decides, and its refusal has it renewed.
    let expires_at = expires_at.filter(|end| {
        let ahead = *end > Timestamp::now();
        if !ahead {
            tracing::warn!(aws.region = at.region, token.expires_at = %end, "a new token of ECR has ended already: is this host's clock right?");
        }
        ahead
    });
    Ok(Credential { username, secret, expires_at })
}

async fn who_we_are(shared: &aws_config::SdkConfig) -> Result<Credentials, String> {
    let provider = shared.credentials_provider().ok_or("the AWS SDK has no provider of credentials")?;
    provider.provide_credentials().await.map_err(|e| match e {
        CredentialsError::CredentialsNotLoaded(_) => {
            // A profile that is not there counts as none, and one started by launchd sees other files than its admin does.
            let profile = match std::env::var("AWS_PROFILE") {
                Ok(name) if !name.is_empty() => format!("no profile {name:?}"),
                _ => "no default profile".into(),
            };
            format!("there are no AWS credentials: none in the environment, {profile} that has any, no web identity, no container's role, no instance's role")
        }
        other => format!("AWS credentials: {}", causes(&other)),
    })
}

fn refusal(error: &SdkError<GetAuthorizationTokenError>, at: &EcrHost) -> String {
    let region = &at.region;
    let Some(refused) = error.as_service_error() else {
        return format!("ECR in {region}: {}", causes(error));
    };
    let status = error.raw_response().map_or(0, |r| r.status().as_u16());
    let Some(code) = refused.code() else {
        return format!(
            "ECR in {region} refused with status {status} and said nothing that can be read (expected JSON with __type)"
        );
    };
    let mut text = format!("ECR in {region} refused: {code}");
    // Of a wrong signature it goes on with the request as it should have been, session token included.
    if let Some(line) = refused.message().and_then(|m| m.lines().next()).filter(|l| !l.is_empty()) {
        let _ = write!(text, ": {}", line.chars().take(300).collect::<String>());
    }
    if code.starts_with("AccessDenied") {
        text.push_str(" (ecr:GetAuthorizationToken has to be allowed)");
    }
    text
}

/// An error and what caused it, in one line.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        next = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

/// The token is base64 of `user:password`, the form of HTTP Basic.
fn decode(token: &str) -> Result<(String, SecretString), String> {
    let wrong = || {
        format!(
            "ECR's token is not what it should be (expected base64 of user:password, found {} bytes, not shown)",
            token.len()
        )
    };
    let bytes = STANDARD.decode(token.trim()).map_err(|_| wrong())?;
    let text = SecretString::from(String::from_utf8(bytes).map_err(|_| wrong())?);
    match text.expose_secret().split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => Ok((user.to_owned(), password.into())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_user_and_a_password() {
        let (user, password) = decode(&STANDARD.encode("AWS:eyJ:x")).unwrap();
        assert_eq!((user.as_str(), password.expose_secret()), ("AWS", "eyJ:x"));
        for bad in [
            String::new(),
            "hunter2!".into(),
            STANDARD.encode("hunter2"),
            STANDARD.encode(":hunter2"),
            STANDARD.encode("AWS:"),
            STANDARD.encode([0xff, b':', 1]),
        ] {
            let error = decode(&bad).unwrap_err();
            assert!(error.contains("expected base64 of user:password") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn causes_are_told_once_and_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("dispatch\nfailure")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("io: {0}")]
        struct Inner(#[source] std::io::Error);
        let error = Outer(Inner(std::io::Error::other("refused")));
        assert_eq!(causes(&error), "dispatch failure: io: refused");
    }

    #[tokio::test]
    async fn other_registries_are_not_its_business() {
        for registry in ["ghcr.io", "public.ecr.aws", "localhost:5000"] {
            assert!(Ecr.get(registry, false).await.unwrap().is_none());
        }
    }
}
