//! Checks a Gitea.

use crate::{
    cli::doctor::finding::{Check, Report},
    domain::Scope,
    sources::{
        SourceSection,
        gitea::{GiteaClient, GiteaOptions},
    },
};

const CREDENTIAL: Check =
    Check::new("source.credential", "Access token", "a file with an access token, closed to other users");
const REACHABLE: Check = Check::new("source.reachable", "Gitea", "answers as Gitea 1.25 or newer");
const JOBS: Check = Check::new("source.jobs", "Jobs", "the queued jobs can be listed");
const RUNNERS: Check = Check::new("source.runners", "Runners", "the runners can be listed");
const REGISTERING: Check = Check::new("source.registration", "Registration", "runners can be registered");
const WEBHOOK: Check = Check::new("source.webhook", "Webhook", "a secret is configured");

pub(super) async fn examine(options: GiteaOptions, section: &SourceSection, scope: Option<&Scope>) -> Report {
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
