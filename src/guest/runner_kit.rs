//! The part of a bundle that belongs to the runner of a CI system: the payload that starts it, its settings, and the
//! secret with which it registers.

use secrecy::SecretString;

use crate::domain::source_runner::Registration;

/// A runner whose payload is ours.
pub enum RunnerKit {
    GitHub(GitHubKit),
    Gitea(GiteaKit),
    Buildkite(BuildkiteKit),
}

/// Settings of GitHub's runner.
pub struct GitHubKit {
    /// URL of the page of its scope: `https://github.com/acme/app`.
    pub url: String,
    pub name: String,
    pub labels: Vec<String>,
    pub group: Option<String>,
    pub registration: Registration,
    /// `None`: the guest fetches it over the guest API, because a seed stays in the guest, where the job can read it.
    pub secret: Option<SecretString>,
    pub program: RunnerProgram,
}

/// Settings of Gitea's runner. Server, name and labels are in the registration.
pub struct GiteaKit {
    /// The directory of the program in the guest; `None`: in the usual directories.
    pub directory: Option<String>,
    /// `None`: the first version that ends after one job.
    pub minimum_version: Option<String>,
    /// The content of the runner's file `.runner`, on one line. `None`: the guest fetches it, as with GitHub.
    pub secret: Option<SecretString>,
}

/// Settings of Buildkite's agent.
pub struct BuildkiteKit {
    /// The address of the API of agents.
    pub endpoint: String,
    pub name: String,
    /// `key=value`.
    pub tags: Vec<String>,
    /// The directory of the program in the guest; `None`: in the usual directories.
    pub directory: Option<String>,
    /// `None`: any.
    pub minimum_version: Option<String>,
    /// The id of the job, a space, and the token with which an agent can take it. `None`: the guest fetches it.
    pub secret: Option<SecretString>,
}

/// Where the guest finds the runner program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunnerProgram {
    /// `None`: in the usual directories.
    pub directory: Option<String>,
    pub minimum_version: String,
    /// The runner that the guest API offers if the guest has no usable one.
    pub archive: Option<KitRunnerArchive>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitRunnerArchive {
    pub version: String,
    /// 64 hexadecimal digits.
    pub sha256: String,
}

impl RunnerKit {
    /// The script that starts the runner.
    pub(super) fn payload(&self) -> &'static str {
        match self {
            RunnerKit::GitHub(_) => include_str!("../../hooks/github-runner.sh"),
            RunnerKit::Gitea(_) => include_str!("../../hooks/gitea-runner.sh"),
            RunnerKit::Buildkite(_) => include_str!("../../hooks/buildkite-agent.sh"),
        }
    }

    /// The name of the settings file that the payload reads.
    pub(super) fn settings_file(&self) -> &'static str {
        match self {
            RunnerKit::GitHub(_) => "github.env",
            RunnerKit::Gitea(_) => "gitea.env",
            RunnerKit::Buildkite(_) => "buildkite.env",
        }
    }

    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            RunnerKit::GitHub(github) => github.settings(),
            RunnerKit::Gitea(gitea) => gitea.settings(),
            RunnerKit::Buildkite(buildkite) => buildkite.settings(),
        }
    }

    pub(super) fn secret(&self) -> Option<&SecretString> {
        match self {
            RunnerKit::GitHub(github) => github.secret.as_ref(),
            RunnerKit::Gitea(gitea) => gitea.secret.as_ref(),
            RunnerKit::Buildkite(buildkite) => buildkite.secret.as_ref(),
        }
    }

    /// Leaves the secret out of the bundle, so that the guest fetches it over the guest API.
    pub fn without_secret(mut self) -> RunnerKit {
        match &mut self {
            RunnerKit::GitHub(github) => github.secret = None,
            RunnerKit::Gitea(gitea) => gitea.secret = None,
            RunnerKit::Buildkite(buildkite) => buildkite.secret = None,
        }
        self
    }
}

impl GitHubKit {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let registration = match self.registration {
            Registration::Managed | Registration::JitConfig => "jit_config",
            Registration::Token => "token",
        };
        let program = &self.program;
        let archive = program.archive.as_ref();
        vec![
            ("MAYFLY_GITHUB_URL", self.url.clone()),
            ("MAYFLY_GITHUB_NAME", self.name.clone()),
            ("MAYFLY_GITHUB_LABELS", self.labels.join(",")),
            ("MAYFLY_GITHUB_GROUP", self.group.clone().unwrap_or_default()),
            ("MAYFLY_GITHUB_REGISTRATION", registration.to_owned()),
            ("MAYFLY_RUNNER_DIRECTORY", program.directory.clone().unwrap_or_default()),
            ("MAYFLY_RUNNER_MINIMUM", program.minimum_version.clone()),
            ("MAYFLY_RUNNER_VERSION", archive.map(|a| a.version.clone()).unwrap_or_default()),
            ("MAYFLY_RUNNER_SHA256", archive.map(|a| a.sha256.clone()).unwrap_or_default()),
        ]
    }
}

impl GiteaKit {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("MAYFLY_RUNNER_DIRECTORY", self.directory.clone().unwrap_or_default()),
            ("MAYFLY_RUNNER_MINIMUM", self.minimum_version.clone().unwrap_or_default()),
        ]
    }
}

impl BuildkiteKit {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("MAYFLY_BUILDKITE_ENDPOINT", self.endpoint.clone()),
            ("MAYFLY_BUILDKITE_NAME", self.name.clone()),
            ("MAYFLY_BUILDKITE_TAGS", self.tags.join(",")),
            ("MAYFLY_RUNNER_DIRECTORY", self.directory.clone().unwrap_or_default()),
            ("MAYFLY_RUNNER_MINIMUM", self.minimum_version.clone().unwrap_or_default()),
        ]
    }
}
