//! Registers a vm's runner at its CI server when its guest is about to be provisioned, and not while the vm is queued.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{
    reach::Reach,
    record::{record, runner_name},
};
use crate::{
    domain::{
        Code, Event, SourceKind, Vm,
        source_runner::{Registered, SourceRunner, SourceScope},
    },
    parts::Parts,
    platform::Clock,
    reconcile::failure::{Failure, FailureKind},
    sources::{CiServer, SourceError, SourceErrorKind, Sources, runner::NewRegistration},
    store::{Ledger, Reader, StoreError, Vault, runners::RunnerRow},
};

pub(in crate::reconcile) struct Registrar {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    sources: Sources,
    reach: Reach,
    clock: Clock,
}

impl Registrar {
    pub fn new(parts: &Parts, reach: Reach) -> Self {
        let Parts { ledger, reader, vault, sources, clock, .. } = parts.clone();
        Self { ledger, reader, vault, sources, reach, clock }
    }

    async fn note(&self, vm: &Vm, runner: Registered) -> Result<(), StoreError> {
        record(&self.ledger, &self.clock, vm, Event::RunnerRegistered { runner }).await.map(drop)
    }

    /// What the runner of this attempt needs in its guest, registered on the first call. Later calls return the
    /// same, because a guest may already have started with it.
    pub async fn registration(&self, vm: &Vm) -> Result<SecretString, Failure> {
        let Some(runner) = vm.spec.managed() else {
            let detail = format!("the vm {} has no runner that is registered from here", vm.spec.name);
            return Err(Failure::new(FailureKind::Permanent, Code::Internal, detail));
        };
        let Some(server) = self.sources.server(&runner.source) else {
            let kind = self.sources.kind(&runner.source).or(vm.spec.runner.source()).unwrap_or(SourceKind::GitHub);
            let detail = format!(
                "the runner of {} cannot be registered: no credentials for the source {} are configured",
                vm.spec.name, runner.source
            );
            return Err(Failure::new(FailureKind::Permanent, kind.not_configured(), detail));
        };
        let name = runner_name(vm);
        let known = self.reader.runner(&name).await?;
        if let Some(RunnerRow { runner_id: Some(id), sealed, .. }) = &known {
            let Some(sealed) = sealed else {
                // The vm has just left this state, and this step is about to be cancelled.
                let detail = format!("the configuration of the runner {name} was already passed to a guest");
                return Err(Failure::new(FailureKind::Retry, Code::GuestNotConfigured, detail));
            };
            let config = self.opened(vm, sealed)?;
            let runner = Registered { runner_id: Some(id.clone()), name };
            if vm.registered.as_ref() != Some(&runner) {
                self.note(vm, runner).await?;
            }
            return Ok(config);
        }
        let at = runner.source_scope();
        self.ledger.registration_requested(&name, &at, vm.id(), vm.attempt, self.clock.now()).await?;
        if known.is_some() {
            // The server was asked before, but its answer was lost: the runner may exist.
            self.clear_name(server, &at, &name).await?;
        }
        let made = match self.register(server, runner, &name).await {
            Err(error) if error.kind == SourceErrorKind::NameTaken => {
                self.clear_name(server, &at, &name).await?;
                self.register(server, runner, &name).await
            }
            made => made,
        };
        if let (None, Err(error)) = (&known, &made)
            && !error.maybe_done()
            && error.kind != SourceErrorKind::NameTaken
        {
            // The server certainly registered nothing, so no row is needed to find it again.
            self.ledger.runner_gone(&name).await?;
        }
        let NewRegistration { runner_id, secret } = made.map_err(|error| match error.kind {
            // A fresh clone has a fresh runner name.
            SourceErrorKind::NameTaken => Failure::new(FailureKind::Attempt, error.system.refused(), error.to_string()),
            _ => Failure::from(&error),
        })?;
        let sealed = self.vault.seal(vm.id(), secret.expose_secret().as_bytes());
        self.ledger.runner_registered(&name, &runner_id, sealed).await?;
        tracing::info!(vm.id = %vm.id(), runner.id = %runner_id, runner.name = %name, job.source = %at.source, scope = %at.scope.slug(), "runner registered");
        self.note(vm, Registered { runner_id: Some(runner_id), name }).await?;
        Ok(secret)
    }

    async fn register(
        &self,
        server: &CiServer,
        runner: &SourceRunner,
        name: &str,
    ) -> Result<NewRegistration, SourceError> {
        let made = server.register(runner, name).await;
        let result = match &made {
            Ok(_) => "registered",
            Err(error) if error.kind == SourceErrorKind::NameTaken => "name_taken",
            Err(error) if error.passes() || error.maybe_done() => "unavailable",
            Err(_) => "refused",
        };
        let source = server.name().to_string();
        metrics::counter!("mayfly_runner_registrations_total", "source" => source, "result" => result).increment(1);
        let at = runner.source_scope();
        match &made {
            // This request is not retried, so one failure does not show that the server is unreachable. A probe, which
            // is retried, shows it.
            Err(SourceError { kind: SourceErrorKind::Unavailable { .. }, .. }) => {
                let visible = server.visible(&at.scope).await;
                self.reach.note(&at, &visible, self.clock.now());
            }
            made => self.reach.note(&at, made, self.clock.now()),
        }
        made
    }

    /// Removes the runners that an earlier request registered under this name. No guest received their configuration, so
    /// they cannot be online: a runner that is online or busy is another one, and is left alone.
    async fn clear_name(&self, server: &CiServer, at: &SourceScope, name: &str) -> Result<(), Failure> {
        let found = server.runners_named(&at.scope, name).await;
        self.reach.note(at, &found, self.clock.now());
        let at_work = || {
            let detail = format!("{} has a runner {name} that is at work, and it was not started from here", at.scope);
            Failure::new(FailureKind::Attempt, server.kind().refused(), detail)
        };
        for found in found.map_err(|error| Failure::from(&error))? {
            if found.busy || found.online != Some(false) {
                return Err(at_work());
            }
            let removed = server.delete_runner(&at.scope, &found.id).await;
            self.reach.note(at, &removed, self.clock.now());
            match removed {
                Ok(_) => {
                    tracing::info!(runner.id = %found.id, runner.name = %name, "removed a runner whose registration was lost");
                }
                Err(error) if error.kind == SourceErrorKind::RunnerBusy => return Err(at_work()),
                Err(error) => return Err(Failure::from(&error)),
            }
        }
        Ok(())
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
