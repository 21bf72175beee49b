//! The section of one source of jobs.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    buildkite::BuildkiteQueue,
    gitea::GiteaServer,
    github::{AppId, GitHubSection},
};
use crate::{
    domain::{AllowedDestination, SourceKind},
    platform::{
        files::read_secrets,
        settings::{SettingType, section},
    },
};

/// What a source is, as the configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfiguredKind(pub SourceKind);

impl SettingType for ConfiguredKind {
    const KIND: &'static str = "`github`, `gitea` or `buildkite`";
}

section! {
    /// One more source of jobs: a CI server with a name, in addition to `[github]`, which is the source `github`. Its
    /// webhook has the path `/webhooks/<name>`, and pools name it as `job_source`. Secrets are in separate files, which only
    /// the service's user can read. `mayfly source check <name>` tests these settings. These tables can be set in the file
    /// or on the command line, but not in the environment.
    pub struct SourceSection {
        /// What the server is: `github`, `gitea` or `buildkite`.
        kind: Option<ConfiguredKind> = None, shown as "none; required";
        /// The server's address as used in a browser; of Buildkite the address of its API of agents.
        url: Option<String> = None, shown as "none; required for `gitea`; `https://github.com` for `github`; `https://agent.buildkite.com/v3` for `buildkite`";
        /// The address of the API (`github` only), if it does not follow from `url`.
        api_url: Option<String> = None, shown as "follows from `url`";
        /// The GitHub App's client id, or its number (`github` only).
        app_id: Option<AppId> = None;
        /// Which installation of the App to use for everything (`github` only).
        installation_id: Option<u64> = None, shown as "the one in each repository, organisation or enterprise";
        /// File with the App's private key (PEM) (`github` only).
        private_key_file: Option<PathBuf> = None;
        /// The organisation as in addresses of Buildkite's pages (`buildkite` only).
        organization: Option<String> = None, shown as "none; required for `buildkite`";
        /// Key of the queue whose jobs are taken (`buildkite` only).
        queue: Option<String> = None, shown as "none; required for `buildkite`";
        /// Name under which this host reserves jobs, another one on each host (`buildkite` only): 1 to 80 letters, digits, `_` or `-`.
        stack: Option<String> = None, shown as "none; required for `buildkite`";
        /// File with an access token of a user. At Gitea the user has to be an owner of the repositories or organisations,
        /// or an administrator for the scope `*`; the token needs `write:repository` or `write:organization`. At Buildkite
        /// it is an agent token of the queue's cluster.
        token_file: Option<PathBuf> = None;
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None;
        /// Files with the secrets with which the server signs webhooks. List two while you replace one by the other.
        webhook_secret_files: Vec<PathBuf> = Vec::new(), shown as "none: no webhooks are accepted";
        /// How often the server is polled for jobs whose webhooks were lost, in seconds (15 to 86400). 0: never. Jobs of
        /// `buildkite` come by the poll alone: 1 to 86400, and at least every 15 seconds whatever is set here.
        poll_seconds: u32 = 60;
        /// Directory of the runner program in the guests.
        runner_directory: Option<String> = None, shown as "the usual places";
        /// Oldest runner version that is started.
        runner_minimum_version: Option<String> = None, shown as "`github`: 2.329.0; the others: any";
    }
}

impl SourceSection {
    /// Settings that have no meaning for its kind, each with the kind that has them.
    pub fn misplaced(&self) -> Vec<(&'static str, SourceKind)> {
        let Some(ConfiguredKind(kind)) = self.kind else { return Vec::new() };
        let of_github = [
            ("api_url", self.api_url.is_some()),
            ("app_id", self.app_id.is_some()),
            ("installation_id", self.installation_id.is_some()),
            ("private_key_file", self.private_key_file.is_some()),
        ];
        let of_buildkite = [
            ("organization", self.organization.is_some()),
            ("queue", self.queue.is_some()),
            ("stack", self.stack.is_some()),
        ];
        let of_github = of_github.map(|(key, set)| (key, set, SourceKind::GitHub));
        let of_buildkite = of_buildkite.map(|(key, set)| (key, set, SourceKind::Buildkite));
        let all = of_github.into_iter().chain(of_buildkite);
        all.filter(|(_, set, owner)| *set && *owner != kind).map(|(key, _, owner)| (key, owner)).collect()
    }

    /// The same settings as of `[github]`.
    pub fn github(&self) -> GitHubSection {
        let usual = GitHubSection::default();
        GitHubSection {
            url: self.url.clone().unwrap_or(usual.url),
            api_url: self.api_url.clone(),
            app_id: self.app_id.clone(),
            installation_id: self.installation_id,
            private_key_file: self.private_key_file.clone(),
            token_file: self.token_file.clone(),
            ca_file: self.ca_file.clone(),
            api_version: usual.api_version,
            webhook_secret_files: self.webhook_secret_files.clone(),
            poll_seconds: self.poll_seconds,
            runner_directory: self.runner_directory.clone(),
            runner_minimum_version: self.runner_minimum_version.clone().unwrap_or(usual.runner_minimum_version),
        }
    }

    pub fn gitea_server(&self) -> Result<GiteaServer, String> {
        GiteaServer::new(self.url.as_deref().unwrap_or_default())
    }

    /// An error names the setting first.
    pub fn buildkite_queue(&self) -> Result<BuildkiteQueue, (&'static str, String)> {
        let text = |setting: &Option<String>| setting.clone().unwrap_or_default();
        let (organization, queue, stack) = (text(&self.organization), text(&self.queue), text(&self.stack));
        BuildkiteQueue::new(self.url.as_deref(), &organization, &queue, &stack)
    }

    /// Where runners and their jobs reach the server.
    pub fn destinations(&self) -> Vec<AllowedDestination> {
        match self.kind.map(|kind| kind.0) {
            Some(SourceKind::GitHub) => self.github().server().map(|server| server.destinations()),
            Some(SourceKind::Gitea) => self.gitea_server().map(|server| server.destinations()),
            Some(SourceKind::Buildkite) => return self.buildkite_queue().map(|q| q.destinations()).unwrap_or_default(),
            None => return Vec::new(),
        }
        .unwrap_or_default()
    }

    /// What its webhooks are signed with.
    pub fn webhook_secrets(&self) -> Result<Vec<SecretString>, String> {
        read_secrets(&self.webhook_secret_files)
    }
}
