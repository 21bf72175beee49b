//! One idempotent step per state. Each depends only on the vm's row, the template and the settings, and returns the
//! event that moves the vm. Each can be run again from its beginning at any moment.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::SignedDuration;

use super::{
    full_disk::FullDisk,
    network,
    provisioning::Provisioner,
    start::StartPermits,
    template::{TemplateFetch, spec_of},
};
use crate::{
    domain::{
        AllowedDestination, Code, Event, Handover, QueueReason, ResolvedSpec, State, Vm,
        event::{Announcer, GoneCause},
        state::Step,
    },
    drivers::{Driver, GuestNetwork, InstanceSpec, Seed, registry::DriverRegistry},
    guest,
    parts::Parts,
    platform::{Clock, files, tasks::blocking_io},
    reconcile::{
        failure::{Failure, FailureKind},
        host::HostObserver,
        runners::RunnerRemoval,
        settings::Settings,
    },
    store::logs::{LogSource, Logs},
    templates::Catalog,
};

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long it may take to ask a guest to power down.
const ASK_WITHIN: Duration = Duration::from_secs(20);

pub(in crate::reconcile) struct Steps {
    drivers: Arc<DriverRegistry>,
    catalog: Arc<Catalog>,
    logs: Logs,
    clock: Clock,
    host: HostObserver,
    permits: StartPermits,
    provisioner: Provisioner,
    templates: TemplateFetch,
    full_disk: FullDisk,
    removal: RunnerRemoval,
    /// What guests in the mode `internet` may reach besides public addresses.
    allow: Vec<AllowedDestination>,
    guest_api: PathBuf,
    retry_backoff: Duration,
}

impl Steps {
    pub fn new(
        parts: &Parts,
        host: HostObserver,
        provisioner: Provisioner,
        removal: RunnerRemoval,
        settings: &Settings,
    ) -> Self {
        let Parts { drivers, catalog, logs, clock, .. } = parts.clone();
        Self {
            drivers,
            catalog,
            logs,
            clock,
            host,
            permits: StartPermits::new(parts, settings.capacity),
            provisioner,
            templates: TemplateFetch::new(parts, settings),
            full_disk: FullDisk::new(parts, settings.disk_full),
            removal,
            allow: settings.allow.clone(),
            guest_api: settings.guest_socket.clone(),
            retry_backoff: settings.retry_backoff,
        }
    }

    /// Runs the step of the vm's state.
    pub async fn run(&self, vm: &Vm) -> Result<Event, Failure> {
        match vm.state.next_step() {
            // Once the template is present, placement, the deadline or a DELETE moves the vm.
            Step::AwaitSlot => {
                self.templates.obtain(vm).await?;
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
            // Another attempt of this vm would have no more space: the vm returns its slot and waits for the host.
            Code::HostFull => Failure::new(FailureKind::Host, error.code, error.detail),
            _ => error.into(),
        })?;
        let spec = self.spec(&driver, vm).await?;
        driver.create(&spec).await?;
        self.host.step_accepted(vm, State::Cloning);
        Ok(Event::Cloned)
    }

    async fn boot(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let spec = self.spec(&driver, vm).await?;
        let permit = self.permits.obtain(&driver, vm).await?;
        driver.start(&spec).await?;
        drop(permit);
        let via = self.while_running(&driver, vm, self.provisioner.guest_ready(&driver, vm)).await?;
        self.host_runs(vm).await;
        Ok(Event::GuestReady { via })
    }

    async fn configure(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        driver.reached(&vm.instance()).await;
        self.host_runs(vm).await;
        self.while_running(&driver, vm, self.provisioner.provision(&driver, vm)).await?;
        Ok(Event::GuestConfigured)
    }

    async fn await_end(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        if was_reached(vm) {
            driver.reached(&vm.instance()).await;
            self.host_runs(vm).await;
        }
        let permission = async {
            if let Err(failure) = self.provisioner.permit_job(&driver, vm).await {
                tracing::warn!(vm.id = %vm.id(), code = %failure.code, detail = failure.detail, "cannot give the guest the permission to start its job");
            }
            std::future::pending().await
        };
        tokio::select! {
            cause = self.full_disk.guest_gone(&driver, vm) => Ok(Event::InstanceGone { cause: cause? }),
            event = self.removal.dismissed(vm) => Ok(event),
            never = permission => never,
        }
    }

    /// The guest was reached, so the host runs it. Its start alone does not show that: a hypervisor may notice seconds later
    /// that it is refused.
    async fn host_runs(&self, vm: &Vm) {
        self.host.step_accepted(vm, State::Booting);
        self.host.limit_passed(vm).await;
    }

    async fn stop(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let mut grace = Duration::try_from(vm.stop_grace()).unwrap_or_default();
        if !grace.is_zero()
            && !driver.capabilities().graceful_stop
            && !self.asked_to_power_off(&driver, vm, grace).await
        {
            grace = Duration::ZERO;
        }
        driver.stop(&vm.instance(), grace).await?;
        Ok(Event::InstanceStopped)
    }

    /// Asks the guest itself, over SSH, where the hypervisor cannot ask it.
    async fn asked_to_power_off(&self, driver: &Arc<dyn Driver>, vm: &Vm, grace: Duration) -> bool {
        if !spec_of(vm).is_ok_and(|spec| spec.handover == Handover::Ssh) || !was_reached(vm) {
            return false;
        }
        match self.provisioner.power_off(driver, vm, grace.min(ASK_WITHIN)).await {
            Ok(()) => true,
            Err(failure) => {
                tracing::info!(vm.id = %vm.id(), code = %failure.code, detail = failure.detail, "the guest cannot be asked to power down");
                false
            }
        }
    }

