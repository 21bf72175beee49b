//! Handles the requests of guests: reports, the permission to start the runner, and what the guest downloads for it.

use std::{io, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    domain::{
        Code, EndProof, Error, Event, Fault, GuestRole, Handover, Result, State, Vm, VmId,
        event::ReadyVia,
        ready_check::{LARGEST_STATE, plain_version},
        runner::{RunnerFact, RunnerKind},
        runner_secrets::RunnerSecrets,
        source_runner::{Registration, runner_name},
    },
    parts::Parts,
    platform::Clock,
    sources::github::runner_archives::RunnerArchives,
    store::{
        Expect, Ledger, Reader, Vault,
        guest_heartbeats::GuestHeartbeats,
        logs::{LogSource, Logs},
    },
    templates::Catalog,
};

/// A report of a guest about its own vm, sent with the vm's own token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestEvent {
    /// The guest has booted and can reach Mayfly.
    GuestReady {},
    /// Runner and hooks are in place, and the wrapper asks for the permission to start the runner. 202 grants it,
    /// and is final: from then on no other guest is made for this vm. 409: this guest must not start it. 503: not
    /// yet.
    GuestConfigured {
        /// The attempt that this guest was made for (`MAYFLY_ATTEMPT`). Absent from guests of older versions, which
        /// start their runner without an answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// Whether the job runs as another user than the wrapper, and cannot become it. Only then can the job not
        /// report in the wrapper's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        separate_users: Option<bool>,
    },
    /// The template's readiness check succeeded.
    GuestChecked {
        /// The attempt that this guest was made for.
        attempt: u32,
        /// What the service in the guest reported as its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(max_length = 100)]
        version: Option<String>,
        /// What the service in the guest reported as its runner's state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(maximum = 9999)]
        state: Option<u32>,
    },
    /// The runner program was started.
    RunnerStarted {},
    /// The runner waits for a job.
    RunnerOnline {},
    /// The runner has taken a job.
    JobStarted {},
    /// The job ended with this exit code.
    JobResult { exit_code: i32 },
    /// The runner program has returned: its results are uploaded, and nothing is left to do in the guest.
    RunnerFinished { exit_code: i32 },
    /// The wrapper is alive. Sent several times within `heartbeat_seconds` while a runner works; not recorded.
    Heartbeat {},
    /// The guest cannot run its job. Before the job's start this ends the attempt, and a fresh clone follows if there
    /// are attempts left; later it ends the vm.
    GuestFailed {
        /// The attempt that this guest was made for.
        attempt: u32,
        /// What is wrong, for people.
        #[schema(max_length = 1000)]
        detail: String,
        /// It would be the same on a fresh clone: the vm ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_final: bool,
        /// The template's readiness check did not succeed in time; `detail` is what was seen last.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        check_failed: bool,
    },
    /// A part of a log.
    Log {
        source: GuestLog,
        /// Base64 (RFC 4648 §4) of at most 32 KiB.
        data_base64: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestLog {
    Boot,
    Job,
}

impl GuestEvent {
    /// Whether the job may report it, or hooks that its runner calls.
    fn is_of_job(&self) -> bool {
        match self {
            GuestEvent::RunnerOnline {} | GuestEvent::JobStarted {} | GuestEvent::JobResult { .. } => true,
            GuestEvent::GuestReady {}
            | GuestEvent::GuestConfigured { .. }
            | GuestEvent::GuestChecked { .. }
            | GuestEvent::RunnerStarted {}
            | GuestEvent::RunnerFinished { .. }
            | GuestEvent::Heartbeat {}
            | GuestEvent::GuestFailed { .. }
            | GuestEvent::Log { .. } => false,
        }
    }
}

/// Longest description of a failure, in bytes.
const MOST_WORDS: usize = 1000;
/// Limit of retries. Each retry needs another commit for the same vm, and a vm has a bounded number of states.
const TURNS: usize = 64;

/// Requests and reports of guests.
#[derive(Clone)]
pub struct Guests {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    logs: Logs,
    heartbeats: GuestHeartbeats,
    catalog: Arc<Catalog>,
    archives: RunnerArchives,
    clock: Clock,
}

impl Guests {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, vault, logs, heartbeats, catalog, runner_archives: archives, clock, .. } =
            parts.clone();
        Self { ledger, reader, vault, logs, heartbeats, catalog, archives, clock }
    }

    /// The vm of this token and for whom it was made, from the token alone.
    pub fn vm_of_token(&self, token: &SecretString) -> Option<(VmId, GuestRole)> {
        self.vault.vm_of_token(token)
    }

    /// Notes in the vm's log that requests were refused because the vm had its share of a limit.
    pub async fn note_limit(&self, id: VmId, what: &str) {
        let line = format!("[mayfly: refused requests of this guest: it has the most {what} that it may have]\n");
        if let Err(error) = self.logs.append(id, LogSource::Boot, line.into_bytes()).await {
            tracing::warn!(vm.id = %id, %error, "cannot note in the vm's log that it is at a limit");
        }
    }

    /// A report with the job's token.
    pub async fn report_of_job(&self, id: VmId, report: GuestEvent) -> Result<()> {
        if !report.is_of_job() {
            let detail =
                "the job's token may report runner_online, job_started and job_result; the rest is for the wrapper";
            return Err(Error::new(Code::AuthScopeMissing, detail));
        }
        self.apply(id, GuestRole::Job, report).await
    }

    /// A report with the wrapper's token.
    pub async fn report(&self, id: VmId, report: GuestEvent) -> Result<()> {
        // A late report of a guest that is gone must not be remembered for ever.
        if self.live(id).await?.state != State::Deleted {
            self.heartbeats.note(id);
        }
        self.apply(id, GuestRole::Wrapper, report).await
    }

    async fn apply(&self, id: VmId, role: GuestRole, report: GuestEvent) -> Result<()> {
        self.note_signs_of_life(id, &report).await?;
        let event = match report {
            GuestEvent::Heartbeat {} => return Ok(()),
            GuestEvent::GuestFailed { attempt, detail, is_final, check_failed } => {
                let code = match (is_final, check_failed) {
                    (true, _) => Code::JobUnusable,
                    (false, true) => Code::GuestCheckFailed,
                    (false, false) => Code::GuestFailed,
                };
                return self.guest_failed(id, attempt, &detail, code).await;
            }
            GuestEvent::GuestChecked { attempt, version, state } => {
                return self.guest_checked(id, attempt, version, state).await;
            }
            GuestEvent::GuestConfigured { attempt, separate_users } => {
                return self.allow_start(id, attempt, separate_users).await;
            }
            // Over SSH, Mayfly's own login shows that the guest is ready; the guest's report is not needed.
            GuestEvent::GuestReady {} if !is_seeded(&self.live(id).await?) => return Ok(()),
            GuestEvent::GuestReady {} => Event::GuestReady { via: ReadyVia::GuestCall },
            GuestEvent::RunnerStarted {} => Event::RunnerChanged { fact: RunnerFact::ProgramStarted },
            GuestEvent::RunnerOnline {} => Event::RunnerChanged { fact: RunnerFact::Online },
            GuestEvent::JobStarted {} => Event::RunnerChanged { fact: RunnerFact::JobStarted },
            GuestEvent::JobResult { exit_code } => Event::JobFinished { exit_code, by: role },
            GuestEvent::RunnerFinished { exit_code } => {
                Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(exit_code) }
            }
            GuestEvent::Log { source, data_base64 } => {
                let bytes = BASE64.decode(data_base64.as_bytes()).map_err(|_| {
                    Error::new(Code::RequestInvalid, "the log is not base64")
                        .field("/data_base64", "must be base64 (RFC 4648 §4)")
                })?;
                let source = match source {
                    GuestLog::Boot => LogSource::Boot,
                    GuestLog::Job => LogSource::Job,
                };
                return self.logs.append(id, source, bytes).await.map_err(log_not_written);
            }
        };
        self.ledger.apply(id, Expect::Anything, event, self.clock.now()).await?;
        Ok(())
    }

    /// Whether the guest of this attempt may start its runner. The permission is durable before it is given: from
    /// `running` on, no other guest is created for this vm, and before that, no guest has started a runner.
    async fn allow_start(&self, id: VmId, attempt: Option<u32>, separate_users: Option<bool>) -> Result<()> {
        for _ in 0..TURNS {
            let vm = self.live(id).await?;
            let this_guest = attempt.unwrap_or(vm.attempt);
            // Recorded before the permission, because from then on the job may send such a report, too.
            if let Some(separate_users) = separate_users
                && this_guest == vm.attempt
                && vm.separate_users.is_none()
                && may_describe_itself(&vm)
            {
                let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
                self.ledger.apply(id, expect, Event::GuestDescribed { separate_users }, self.clock.now()).await?;
                continue;
            }
            match vm.state {
                State::Running if this_guest == vm.attempt => return Ok(()),
                State::Booting | State::Configuring if this_guest == vm.attempt && is_seeded(&vm) => {
                    let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
                    if self.ledger.apply(id, expect, Event::GuestConfigured, self.clock.now()).await?.as_expected {
                        return Ok(());
                    }
                }
                // Provisioning is still under way. Its end moves the vm, because it also returns facts about the
                // guest that are needed later.
                State::Booting | State::Configuring if this_guest == vm.attempt && attempt.is_some() => {
                    let detail = "the guest is still being provisioned";
                    return Err(Error::new(Code::StartTooEarly, detail).retry_after(1));
                }
                // A guest of an older version has already started its runner.
                _ if attempt.is_none() => return Ok(()),
                state => {
                    let detail = format!(
                        "attempt {this_guest} may not start its runner: the vm is {state}, in attempt {}",
                        vm.attempt
                    );
                    return Err(Error::new(Code::AttemptOver, detail));
                }
            }
        }
        Err(too_fast())
    }

    /// The readiness check succeeded in the guest of this attempt. What the guest says about its service is only shown,
    /// so a version or state of another form is left out.
    async fn guest_checked(&self, id: VmId, attempt: u32, version: Option<String>, state: Option<u32>) -> Result<()> {
        let vm = self.live(id).await?;
        let has_check = vm.spec.resolved().is_some_and(|spec| spec.ready.is_some());
        if !has_check || vm.attempt != attempt || !may_describe_itself(&vm) {
            return Ok(());
        }
        let version = version.and_then(plain_version);
        let state = state.filter(|&state| state <= LARGEST_STATE);
        let expect = Expect::Attempt { state: vm.state, attempt };
        self.ledger.apply(id, expect, Event::GuestChecked { version, state }, self.clock.now()).await?;
        Ok(())
    }

    /// The guest of this attempt cannot run its job.
    async fn guest_failed(&self, id: VmId, attempt: u32, detail: &str, code: Code) -> Result<()> {
        if detail.len() > MOST_WORDS {
            return Err(Error::new(Code::RequestInvalid, "the detail is too long")
                .field("/detail", format!("at most {MOST_WORDS} bytes")));
        }
        let detail: String = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for _ in 0..TURNS {
            let vm = self.live(id).await?;
            let detail = match vm.spec.resolved().and_then(|spec| spec.ready.as_ref()) {
                Some(ready) if code == Code::GuestCheckFailed => {
                    ready.failed(vm.spec.budgets.configure_seconds, detail.trim())
                }
                _ => format!("the guest said: {}", detail.trim()),
            };
            let fault = Fault { code, detail, at: self.clock.now() };
            let event = match vm.state {
                _ if vm.attempt != attempt => return Ok(()),
                State::Booting | State::Configuring if code != Code::JobUnusable => vm.attempt_failed(fault),
                State::Booting | State::Configuring | State::Running | State::Draining => Event::GivenUp { fault },
                State::Queued | State::Cloning | State::Kept | State::Stopping | State::Deleting | State::Deleted => {
                    return Ok(());
                }
            };
            if self.ledger.apply(id, Expect::Generation(vm.generation), event, self.clock.now()).await?.as_expected {
                return Ok(());
            }
        }
        Err(too_fast())
    }

    /// Records what a report implies in addition to its content, so that a guest whose earlier report was lost does
    /// not count as one that never reported.
    async fn note_signs_of_life(&self, id: VmId, report: &GuestEvent) -> Result<()> {
        let (ready, started) = match report {
            GuestEvent::GuestReady {}
            | GuestEvent::GuestConfigured { .. }
            | GuestEvent::GuestChecked { .. }
            | GuestEvent::Heartbeat {}
            | GuestEvent::GuestFailed { .. } => return Ok(()),
            GuestEvent::Log { source: GuestLog::Boot, .. } => (true, false),
            GuestEvent::Log { source: GuestLog::Job, .. }
            | GuestEvent::RunnerStarted {}
            | GuestEvent::RunnerOnline {}
            | GuestEvent::JobStarted {}
            | GuestEvent::JobResult { .. }
            | GuestEvent::RunnerFinished { .. } => (false, true),
        };
        let vm = self.live(id).await?;
        let now = self.clock.now();
        match vm.state {
            State::Booting | State::Configuring if is_seeded(&vm) && started => {
                self.ledger.apply(id, Expect::Anything, Event::GuestConfigured, now).await?;
            }
            State::Booting if is_seeded(&vm) && ready => {
                let event = Event::GuestReady { via: ReadyVia::GuestCall };
                self.ledger.apply(id, Expect::Anything, event, now).await?;
            }
            State::Running | State::Draining if started && vm.start_unconfirmed => {
                let event = Event::RunnerChanged { fact: RunnerFact::ProgramStarted };
                self.ledger.apply(id, Expect::Anything, event, now).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The registration secret of the CI system's runner, for the guest of this vm, until it may start the runner.
    pub async fn runner_registration(&self, id: VmId) -> Result<SecretString> {
        let vm = self.live(id).await?;
        let none = || Error::new(Code::NotFound, "the runner of this vm registers nowhere");
        let runner = vm.spec.source_runner.as_ref().ok_or_else(none)?;
        if !matches!(vm.state, State::Booting | State::Configuring) {
            return Err(Error::new(Code::RegistrationClosed, format!("the vm is {}", vm.state)));
        }
        let unreadable = || Error::internal("a registration that the key in the data directory does not decrypt");
        let unseal = |sealed: Vec<u8>| self.vault.unseal(id, &sealed).ok_or_else(unreadable);
        match runner.registration {
            Registration::Managed => {
                let name = runner_name(&vm.spec.name, id, vm.attempt);
                let row = self.reader.runner(&name).await?;
                let missing = || Error::new(Code::StartTooEarly, "the runner is not registered yet").retry_after(1);
                let clear = unseal(row.and_then(|row| row.sealed).ok_or_else(missing)?)?;
                Ok(String::from_utf8(clear).map_err(|_| unreadable())?.into())
            }
            Registration::JitConfig | Registration::Token => {
                let clear = unseal(self.reader.sealed(id).await?.ok_or_else(none)?)?;
                RunnerSecrets::from_bytes(&clear).and_then(|payload| payload.registration).ok_or_else(none)
            }
        }
    }

    /// The archive of GitHub's runner for this vm's guest, downloaded if it is not cached.
    pub async fn runner_program(&self, id: VmId) -> Result<PathBuf> {
        let vm = self.live(id).await?;
        let none = || Error::new(Code::NotFound, "this host keeps no runner program for this vm");
        let spec = vm.spec.resolved().filter(|_| vm.spec.runner == RunnerKind::GitHub).ok_or_else(none)?;
        let arch = self.catalog.get(&spec.template_digest).await?.arch;
        self.archives.obtain(self.archives.archive(spec.os, arch).ok_or_else(none)?).await
    }

    async fn live(&self, id: VmId) -> Result<Vm> {
        self.reader.vm(id).await?.ok_or_else(|| Error::new(Code::VmNotFound, format!("no vm has the id {id}")))
    }
}

/// Whether the job of this guest has certainly not started.
fn may_describe_itself(vm: &Vm) -> bool {
    match vm.state {
        State::Booting | State::Configuring => true,
        State::Running => vm.start_unconfirmed,
        State::Queued
        | State::Cloning
        | State::Draining
        | State::Kept
        | State::Stopping
        | State::Deleting
        | State::Deleted => false,
    }
}

/// Whether the guest was provisioned by a seed: then Mayfly learns its state only from its own reports.
fn is_seeded(vm: &Vm) -> bool {
    vm.spec.resolved().is_some_and(|spec| spec.handover == Handover::Seed)
}

fn too_fast() -> Error {
    Error::new(Code::StoreUnavailable, "the vm changed faster than its guest could be answered").retry_after(1)
}

/// A guest repeats what was refused.
fn log_not_written(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Code::HostFull, "the host has no space for more of the log; it can be sent again")
                .retry_after(10)
                .cause(error)
        }
        _ => Error::internal(error),
    }
}
