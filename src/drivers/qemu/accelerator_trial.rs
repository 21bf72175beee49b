//! Trials of accelerators: the first guests under an accelerator.
//!
//! A probe does less than a guest does. So until one guest was reached under an accelerator, all guests under it are
//! a trial: if the hypervisor stops one of them with an error, or one is silent for too long, the accelerator is
//! disabled, and guests are emulated from then on. Both results are stored beside the probe's, and are valid while their inputs are
//! unchanged: the host's boot and kernel, QEMU, the device. A file in the guest's directory marks a trial, because
//! the service may have been restarted when the guest fails.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{args::Accelerator, paths::QemuPaths, probe::ProbeInputs};
use crate::platform::{
    clock,
    files::{self, ignore_not_found},
};

/// The stored result of an accelerator's trial, in the file beside the probe's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experience {
    pub basis: ProbeInputs,
    pub accelerator: Accelerator,
    pub at: Timestamp,
    #[serde(flatten)]
    pub verdict: TrialVerdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum TrialVerdict {
    /// A guest was reached under it.
    Proven,
    SetAside {
        why: String,
    },
}

impl Experience {
    /// Why the accelerator is not used, and the remedy.
    pub fn note(&self, file: &Path) -> Option<String> {
        match &self.verdict {
            TrialVerdict::Proven => None,
            TrialVerdict::SetAside { why } => Some(format!(
                "{} was disabled at {}: {why}. It is tried again after a reboot, with another kernel or QEMU, or once {} is \
                 removed and the service restarted; `drivers.qemu.accelerator` uses it regardless",
                self.accelerator.as_str(),
                self.at.strftime("%Y-%m-%d %H:%M UTC"),
                file.display()
            )),
        }
    }
}

/// The path of the result file, beside the probe's.
pub fn file(probe_file: &Path) -> PathBuf {
    probe_file.with_file_name("qemu-accelerator.json")
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum TrialState {
    /// No accelerator is in use that could be on trial.
    #[default]
    None,
    Untried(ProbeInputs, Accelerator),
    Judged(Experience),
}

pub struct Trials {
    file: PathBuf,
    patience: Duration,
    state: watch::Sender<TrialState>,
    /// When this service began to watch each guest on trial. A guest that called while the service was down was not
    /// silent.
    watched: Mutex<HashMap<PathBuf, Instant>>,
}

/// The trial file in a guest's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    accelerator: Accelerator,
}

impl Trials {
    pub fn new(probe_file: &Path, patience: Duration) -> Self {
        Self { file: file(probe_file), patience, state: watch::Sender::default(), watched: Mutex::default() }
    }

    /// Sets the accelerator for further guests, unless it was disabled: then returns why.
    pub fn begin(&self, basis: ProbeInputs, accelerator: Accelerator, fresh: bool) -> Option<String> {
        if accelerator == Accelerator::Tcg {
            self.state.send_replace(TrialState::None);
            return None;
        }
        let known = (!fresh).then(|| self.recall(&basis, accelerator)).flatten();
        let note = known.as_ref().and_then(|experience| experience.note(&self.file));
        self.state.send_replace(match known {
            Some(experience) => TrialState::Judged(experience),
            None => TrialState::Untried(basis, accelerator),
        });
        note
    }

    fn recall(&self, basis: &ProbeInputs, accelerator: Accelerator) -> Option<Experience> {
        let known: Experience = serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()?;
        (known.basis == *basis && known.accelerator == accelerator).then_some(known)
    }

    /// Records in the guest's directory whether it is on trial, before it is started.
    pub fn mark(&self, paths: &QemuPaths, accelerator: Accelerator) -> io::Result<()> {
        let untried = matches!(&*self.state.borrow(), TrialState::Untried(_, on_trial) if *on_trial == accelerator);
        if !untried {
            return ignore_not_found(std::fs::remove_file(paths.trial()));
        }
        self.forget(paths);
        std::fs::write(paths.trial(), serde_json::to_vec(&Mark { accelerator }).map_err(io::Error::other)?)
    }

    /// A guest was reached.
    pub fn reached(&self, paths: &QemuPaths) {
        let Some(mark) = on_trial(paths) else { return };
        if self.judge(mark.accelerator, TrialVerdict::Proven) {
            tracing::info!(
                accelerator = mark.accelerator.as_str(),
                "a guest under the accelerator was reached; the accelerator's trial is over"
            );
        }
        self.forget(paths);
        if let Err(error) = ignore_not_found(std::fs::remove_file(paths.trial())) {
            tracing::debug!(%error, dir = %paths.dir.display(), "cannot remove the trial file of an instance");
        }
    }

    /// The hypervisor gave this guest up. Returns whether its accelerator is to blame, which is then disabled.
    pub fn failed(&self, paths: &QemuPaths, why: &str) -> bool {
        let Some(mark) = on_trial(paths) else { return false };
        if self.judge(mark.accelerator, TrialVerdict::SetAside { why: why.to_owned() }) {
            tracing::warn!(
                accelerator = mark.accelerator.as_str(), why, file = %self.file.display(),
                "the accelerator is disabled and guests are emulated; see `mayfly doctor`"
            );
        }
        self.forget(paths);
        self.is_set_aside(mark.accelerator)
    }

