//! How a vm ends: its outcome, the result of its job, and whether its guest is kept.

use jiff::Timestamp;

use super::{
    end::{EndSignal, Outcome, OutcomeResult},
    error::Code,
    event::{Announcer, EndProof},
    guest::{GuestRole, ResultSource},
    job_record::JobRecord,
    runner::{RunnerFact, RunnerKind, RunnerStatus},
    state::State,
    vm::Vm,
};

/// Exit code of GitHub's runner if GitHub no longer accepts its version.
pub(super) const RUNNER_TOO_OLD: i32 = 7;
/// Exit code if there is no runner program in the guest and none could be downloaded.
const RUNNER_MISSING: i32 = 126;

/// Describes an exit code other than 0, with what shells mean by it.
fn exit_text(code: i32) -> String {
    let meaning = match code {
        126 => " (a program could not be executed)".to_owned(),
        127 => " (a program was not found)".to_owned(),
        129..=192 => format!(" (ended by signal {})", code - 128),
        _ => String::new(),
    };
    format!("exit code {code}{meaning}")
}

impl Vm {
    /// The state of a vm that has ended while its guest runs.
    pub(super) fn after_end(&self) -> State {
        let kept = self.spec.budgets.keep_on_failure_seconds > 0 && self.failed_in_its_guest();
        if kept { State::Kept } else { State::Stopping }
    }

    /// Whether the vm failed, or may have failed, for a reason that can be seen in its guest. While GitHub has not told the
    /// result of a job that it gave to this vm's runner, the job may have failed.
    fn failed_in_its_guest(&self) -> bool {
        // Its end was requested.
        if matches!(self.announced_by, Some(Announcer::Admin | Announcer::Pool)) {
            return false;
        }
        let job_failed =
            self.job_exit_code.is_some_and(|code| code != 0) || self.jobs.iter().any(JobRecord::may_have_failed);
        match self.end_signal {
            Some(EndSignal::RunnerFinished) => {
                self.outcome.as_ref().is_some_and(|outcome| outcome.code.is_some()) || job_failed
            }
            Some(EndSignal::RunnerGone | EndSignal::JobCompleted | EndSignal::DrainBudget) => job_failed,
            // An idle runner could be given a job, which would then end with the vm.
            Some(EndSignal::LifetimeBudget) => {
                self.spec.source_runner.is_none() || self.runner_status == RunnerStatus::Busy || job_failed
            }
            Some(
                EndSignal::BootBudget
                | EndSignal::ConfigureBudget
                | EndSignal::RegistrationBudget
                | EndSignal::UnobservedBudget
                | EndSignal::HeartbeatBudget
                | EndSignal::GivenUp,
            ) => true,
            // Nothing failed: there was no job, or no guest.
            Some(
                EndSignal::Hook
                | EndSignal::Pool
                | EndSignal::Admin
                | EndSignal::IdleBudget
                | EndSignal::GuestPowerOff
                | EndSignal::InstanceGone
                | EndSignal::QueueBudget
                | EndSignal::CloneBudget,
            )
            | None => false,
        }
    }

    pub(super) fn proven(&mut self, proof: EndProof, exit_code: Option<i32>, at: Timestamp) {
        match proof {
            EndProof::RunnerFinished => {
                let announced = self.announced_by == Some(Announcer::Hook);
                let had_a_job = announced || self.runner_status.may_hold_a_job() || !self.jobs.is_empty();
                self.runner(RunnerFact::ProgramEnded, at);
                // The exit code of a CI system's runner program is not the result of its job.
                if let Some(exit_code) = exit_code.filter(|_| !self.spec.runner.registers()) {
                    let from = self.result_source(GuestRole::Wrapper);
                    if self.job_exit_code.is_none() || from == ResultSource::Wrapper {
                        self.job_result(exit_code, from);
                    }
                }
                let (result, code) = match (self.spec.runner, exit_code) {
                    (_, None | Some(0)) => (OutcomeResult::Completed, None),
                    (RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite, Some(RUNNER_TOO_OLD)) => {
                        (OutcomeResult::Failed, Some(Code::RunnerTooOld))
                    }
                    (RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite, Some(RUNNER_MISSING)) => {
                        (OutcomeResult::Failed, Some(Code::RunnerMissing))
                    }
                    // The CI system has the result of its job.
                    (RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite, Some(_)) if had_a_job => {
                        (OutcomeResult::Completed, None)
                    }
                    (RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite | RunnerKind::Script, Some(_)) => {
                        (OutcomeResult::Failed, Some(Code::RunnerFailed))
                    }
                    // The vm did what it was made for, and the job's result is beside the outcome.
                    (RunnerKind::Command | RunnerKind::None, Some(_)) => {
                        (OutcomeResult::Completed, Some(Code::JobFailed))
                    }
                };
                let detail = exit_code.filter(|_| code.is_some()).map(exit_text);
                self.end(EndSignal::RunnerFinished, result, code, detail);
            }
            // No server lets a working runner be removed, so this one's job was over: it went with its job's result, in the
            // moment in which its removal was requested.
            EndProof::Deregistered if self.runner_status == RunnerStatus::Busy => {
                self.proven(EndProof::RunnerGone, exit_code, at);
            }
            EndProof::Deregistered => {
                self.runner(RunnerFact::Deregistered, at);
                let signal = match self.announced_by {
                    Some(Announcer::Pool) => EndSignal::Pool,
                    Some(Announcer::Hook | Announcer::Admin) | None => EndSignal::Admin,
                };
                self.end(signal, OutcomeResult::Cancelled, None, None);
            }
            EndProof::RunnerGone => {
                self.runner(RunnerFact::Deregistered, at);
                self.end(EndSignal::RunnerGone, OutcomeResult::Completed, None, None);
            }
            EndProof::JobCompleted => self.end(EndSignal::JobCompleted, OutcomeResult::Completed, None, None),
        }
    }

    /// Whether there is a runner, and nothing that shows how its work ended.
    pub(super) fn result_is_missing(&self) -> bool {
        let ended = matches!(self.runner_status, RunnerStatus::Finished | RunnerStatus::Gone);
        let known = self.job_exit_code.is_some() || self.announced_by.is_some() || self.end_proof.is_some() || ended;
        self.spec.runner != RunnerKind::None && !known
    }

    pub(super) fn result_source(&self, by: GuestRole) -> ResultSource {
        match by {
            GuestRole::Job => ResultSource::Job,
            GuestRole::Wrapper if self.separate_users == Some(true) => ResultSource::Wrapper,
            GuestRole::Wrapper => ResultSource::Guest,
        }
    }

    /// Of several results, the most reliable one counts. Of equally reliable ones the last one counts, because the
    /// wrapper reports when the job's process has ended; after the end of the vm, none does.
    pub(super) fn job_result(&mut self, exit_code: i32, from: ResultSource) {
        let is_over = matches!(self.state, State::Kept | State::Stopping | State::Deleting | State::Deleted);
        let Some(known) = self.job_exit_code else {
            self.job_exit_code = Some(exit_code);
            self.job_result_from = from;
            return;
        };
        self.job_results_differ |= known != exit_code;
        if from > self.job_result_from || (from == self.job_result_from && !is_over) {
            self.job_exit_code = Some(exit_code);
            self.job_result_from = from;
        }
    }

    pub(super) fn end(&mut self, signal: EndSignal, result: OutcomeResult, code: Option<Code>, detail: Option<String>) {
        if self.outcome.is_none() {
            self.end_signal = Some(signal);
            self.outcome = Some(Outcome { result, code, detail });
        }
    }
}
