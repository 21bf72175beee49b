//! One idempotent step per state. Each rests on the vm's row, the template and the settings, and gives the fact that moves
//! the vm on. Any of them may be run again from its beginning at any moment.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;

use super::Reconciler;
use crate::{
    domain::{
        Code, Event, Handover, QueueReason, Spec, State, Vm,
        event::{Announcer, GoneCause},
        lifecycle::Step,
        template::Template,
    },
    drivers::{Driver, DriverError, ErrorKind, GuestNetwork, InstanceSpec, Seed},
    guest,
    store::logs::LogSource,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The same step may work in a moment.
    Retry,
    /// This clone is lost; a fresh one may work.
    Attempt,
    /// Nothing will help this vm.
    Permanent,
    /// The host is at fault, not this vm.
    Host,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub code: Code,
    /// One line, without secrets.
    pub detail: String,
    /// For the log only.
    pub tail: Option<String>,
}

impl Failure {
    pub fn new(kind: FailureKind, code: Code, detail: impl Into<String>) -> Self {
        Self { kind, code, detail: detail.into(), tail: None }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let kind = match error.kind {
            ErrorKind::Retry => FailureKind::Retry,
            ErrorKind::Permanent => FailureKind::Permanent,
            ErrorKind::Host => FailureKind::Host,
        };
        Failure { kind, code: error.code, detail: error.summary, tail: error.tail }
    }
}

impl From<crate::domain::Error> for Failure {
    fn from(error: crate::domain::Error) -> Self {
        // Of something that went wrong in here (a file or a row that could not be read) nothing follows for the vm.
        let passes = error.code.retryable() || error.code == Code::Internal;
        let kind = if passes { FailureKind::Retry } else { FailureKind::Permanent };
        let tail = error.cause.as_ref().map(ToString::to_string);
        Failure { kind, code: error.code, detail: error.detail, tail }
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        crate::domain::Error::from(error).into()
    }
}

/// What a vm that holds a slot is made of.
pub(super) fn spec_of(vm: &Vm) -> Result<&Spec, Failure> {
    let unknown =
        || Failure::new(FailureKind::Permanent, Code::Internal, "the vm got a slot before its template was here");
    vm.draft.spec().ok_or_else(unknown)
}

impl Reconciler {
    pub(super) async fn step(&self, vm: &Vm) -> Result<Event, Failure> {
        match vm.state.owes() {
            // Once its template is here, placement, a deadline or a DELETE moves it.
            Step::AwaitSlot => {
                self.obtain_template(vm).await?;
                std::future::pending().await
            }
            Step::Nothing => std::future::pending().await,
            Step::Clone => self.clone_template(vm).await,
            Step::Boot => self.boot(vm).await,
            Step::Configure => self.configure(vm).await,
            Step::AwaitEnd => self.await_end(vm).await,
            Step::Stop => self.stop(vm).await,
            Step::Destroy => self.destroy(vm).await,
        }
    }

    async fn clone_template(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        self.catalog.may_clone(&spec_of(vm)?.template_digest).await.map_err(|error| match error.code {
            // No other attempt of this vm has more room: it gives its slot back and waits for the host.
            Code::HostFull => Failure::new(FailureKind::Host, error.code, error.detail),
            _ => error.into(),
        })?;
        let spec = self.spec(vm).await?;
        driver.create(&spec).await?;
        Ok(Event::Cloned)
    }

    async fn boot(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let spec = self.spec(vm).await?;
        let permit = self.permit_start(&driver, vm).await?;
        driver.start(&spec).await?;
        drop(permit);
        self.limit_passed(vm).await;
        let via = self.while_running(&driver, vm, self.guest_ready(&driver, vm)).await?;
        Ok(Event::GuestReady { via })
    }

    async fn configure(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        driver.reached(&vm.instance()).await;
        self.while_running(&driver, vm, self.hand_over(&driver, vm)).await?;
        Ok(Event::GuestConfigured)
    }

    async fn await_end(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        if was_reached(vm) {
            driver.reached(&vm.instance()).await;
        }
        let told = async {
            if let Err(failure) = self.tell_to_start(&driver, vm).await {
                tracing::warn!(vm.id = %vm.id(), code = %failure.code, detail = failure.detail, "the guest could not be told that it may start");
            }
            std::future::pending().await
        };
        tokio::select! {
            cause = self.guest_gone(&driver, vm) => Ok(Event::InstanceGone { cause: cause? }),
            event = self.dismissed(vm) => Ok(event),
            never = told => never,
        }
    }

    async fn stop(&self, vm: &Vm) -> Result<Event, Failure> {
        let grace = Duration::try_from(vm.stop_grace()).unwrap_or_default();
        self.driver(vm)?.stop(&vm.instance(), grace).await?;
        Ok(Event::InstanceStopped)
    }

