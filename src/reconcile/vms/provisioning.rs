//! Provisions guests: waits until the guest can be reached, and gives it its bootstrap bundle by seed, SSH or agent.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};

use super::{
    observe::{Ways, ways},
    template::spec_of,
};
use crate::{
    domain::{
        Code, Event, GuestRole, Handover, NetworkMode, SourceKind, State, Vm,
        endpoint::Endpoint,
        event::ReadyVia,
        ready_check::{ReadyCheck, ReadyKind},
        runner::RunnerKind,
        runner_secrets::RunnerSecrets,
        source_runner::{Registered, Registration, runner_name},
        template::Template,
    },
    drivers::Driver,
    guest::{
        self, HostEnvironment, Kit, KitInput,
        ready_kit::ReadyKit,
        runner_kit::{BuildkiteKit, GitHubKit, GiteaKit, KitRunnerArchive, RunnerKit, RunnerProgram},
    },
    parts::Parts,
    platform::{Clock, clock},
    reconcile::{
        failure::{Failure, FailureKind},
        runners::Registrar,
        settings::Settings,
    },
    sources::{
        CiClient, CiServer, Sources,
        github::{runner_archives::RunnerArchives, runner_of},
    },
    store::{
        Expect, Ledger, Reader, Vault,
        logs::{LogSource, Logs},
    },
    templates::Catalog,
};

/// Interval of queries while the driver does not know the guest's address yet.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a guest may take to ask for the permission to start its runner.
const START_IS_TOLD_AFTER: Duration = Duration::from_secs(10);
const START_IS_TOLD_WITHIN: Duration = Duration::from_secs(60);

pub(in crate::reconcile) struct Provisioner {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    logs: Logs,
    catalog: Arc<Catalog>,
    archives: RunnerArchives,
    clock: Clock,
    registrar: Registrar,
    guest_urls: BTreeMap<String, String>,
    host_environments: BTreeMap<String, HostEnvironment>,
    sources: Sources,
}

impl Provisioner {
    pub fn new(parts: &Parts, registrar: Registrar, settings: &Settings) -> Self {
        let Parts { ledger, reader, vault, logs, catalog, runner_archives: archives, clock, sources, .. } =
            parts.clone();
        let guest_urls = settings.guest_urls.clone();
        let host_environments = settings.host_environments.clone();
        Self {
            ledger,
            reader,
            vault,
            logs,
            catalog,
            archives,
            clock,
            registrar,
            guest_urls,
            host_environments,
            sources,
        }
    }

    async fn template(&self, vm: &Vm) -> Result<Template, Failure> {
        Ok(self.catalog.version(&spec_of(vm)?.template_digest, &vm.spec.template).await?)
    }

