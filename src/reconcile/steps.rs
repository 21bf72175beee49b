//! One idempotent step per state. Each rests on the vm's row, the template and the settings, and gives the fact that moves
//! the vm on. Any of them may be run again from its beginning at any moment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::SignedDuration;
use secrecy::ExposeSecret;

use super::Reconciler;
use crate::{
    domain::{
        Code, Event, Handover, QueueReason, Vm,
        event::{GoneCause, ReadyVia},
        lifecycle::Step,
        template::Template,
        vm::{Endpoint, RunnerKind},
    },
    drivers::{Driver, DriverError, ErrorKind, GuestNetwork, InstanceSpec, Observation, Seed},
    guest::{self, Kit, KitInput},
    runners::Payload,
    store::{Expect, logs::LogSource},
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
    fn new(kind: FailureKind, code: Code, detail: impl Into<String>) -> Self {
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
        let kind = if error.code.retryable() { FailureKind::Retry } else { FailureKind::Permanent };
        let tail = error.cause.as_ref().map(ToString::to_string);
        Failure { kind, code: error.code, detail: error.detail, tail }
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        crate::domain::Error::from(error).into()
    }
}

/// How often an endpoint that the driver does not know yet is asked for.
const ENDPOINT_EVERY: Duration = Duration::from_millis(100);