    /// Returns when this guest has to end because of its accelerator: it was silent for too long, or another guest's
    /// failure disabled the accelerator. Never returns for a guest that is not on trial.
    pub async fn over(&self, paths: &QemuPaths) {
        let Some(mark) = on_trial(paths) else { return std::future::pending().await };
        let mut state = self.state.subscribe();
        let set_aside = async {
            let _ = state.wait_for(|now| is_set_aside(now, mark.accelerator)).await;
        };
        let silent = async {
            sleep_until(self.watched_since(paths) + self.patience).await;
            let spoke = std::fs::metadata(paths.console()).is_ok_and(|console| console.len() > 0);
            if spoke {
                return std::future::pending().await;
            }
            let why = format!(
                "its first guest wrote nothing to its console and did not call for {} s",
                self.patience.as_secs()
            );
            if !self.failed(paths, &why) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = set_aside => {}
            () = silent => {}
        }
    }

    fn watched_since(&self, paths: &QemuPaths) -> Instant {
        let mut watched = self.watched.lock();
        *watched.entry(paths.dir.clone()).or_insert_with(clock::monotonic)
    }

    fn forget(&self, paths: &QemuPaths) {
        self.watched.lock().remove(&paths.dir);
    }

    fn is_set_aside(&self, accelerator: Accelerator) -> bool {
        is_set_aside(&self.state.borrow(), accelerator)
    }

    /// The first verdict counts. Returns whether this was the first.
    fn judge(&self, accelerator: Accelerator, verdict: TrialVerdict) -> bool {
        let mut judged = None;
        self.state.send_if_modified(|state| match state {
            TrialState::Untried(basis, on_trial) if *on_trial == accelerator => {
                let experience = Experience { basis: basis.clone(), accelerator, at: clock::now(), verdict };
                judged = Some(experience.clone());
                *state = TrialState::Judged(experience);
                true
            }
            TrialState::None | TrialState::Untried(..) | TrialState::Judged(_) => false,
        });
        let Some(experience) = judged else { return false };
        let written = serde_json::to_vec_pretty(&experience)
            .map_err(io::Error::other)
            .and_then(|json| files::replace_unsynced(&self.file, &json));
        if let Err(error) = written {
            // The next start of the service repeats the trial.
            tracing::warn!(%error, file = %self.file.display(), "cannot save the result of the accelerator's trial");
        }
        true
    }
}

fn is_set_aside(state: &TrialState, accelerator: Accelerator) -> bool {
    match state {
        TrialState::None | TrialState::Untried(..) => false,
        TrialState::Judged(known) => known.accelerator == accelerator && known.verdict != TrialVerdict::Proven,
    }
}

fn on_trial(paths: &QemuPaths) -> Option<Mark> {
    serde_json::from_slice(&std::fs::read(paths.trial()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Arch;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn basis(version: &str) -> ProbeInputs {
        ProbeInputs::now(Path::new("/usr/bin/qemu"), version, Arch::X86_64)
    }

    fn guest(dir: &Path, name: &str) -> QemuPaths {
        let paths = QemuPaths { dir: dir.join(name) };
        std::fs::create_dir_all(&paths.dir).unwrap();
        paths
    }

    #[tokio::test]
    async fn a_silent_first_guest_sets_its_accelerator_aside_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let probe_file = dir.path().join("qemu-probe.json");
        let trials = Trials::new(&probe_file, PATIENCE);
        assert_eq!(trials.begin(basis("7"), Accelerator::Kvm, false), None);
        let (silent, speaks) = (guest(dir.path(), "a"), guest(dir.path(), "b"));
        for paths in [&silent, &speaks] {
            trials.mark(paths, Accelerator::Kvm).unwrap();
        }
        std::fs::write(speaks.console(), "hello").unwrap();
        let begun = Instant::now();
        tokio::join!(trials.over(&silent), trials.over(&speaks));
        assert!(begun.elapsed() >= PATIENCE);
        // Another service on the same host does not use it again until an input has changed.
        let later = Trials::new(&probe_file, PATIENCE);
        let note = later.begin(basis("7"), Accelerator::Kvm, false).unwrap();
        assert!(note.starts_with("kvm was disabled at ") && note.contains("did not call for 1 s"), "{note}");
        assert_eq!(later.begin(basis("8"), Accelerator::Kvm, false), None);
        assert_eq!(later.begin(basis("7"), Accelerator::Kvm, true), None, "a fresh probe starts a new trial");
    }

    #[tokio::test]
    async fn a_guest_that_was_reached_ends_the_trial_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let probe_file = dir.path().join("qemu-probe.json");
        let trials = Trials::new(&probe_file, PATIENCE);
        assert_eq!(trials.begin(basis("7"), Accelerator::Kvm, false), None);
        let (good, silent) = (guest(dir.path(), "a"), guest(dir.path(), "b"));
        for paths in [&good, &silent] {
            trials.mark(paths, Accelerator::Kvm).unwrap();
        }
        trials.reached(&good);
        assert!(!trials.failed(&good, "too late"));
        assert!(!trials.failed(&silent, "too late"));
        assert!(tokio::time::timeout(2 * PATIENCE, trials.over(&silent)).await.is_err());
        let later = Trials::new(&probe_file, PATIENCE);
        assert_eq!(later.begin(basis("7"), Accelerator::Kvm, false), None);
        later.mark(&good, Accelerator::Kvm).unwrap();
        assert!(!later.failed(&good, "it is trusted already"));
    }
}
