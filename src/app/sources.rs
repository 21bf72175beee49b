//! Builds the configured sources of jobs: credentials, the secrets of their webhooks, the poll.

use std::{sync::Arc, time::Duration};

use reqwest::Url;

use super::error::StartError;
use crate::{
    config::Config,
    domain::{SourceKind, SourceName},
    service::webhooks::WebhookSecrets,
    sources::{
        CiClient, CiServer, Source, SourceSection, Sources,
        buildkite::{BuildkiteClient, BuildkiteOptions},
        gitea::{GiteaClient, GiteaOptions},
        github::{GitHubClient, GitHubSection},
    },
};

/// Buildkite shows a queue as disconnected that was not listed for 30 seconds. The poll is up to a tenth later than this.
const LONGEST_BUILDKITE_POLL: u32 = 15;

/// The sources with their clients, which connect to nothing yet, and what their webhooks are signed with.
pub(super) fn sources(config: &Config) -> Result<(Sources, WebhookSecrets), StartError> {
    let env = |name: &str| std::env::var(name).ok();
    let mut sources = vec![github(SourceName::github(), &config.github, env)?];
    for (name, section) in &config.sources {
        // Both were checked with the configuration.
        let name = SourceName::new(name).map_err(StartError::Source)?;
        let Some(kind) = section.kind else { continue };
        sources.push(match kind.0 {
            SourceKind::GitHub => github(name, &section.github(), |_| None)?,
            SourceKind::Gitea => gitea(name, section)?,
            SourceKind::Buildkite => buildkite(name, section)?,
        });
    }
    let secrets = sources.iter().filter(|(_, _, secrets)| !secrets.is_empty());
    let secrets = secrets.map(|(name, _, secrets)| (name.clone(), secrets.clone())).collect();
    let sources: Sources = sources.into_iter().map(|(name, source, _)| (name, source)).collect();
    for pool in &config.pools {
        if sources.server(&pool.job_source).is_none() {
            let (pool, source) = (&pool.name, &pool.job_source);
            return Err(StartError::Source(match source.is_github() {
                true => format!(
                    "the pool {pool} registers runners, and no GitHub credentials are configured: set `github.app_id` and its \
                     key, or a token"
                ),
                false => format!(
                    "the pool {pool} registers runners, and no credentials for the source {source} are configured: set an App \
                     and its key, or a token, in `[sources.{source}]`"
                ),
            }));
        }
    }
    Ok((sources, secrets))
}

type BuiltSource = (SourceName, Source, Vec<secrecy::SecretString>);

fn github(
    name: SourceName,
    section: &GitHubSection,
    env: impl Fn(&str) -> Option<String>,
) -> Result<BuiltSource, StartError> {
    let secrets = section.webhook_secrets(&env).map_err(StartError::Source)?;
    let client = match section.source(&env).map_err(StartError::Source)? {
        None => None,
        Some(location) => {
            let options = section.options().map_err(StartError::Source)?;
            let client = GitHubClient::new(options, location).map_err(|error| StartError::Source(error.to_string()))?;
            Some(CiServer::new(name.clone(), CiClient::GitHub(Arc::new(client))))
        }
    };
    let source = Source {
        kind: SourceKind::GitHub,
        web: section.server().map_err(StartError::Source)?.web().clone(),
        server: client,
        webhooks: !secrets.is_empty(),
        poll_every: interval(section.poll_seconds),
        runner_directory: section.runner_directory.clone(),
        runner_minimum_version: Some(section.runner_minimum_version.clone()),
    };
    Ok((name, source, secrets))
}

fn gitea(name: SourceName, section: &SourceSection) -> Result<BuiltSource, StartError> {
    let wrong = |why: String| StartError::Source(format!("the source {name}: {why}"));
    let secrets = section.webhook_secrets().map_err(wrong)?;
    let server = section.gitea_server().map_err(wrong)?;
    let web: Url = server.web().clone();
    let token_file = section.token_file.clone().ok_or_else(|| wrong("needs `token_file`".to_owned()))?;
    let options = GiteaOptions { ca_file: section.ca_file.clone(), ..GiteaOptions::new(server, token_file) };
    let client = GiteaClient::new(options).map_err(|error| wrong(error.to_string()))?;
    let source = Source {
        kind: SourceKind::Gitea,
        web,
        server: Some(CiServer::new(name.clone(), CiClient::Gitea(Arc::new(client)))),
        webhooks: !secrets.is_empty(),
        poll_every: interval(section.poll_seconds),
        runner_directory: section.runner_directory.clone(),
        runner_minimum_version: section.runner_minimum_version.clone(),
    };
    Ok((name, source, secrets))
}

fn buildkite(name: SourceName, section: &SourceSection) -> Result<BuiltSource, StartError> {
    let wrong = |why: String| StartError::Source(format!("the source {name}: {why}"));
    let queue = section.buildkite_queue().map_err(|(setting, why)| wrong(format!("`{setting}`: {why}")))?;
    let web = queue.web();
    let token_file = section.token_file.clone().ok_or_else(|| wrong("needs `token_file`".to_owned()))?;
    let options = BuildkiteOptions { ca_file: section.ca_file.clone(), ..BuildkiteOptions::new(queue, token_file) };
    let client = BuildkiteClient::new(options).map_err(|error| wrong(error.to_string()))?;
    let source = Source {
        kind: SourceKind::Buildkite,
        web,
        server: Some(CiServer::new(name.clone(), CiClient::Buildkite(Arc::new(client)))),
        webhooks: false,
        poll_every: interval(section.poll_seconds.min(LONGEST_BUILDKITE_POLL)),
        runner_directory: section.runner_directory.clone(),
        runner_minimum_version: section.runner_minimum_version.clone(),
    };
    Ok((name, source, Vec::new()))
}

fn interval(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}
