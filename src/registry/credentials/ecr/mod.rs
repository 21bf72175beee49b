//! Credentials for Amazon's private registries: a token from `ecr:GetAuthorizationToken`, valid for twelve hours.
//!
//! The region is a part of the registry's host name.

mod host;

use std::{fmt::Write, time::Duration};

use async_trait::async_trait;
use aws_sdk_ecr::{
    error::{ProvideErrorMetadata, SdkError},
    operation::get_authorization_token::GetAuthorizationTokenError,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use host::EcrHost;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use super::{CredentialError, CredentialSource, RegistryCredential};
use crate::{
    platform::clock,
    registry::aws::{self, AwsFailure},
};

const NAME: &str = "Amazon ECR";
const TOKEN: Duration = Duration::from_secs(30);

/// Without a cache: a new role or profile takes effect at once, and `Chain` caches the token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ecr;

#[async_trait]
impl CredentialSource for Ecr {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        let Some(at) = EcrHost::of(registry) else { return Ok(None) };
        let found = token(&at).await;
        found.map(Some).map_err(|AwsFailure { what, temporary }| match temporary {
            true => CredentialError::temporary(registry, NAME, what),
            false => CredentialError::new(registry, NAME, what),
        })
    }
}

async fn token(at: &EcrHost) -> Result<RegistryCredential, AwsFailure> {
    let last = |what| AwsFailure { what, temporary: false };
    let (shared, identity) = aws::load(Some(&at.region), Some(Duration::from_secs(10))).await?;
    let mut config = aws_sdk_ecr::config::Builder::from(&shared).credentials_provider(identity);
    if at.fips {
        config = config.use_fips(true);
    }
    let answer = timeout(TOKEN, aws_sdk_ecr::Client::from_conf(config.build()).get_authorization_token().send())
        .await
        .map_err(|_| {
            AwsFailure::temporary(format!("ECR in {} did not answer within {} s", at.region, TOKEN.as_secs()))
        })?
        .map_err(|e| refusal(&e, at))?;
    let data = answer.authorization_data().first().ok_or_else(|| {
        last(format!("ECR in {} answered without authorization data (expected one token)", at.region))
    })?;
    let (username, secret) = decode(data.authorization_token().unwrap_or_default()).map_err(last)?;
    let expires_at = data.expires_at().and_then(|t| Timestamp::from_second(t.secs()).ok());
    // A new token that has already expired shows that the clocks disagree. The registry decides, and a refusal renews
    // it.
    let expires_at = expires_at.filter(|end| {
        let ahead = *end > clock::now();
        if !ahead {
            tracing::warn!(aws.region = at.region, token.expires_at = %end, "a new ECR token has already expired; check this host's clock");
        }
        ahead
    });
    Ok(RegistryCredential { username, secret, expires_at })
}

fn refusal(error: &SdkError<GetAuthorizationTokenError>, at: &EcrHost) -> AwsFailure {
    let region = &at.region;
    let Some(refused) = error.as_service_error() else {
        let what = format!("ECR in {region}: {}", aws::causes(error));
        // Without an answer, or with a broken one, it is not known what ECR would say.
        return AwsFailure { what, temporary: !matches!(error, SdkError::ConstructionFailure(_)) };
    };
    let status = error.raw_response().map_or(0, |r| r.status().as_u16());
    let code = refused.code().unwrap_or_default();
    let temporary = matches!(
        (code, status),
        ("ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "RequestTimeout", _)
            | ("ServerException" | "ServiceUnavailable" | "InternalFailure", _)
            | (_, 408 | 429 | 500..)
    );
    if code.is_empty() {
        let what = format!(
            "ECR in {region} refused with status {status} and said nothing that can be read (expected JSON with __type)"
        );
        return AwsFailure { what, temporary };
    }
    let mut what = format!("ECR in {region} refused: {code}");
    // For a wrong signature, the message contains the expected request, including the session token.
    if let Some(line) = refused.message().and_then(|m| m.lines().next()).filter(|l| !l.is_empty()) {
        let _ = write!(what, ": {}", line.chars().take(300).collect::<String>());
    }
    if code.starts_with("AccessDenied") {
        what.push_str(" (ecr:GetAuthorizationToken has to be allowed)");
    }
    AwsFailure { what, temporary }
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

    #[tokio::test]
    async fn other_registries_are_not_its_business() {
        for registry in ["ghcr.io", "public.ecr.aws", "localhost:5000"] {
            assert!(Ecr.get(registry, false).await.unwrap().is_none());
        }
    }
}
