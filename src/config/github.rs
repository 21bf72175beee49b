//! `[github]` as the client takes it.

use super::{
    Config, GitHub,
    source::{Found, named},
};
use std::collections::BTreeMap;

use crate::runners::{
    github::{Options, Server, Source},
    program::{Archive, at_least},
};

impl GitHub {
    pub(super) fn check(&self, found: &mut Found) {
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
        let version = &self.api_version;
        if version.is_empty() || !version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            found.refuse("github.api_version", "expected a version of the API such as 2022-11-28");
        }
    }

    fn server(&self) -> Result<Server, String> {
        Server::new(&self.url, self.api_url.as_deref())
    }

    /// How this GitHub is spoken to.
    pub fn options(&self) -> Result<Options, String> {
        let mut options = Options::new(self.server()?);
        options.ca_file = self.ca_file.clone();
        options.api_version = self.api_version.clone();
        Ok(options)
    }

    /// Who we are to it; `None` when nobody said.
    pub fn source(&self, env: impl Fn(&str) -> Option<String>) -> Result<Option<Source>, String> {
        let app_id = self.app_id.as_ref().map(|id| id.0.as_str());
        Source::choose(app_id, self.installation_id, self.private_key_file.clone(), self.token_file.clone(), env)
    }
}

impl Config {
    pub(super) fn check_runners(&self, found: &mut Found) {
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
    pub fn runner_archives(&self) -> BTreeMap<String, Archive> {
        let archive = |set: &super::RunnerArchive| {
            Some(Archive {
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
