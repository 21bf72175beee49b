//! The configured sources of jobs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::Url;

use super::{
    ci_server::{CiClient, CiServer},
    deliveries::ParsedDelivery,
    gitea::{self, AttemptRule},
    github::{self, GitHubClient},
};
use crate::domain::{SourceKind, SourceName};

/// A source of jobs as it is configured.
#[derive(Clone, Debug)]
pub struct Source {
    pub kind: SourceKind,
    /// The address of the server's pages.
    pub web: Url,
    /// `None`: no credentials are configured. Then no runner can be registered, and no job can be queried.
    pub server: Option<CiServer>,
    /// Whether deliveries of its webhook can be expected.
    pub webhooks: bool,
    /// Interval of the poll. `None`: no poll.
    pub poll_every: Option<Duration>,
    /// Directory of the runner program in guests. `None`: the usual places.
    pub runner_directory: Option<String>,
    /// Oldest version of the runner program that is started. `None`: any.
    pub runner_minimum_version: Option<String>,
}

impl Source {
    /// A source with credentials: without webhooks, polled every minute.
    pub fn new(server: CiServer, web: Url) -> Source {
        Source {
            kind: server.kind(),
            web,
            server: Some(server),
            webhooks: false,
            poll_every: Some(Duration::from_secs(60)),
            runner_directory: None,
            runner_minimum_version: None,
        }
    }

    fn github_without_credentials() -> Source {
        Source {
            kind: SourceKind::GitHub,
            web: github::Server::github_com().web().clone(),
            server: None,
            webhooks: false,
            poll_every: None,
            runner_directory: None,
            runner_minimum_version: None,
        }
    }

    /// Reads a webhook of the event `workflow_job`. Asks no server, so that the deliveries of one source never wait for the
    /// server of another. If the version of a Gitea is not known yet, the poll corrects the number of the attempt.
    pub fn read_delivery(&self, name: &SourceName, body: &[u8]) -> ParsedDelivery {
        match self.kind {
            SourceKind::GitHub => github::read_delivery(name, body),
            SourceKind::Gitea => {
                let rule = match self.server.as_ref().map(CiServer::client) {
                    Some(CiClient::Gitea(client)) => client.attempt_rule(),
                    Some(CiClient::GitHub(_) | CiClient::Buildkite(_)) | None => AttemptRule::CountsTaken,
                };
                gitea::read_delivery(name, rule, body)
            }
            SourceKind::Buildkite => {
                ParsedDelivery::Ignored("webhooks of Buildkite are not used: its jobs are listed".to_owned())
            }
        }
    }
}

/// All configured sources, by name. The source `github` is always there, without credentials if none are configured. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct Sources(Arc<BTreeMap<SourceName, Source>>);

impl Sources {
    pub fn get(&self, name: &SourceName) -> Option<&Source> {
        self.0.get(name)
    }

    pub fn kind(&self, name: &SourceName) -> Option<SourceKind> {
        self.get(name).map(|source| source.kind)
    }

    /// The server of a source with credentials.
    pub fn server(&self, name: &SourceName) -> Option<&CiServer> {
        self.get(name)?.server.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SourceName, &Source)> {
        self.0.iter()
    }

    pub fn servers(&self) -> impl Iterator<Item = &CiServer> {
        self.0.values().filter_map(|source| source.server.as_ref())
    }

    /// Clients of GitHub, for what only GitHub has.
    pub fn github_clients(&self) -> impl Iterator<Item = (&SourceName, &Arc<GitHubClient>)> {
        self.0.iter().filter_map(|(name, source)| match source.server.as_ref()?.client() {
            CiClient::GitHub(client) => Some((name, client)),
            CiClient::Gitea(_) | CiClient::Buildkite(_) => None,
        })
    }
}

impl Default for Sources {
    fn default() -> Self {
        [].into_iter().collect()
    }
}

impl FromIterator<(SourceName, Source)> for Sources {
    fn from_iter<I: IntoIterator<Item = (SourceName, Source)>>(sources: I) -> Self {
        let mut sources: BTreeMap<SourceName, Source> = sources.into_iter().collect();
        sources.entry(SourceName::github()).or_insert_with(Source::github_without_credentials);
        Self(Arc::new(sources))
    }
}
