//! Checks a queue of Buildkite.

use crate::{
    cli::doctor::finding::{Check, Report},
    sources::buildkite::{BuildkiteClient, BuildkiteOptions},
};

const CREDENTIAL: Check =
    Check::new("source.credential", "Agent token", "a file with an agent token, closed to other users");
const STACK: Check = Check::new("source.reachable", "Buildkite", "accepts the token, and registers the stack");
const JOBS: Check = Check::new("source.jobs", "Jobs", "the scheduled jobs of the queue can be listed");
const PAUSE: Check = Check::new("source.paused", "Queue", "is not paused");

pub(super) async fn examine(options: BuildkiteOptions) -> Report {
    let file = options.token_file.display().to_string();
    let client = match BuildkiteClient::new(options) {
        Ok(client) => client,
        Err(error) => {
            let remedy = format!("put the token into the file, and keep it to this user:\n    chmod 600 {file}");
            return Report { findings: vec![CREDENTIAL.fail(error.to_string(), remedy)] };
        }
    };
    let mut findings = vec![CREDENTIAL.ok(format!("in {file}"))];
    if let Err(error) = client.register_stack().await {
        let remedy = "check the token, `url`, the network and its proxy, and `ca_file` for a private authority";
        findings.push(STACK.fail(error.to_string(), remedy));
        return Report { findings };
    }
    let queue = client.queue();
    findings.push(STACK.ok(format!("{}, stack {}", queue.name(), queue.stack())));
    match client.look().await {
        Ok((jobs, paused)) => {
            findings.push(JOBS.ok(format!("{jobs} scheduled in the queue {}", queue.queue())));
            findings.push(match paused {
                true => PAUSE.warn("paused: no jobs are started", "resume the queue on its page at Buildkite"),
                false => PAUSE.ok("not paused"),
            });
        }
        Err(error) => {
            let remedy = "check `queue`: its key is on the page of the cluster, whose agent token must be in the file";
            findings.push(JOBS.fail(error.to_string(), remedy));
        }
    }
    Report { findings }
}
