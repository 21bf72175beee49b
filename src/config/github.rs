//! `[github]` as the client takes it.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Config, GitHub,
    source::{GivenSettings, named},
};
use crate::{
    platform::files::read_secret,
    sources::github::{
        CredentialLocation, GitHubOptions, Server,
        runner_archives::{RunnerArchive, at_least},
    },
};

/// Secrets of the webhook, where files are no way.
const WEBHOOK_VARIABLE: &str = "MAYFLY_GITHUB_WEBHOOK_SECRET";

impl GitHub {
    pub(super) fn check(&self, found: &mut GivenSettings) {
        if let Err(why) = Server::new(&self.url, None) {
            found.refuse("github.url", why);
        } else if let Err(why) = self.server() {
            found.refuse("github.api_url", why);
        }
        if self.token_file.is_some() && self.app_id.is_some() {
            found.refuse("github.token_file", "an App is set, too (`github.app_id`): give one of them");
        }
        for (key, set) in [
            ("github.private_key_file", self.private_key_file.is_some()),
            ("github.installation_id", self.installation_id.is_some()),
        ] {
            if set && self.app_id.is_none() {
                found.refuse(key, "needs `github.app_id` beside it");
            }
        }
        if (1..15).contains(&self.poll_seconds) || self.poll_seconds > 86_400 {
            found.refuse(
                "github.poll_seconds",
                format!("expected 0 (never) or 15 to 86400, found {}", self.poll_seconds),
            );
        }
        if let Err(why) = self.webhook_secrets(|_| None) {
            found.refuse("github.webhook_secret_files", why);
        }
        let version = &self.api_version;
        if version.is_empty() || !version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            found.refuse("github.api_version", "expected a version of the API such as 2022-11-28");
        }
    }

    fn server(&self) -> Result<Server, String> {
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
        let mut secrets = Vec::new();
        for file in &self.webhook_secret_files {
            let text = read_secret(file)?;
            let secret = text.expose_secret().trim();
            if secret.is_empty() {
                return Err(format!("{} holds no secret", file.display()));
            }
            secrets.push(SecretString::from(secret));
        }
        if secrets.is_empty()
            && let Some(given) = env(WEBHOOK_VARIABLE)
        {
            let words = given.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty());
            secrets.extend(words.map(SecretString::from));
        }
        Ok(secrets)
    }

    /// Who we are to it; `None` when nobody said.
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

impl Config {
    pub(super) fn check_runners(&self, found: &mut GivenSettings) {
        let minimum = &self.github.runner_minimum_version;
        if !is_version(minimum) {
            found.refuse("github.runner_minimum_version", "expected a version such as 2.329.0");
        }
        if self.github.runner_directory.as_ref().is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0')) {
            found.refuse("github.runner_directory", "expected an absolute path in the guest");
        }
        for (platform, set) in &self.runners {
            let key = |field: &str| format!("{}.{field}", named::path("runners", platform));
            let (Some(url), Some(sha256), Some(version)) = (&set.url, &set.sha256, &set.version) else {
                found.refuse_table(&named::path("runners", platform), "needs `url`, `sha256` and `version`");
                continue;
            };
            if !url.parse::<reqwest::Url>().is_ok_and(|url| matches!(url.scheme(), "https" | "http")) {
                found.refuse(&key("url"), "expected an address that begins with https://");
            }
            if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                found.refuse(&key("sha256"), "expected 64 hexadecimal digits");
            }
            if !is_version(version) {
                found.refuse(&key("version"), "expected a version such as 2.336.0");
            } else if !at_least(version, minimum) {
                found.refuse(&key("version"), format!("is older than `github.runner_minimum_version` ({minimum})"));
            }
        }
    }

    /// The runner programs that guests may be handed, by platform.
    pub fn runner_archives(&self) -> BTreeMap<String, RunnerArchive> {
        let archive = |set: &super::RunnerArchive| {
            Some(RunnerArchive {
                url: set.url.as_deref()?.parse().ok()?,
                sha256: set.sha256.as_deref()?.to_ascii_lowercase(),
                version: set.version.clone()?,
            })
        };
        self.runners.iter().filter_map(|(platform, set)| Some((platform.clone(), archive(set)?))).collect()
    }
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(|n| !n.is_empty() && n.len() <= 9 && n.bytes().all(|b| b.is_ascii_digit()))
}