    async fn destroy(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let name = vm.instance();
        if let Some(console) = driver.console_log(&name)
            && let Err(error) = self.logs.keep_tail(vm.id(), LogSource::Console, &console).await
        {
            // A missing log is better than a leaked disk.
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot store the console log");
        }
        for log in driver.hypervisor_logs(&name) {
            let said = format!("[mayfly: the hypervisor of attempt {} wrote]\n", vm.attempt);
            if let Err(error) = self.logs.append_tail(vm.id(), LogSource::Hypervisor, said, &log).await {
                tracing::warn!(vm.id = %vm.id(), error = %error, "cannot store the hypervisor's log");
            }
        }
        driver.destroy(&name).await?;
        if !vm.retries() {
            return Ok(Event::InstanceAbsent);
        }
        if vm.slot_taken {
            // Queued without a pause, so that younger vms do not overtake it; placement waits for a free slot.
            return Ok(Event::AttemptCleared { reason: QueueReason::Slot, not_before: self.clock.now() });
        }
        let emulated_now = vm.last_fault.as_ref().is_some_and(|fault| fault.code == Code::AcceleratorFailed);
        if vm.host_refused && emulated_now {
            // The next guest runs under another accelerator, so there is nothing to wait for.
            return Ok(Event::AttemptCleared { reason: QueueReason::Host, not_before: self.clock.now() });
        }
        // Each cause has its own count. During the pause placement keeps the vm's place in the queue.
        let (reason, failures) =
            if vm.host_refused { (QueueReason::Host, vm.refusals) } else { (QueueReason::Backoff, vm.failed_attempts) };
        Ok(Event::AttemptCleared { reason, not_before: self.clock.now() + self.pause_after(failures) })
    }

    /// The pause before the next attempt.
    fn pause_after(&self, failures: u32) -> SignedDuration {
        let pause = self.retry_backoff.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(LONGEST_PAUSE);
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::ZERO)
    }

    fn driver(&self, vm: &Vm) -> Result<Arc<dyn Driver>, Failure> {
        let name = &spec_of(vm)?.driver;
        self.drivers.get(name).cloned().ok_or_else(|| {
            // Retried, because enabling the driver again resolves it.
            Failure::new(
                FailureKind::Retry,
                Code::DriverUnsupported,
                format!("the driver {name} is not enabled in this service"),
            )
        })
    }

    async fn spec(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<InstanceSpec, Failure> {
        let policy = network::policy(spec_of(vm)?, &driver.capabilities().network, &self.allow)?;
        let template = self.catalog.version(&spec_of(vm)?.template_digest, &vm.spec.template).await?;
        let &ResolvedSpec { os, handover, cpus, memory_mib, .. } = spec_of(vm)?;
        let seed = match handover {
            Handover::Ssh | Handover::Agent => None,
            Handover::Seed => {
                let kit = self.provisioner.kit(vm, &template).await?;
                let volume = guest::seed::volume(&kit, &vm.spec.name)
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
            network: GuestNetwork { policy, guest_api: self.guest_api.clone() },
        })
    }

    /// Runs `work`, and fails when the instance ends before it.
    async fn while_running<T>(
        &self,
        driver: &Arc<dyn Driver>,
        vm: &Vm,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let name = vm.instance();
        tokio::select! {
            done = work => done,
            ended = driver.ended(&name) => {
                let words = last_words(driver.console_log(&name)).await;
                Err(ended_early(vm, ended?, words.as_deref()))
            }
        }
    }
}

/// Whether Mayfly reached the guest of this attempt, or the guest reported. A DELETE by an admin may come before
/// either.
fn was_reached(vm: &Vm) -> bool {
    let this_attempt = vm.timeline.iter().rev().take_while(|entry| entry.state != State::Cloning);
    vm.announced_by == Some(Announcer::Hook)
        || this_attempt.map(|entry| entry.state).any(|state| matches!(state, State::Configuring | State::Running))
}

/// The failure of a guest that ended, or was stopped, before it was provisioned.
fn ended_early(vm: &Vm, cause: GoneCause, words: Option<&str>) -> Failure {
    let (kind, code) = match cause {
        GoneCause::GuestPowerOff | GoneCause::GuestReset | GoneCause::HostStop | GoneCause::Unknown => {
            (FailureKind::Attempt, Code::GuestEndedEarly)
        }
        GoneCause::GuestPanic | GoneCause::HypervisorError | GoneCause::GuestWatchdog | GoneCause::HostPause => {
            (FailureKind::Attempt, cause.code())
        }
        // Another clone would fail in the same way.
        GoneCause::HostDiskFull | GoneCause::AcceleratorFailed => (FailureKind::Host, cause.code()),
    };
    let said = words.map(|words| format!("; its console said: {words}")).unwrap_or_default();
    Failure::new(kind, code, format!("the guest ended while it was {}: {}{said}", vm.state, cause.describe()))
}

/// What the scripts in the guest wrote last to its console: they do so if they cannot report it.
async fn last_words(console: Option<PathBuf>) -> Option<String> {
    let console = console?;
    let tail = blocking_io(move || files::read_tail(&console, 16 << 10)).await.ok()??;
    let text = String::from_utf8_lossy(&tail);
    let (_, words) =
        text.lines().rev().find_map(|line| line.split_once("mayfly: ").or_else(|| line.split_once("mayfly boot: ")))?;
    Some(words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect::<String>().trim().to_owned())
}
