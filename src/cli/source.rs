//! `mayfly source …`: needs the configuration but no service. It asks the CI server and changes nothing there, except that a
//! Gitea makes the registration token of the scope, if there is none.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    doctor::finding::{Check, Report},
    failure::CommandFailure,
    github::{self, check::examine},
    vm::parse_scope,
};
use crate::{
    domain::{Scope, SourceKind},
    sources::{
        SourceSection,
        gitea::{GiteaClient, GiteaOptions},
    },
};

#[derive(Subcommand)]
pub(super) enum SourceCommand {
    Check(SourceCheckArgs),
}

/// Check whether a source of jobs can be used with the configured credentials, and show what is missing
///
/// Tests the section `[sources.<name>]` of the configuration: whether the credentials are safe and accepted, whether jobs are
/// visible, and whether runners may be registered. Needs neither a running service nor a Mayfly token. Run it as the user
/// that the service runs as, and with the same --data-dir. `mayfly github check` does the same for `[github]`.
///
/// Exit code 0: nothing failed (there may be warnings). 1: something failed. 2: the configuration is not usable. 7:
/// no check failed, but at least one was not possible.
#[derive(Args)]
pub(super) struct SourceCheckArgs {
    /// Name of the source in the configuration
    name: String,
    /// Where runners will be registered: owner/name, an organisation, enterprises/slug (GitHub), or * for the whole server (Gitea)
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope)]
    scope: Option<Scope>,
}

const CREDENTIAL: Check =
    Check::new("source.credential", "Access token", "a file with an access token, closed to other users");
const REACHABLE: Check = Check::new("source.reachable", "Gitea", "answers as Gitea 1.25 or newer");
const JOBS: Check = Check::new("source.jobs", "Jobs", "the queued jobs can be listed");
const RUNNERS: Check = Check::new("source.runners", "Runners", "the runners can be listed");
const REGISTERING: Check = Check::new("source.registration", "Registration", "runners can be registered");
const WEBHOOK: Check = Check::new("source.webhook", "Webhook", "a secret is configured");

pub(super) fn run(command: SourceCommand, data_dir: Option<PathBuf>, json: bool) -> Result<u8, CommandFailure> {
    let SourceCommand::Check(SourceCheckArgs { name, scope }) = command;
    let usage = |why: String| CommandFailure::Usage(format!("configuration: {why}"));
    let config = github::configuration(data_dir).map_err(usage)?;
    let Some(section) = config.sources.get(&name) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let known =
            if known.is_empty() { "there are none".to_owned() } else { format!("there are: {}", known.join(", ")) };
        return Err(usage(format!("no source has the name {name}; {known}. `mayfly github check` checks `[github]`")));
    };
    let (report, server) = match section.kind.map(|kind| kind.0) {
        Some(SourceKind::GitHub) => {
            let section = section.github();
            let options = section.options().map_err(usage)?;
            let server = options.server.name();
            (github::block_on(examine(options, section.source(|_| None), scope.as_ref()))?, server)
        }
        Some(SourceKind::Gitea) | None => {
            let server = section.gitea_server().map_err(usage)?;
            let token_file = section.token_file.clone().unwrap_or_default();
            let options =
                GiteaOptions { ca_file: section.ca_file.clone(), ..GiteaOptions::new(server.clone(), token_file) };
            (github::block_on(examine_gitea(options, section, scope.as_ref()))?, server.name())
        }
    };
    github::print(&report, &server, scope.as_ref(), json)
}

async fn examine_gitea(options: GiteaOptions, section: &SourceSection, scope: Option<&Scope>) -> Report {
    let file = options.token_file.display().to_string();
    let client = match GiteaClient::new(options) {
        Ok(client) => client,
        Err(error) => {
            let remedy = format!("put the token into the file, and keep it to this user:\n    chmod 600 {file}");
            return Report { findings: vec![CREDENTIAL.fail(error.to_string(), remedy)] };
        }
    };
    let mut findings = vec![CREDENTIAL.ok(format!("in {file}"))];
    let version = match client.version().await {
        Ok(version) => version,
        Err(error) => {
            let remedy = "check `url`, the network and its proxy, and `ca_file` for a private authority; if the token is refused, make a new one";
            findings.push(REACHABLE.fail(error.to_string(), remedy));
            return Report { findings };
        }
    };
    findings.push(match version.lists_jobs() {
        true => REACHABLE.ok(format!("{}, version {}", client.server().name(), version.as_str())),
        false => {
            REACHABLE.fail(format!("version {} cannot list jobs", version.as_str()), "update Gitea to 1.25 or newer")
        }
    });
    match scope {
        None => findings.push(JOBS.could_not_look("name with --scope where runners will be registered")),
        Some(scope) => {
            let owner = "the token needs `read:repository` (or `read:organization`), and its user must see the scope";
            findings.push(match client.queued_jobs(scope).await {
                Ok(jobs) => JOBS.ok(format!("{} queued in {scope}", jobs.len())),
                Err(error) => JOBS.fail(error.to_string(), owner),
            });
            findings.push(match client.visible(scope).await {
                Ok(()) => RUNNERS.ok(format!("of {scope}")),
                Err(error) => RUNNERS.fail(error.to_string(), "the token's user must be an owner"),
            });
            let remedy =
                "the token's user must be an owner, and the token needs `write:repository` or `write:organization`";
            findings.push(match client.may_register(scope).await {
                Ok(()) => REGISTERING.ok(format!("in {scope}")),
                Err(error) => REGISTERING.fail(error.to_string(), remedy),
            });
        }
    }
    findings.push(match section.webhook_secret_files.len() {
        0 => WEBHOOK
            .warn("none: jobs are found by the poll alone", "set `webhook_secret_files`, and add the webhook in Gitea"),
        _ => WEBHOOK.ok("configured"),
    });
    Report { findings }
}
