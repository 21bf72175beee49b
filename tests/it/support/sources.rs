//! Sources of jobs as `serve` builds them from the configuration.

use std::{sync::Arc, time::Duration};

use mayfly::{
    domain::SourceName,
    sources::{CiClient, CiServer, Source, Sources, github::GitHubClient},
};

/// The source `github`, without webhooks, and with a poll that no test waits for.
pub fn github(client: Arc<GitHubClient>) -> Source {
    let server = CiServer::new(SourceName::github(), CiClient::GitHub(client));
    Source::new(server, "https://github.com".parse().unwrap())
}

pub fn only_github(client: Arc<GitHubClient>) -> Sources {
    [(SourceName::github(), github(client))].into_iter().collect()
}

/// With webhooks, and a poll this often.
pub fn followed(source: Source, poll: Duration) -> Source {
    Source { webhooks: true, poll_every: Some(poll), ..source }
}
