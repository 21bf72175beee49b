//! Checks the sources of jobs.

use std::collections::BTreeMap;

use super::given::GivenSettings;
use crate::{
    domain::{SourceKind, SourceName},
    sources::{
        SourceSection,
        github::{GitHubSection, Server},
    },
};

/// The kind of a source by its name. `None`: there is no such source, or it has no kind.
pub(super) fn kind_of(sources: &BTreeMap<String, SourceSection>, name: &SourceName) -> Option<SourceKind> {
    if name.is_github() {
        return Some(SourceKind::GitHub);
    }
    Some(sources.get(name.as_str())?.kind?.0)
}

pub(super) fn check(name: &str, section: &SourceSection, given: &mut GivenSettings) {
    let path = format!("sources.\"{name}\"");
    let key = |name: &str| format!("{path}.{name}");
    match SourceName::new(name) {
        Err(why) => given.refuse(&path, why),
        Ok(name) if name.is_github() => given.refuse(&path, "is the name of the source that `[github]` configures"),
        Ok(_) => {}
    }
    for (misplaced, kind) in section.misplaced() {
        given.refuse(&key(misplaced), format!("has a meaning only with `kind = \"{}\"`", kind.as_str()));
    }
    match section.kind.map(|kind| kind.0) {
        // One that was given and cannot be used was noted already.
        None if given.given(&key("kind")) => {}
        None => given.refuse(&path, "needs `kind`: `github`, `gitea` or `buildkite`"),
        Some(SourceKind::GitHub) => check_github(&path, &section.github(), given),
        Some(SourceKind::Gitea) => check_gitea(&path, section, given),
        Some(SourceKind::Buildkite) => check_buildkite(&path, section, given),
    }
}

fn check_gitea(path: &str, section: &SourceSection, given: &mut GivenSettings) {
    let key = |name: &str| format!("{path}.{name}");
    match &section.url {
        None => given.refuse(path, "needs `url`, the address of Gitea"),
        Some(_) => {
            if let Err(why) = section.gitea_server() {
                given.refuse(&key("url"), why);
            }
        }
    }
    if section.token_file.is_none() {
        given.refuse(path, "needs `token_file`, a file with an access token of a user");
    }
    check_common(
        path,
        CommonSettings {
            poll_seconds: section.poll_seconds,
            secrets: section.webhook_secrets().err(),
            directory: section.runner_directory.as_deref(),
            minimum_version: section.runner_minimum_version.as_deref(),
        },
        given,
    );
}

fn check_buildkite(path: &str, section: &SourceSection, given: &mut GivenSettings) {
    let key = |name: &str| format!("{path}.{name}");
    for (name, set, what) in [
        ("organization", section.organization.is_some(), "the organisation as in addresses of its pages"),
        ("queue", section.queue.is_some(), "the key of the queue whose jobs are taken"),
        ("stack", section.stack.is_some(), "a name for this host's stack, another one on each host"),
        ("token_file", section.token_file.is_some(), "a file with an agent token of the cluster"),
    ] {
        if !set {
            given.refuse(path, format!("needs `{name}`, {what}"));
        }
    }
    let all = section.organization.is_some() && section.queue.is_some() && section.stack.is_some();
    if let (true, Err((setting, why))) = (all, section.buildkite_queue()) {
        given.refuse(&key(setting), why);
    }
    if !section.webhook_secret_files.is_empty() {
        let what = "has no meaning with `kind = \"buildkite\"`: its jobs are listed, and its webhooks are not used";
        given.refuse(&key("webhook_secret_files"), what);
    }
    if !(1..=86_400).contains(&section.poll_seconds) {
        let what =
            format!("expected 1 to 86400: jobs of Buildkite come by the poll alone; found {}", section.poll_seconds);
        given.refuse(&key("poll_seconds"), what);
    }
    check_runner_program(path, section.runner_directory.as_deref(), section.runner_minimum_version.as_deref(), given);
}

pub(super) fn check_github(path: &str, section: &GitHubSection, given: &mut GivenSettings) {
    let key = |name: &str| format!("{path}.{name}");
    if let Err(why) = Server::new(&section.url, None) {
        given.refuse(&key("url"), why);
    } else if let Err(why) = section.server() {
        given.refuse(&key("api_url"), why);
    }
    if section.token_file.is_some() && section.app_id.is_some() {
        given.refuse(&key("token_file"), format!("an App is set, too (`{}`): give one of them", key("app_id")));
    }
    for (name, set) in [
        ("private_key_file", section.private_key_file.is_some()),
        ("installation_id", section.installation_id.is_some()),
    ] {
        if set && section.app_id.is_none() {
            given.refuse(&key(name), format!("needs `{}` beside it", key("app_id")));
        }
    }
    let version = &section.api_version;
    if version.is_empty() || !version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        given.refuse(&key("api_version"), "expected a version of the API such as 2022-11-28");
    }
    check_common(
        path,
        CommonSettings {
            poll_seconds: section.poll_seconds,
            secrets: section.webhook_secrets(|_| None).err(),
            directory: section.runner_directory.as_deref(),
            minimum_version: Some(&section.runner_minimum_version),
        },
        given,
    );
}

/// What sources of all kinds have.
struct CommonSettings<'a> {
    poll_seconds: u32,
    /// What is wrong with the secrets of the webhook.
    secrets: Option<String>,
    directory: Option<&'a str>,
    minimum_version: Option<&'a str>,
}

fn check_common(path: &str, common: CommonSettings<'_>, given: &mut GivenSettings) {
    let key = |name: &str| format!("{path}.{name}");
    if !matches!(common.poll_seconds, 0 | 15..=86_400) {
        let what = format!("expected 0 (never) or 15 to 86400, found {}", common.poll_seconds);
        given.refuse(&key("poll_seconds"), what);
    }
    if let Some(why) = common.secrets {
        given.refuse(&key("webhook_secret_files"), why);
    }
    check_runner_program(path, common.directory, common.minimum_version, given);
}

fn check_runner_program(path: &str, directory: Option<&str>, minimum_version: Option<&str>, given: &mut GivenSettings) {
    let key = |name: &str| format!("{path}.{name}");
    if minimum_version.is_some_and(|version| !is_version(version)) {
        given.refuse(&key("runner_minimum_version"), "expected a version such as 2.329.0");
    }
    if directory.is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0')) {
        given.refuse(&key("runner_directory"), "expected an absolute path in the guest");
    }
}

pub(super) fn is_version(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(|n| !n.is_empty() && n.len() <= 9 && n.bytes().all(|b| b.is_ascii_digit()))
}