    async fn destroy(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let name = vm.instance();
        if let Some(console) = driver.console_log(&name)
            && let Err(error) = self.logs.keep_tail(vm.id(), LogSource::Console, &console).await
        {
            // A log is not worth a leaked disk.
            tracing::warn!(vm.id = %vm.id(), error = %error, "the console log could not be kept");
        }
        for log in driver.hypervisor_logs(&name) {
            let said = format!("[mayfly: the hypervisor of attempt {} wrote]\n", vm.attempt);
            if let Err(error) = self.logs.append_tail(vm.id(), LogSource::Hypervisor, said, &log).await {
                tracing::warn!(vm.id = %vm.id(), error = %error, "the hypervisor's log could not be kept");
            }
        }
        driver.destroy(&name).await?;
        if !vm.retries() {
            return Ok(Event::InstanceAbsent);
        }
        if vm.slot_taken {
            // It is placed when a look shows a free slot; until then younger ones must not overtake it.
            return Ok(Event::AttemptCleared { reason: QueueReason::Slot, not_before: self.clock.now() });
        }
        let emulated_now = vm.last_fault.as_ref().is_some_and(|fault| fault.code == Code::AcceleratorFailed);
        if vm.host_refused && emulated_now {
            // The next guest runs otherwise than this one did: there is nothing to wait for.
            return Ok(Event::AttemptCleared { reason: QueueReason::Host, not_before: self.clock.now() });
        }
        let (reason, exponent) = if vm.host_refused {
            (QueueReason::Host, 3)
        } else {
            (QueueReason::Backoff, vm.failed_attempts.max(1) - 1)
        };
        let wait = self.settings.retry_backoff.saturating_mul(1 << exponent.min(6)).min(Duration::from_secs(60));
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO);
        Ok(Event::AttemptCleared { reason, not_before: self.clock.now() + wait })
    }

    fn driver(&self, vm: &Vm) -> Result<Arc<dyn Driver>, Failure> {
        let name = &spec_of(vm)?.driver;
        self.drivers.get(name).cloned().ok_or_else(|| {
            // Enabling the driver again is all that is needed, so the vm waits for it.
            Failure::new(
                FailureKind::Retry,
                Code::DriverUnsupported,
                format!("the driver {name} is not enabled in this service"),
            )
        })
    }

    pub(super) async fn template(&self, vm: &Vm) -> Result<Template, Failure> {
        Ok(self.catalog.get(&spec_of(vm)?.template_digest).await?)
    }

    async fn spec(&self, vm: &Vm) -> Result<InstanceSpec, Failure> {
        let template = self.template(vm).await?;
        let &Spec { os, handover, cpus, memory_mib, .. } = spec_of(vm)?;
        let seed = match handover {
            Handover::Ssh | Handover::Agent => None,
            Handover::Seed => {
                let kit = self.kit(vm, &template).await?;
                let volume = guest::seed::volume(&kit, &vm.draft.name)
                    .map_err(|e| Failure::new(FailureKind::Permanent, Code::CloneFailed, format!("the seed: {e}")))?;
                Some(Seed { volume })
            }
        };
        Ok(InstanceSpec {
            name: vm.instance(),
            os,
            arch: template.arch,
            cpus,
            memory_mib,
            disk_format: template.disk_format,
            files: template.files,
            cmdline: template.cmdline,
            seed,
            network: GuestNetwork {
                isolated: self.settings.isolated,
                guest_api: self.settings.guest_socket.clone(),
                relay: self.settings.relay.clone(),
            },
        })
    }

    /// Runs `work` for as long as the instance runs.
    async fn while_running<T>(
        &self,
        driver: &Arc<dyn Driver>,
        vm: &Vm,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let name = vm.instance();
        tokio::select! {
            done = work => done,
            ended = driver.ended(&name) => Err(ended_early(vm, ended?)),
        }
    }
}

/// Whether the guest of this attempt answered or called. An admin's DELETE may come before either.
fn was_reached(vm: &Vm) -> bool {
    let this_attempt = vm.timeline.iter().rev().take_while(|entry| entry.state != State::Cloning);
    vm.announced_by == Some(Announcer::Hook)
        || this_attempt.map(|entry| entry.state).any(|state| matches!(state, State::Configuring | State::Running))
}

/// The guest ended, or was stopped, before it had its runner.
fn ended_early(vm: &Vm, cause: GoneCause) -> Failure {
    let (kind, code) = match cause {
        GoneCause::GuestPowerOff | GoneCause::GuestReset | GoneCause::HostStop | GoneCause::Unknown => {
            (FailureKind::Attempt, Code::GuestEndedEarly)
        }
        GoneCause::GuestPanic | GoneCause::HypervisorError | GoneCause::GuestWatchdog | GoneCause::HostPause => {
            (FailureKind::Attempt, cause.code())
        }
        // Another clone would fare no better.
        GoneCause::HostDiskFull | GoneCause::AcceleratorFailed => (FailureKind::Host, cause.code()),
    };
    Failure::new(kind, code, format!("the guest ended while it was {}: {}", vm.state, cause.describe()))
}
