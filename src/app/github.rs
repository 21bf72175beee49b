//! Builds what GitHub needs: credentials, the secrets of the webhook, the poll.

use std::{sync::Arc, time::Duration};

use super::error::StartError;
use crate::{
    config::Config, domain::SourceName, reconcile::jobs, service::webhooks::WebhookSecrets,
    sources::github::GitHubClient,
};

/// The client with the configured credentials; connects to nothing.
pub(super) fn client(config: &Config) -> Result<Option<Arc<GitHubClient>>, StartError> {
    let Some(source) = config.github.source(|name| std::env::var(name).ok()).map_err(StartError::GitHub)? else {
        if let Some(pool) = config.pools.first() {
            return Err(StartError::GitHub(format!(
                "the pool {} registers runners, and no GitHub credentials are configured: set `github.app_id` and its key, or a token",
                pool.name
            )));
        }
        return Ok(None);
    };
    let options = config.github.options().map_err(StartError::GitHub)?;
    Ok(Some(Arc::new(GitHubClient::new(options, source).map_err(|error| StartError::GitHub(error.to_string()))?)))
}

pub(super) fn webhook_secrets(config: &Config) -> Result<WebhookSecrets, StartError> {
    let secrets = config.github.webhook_secrets(|name| std::env::var(name).ok()).map_err(StartError::GitHub)?;
    let source = (!secrets.is_empty()).then(|| (SourceName::github(), secrets));
    Ok(source.into_iter().collect())
}

pub(super) fn jobs(config: &Config) -> jobs::Settings {
    let poll = Duration::from_secs(u64::from(config.github.poll_seconds));
    jobs::Settings { poll_every: (!poll.is_zero()).then_some(poll), ..Default::default() }
}