impl Reconciler {
    pub(super) async fn step(&self, vm: &Vm) -> Result<Event, Failure> {
        match vm.state.owes() {
            // Placement, a deadline or a DELETE moves it.
            Step::AwaitSlot | Step::Nothing => std::future::pending().await,
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
        let spec = self.spec(vm).await?;
        driver.create(&spec).await?;
        Ok(Event::Cloned)
    }

    async fn boot(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let spec = self.spec(vm).await?;
        driver.start(&spec).await?;
        self.while_running(&driver, vm, async {
            match vm.draft.handover {
                Handover::Seed => {
                    // Known at once or never needed: the guest itself says when it is ready.
                    if let Observation::Running { ssh: Some(ssh), .. } = driver.inspect(&vm.id().instance()).await? {
                        self.note_endpoint(vm, ssh, None).await?;
                    }
                    std::future::pending().await
                }
                Handover::Ssh => {
                    let ssh = self.endpoint(&driver, vm).await?;
                    self.note_endpoint(vm, ssh.clone(), None).await?;
                    guest::readiness::banner(&ssh.host, ssh.port, self.step_ends(vm))
                        .await
                        .map_err(|error| Failure::new(FailureKind::Retry, Code::GuestNotReady, error.to_string()))?;
                    Ok(Event::GuestReady { via: ReadyVia::SshBanner })
                }
                Handover::Agent => Err(no_agent(&driver)),
            }
        })
        .await
    }

    async fn configure(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        self.while_running(&driver, vm, async {
            match vm.draft.handover {
                // The seed is at work in the guest, whose word moves the vm.
                Handover::Seed => std::future::pending().await,
                Handover::Ssh => {
                    let template = self.template(vm).await?;
                    let ssh = self.endpoint(&driver, vm).await?;
                    let kit = self.kit(vm, &template).await?;
                    let target = guest::ssh::Target {
                        host: ssh.host.clone(),
                        port: ssh.port,
                        user: template.user.clone(),
                        login: template.files.ssh_key.clone().map(guest::ssh::Login::Key).ok_or_else(|| {
                            Failure::new(
                                FailureKind::Permanent,
                                Code::GuestLoginRefused,
                                "the template has no SSH key to log in with",
                            )
                        })?,
                        pinned_host_key: vm.host_key.clone(),
                    };
                    let delivered = guest::ssh::deliver(&target, &kit, self.step_ends(vm)).await?;
                    self.note_endpoint(vm, ssh, Some(delivered.host_key)).await?;
                    if let Err(error) = self.logs.append(vm.id(), LogSource::Boot, delivered.boot_log).await {
                        tracing::warn!(vm.id = %vm.id(), error = %error, "the boot log could not be kept");
                    }
                    Ok(Event::GuestConfigured)
                }
                Handover::Agent => Err(no_agent(&driver)),
            }
        })
        .await
    }

    async fn await_end(&self, vm: &Vm) -> Result<Event, Failure> {
        let cause = self.driver(vm)?.ended(&vm.id().instance()).await?;
        Ok(Event::InstanceGone { cause })
    }

    async fn stop(&self, vm: &Vm) -> Result<Event, Failure> {
        let grace = Duration::try_from(vm.stop_grace()).unwrap_or_default();
        self.driver(vm)?.stop(&vm.id().instance(), grace).await?;
        Ok(Event::InstanceStopped)
    }

    async fn destroy(&self, vm: &Vm) -> Result<Event, Failure> {
        let driver = self.driver(vm)?;
        let name = vm.id().instance();
        if let Some(console) = driver.console_log(&name)
            && let Err(error) = self.logs.keep_tail(vm.id(), LogSource::Console, &console).await
        {
            // A log is not worth a leaked disk.
            tracing::warn!(vm.id = %vm.id(), error = %error, "the console log could not be kept");
        }
        driver.destroy(&name).await?;
        if !vm.retries() {
            return Ok(Event::InstanceAbsent);
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
        self.drivers.get(&vm.draft.driver).cloned().ok_or_else(|| {
            // Enabling the driver again is all that is needed, so the vm waits for it.
            Failure::new(
                FailureKind::Retry,
                Code::DriverUnsupported,
                format!("the driver {} is not enabled in this service", vm.draft.driver),
            )
        })
    }

    async fn template(&self, vm: &Vm) -> Result<Template, Failure> {
        Ok(self.catalog.get(&vm.draft.template_digest).await?)
    }

    async fn spec(&self, vm: &Vm) -> Result<InstanceSpec, Failure> {
        let template = self.template(vm).await?;
        let seed = match vm.draft.handover {
            Handover::Ssh | Handover::Agent => None,
            Handover::Seed => {
                let kit = self.kit(vm, &template).await?;
                let volume = guest::seed::volume(&kit, &vm.draft.name)
                    .map_err(|e| Failure::new(FailureKind::Permanent, Code::CloneFailed, format!("the seed: {e}")))?;
                Some(Seed { volume })
            }
        };
        Ok(InstanceSpec {
            name: vm.id().instance(),
            os: vm.draft.os,
            arch: template.arch,
            cpus: vm.draft.cpus,
            memory_mib: vm.draft.memory_mib,
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

    async fn kit(&self, vm: &Vm, template: &Template) -> Result<Kit, Failure> {
        let payload = match vm.draft.runner {
            RunnerKind::None => None,
            RunnerKind::Command | RunnerKind::Script => {
                let lost = || {
                    Failure::new(
                        FailureKind::Permanent,
                        Code::Internal,
                        "the vm's script cannot be decrypted: the key in the data directory is not the one it was stored with",
                    )
                };
                let sealed = self.reader.sealed(vm.id()).await?.ok_or_else(lost)?;
                let clear = self.vault.unseal(vm.id(), &sealed).ok_or_else(lost)?;
                Some(Payload::from_bytes(&clear).ok_or_else(lost)?)
            }
        };
        let (payload, env) = match payload {
            Some(p) => (
                Some(p.script.expose_secret().to_owned()),
                p.env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect(),
            ),
            None => (None, BTreeMap::new()),
        };
        Kit::new(KitInput {
            vm_id: vm.id(),
            url: self.settings.guest_url.clone(),
            token: self.vault.vm_token(vm.id()),
            kind: vm.draft.runner,
            user: template.user.clone(),
            env,
            payload,
        })
        .map_err(|e| Failure::new(FailureKind::Permanent, Code::GuestNotConfigured, e.to_string()))
    }

    /// Runs `work` for as long as the instance runs.
    async fn while_running(
        &self,
        driver: &Arc<dyn Driver>,
        vm: &Vm,
        work: impl Future<Output = Result<Event, Failure>>,
    ) -> Result<Event, Failure> {
        let name = vm.id().instance();
        tokio::select! {
            done = work => done,
            ended = driver.ended(&name) => {
                let how = match ended? {
                    GoneCause::GuestPowerOff => "it powered itself off",
                    GoneCause::GuestReset => "it reset itself; often a kernel panic",
                    GoneCause::GuestPanic => "its kernel panicked",
                    GoneCause::HypervisorError => "its hypervisor gave it up",
                    GoneCause::HostStop => "somebody stopped it on the host",
                    GoneCause::Unknown => "its hypervisor is gone without a word",
                };
                Err(Failure::new(
                    FailureKind::Attempt,
                    Code::GuestEndedEarly,
                    format!("the guest ended while it was {}: {how}", vm.state),
                ))
            }
        }
    }

    async fn endpoint(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<Endpoint, Failure> {
        let name = vm.id().instance();
        loop {
            if let Observation::Running { ssh: Some(ssh), .. } = driver.inspect(&name).await? {
                return Ok(ssh);
            }
            tokio::time::sleep(ENDPOINT_EVERY).await;
        }
    }

    async fn note_endpoint(&self, vm: &Vm, ssh: Endpoint, host_key: Option<String>) -> Result<(), Failure> {
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        self.ledger.apply(vm.id(), expect, Event::EndpointFound { ssh, host_key }, self.clock.now()).await?;
        Ok(())
    }

    /// The deadline of the vm's state on the runtime's clock, for calls that bound themselves. The vm's own deadline is kept by
    /// its task; this one only has to be no sooner.
    fn step_ends(&self, vm: &Vm) -> tokio::time::Instant {
        let left = vm.deadline().map_or(SignedDuration::from_hours(1), |(_, at)| at.duration_since(self.clock.now()));
        tokio::time::Instant::now() + Duration::try_from(left).unwrap_or_default() + Duration::from_secs(5)
    }
}

fn no_agent(driver: &Arc<dyn Driver>) -> Failure {
    let detail = format!("the driver {} has no channel to an agent in the guest", driver.name());
    Failure::new(FailureKind::Permanent, Code::DriverUnsupported, detail)
}

impl From<guest::SshError> for Failure {
    fn from(error: guest::SshError) -> Self {
        let kind = match &error {
            // A guest that makes its users while it boots refuses at first: the budget decides how long that is believed.
            guest::SshError::Retry(_) | guest::SshError::LoginRefused(_) => FailureKind::Retry,
            guest::SshError::HostKeyChanged(_) | guest::SshError::Failed { .. } => FailureKind::Attempt,
        };
        let tail = match &error {
            guest::SshError::Failed { tail, .. } => Some(tail.clone()),
            _ => None,
        };
        Failure { kind, code: error.code(), detail: error.to_string(), tail }
    }
}
