//! `mayfly vm show`

use super::{
    super::{
        client::ApiClient,
        exit,
        failure::CommandFailure,
        output::{self, Colour, paint},
        responses::{SourceRunnerResponse, VmResponse},
        text,
    },
    resolve,
};
use crate::{domain::RemoteId, platform::clock};

pub(super) async fn run(vm: &str, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(vm, client).await?;
    let value = client.get(&["vms", &id], &[]).await?;
    if json {
        output::json(&value)?;
        return Ok(exit::OK);
    }
    let vm: VmResponse = client.view(&value)?;
    let mut pairs = vec![("name", vm.name.clone()), ("id", vm.id.clone()), ("state", vm.state_text())];
    if let Some(queue) = &vm.queue {
        pairs.push(("queue", queue.text()));
        if let Some(deadline) = queue.deadline {
            pairs.push(("queue until", text::time(deadline)));
        }
    }
    pairs.push(("template", vm.template.clone()));
    if let Some(digest) = &vm.template_digest {
        pairs.push(("digest", digest.clone()));
    }
    if let (Some(cpus), Some(memory_mib)) = (vm.cpus, vm.memory_mib) {
        pairs.push(("size", format!("{cpus} cores, {memory_mib} MiB")));
    }
    if let (Some(driver), Some(os)) = (&vm.driver, &vm.os) {
        pairs.push(("driver", format!("{driver} ({os})")));
    }
    if let Some(network) = &vm.network {
        pairs.push(("network", network.clone()));
    }
    if let Some(runner) = &vm.runner {
        pairs.push(("runner", format!("{}, {}", runner.kind, runner.status)));
        if runner.separate_users == Some(false) {
            pairs
                .push(("", "the job has the user of its wrapper, so it could report a result in its place".to_owned()));
        }
        if let Some(registered) = runner.github.as_ref().or(runner.gitea.as_ref()).or(runner.buildkite.as_ref()) {
            registration(registered, &mut pairs);
        }
    }
    if let Some(ready) = &vm.ready {
        pairs.push(("ready", ready.text()));
    }
    if let Some(pool) = &vm.pool {
        pairs.push(("pool", pool.clone()));
    }
    if let Some(token) = &vm.created_by {
        pairs.push(("created with", format!("the token {token}")));
    }
    for job in &vm.jobs {
        let of = job.workflow.as_ref().map(|workflow| format!("{workflow} / ")).unwrap_or_default();
        pairs.push(("job", format!("{of}{}: {}", job.name, job.stands())));
        pairs.push(("", format!("{}, run {} attempt {}, job {}", job.repository, job.run_id, job.run_attempt, job.id)));
        pairs.extend(job.url.clone().map(|url| ("", url)));
    }
    if let Some(ssh) = vm.ssh.as_ref().filter(|_| !vm.is_deleted()) {
        pairs.push(("ssh", format!("{} (`mayfly vm ssh {}`)", ssh.text(), vm.name)));
    }
    if !vm.labels.is_empty() {
        let labels: Vec<String> = vm.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.push(("labels", labels.join(", ")));
    }
    if vm.attempt > 1 {
        pairs.push(("attempt", vm.attempt.to_string()));
    }
    pairs.push(("created", format!("{} ({} ago)", text::time(vm.created_at), text::age(vm.created_at))));
    if let Some(deadline) = &vm.deadline {
        pairs.push(("deadline", format!("{} ({})", text::time(deadline.at), deadline.budget)));
    }
    if let Some(since) = vm.paused_since {
        let since = format!("since {} ({} ago)", text::time(since), text::age(since));
        pairs.push(("server away", format!("{since}: budgets that wait for the CI server stand still")));
    }
    if let Some(by) = &vm.announced_by {
        let at = vm.announced_at.map(|at| format!(" at {}", text::time(at))).unwrap_or_default();
        pairs.push(("announced by", format!("{by}{at}")));
    }
    if let Some(signal) = &vm.end_signal {
        pairs.push(("end signal", signal.clone()));
    }
    if let Some(code) = vm.job_exit_code() {
        let differ = vm.job.as_ref().is_some_and(|job| job.results_differ);
        let by = vm.job.as_ref().and_then(|job| job.reported_by.as_deref()).map(reporter).unwrap_or_default();
        let note = if differ { " (the guest reported different ones; this is the last)" } else { "" };
        pairs.push(("job", format!("exit code {code}{by}{note}")));
    }
    pairs.extend(vm.whole_ending().map(|ending| ("outcome", ending)));
    if let Some(fault) = &vm.last_fault {
        pairs.push(("last fault", format!("{}: {}", fault.code, fault.detail)));
        if let Some(at) = fault.at {
            pairs.push(("", text::time(at)));
        }
    }
    output::bytes(text::folded(&pairs, output::width()).as_bytes())?;
    output::line("")?;
    for (n, entry) in vm.timeline.iter().enumerate() {
        let took = match vm.timeline.get(n + 1) {
            Some(next) => text::duration(next.at.duration_since(entry.at)),
            None if vm.is_deleted() => String::new(),
            None => paint(&format!("{} so far", text::duration(clock::now().duration_since(entry.at))), Colour::Dim),
        };
        output::line(format!("{}  {:<11}  {took}", text::time(entry.at), entry.state).trim_end())?;
    }
    Ok(exit::OK)
}

/// Who said how the job ended.
fn reporter(by: &str) -> String {
    match by {
        "job" => ", reported by the job itself".to_owned(),
        other => format!(", reported by the {other}"),
    }
}

fn registration(runner: &SourceRunnerResponse, pairs: &mut Vec<(&str, String)>) {
    let by = match runner.registration.as_str() {
        "jit_config" => ", with a just-in-time configuration of the caller's",
        "token" => ", with a registration token of the caller's",
        _ => "",
    };
    let source = match runner.source.as_str() {
        "" | "github" => String::new(),
        source => format!(" of the source {source}"),
    };
    pairs.push(("registers at", format!("{}{source}{by}", runner.scope)));
    pairs.push(("runner labels", runner.labels.join(", ")));
    pairs.extend(runner.group.clone().map(|group| ("runner group", group)));
    let kind = |id: &RemoteId| if id.number().is_some() { "number" } else { "job" };
    let number = runner.id.as_ref().map(|id| format!(" ({} {id})", kind(id))).unwrap_or_default();
    pairs.extend(runner.name.as_ref().map(|name| ("runner name", format!("{name}{number}"))));
}