    /// Returns once the guest can be provisioned. Never returns for a seed: then the guest reports over the guest
    /// API.
    pub async fn guest_ready(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<ReadyVia, Failure> {
        match spec_of(vm)?.handover {
            Handover::Seed => {
                // The address is known at once, or not needed.
                if let Some(Ways { ssh: Ok(Some(ssh)), .. }) = ways(driver, vm).await? {
                    self.note_endpoint(vm, ssh, None).await?;
                }
                std::future::pending().await
            }
            Handover::Ssh => {
                let ssh = self.endpoint(driver, vm).await?;
                self.note_endpoint(vm, ssh.clone(), None).await?;
                guest::readiness::banner(&ssh, self.step_ends(vm))
                    .await
                    .map_err(|error| Failure::new(FailureKind::Retry, Code::GuestNotReady, error.to_string()))?;
                Ok(ReadyVia::SshBanner)
            }
            Handover::Agent => {
                let socket = self.agent(driver, vm).await?;
                guest::agent::ready(&socket, self.step_ends(vm)).await?;
                if spec_of(vm)?.ready.as_ref().and_then(ReadyCheck::kind) == Some(ReadyKind::Agent) {
                    self.note(vm, Event::GuestChecked { version: None, state: None }).await?;
                }
                Ok(ReadyVia::GuestAgent)
            }
        }
    }

    /// Returns once the guest is provisioned. Never returns for a seed: then the report of the guest moves the vm.
    pub async fn provision(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<(), Failure> {
        let boot_log = match spec_of(vm)?.handover {
            Handover::Seed => std::future::pending().await,
            Handover::Ssh => {
                let template = self.template(vm).await?;
                let ssh = self.endpoint(driver, vm).await?;
                let kit = self.kit(vm, &template).await?;
                let target = ssh_target(vm, &template, &ssh).await?;
                let delivered = guest::ssh::deliver(&target, &kit, self.step_ends(vm)).await;
                let delivered = delivered.map_err(|error| check_failure(vm, error))?;
                self.note_endpoint(vm, ssh, Some(delivered.host_key)).await?;
                delivered.boot_log
            }
            Handover::Agent => {
                let template = self.template(vm).await?;
                let socket = self.agent(driver, vm).await?;
                let kit = self.kit(vm, &template).await?;
                let delivered = guest::agent::deliver(&socket, &kit, self.step_ends(vm)).await;
                delivered.map_err(|error| check_failure(vm, error))?.boot_log
            }
        };
        if let Err(error) = self.logs.append(vm.id(), LogSource::Boot, boot_log).await {
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot store the boot log");
        }
        Ok(())
    }

    /// Permits the guest to start its runner, over SSH or the agent, if it does not ask over the guest API. Returns
    /// when the guest was told, or has shown that it started. Nothing is recorded, so a restart tells it again.
    pub async fn permit_job(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<(), Failure> {
        let handover = spec_of(vm)?.handover;
        if handover == Handover::Seed || vm.state != State::Running || !vm.start_unconfirmed {
            return Ok(());
        }
        let mut pause = START_IS_TOLD_AFTER;
        loop {
            tokio::time::sleep(pause).await;
            let now = self.reader.vm(vm.id()).await?;
            let still = |now: &Vm| now.state == State::Running && now.attempt == vm.attempt && now.start_unconfirmed;
            let Some(now) = now.filter(still) else { return Ok(()) };
            let until = clock::monotonic() + START_IS_TOLD_WITHIN;
            let permitted: Result<(), Failure> = async {
                match handover {
                    Handover::Seed => Ok(()),
                    Handover::Ssh => {
                        let ssh = self.endpoint(driver, &now).await?;
                        let target = ssh_target(&now, &self.template(&now).await?, &ssh).await?;
                        Ok(guest::ssh::start(&target, now.attempt, until).await?)
                    }
                    Handover::Agent => {
                        let socket = self.agent(driver, &now).await?;
                        Ok(guest::agent::start(&socket, now.attempt, until).await?)
                    }
                }
            }
            .await;
            match permitted {
                Ok(()) => return Ok(()),
                Err(failure) => {
                    tracing::warn!(vm.id = %vm.id(), code = %failure.code, detail = failure.detail, "cannot give the guest the permission to start its job");
                }
            }
            pause = (pause * 2).min(Duration::from_secs(60));
        }
    }

    /// Asks the guest itself to power down, for a hypervisor that cannot ask it. Fails if it was not asked.
    pub async fn power_off(&self, driver: &Arc<dyn Driver>, vm: &Vm, within: Duration) -> Result<(), Failure> {
        let until = clock::monotonic() + within;
        let endpoint = tokio::time::timeout_at(until, self.endpoint(driver, vm)).await;
        let ssh = endpoint
            .map_err(|_| Failure::new(FailureKind::Retry, Code::GuestNotReady, "the guest's address is not known"))??;
        let target = ssh_target(vm, &self.template(vm).await?, &ssh).await?;
        Ok(guest::ssh::power_off(&target, until).await?)
    }

    pub async fn kit(&self, vm: &Vm, template: &Template) -> Result<Kit, Failure> {
        let payload = match vm.spec.runner {
            RunnerKind::None => None,
            RunnerKind::Command
            | RunnerKind::Script
            | RunnerKind::GitHub
            | RunnerKind::Gitea
            | RunnerKind::Buildkite => {
                let lost = || {
                    Failure::new(
                        FailureKind::Permanent,
                        Code::Internal,
                        "the vm's script cannot be decrypted: the key in the data directory is not the one it was stored with",
                    )
                };
                let sealed = self.reader.sealed(vm.id()).await?.ok_or_else(lost)?;
                let clear = self.vault.unseal(vm.id(), &sealed).ok_or_else(lost)?;
                Some(RunnerSecrets::from_bytes(&clear).ok_or_else(lost)?)
            }
        };
        let RunnerSecrets { script, registration, env } = payload.unwrap_or_default();
        let mut runner = self.runner_kit(vm, template, registration).await?;
        if spec_of(vm)?.handover == Handover::Seed {
            // Root in the guest can read the seed's volume while the job runs, so the secret is not in the seed: the
            // guest fetches it over the guest API.
            runner = runner.map(RunnerKit::without_secret);
        }
        let env = env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect();
        let payload = script.map(|script| script.expose_secret().to_owned());
        let driver = &spec_of(vm)?.driver;
        let url = self.guest_urls.get(driver).cloned().ok_or_else(|| {
            let detail = format!("no address of the guest API is configured for guests of the driver {driver}");
            Failure::new(FailureKind::Permanent, Code::GuestNotConfigured, detail)
        })?;
        // An isolated guest reaches no proxy, and has no use for certificates. The record of a vm of an earlier version
        // has no mode.
        let host_environment = match spec_of(vm)?.network {
            Some(NetworkMode::Internet | NetworkMode::Host) => self.host_environments.get(driver).cloned(),
            Some(NetworkMode::Isolated) | None => None,
        };
        Kit::new(KitInput {
            vm_id: vm.id(),
            url,
            token: self.vault.vm_token(vm.id(), GuestRole::Wrapper),
            job_token: self.vault.vm_token(vm.id(), GuestRole::Job),
            kind: vm.spec.runner,
            attempt: vm.attempt,
            heartbeat_seconds: vm.spec.budgets.heartbeat_seconds,
            handover: spec_of(vm)?.handover,
            start_seconds: vm.spec.budgets.boot_seconds.saturating_add(vm.spec.budgets.configure_seconds),
            user: template.user.clone(),
            env,
            host_environment: host_environment.unwrap_or_default(),
            ready: spec_of(vm)?
                .ready
                .clone()
                .map(|check| ReadyKit { seconds: check.seconds_within(vm.spec.budgets.configure_seconds), check }),
            payload,
            runner,
        })
        .map_err(|e| Failure::new(FailureKind::Permanent, Code::GuestNotConfigured, e.to_string()))
    }

    /// The part of the bundle for the runner of a CI system, with the caller's registration, or one that is made now.
    async fn runner_kit(
        &self,
        vm: &Vm,
        template: &Template,
        brought: Option<SecretString>,
    ) -> Result<Option<RunnerKit>, Failure> {
        let (Some(runner), Some(kind)) = (&vm.spec.source_runner, vm.spec.runner.source()) else { return Ok(None) };
        let secret = match (runner.registration, brought) {
            (Registration::Managed, _) => self.registrar.registration(vm).await?,
            (Registration::JitConfig, Some(secret)) => {
                if let Some(runner) = runner_of(&secret) {
                    self.note_brought(vm, runner).await?;
                }
                secret
            }
            (Registration::Token, Some(secret)) => {
                let name = runner_name(&vm.spec.name, vm.id(), vm.attempt);
                self.note_brought(vm, Registered { runner_id: None, name }).await?;
                secret
            }
            (Registration::JitConfig | Registration::Token, None) => {
                let lost = "the registration of the request is missing from the database";
                return Err(Failure::new(FailureKind::Permanent, Code::Internal, lost));
            }
        };
        let source = self.sources.get(&runner.source);
        let directory = source.and_then(|source| source.runner_directory.clone());
        let minimum_version = source.and_then(|source| source.runner_minimum_version.clone());
        Ok(Some(match kind {
            SourceKind::GitHub => {
                let web = source.map(|source| source.web.as_str()).unwrap_or_default();
                let archive = self.archives.archive(spec_of(vm)?.os, template.arch);
                RunnerKit::GitHub(GitHubKit {
                    url: format!("{}/{}", web.trim_end_matches('/'), runner.scope.slug()),
                    name: runner_name(&vm.spec.name, vm.id(), vm.attempt),
                    labels: runner.labels.clone(),
                    group: runner.group.clone(),
                    registration: runner.registration,
                    secret: Some(secret),
                    program: RunnerProgram {
                        directory,
                        minimum_version: minimum_version.unwrap_or_default(),
                        archive: archive
                            .map(|a| KitRunnerArchive { version: a.version.clone(), sha256: a.sha256.clone() }),
                    },
                })
            }
            SourceKind::Gitea => RunnerKit::Gitea(GiteaKit { directory, minimum_version, secret: Some(secret) }),
            SourceKind::Buildkite => {
                let endpoint = match source.and_then(|source| source.server.as_ref()).map(CiServer::client) {
                    Some(CiClient::Buildkite(client)) => client.queue().endpoint().to_owned(),
                    _ => String::new(),
                };
                RunnerKit::Buildkite(BuildkiteKit {
                    endpoint,
                    name: runner_name(&vm.spec.name, vm.id(), vm.attempt),
                    tags: runner.labels.clone(),
                    directory,
                    minimum_version,
                    secret: Some(secret),
                })
            }
        }))
    }

    /// Records the name of a runner that the caller registered: jobs are bound to the vm by it.
    async fn note_brought(&self, vm: &Vm, runner: Registered) -> Result<(), Failure> {
        if vm.registered.as_ref() == Some(&runner) {
            return Ok(());
        }
        self.note(vm, Event::RunnerRegistered { runner }).await
    }

    async fn endpoint(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<Endpoint, Failure> {
        self.reached(driver, vm, |ways| ways.ssh).await
    }

    /// The socket of the agent in the guest.
    async fn agent(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<PathBuf, Failure> {
        self.reached(driver, vm, |ways| Ok(ways.agent)).await
    }

    async fn reached<T>(
        &self,
        driver: &Arc<dyn Driver>,
        vm: &Vm,
        choose: impl Fn(Ways) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        loop {
            if let Some(ways) = ways(driver, vm).await?
                && let Some(way) = choose(ways)?
            {
                return Ok(way);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn note_endpoint(&self, vm: &Vm, ssh: Endpoint, host_key: Option<String>) -> Result<(), Failure> {
        self.note(vm, Event::EndpointFound { ssh, host_key }).await
    }

    async fn note(&self, vm: &Vm, event: Event) -> Result<(), Failure> {
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        self.ledger.apply(vm.id(), expect, event, self.clock.now()).await?;
        Ok(())
    }

    /// The deadline of the vm's state on the monotonic clock, for calls with their own time limit. `drive` enforces
    /// the exact deadline; this one only must not be earlier.
    fn step_ends(&self, vm: &Vm) -> tokio::time::Instant {
        let left = vm.deadline().map_or(SignedDuration::from_hours(1), |(_, at)| at.duration_since(self.clock.now()));
        clock::monotonic() + Duration::try_from(left).unwrap_or_default() + Duration::from_secs(5)
    }
}

/// The failure of a delivery. A readiness check that did not succeed is described as in the guest's own report of it.
fn check_failure(vm: &Vm, error: impl Into<Failure>) -> Failure {
    let mut failure: Failure = error.into();
    let ready = vm.spec.resolved().and_then(|spec| spec.ready.as_ref());
    if let (Code::GuestCheckFailed, Some(ready)) = (failure.code, ready) {
        let seen = failure.tail.as_deref().and_then(guest::last_line).unwrap_or_default();
        let seen = seen.strip_prefix("mayfly boot: not ready: ").unwrap_or(&seen);
        failure.detail = ready.failed(vm.spec.budgets.configure_seconds, seen);
    }
    failure
}

async fn ssh_target(vm: &Vm, template: &Template, ssh: &Endpoint) -> Result<guest::ssh::SshTarget, Failure> {
    Ok(guest::ssh::SshTarget {
        endpoint: ssh.clone(),
        user: template.user.clone(),
        login: login(template).await?,
        pinned_host_key: vm.host_key.clone(),
    })
}

async fn login(template: &Template) -> Result<guest::ssh::SshLogin, Failure> {
    let none = |what: &str| Failure::new(FailureKind::Permanent, Code::GuestLoginRefused, what);
    let login = guest::ssh::SshLogin::of(template).await;
    let login = login.map_err(|error| none(&format!("its password cannot be read: {error}")))?;
    login.ok_or_else(|| none("the template has neither an SSH key nor a password to log in with"))
}
