//! What a job waits for while its vm is on its way, in words for the job's page.

use std::collections::HashMap;

use crate::{
    domain::{QueueReason, State, Vm, job::Job, job_record::JobKey},
    sources::CiServer,
};

/// What a server was told last, by job. It is lost with the process: then each is told once more.
#[derive(Default)]
pub(super) struct WaitNotes {
    told: HashMap<JobKey, String>,
}

impl WaitNotes {
    /// Tells the server what has changed for the jobs that wait for these vms. Nothing depends on it, so an error is only
    /// logged, and the next poll tells it again.
    pub async fn tell(&mut self, server: &CiServer, waiting: &[(&Job, &Vm)]) {
        let words = waiting.iter().filter_map(|(job, vm)| Some((*job, waits_for(vm)?)));
        let now: HashMap<JobKey, (&Job, String)> = words.map(|(job, text)| (job.record.key(), (job, text))).collect();
        self.told.retain(|key, _| now.contains_key(key));
        let changed: Vec<(&Job, &str)> = now
            .iter()
            .filter(|(key, (_, text))| self.told.get(*key) != Some(text))
            .map(|(_, (job, text))| (*job, text.as_str()))
            .collect();
        if changed.is_empty() {
            return;
        }
        match server.tell_waits(&changed).await {
            Ok(()) => self.told = now.into_iter().map(|(key, (_, text))| (key, text)).collect(),
            Err(error) => {
                tracing::warn!(job.source = %server.name(), error = %error, "cannot tell the CI server what its jobs wait for");
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
