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

use crate::platform::error_chain;

/// Outside Amazon, the metadata service's address does not answer, which takes some seconds until its time limits
/// end.
const WHO_WE_ARE: Duration = Duration::from_secs(20);

/// The configuration and credentials of the environment. With a given region, none has to be looked up, which outside
/// Amazon would also wait for the metadata service.
pub(super) async fn load(region: Option<&str>, attempt: Option<Duration>) -> Result<(SdkConfig, Credentials), String> {
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
        let identity = who_we_are(&shared).await;
        (shared, identity)
    });
    let (shared, identity) =
        found.await.map_err(|_| format!("no AWS credentials were found within {} s", WHO_WE_ARE.as_secs()))?;
    Ok((shared, identity?))
}

async fn who_we_are(shared: &SdkConfig) -> Result<Credentials, String> {
    let provider = shared.credentials_provider().ok_or("the AWS SDK has no provider of credentials")?;
    provider.provide_credentials().await.map_err(|e| match e {
        CredentialsError::CredentialsNotLoaded(_) => {
            // A missing profile counts as none, and a service that launchd started sees other files than its
            // administrator.
            let profile = match std::env::var("AWS_PROFILE") {
                Ok(name) if !name.is_empty() => format!("no profile {name:?}"),
                _ => "no default profile".into(),
            };
            format!("there are no AWS credentials: none in the environment, {profile} that has any, no web identity, no container's role, no instance's role")
        }
        other => format!("AWS credentials: {}", causes(&other)),
    })
}

/// An error of the SDK with its causes. Some errors of the SDK print whole requests, so the text is cut.
pub(super) fn causes(error: &dyn StdError) -> String {
    error_chain(error).chars().take(500).collect()
}
