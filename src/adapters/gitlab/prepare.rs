//! The stage `prepare`: creates the vm and waits until scripts can run in it. Its output is in the job's log.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    cleanup,
    failure::ExecutorFailure,
    guest_script::{self, ScriptEnd},
    job::GitLabJob,
    job_file::JobFile,
    output,
    service::{ExecutorService, JobVm},
    settings::{ExecutorSettings, JobVmSettings},
};
use crate::{
    domain::{NetworkMode, State, budgets::MAX_BUDGET_SECONDS},
    platform::clock,
};

/// How much longer than its job a vm may live: for the last scripts, after which the runner ends it.
const LIFETIME_AFTER_JOB: u32 = 600;
/// One long poll, in seconds. The position in the queue changes without a change of the vm.
const POLL: u32 = 10;
const LEAST_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(
    job: &GitLabJob,
    file: &JobFile,
    image: &str,
    settings: &ExecutorSettings,
    service: &ExecutorService,
) -> Result<(), ExecutorFailure> {
    let of_image = settings.of_image(image)?;
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| ExecutorFailure::System(format!("cannot listen for signals: {error}")))?;
    tokio::select! {
        done = create_and_wait(job, file, &of_image, settings, service) => done,
        _ = terminate.recv() => {
            // The cleanup that follows does not know of a request that is still on its way.
            cleanup::run(job, service).await?;
            Err(ExecutorFailure::System("the preparation was cancelled; its vm is ended".to_owned()))
        }
        () = service.runner_ended() => Err(cleanup::for_an_ended_runner(job, service).await),
    }
}

async fn create_and_wait(
    job: &GitLabJob,
    file: &JobFile,
    of_image: &JobVmSettings,
    settings: &ExecutorSettings,
    service: &ExecutorService,
) -> Result<(), ExecutorFailure> {
    // Without the stage `config`, each call of this stage is a try of its own.
    let attempt = job.attempt().map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    let begun = clock::monotonic();
    let body = vm_request(job, &attempt, file, of_image, settings.wait_seconds());
    let vm = service.create(&body, &job.idempotency_key(&attempt)).await?;
    output::say(&format!(
        "vm {} ({}) of the template {}",
        vm.name,
        vm.id,
        of_image.template.as_deref().unwrap_or_default()
    ));
    let vm = until_running(vm, service).await?;
    shell_works(&vm, of_image, settings, service).await?;
    output::say(&format!("{}: ready after {} s", vm.name, clock::elapsed(begun).as_secs()));
    Ok(())
}

fn vm_request(job: &GitLabJob, attempt: &str, file: &JobFile, of_image: &JobVmSettings, wait_seconds: u32) -> Value {
    let mut budgets = of_image.budgets.clone();
    if let Some(seconds) = file.timeout() {
        budgets.lifetime_seconds.get_or_insert(seconds.saturating_add(LIFETIME_AFTER_JOB).min(MAX_BUDGET_SECONDS));
    }
    let mut body = Map::new();
    body.insert("template".into(), of_image.template.clone().into());
    body.insert("name".into(), job.vm_name(attempt).into());
    body.insert("runner".into(), json!({ "kind": "none" }));
    body.insert("labels".into(), json!(job.labels(attempt)));
    body.insert("budgets".into(), json!(budgets));
    body.insert("queue_timeout_seconds".into(), wait_seconds.into());
    // Of itself, a vm without a runner reaches nothing, and every job reaches its GitLab.
    body.insert("network".into(), of_image.network.unwrap_or(NetworkMode::Internet).as_str().into());
    for (key, value) in [("cpus", of_image.cpus), ("memory_mib", of_image.memory_mib)] {
        if let Some(value) = value {
            body.insert(key.into(), value.into());
        }
    }
    body.into()
}

async fn until_running(mut vm: JobVm, service: &ExecutorService) -> Result<JobVm, ExecutorFailure> {
    let mut said = String::new();
    loop {
        if vm.life.has_ended() {
            return Err(ExecutorFailure::System(format!(
                "the vm {} ended before the job began ({})",
                vm.name,
                vm.end()
            )));
        }
        if vm.life.is_in(State::Running) {
            return Ok(vm);
        }
        let now = vm.queue.as_ref().map_or_else(|| vm.life.state.clone(), |queue| format!("queued, {}", queue.text()));
        if now != said {
            output::say(&format!("{}: {now}", vm.name));
            said = now;
        }
        let (asked, before) = (clock::monotonic(), vm.generation);
        vm = service.changed(&vm, POLL).await?;
        // A proxy that does not support long polls must not cause requests without a pause.
        if vm.generation == before && clock::elapsed(asked) < LEAST_PAUSE {
            tokio::time::sleep(LEAST_PAUSE).await;
        }
    }
}

/// Logs in to the guest and runs an empty script: what is missing in the template fails here, before the job begins.
async fn shell_works(
    vm: &JobVm,
    of_image: &JobVmSettings,
    settings: &ExecutorSettings,
    service: &ExecutorService,
) -> Result<(), ExecutorFailure> {
    let shell = of_image.shell();
    match guest_script::in_guest(vm, &shell, Bytes::from_static(b"exit 0\n"), service).await? {
        ScriptEnd::Exit(0) => Ok(()),
        ScriptEnd::Exit(code) => Err(ExecutorFailure::System(format!(
            "an empty script ends with exit code {code} in the guest: name a shell of the template as `shell` in {}, which is \
             `{}` now",
            settings.path().display(),
            shell.join(" ")
        ))),
        ScriptEnd::None(why) => Err(ExecutorFailure::System(why)),
    }
}
