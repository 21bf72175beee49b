//! The section `[github]`, and the section of one runner archive.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{API_VERSION, CredentialLocation, GitHubOptions, Server, runner_archives::RunnerArchive};
use crate::platform::{
    files::read_secrets,
    settings::{SettingType, section},
};

/// Secrets of the webhook, where files are no way.
const WEBHOOK_VARIABLE: &str = "MAYFLY_GITHUB_WEBHOOK_SECRET";

/// A GitHub App's client id, or its number: both are shown on its page, and both are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "IdOrNumber")]
pub struct AppId(pub String);

#[derive(Deserialize)]
#[serde(untagged)]
enum IdOrNumber {
    Id(String),
    Number(u64),
}

impl TryFrom<IdOrNumber> for AppId {
    type Error = &'static str;

    fn try_from(given: IdOrNumber) -> Result<Self, Self::Error> {
        let text = match given {
            IdOrNumber::Id(text) => text.trim().to_owned(),
            IdOrNumber::Number(0) => String::new(),
            IdOrNumber::Number(number) => number.to_string(),
        };
        let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if text.is_empty() || text.len() > 100 || !fits {
            return Err("no client id and no number");
        }
        Ok(AppId(text))
    }
}

impl SettingType for AppId {
    const KIND: &'static str = "client id or number";
}

section! {
    /// Access to GitHub, as an App or with a personal access token. Secrets are in separate files or in the
    /// environment: `MAYFLY_GITHUB_PRIVATE_KEY`, `MAYFLY_GITHUB_TOKEN`. `mayfly github check` tests these settings.
    pub struct GitHubSection {
        /// GitHub's address as used in a browser: `https://github.com`, `https://<name>.ghe.com`, or an Enterprise
        /// Server's address.
        url: String = "https://github.com".to_owned();
        /// The address of GitHub's API, if it does not follow from `url`.
        api_url: Option<String> = None, shown as "follows from `url`";
        /// The App's client id, or its number.
        app_id: Option<AppId> = None;
        /// Which installation of the App to use for everything.
        installation_id: Option<u64> = None, shown as "the one in each repository, organisation or enterprise";
        /// File with the App's private key (PEM), readable by the service's user only.
        private_key_file: Option<PathBuf> = None, shown as "none; `MAYFLY_GITHUB_PRIVATE_KEY` holds the key itself";
        /// File with a personal access token, if there is no App; readable by the service's user only.
        token_file: Option<PathBuf> = None, shown as "none; `MAYFLY_GITHUB_TOKEN` holds the token itself";
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None;
        /// Version of GitHub's API to use.
        api_version: String = API_VERSION.to_owned();
        /// Files with the secrets with which GitHub signs webhooks, each readable by the service's user only. List two
        /// while you replace one by the other.
        webhook_secret_files: Vec<PathBuf> = Vec::new(),
            shown as "none; `MAYFLY_GITHUB_WEBHOOK_SECRET` holds secrets, separated by commas";
        /// How often GitHub is polled for jobs whose webhooks were lost, in seconds (15 to 86400). 0: never.
        poll_seconds: u32 = 60;
        /// Directory of GitHub's runner in the guests.
        runner_directory: Option<String> = None, shown as "`~/actions-runner` and the usual places";
        /// Oldest runner version that is started: GitHub refuses older ones.
        runner_minimum_version: String = "2.329.0".to_owned();
    }
}

section! {
    /// GitHub's runner for guests that have none, or one that is too old. This host downloads it once, verifies it, and
    /// serves it to its guests. By platform: `[runners."osx-arm64"]`, `osx-x64`, `linux-arm64`, `linux-x64`. These
    /// tables can be set in the file or on the command line, but not in the environment.
    pub struct RunnerArchiveSection {
        /// Address of the archive (`actions-runner-<platform>-<version>.tar.gz`).
        url: Option<String> = None;
        /// Its SHA-256, in 64 hexadecimal digits.
        sha256: Option<String> = None;
        /// Its version, such as 2.336.0.
        version: Option<String> = None;
    }
}

impl GitHubSection {
    pub fn server(&self) -> Result<Server, String> {
        Server::new(&self.url, self.api_url.as_deref())
    }

    /// How this GitHub is spoken to.
    pub fn options(&self) -> Result<GitHubOptions, String> {
        let mut options = GitHubOptions::new(self.server()?);
        options.ca_file = self.ca_file.clone();
        options.api_version = self.api_version.clone();
        Ok(options)
    }

    /// What webhooks are signed with: of the files, else of the environment.
    pub fn webhook_secrets(&self, env: impl Fn(&str) -> Option<String>) -> Result<Vec<SecretString>, String> {
        let mut secrets = read_secrets(&self.webhook_secret_files)?;
        if secrets.is_empty()
            && let Some(given) = env(WEBHOOK_VARIABLE)
        {
            let words = given.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty());
            secrets.extend(words.map(SecretString::from));
        }
        Ok(secrets)
    }

    /// The credentials; `None` if none are configured.
    pub fn source(&self, env: impl Fn(&str) -> Option<String>) -> Result<Option<CredentialLocation>, String> {
        let app_id = self.app_id.as_ref().map(|id| id.0.as_str());
        CredentialLocation::choose(
            app_id,
            self.installation_id,
            self.private_key_file.clone(),
            self.token_file.clone(),
            env,
        )
    }
}

impl RunnerArchiveSection {
    /// `None`: something is missing, or the address cannot be read.
    pub fn archive(&self) -> Option<RunnerArchive> {
        Some(RunnerArchive {
            url: self.url.as_deref()?.parse().ok()?,
            sha256: self.sha256.as_deref()?.to_ascii_lowercase(),
            version: self.version.clone()?,
        })
    }
}
