//! What a job waits for while its vm is on its way, in words for the job's page.

use std::collections::{HashMap, HashSet};

use crate::{
    domain::{QueueReason, State, Vm, job::Job, job_record::JobKey},
    sources::CiServer,
};

/// How many failed requests in a row are repeated with the next poll. After that, each text is sent once.
const REPETITIONS: u32 = 5;

/// What a server was told of the jobs that wait. Each text is told once for each job, because a vm that its host refuses goes
/// back and forth between the same states. It is lost with the process: then each is told once more.
#[derive(Default)]
pub(super) struct WaitNotes {
    told: HashMap<JobKey, HashSet<String>>,
    /// How many requests in a row have failed.
    failures: u32,
}

impl WaitNotes {
    /// Tells the server what is new about the jobs that wait for these vms. Nothing depends on it, so an error is only logged.
    pub async fn tell(&mut self, server: &CiServer, waiting: &[(&Job, &Vm)]) {
        let keys: HashSet<JobKey> = waiting.iter().map(|(job, _)| job.record.key()).collect();
        self.told.retain(|key, _| keys.contains(key));
        let mut new: Vec<(&Job, String)> = Vec::new();
        for (job, vm) in waiting {
            if let Some(text) = waits_for(vm)
                && self.is_new(job.record.key(), &text)
            {
                new.push((job, text));
            }
        }
        if new.is_empty() {
            return;
        }
        let texts: Vec<(&Job, &str)> = new.iter().map(|(job, text)| (*job, text.as_str())).collect();
        match server.tell_waits(&texts).await {
            Ok(()) => self.failures = 0,
            Err(error) => {
                tracing::warn!(job.source = %server.name(), error = %error, "cannot tell the CI server what its jobs wait for");
                self.failed(new.iter().map(|(job, text)| (job.record.key(), text.as_str())));
            }
        }
    }

    /// Whether the text was not told yet. It counts as told from now on.
    fn is_new(&mut self, job: JobKey, text: &str) -> bool {
        self.told.entry(job).or_default().insert(text.to_owned())
    }

    fn failed<'a>(&mut self, texts: impl Iterator<Item = (JobKey, &'a str)>) {
        self.failures = self.failures.saturating_add(1);
        if self.failures > REPETITIONS {
            return;
        }
        for (job, text) in texts {
            self.told.entry(job).or_default().remove(text);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::source_name::SourceName;

    #[test]
    fn a_server_that_never_accepts_a_text_is_not_asked_for_ever() {
        let mut notes = WaitNotes::default();
        let key = || JobKey { source: SourceName::github(), id: 7.into(), attempt: 1 };
        let mut sent = 0;
        for _ in 0..100 {
            for text in ["it starts", "it waits"] {
                if notes.is_new(key(), text) {
                    sent += 1;
                    notes.failed([(key(), text)].into_iter());
                }
            }
        }
        assert_eq!(sent, REPETITIONS + 2);
        // It accepts them again.
        notes.failures = 0;
        assert!(notes.is_new(key(), "it waits for its template"));
        notes.failed([(key(), "it waits for its template")].into_iter());
        assert!(notes.is_new(key(), "it waits for its template"));
    }
}
