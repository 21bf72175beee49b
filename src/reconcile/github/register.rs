//! Registers a vm's runner at GitHub when its guest is about to be provisioned, and not while the vm is queued.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{
    reach::Reach,
    record::{record, runner_name},
};
use crate::{
    domain::{
        Code, Event, Scope, Vm,
        github::{GitHubRunner, Registered},
    },
    parts::Parts,
    platform::Clock,
    reconcile::failure::{Failure, FailureKind},
    sources::github::{DEFAULT_GROUP, GitHubClient, GitHubError, JitConfig, NewRunner, model::RunnerStatus},
    store::{Ledger, Reader, StoreError, Vault, github_runners::RunnerRow},
};

pub(in crate::reconcile) struct Registrar {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    client: Option<Arc<GitHubClient>>,
    reach: Reach,
    clock: Clock,
}

impl Registrar {
    pub fn new(parts: &Parts, reach: Reach) -> Self {
        let Parts { ledger, reader, vault, github: client, clock, .. } = parts.clone();
        Self { ledger, reader, vault, client, reach, clock }
    }

    async fn note(&self, vm: &Vm, runner: Registered) -> Result<(), StoreError> {
        record(&self.ledger, &self.clock, vm, Event::RunnerRegistered { runner }).await.map(drop)
    }

    /// The just-in-time configuration of this attempt's runner, registered on the first call. Later calls return the
    /// same configuration, because a guest may already have started with it.
    pub async fn registration(&self, vm: &Vm) -> Result<SecretString, Failure> {
        let no_way = || {
            let detail =
                format!("the runner of {} cannot be registered: no GitHub credentials are configured", vm.spec.name);
            Failure::new(FailureKind::Permanent, Code::GitHubNotConfigured, detail)
        };
        let (Some(github), Some(runner)) = (&self.client, vm.spec.managed()) else { return Err(no_way()) };
        let name = runner_name(vm);
        let known = self.reader.github_runner(&name).await?;
        if let Some(RunnerRow { runner_id: Some(id), sealed, .. }) = &known {
            let Some(sealed) = sealed else {
                // The vm has just left this state, and this step is about to be cancelled.
                let detail = format!("the configuration of the runner {name} was already passed to a guest");
                return Err(Failure::new(FailureKind::Retry, Code::GuestNotConfigured, detail));
            };
            let config = self.opened(vm, sealed)?;
            let runner = Registered { runner_id: Some(*id), name };
            if vm.registered.as_ref() != Some(&runner) {
                self.note(vm, runner).await?;
            }
            return Ok(config);
        }
        let group = self.group_id(github, runner).await?;
        self.ledger.registration_requested(&name, &runner.scope, vm.id(), vm.attempt, self.clock.now()).await?;
        if known.is_some() {
            // GitHub was asked before, but its answer was lost: the runner may exist.
            self.clear_name(github, &runner.scope, &name).await?;
        }
        let new = NewRunner { name: name.clone(), group, labels: runner.labels.clone(), work_folder: None };
        let made = match self.generate(github, &runner.scope, &new).await {
            Err(GitHubError::NameTaken { .. }) => {
                self.clear_name(github, &runner.scope, &name).await?;
                self.generate(github, &runner.scope, &new).await
            }
            made => made,
        };
        if let (None, Err(error)) = (&known, &made)
            && !error.maybe_done()
            && !matches!(error, GitHubError::NameTaken { .. })
        {
            // GitHub certainly registered nothing, so no row is needed to find it again.
            self.ledger.runner_gone(&name).await?;
        }
        let made = made.map_err(|error| match error {
            // A fresh clone has a fresh runner name.
            GitHubError::NameTaken { .. } => Failure::new(FailureKind::Attempt, Code::GitHubRefused, error.to_string()),
            error => Failure::from(&error),
        })?;
        let config = made.encoded_jit_config;
        let sealed = self.vault.seal(vm.id(), config.expose_secret().as_bytes());
        self.ledger.runner_registered(&name, made.runner.id, sealed).await?;
        tracing::info!(vm.id = %vm.id(), runner.id = made.runner.id, runner.name = %name, scope = %runner.scope.slug(), "runner registered");
        self.note(vm, Registered { runner_id: Some(made.runner.id), name }).await?;
        Ok(config)
    }

    async fn group_id(&self, github: &GitHubClient, runner: &GitHubRunner) -> Result<u64, Failure> {
        let Some(name) = &runner.group else { return Ok(DEFAULT_GROUP) };
        let found = github.runner_group_id(&runner.scope, name).await;
        self.reach.note(&runner.scope, &found, self.clock.now());
        found.map_err(|error| Failure::from(&error))?.ok_or_else(|| {
            let detail = format!("{} has no runner group {name:?} that these credentials may see", runner.scope);
            Failure::new(FailureKind::Permanent, Code::GitHubRefused, detail)
        })
    }

    async fn generate(&self, github: &GitHubClient, scope: &Scope, new: &NewRunner) -> Result<JitConfig, GitHubError> {
        let made = github.generate_jit_config(scope, new).await;
        let result = match &made {
            Ok(_) => "registered",
            Err(GitHubError::NameTaken { .. }) => "name_taken",
            Err(error) if error.passes() || error.maybe_done() => "unavailable",
            Err(_) => "refused",
        };
        metrics::counter!("mayfly_github_registrations_total", "result" => result).increment(1);
        match &made {
            // This request is not retried, so one failure does not show that GitHub is unreachable. A probe, which is
            // retried, shows it.
            Err(GitHubError::Unavailable { .. }) => {
                let visible = github.visible(scope).await;
                self.reach.note(scope, &visible, self.clock.now());
            }
            made => self.reach.note(scope, made, self.clock.now()),
        }
        made
    }

    /// Removes the runner that an earlier request registered under this name. No guest received its configuration, so
    /// it cannot be online: a runner that is online or busy is another one, and is left alone.
    async fn clear_name(&self, github: &GitHubClient, scope: &Scope, name: &str) -> Result<(), Failure> {
        let found = github.find_runner_by_name(scope, name).await;
        self.reach.note(scope, &found, self.clock.now());
        let Some(found) = found.map_err(|error| Failure::from(&error))? else { return Ok(()) };
        let at_work = || {
            let detail = format!("{scope} has a runner {name} that is at work, and it was not started from here");
            Failure::new(FailureKind::Attempt, Code::GitHubRefused, detail)
        };
        if found.busy || found.status != RunnerStatus::Offline {
            return Err(at_work());
        }
        let removed = github.delete_runner(scope, found.id).await;
        self.reach.note(scope, &removed, self.clock.now());
        match removed {
            Ok(_) => {
                tracing::info!(runner.id = found.id, runner.name = %name, "removed a runner whose configuration (JIT) was lost");
                Ok(())
            }
            Err(GitHubError::RunnerBusy { .. }) => Err(at_work()),
            Err(error) => Err(Failure::from(&error)),
        }
    }

    fn opened(&self, vm: &Vm, sealed: &[u8]) -> Result<SecretString, Failure> {
        let lost = || {
            let detail = "the runner's configuration cannot be decrypted: the key in the data directory is not the one it was stored with";
            Failure::new(FailureKind::Permanent, Code::Internal, detail)
        };
        let clear = self.vault.unseal(vm.id(), sealed).ok_or_else(lost)?;
        Ok(String::from_utf8(clear).map_err(|_| lost())?.into())
    }
}
