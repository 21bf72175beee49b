//! What a job waits for while its vm is on its way, in words for the job's page.

use std::collections::{HashMap, HashSet};

use crate::{
    domain::{QueueReason, State, Vm, job::Job, job_record::JobKey},
    sources::CiServer,
};

/// What a server was told of the jobs that wait. Each text is told once for each job, because a vm that its host refuses goes
/// back and forth between the same states. It is lost with the process: then each is told once more.
#[derive(Default)]
pub(super) struct WaitNotes {
    told: HashMap<JobKey, HashSet<String>>,
    /// Without a success between them.
    failures: u32,
}

/// A text that the server did not accept is told again. After so many failures each is told once, whatever becomes of it.
const REPETITIONS: u32 = 5;

impl WaitNotes {
    /// Tells the server what is new about the jobs that wait for these vms. Nothing depends on it, so an error is only logged.
    pub async fn tell(&mut self, server: &CiServer, waiting: &[(&Job, &Vm)]) {
        let keys: HashSet<JobKey> = waiting.iter().map(|(job, _)| job.record.key()).collect();
        self.told.retain(|key, _| keys.contains(key));
        let mut new: Vec<(&Job, String)> = Vec::new();
        for (job, vm) in waiting {
            if let Some(text) = waits_for(vm)
                && self.told.entry(job.record.key()).or_default().insert(text.clone())
            {
                new.push((job, text));
            }
        }
        if new.is_empty() {
            return;
        }
        let texts: Vec<(&Job, &str)> = new.iter().map(|(job, text)| (*job, text.as_str())).collect();
        let Err(error) = server.tell_waits(&texts).await else {
            self.failures = 0;
            return;
        };
        tracing::warn!(job.source = %server.name(), error = %error, "cannot tell the CI server what its jobs wait for");
        self.failures = self.failures.saturating_add(1);
        if self.failures <= REPETITIONS {
            for (job, text) in &new {
                self.told.entry(job.record.key()).or_default().remove(text);
            }
        }
    }
}

/// `None`: its agent takes the job, or it ends.
fn waits_for(vm: &Vm) -> Option<String> {
    let name = &vm.spec.name;
    Some(match (vm.state, vm.queue.as_ref().map(|queue| queue.reason)) {
        (State::Queued, Some(QueueReason::Template)) => {
            format!("The virtual machine {name} waits for its template, which is downloaded to the host")
        }
        (State::Queued, Some(QueueReason::Host)) => {
            format!("The virtual machine {name} waits: its host cannot run it at the moment")
        }
        (State::Queued, Some(QueueReason::Backoff)) => {
            format!("The virtual machine {name} failed, and is started again after a pause")
        }
        (State::Queued, Some(QueueReason::Slot) | None) => {
            format!("The virtual machine {name} waits for a free slot of its host")
        }
        (State::Cloning | State::Booting | State::Configuring, _) => format!("The virtual machine {name} starts"),
        (State::Running | State::Draining | State::Kept | State::Stopping | State::Deleting | State::Deleted, _) => {
            return None;
        }
    })
}
