//! The stage `cleanup`: ends the vms of the job. GitLab Runner calls it after each failed try of the preparation and at the end.

use std::time::Duration;

use super::{
    failure::ExecutorFailure,
    job::GitLabJob,
    service::{ExecutorService, JobVm},
};
use crate::platform::clock;

/// How long a creation whose process was killed may still be on its way to the service.
const IN_FLIGHT: Duration = Duration::from_secs(2);
/// How long the vm of a runner that has ended is looked for while the service is away.
const TAKING_BACK: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(500);

/// There may be no vm: the stage is repeated, and comes also if the preparation failed before it made one.
pub(super) async fn run(job: &GitLabJob, service: &ExecutorService) -> Result<(), ExecutorFailure> {
    let mut answered = None;
    loop {
        let vms = service.vms(job, false).await?;
        for vm in &vms {
            service.delete(vm).await?;
        }
        // A vm or the record of one shows that the creation has arrived.
        let arrived = |vms: &[JobVm]| vms.iter().any(|vm| vm.is_of(job));
        if arrived(&vms) || arrived(&service.vms(job, true).await?) {
            return Ok(());
        }
        if clock::elapsed(*answered.get_or_insert_with(clock::monotonic)) > IN_FLIGHT {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// In place of a runner that has ended, which calls no cleanup.
pub(super) async fn for_an_ended_runner(job: &GitLabJob, service: &ExecutorService) -> ExecutorFailure {
    let ended = run(job, &service.with_timeout(TAKING_BACK)).await;
    let why = "the runner that started this job has ended".to_owned();
    match ended {
        Ok(()) => ExecutorFailure::System(format!("{why}; so has the job's vm")),
        Err(ExecutorFailure::System(text)) => {
            ExecutorFailure::System(format!("{why}, and the job's vm goes on: {text}"))
        }
        Err(other) => other,
    }
}
