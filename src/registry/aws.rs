//! Loads the AWS configuration from the standard sources: environment, profile (which may name the instance's role or
//! another role to assume), web identity, container, instance metadata. `AWS_PROFILE`, `AWS_ENDPOINT_URL_…` and
//! similar variables apply.

use std::{error::Error as StdError, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError},
};
use tokio::time::timeout;

use crate::platform::{
    error_chain,
    http::{ClientOptions, Trust},
};

/// The metadata service of an instance.
const METADATA: &str = "http://169.254.169.254";
const METADATA_ANSWERS: Duration = Duration::from_secs(2);

/// Why there are no credentials of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AwsFailure {
    pub what: String,
    /// Whether there may be some later, without a change of the settings.
    pub temporary: bool,
}

impl AwsFailure {
    fn last(what: impl Into<String>) -> AwsFailure {
        AwsFailure { what: what.into(), temporary: false }
    }

    pub fn temporary(what: impl Into<String>) -> AwsFailure {
        AwsFailure { what: what.into(), temporary: true }
    }
}

/// Outside Amazon, the metadata service's address does not answer, which takes some seconds until its time limits
/// end.
const WHO_WE_ARE: Duration = Duration::from_secs(20);

/// The configuration and credentials of the environment. With a given region, none has to be looked up, which outside
/// Amazon would also wait for the metadata service.
pub(super) async fn load(
    region: Option<&str>,
    attempt: Option<Duration>,
) -> Result<(SdkConfig, Credentials), AwsFailure> {
    let mut times = TimeoutConfig::builder().connect_timeout(Duration::from_secs(5));
    times.set_operation_attempt_timeout(attempt);
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::standard().with_max_attempts(3))
        .timeout_config(times.build());
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    let found = timeout(WHO_WE_ARE, async {
        let shared = loader.load().await;
        let provider = shared.credentials_provider().ok_or("the AWS SDK has no provider of credentials");
        let identity = match provider {
            Ok(provider) => Ok(provider.provide_credentials().await),
            Err(what) => Err(AwsFailure::last(what)),
        };
        (shared, identity)
    });
    let late = |_| AwsFailure::temporary(format!("no AWS credentials were found within {} s", WHO_WE_ARE.as_secs()));
    let (shared, identity) = found.await.map_err(late)?;
    match identity? {
        Ok(credentials) => Ok((shared, credentials)),
        Err(error) => Err(meaning(error).await),
    }
}

/// The meaning of an error of the sources of credentials: one row per kind.
async fn meaning(error: CredentialsError) -> AwsFailure {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            // A missing profile counts as none, and a service that launchd started sees other files than its
            // administrator.
            let profile = match std::env::var("AWS_PROFILE") {
                Ok(name) if !name.is_empty() => format!("no profile {name:?}"),
                _ => "no default profile".into(),
            };
            let what = format!(
                "there are no AWS credentials: none in the environment, {profile} that has any, no web identity, no container's role, no instance's role"
            );
            match metadata().await {
                MetadataService::Off | MetadataService::Answers => AwsFailure::last(what),
                // A host that has just booted may have no network yet.
                MetadataService::Silent => {
                    AwsFailure::temporary(format!("{what} (the instance's metadata service does not answer)"))
                }
            }
        }
        CredentialsError::InvalidConfiguration(_) => AwsFailure::last(format!("AWS credentials: {}", causes(&error))),
        // The source did not answer, or answered with an error.
        error => AwsFailure::temporary(format!("AWS credentials: {}", causes(&error))),
    }
}

enum MetadataService {
    Off,
    Answers,
    Silent,
}

/// The SDK does not tell an instance without a role from one whose metadata service is out of reach.
async fn metadata() -> MetadataService {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if set("AWS_EC2_METADATA_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true")) {
        return MetadataService::Off;
    }
    let endpoint = set("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| METADATA.to_owned());
    let options = ClientOptions {
        total_timeout: Some(METADATA_ANSWERS),
        trust: Trust::NoServer,
        use_proxy: false,
        ..ClientOptions::new(METADATA_ANSWERS)
    };
    // Any status is an answer.
    let answered = match options.build() {
        Ok(client) => client.get(endpoint).send().await.is_ok(),
        Err(_) => false,
    };
    if answered { MetadataService::Answers } else { MetadataService::Silent }
}

/// An error of the SDK with its causes. Some errors of the SDK print whole requests, so the text is cut.
pub(super) fn causes(error: &dyn StdError) -> String {
    error_chain(error).chars().take(500).collect()
}
