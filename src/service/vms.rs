//! Creating and ending vms, waiting for them, and their logs.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Service;
use crate::{
    domain::{
        Announcer, Asked, Basis, Budgets, BudgetsPatch, Code, Error, Event, Result, RunnerStatus, Scope, State, Vm,
        VmId,
        github::{GitHubRunner, Registration},
        name::{NAME_RULE, is_name},
        runner_secrets::RunnerSecrets,
        template::Template,
        token::Caller,
        vm::{Draft, RunnerKind},
    },
    platform::clock,
    registry::oci::reference::{Reference, ReferenceError},
    store::{
        Expect,
        ledger::{Admission, NewVm, Opened},
        logs::LogSource,
    },
    templates::{TemplateLease, pull::PullProgress},
};

/// How often the host is looked at for a request that does not wait, while slots are given back meanwhile.
const TRIES_NOW: u32 = 3;

/// A vm as asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRequest {
    /// Name or digest of a template, or an image in a registry (`host/namespace:tag` or `host/namespace@sha256:…`). An image that is
    /// not here is pulled while the vm waits, without a slot; a tag is looked up each time.
    #[schema(example = "micro")]
    pub template: String,
    /// Unique among live vms; made up when missing. Repeating a request with the same name and body gives the same vm.
    #[serde(default)]
    #[schema(example = "build-4711", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    pub name: Option<String>,
    /// What the guest runs.
    #[serde(default)]
    pub runner: Runner,
    /// Cores; the template's default when missing.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub cpus: Option<u32>,
    /// Memory in MiB; the template's default when missing.
    #[serde(default)]
    #[schema(minimum = 32)]
    pub memory_mib: Option<u32>,
    /// Yours to search by. At most 32, keys and values of at most 128 characters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Longest wait for a slot, in seconds. 0: start now or refuse with 409.
    #[serde(default)]
    pub queue_timeout_seconds: Option<u32>,
    /// Budgets that differ from the template's.
    #[serde(default)]
    pub budgets: BudgetsPatch,
}

/// What the guest runs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Runner {
    /// One job with the hook contract of GitHub's runner: job-started hook, the job, job-completed hook, result upload.
    Command {
        /// The job: a script with its own `#!` line, or text for `sh`.
        #[schema(value_type = String, example = "echo hello from $(hostname)")]
        command: SecretString,
        /// Environment of the job. Values are kept encrypted and never shown.
        #[serde(default)]
        #[schema(value_type = BTreeMap<String, String>)]
        env: BTreeMap<String, SecretString>,
    },
    /// A set-up script run in the guest, which may install and run a runner of any CI system. The vm ends when it returns.
    Script {
        /// A script with its own `#!` line, or text for `sh`.
        #[schema(value_type = String, example = "#!/bin/sh\n./run.sh\n")]
        script: SecretString,
        /// Environment of the script. Values are kept encrypted and never shown.
        #[serde(default)]
        #[schema(value_type = BTreeMap<String, String>)]
        env: BTreeMap<String, SecretString>,
    },
    /// GitHub's own runner, for one job. Mayfly registers it when its guest is about to need it, watches it at GitHub and
    /// takes it away there; or the caller brings `jit_config` or `registration_token`, and Mayfly leaves GitHub alone.
    #[serde(rename = "github")]
    GitHub {
        /// Where it is registered: `owner/name`, an organisation's login, or `enterprises/slug`.
        #[schema(value_type = String, example = "acme/app")]
        scope: Scope,
        /// Exactly those that the runner gets, 1 to 100: GitHub adds none (not even `self-hosted`) to what Mayfly registers.
        labels: Vec<String>,
        /// Name of the runner group, of organisations and enterprises; the default group when missing.
        #[serde(default)]
        group: Option<String>,
        /// A just-in-time configuration (`encoded_jit_config`) that the caller got from GitHub. Kept encrypted.
        #[serde(default)]
        #[schema(value_type = Option<String>)]
        jit_config: Option<SecretString>,
        /// A registration token that the caller got from GitHub; valid for an hour, so the vm must get a slot before. Kept
        /// encrypted.
        #[serde(default)]
        #[schema(value_type = Option<String>)]
        registration_token: Option<SecretString>,
        /// Environment of the runner and its jobs. Values are kept encrypted and never shown.
        #[serde(default)]
        #[schema(value_type = BTreeMap<String, String>)]
        env: BTreeMap<String, SecretString>,
    },
    /// Nothing: the vm lives until it is deleted or its lifetime is spent.
    #[default]
    None,
}

/// The answer to a creation: the vm, its token, and whether it is new.
pub struct Created {
    pub vm: Arc<Vm>,
    pub token: SecretString,
    pub new: bool,
}

/// The answer to a DELETE.
pub struct EndRequested {
    pub vm: Arc<Vm>,
    /// `true`: it had ended before.
    pub was_deleted: bool,
}

impl Service {
    pub async fn create_vm(&self, request: VmRequest, idempotency_key: Option<String>) -> Result<Created> {
        self.create(request, idempotency_key, None).await
    }

    /// For a job of a pool.
    pub async fn create_pool_vm(&self, pool: &str, request: VmRequest, idempotency_key: String) -> Result<Created> {
        let created = self.create(request, Some(idempotency_key), Some(pool.to_owned())).await;
        self.pool_board.note(pool, created.as_ref().map(drop), self.clock.now());
        created
    }

    async fn create(
        &self,
        request: VmRequest,
        idempotency_key: Option<String>,
        pool: Option<String>,
    ) -> Result<Created> {
        if let Some(key) = &idempotency_key
            && (key.is_empty() || key.len() > 255 || !key.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(Error::new(Code::RequestInvalid, "the Idempotency-Key is not usable")
                .field("header:Idempotency-Key", "1 to 255 visible ASCII characters"));
        }
        let id = VmId::mint();
        let payload = request.runner.payload()?;
        let request_hash = self.vault.fingerprint(&request.canonical(payload.as_ref()));
        // Kept until the vm is in the database, where whoever removes templates sees that it needs this one.
        let (draft, _kept) = self.draft(id, &request, pool).await?;
        let sealed = payload.map(|p| self.vault.seal(id, &p.to_bytes()));
        let opened = self
            .open(|admission| NewVm {
                draft: draft.clone(),
                request_hash,
                idempotency_key: idempotency_key.clone(),
                sealed: sealed.clone(),
                admission,
            })
            .await?;
        let vm = opened.vm().clone();
        let new = matches!(opened, Opened::Created(_));
        if new {
            metrics::counter!("mayfly_vms_created_total", "template" => vm.draft.template.clone()).increment(1);
            tracing::info!(vm.id = %vm.id(), vm.name = %vm.draft.name, template.name = %vm.draft.template, "vm created");
        }
        Ok(Created { token: self.vault.vm_token(vm.id()), vm, new })
    }

    /// Stores the vm, with a place in the queue or with a slot.
    async fn open(&self, new: impl Fn(Admission) -> NewVm) -> Result<Opened> {
        let queue = Admission::Queue { max_queued: self.settings.max_queued };
        let first = new(queue);
        let spec = match first.draft.spec() {
            Some(spec) if first.draft.budgets.queue_seconds == 0 => spec.clone(),
            _ => return Ok(self.ledger.open(first, self.clock.now()).await?),
        };
        for tries_left in (0..TRIES_NOW).rev() {
            let before = self.reader.demand().await?;
            // A request that was made before is answered as then, whatever the host says now: the error is for a new one.
            let room = self.room_now(&spec, before.clone()).await.map(Box::new);
            match self.ledger.open(new(Admission::Slot(room)), self.clock.now()).await.map_err(Error::from) {
                // A slot that is given back while we look counts as taken, until a look that begins later shows it free.
                Err(error) if error.code == Code::SlotUnavailable && tries_left > 0 => {
                    let now = self.reader.lease_holders().await?;
                    if before.leases.iter().all(|then| now.iter().any(|lease| lease.vm == then.vm)) {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
        Err(Error::internal("the last try returns"))
    }

    /// Where the vm's disk is to come from: a template that is here, and kept here, or an image that has to be looked for.
    async fn basis(&self, wanted: &str, asked: Asked) -> Result<(String, Basis, Budgets, Option<TemplateLease>)> {
        let capacity = self.host.capacity();
        let known = |(template, kept): (Template, TemplateLease), shown: Option<String>| {
            let (spec, budgets) = asked.of(&template, &capacity)?;
            Ok((shown.unwrap_or(template.name), Basis::Known(spec), budgets, Some(kept)))
        };
        if !wanted.contains('/') {
            let taken = self.catalog.take(wanted).await.map_err(|error| match error.code {
                // The path exists, what the body names does not: another answer than GET's 404.
                Code::TemplateNotFound => Error::new(Code::TemplateUnknown, error.detail)
                    .field("/template", "see GET /templates for what is here, or name an image as host/namespace:tag"),
                _ => error,
            })?;
            return known(taken, None);
        }
        let image: Reference = wanted.parse().map_err(|error: ReferenceError| {
            Error::new(Code::RequestInvalid, "the template is no image that could be pulled")
                .field("/template", error.to_string())
        })?;
        // What a tag stands for today is for its registry to say; a digest stands for one thing for ever.
        if let Some(template) = self.puller.here(&image).await? {
            return known(self.catalog.take(&template.digest).await?, Some(image.to_string()));
        }
        if asked.queue_seconds == 0 {
            return Err(Error::new(
                Code::SlotUnavailable,
                "queue_timeout_seconds is 0, and the image is not known to be here: pull it first and name the template \
                 or the digest, or let the vm wait",
            )
            .retry_after(60));
        }
        let budgets = asked.before(&self.settings.budgets, &capacity)?;
        Ok((image.to_string(), Basis::Awaited { awaits: asked }, budgets, None))
    }

    async fn draft(
        &self,
        id: VmId,
        request: &VmRequest,
        pool: Option<String>,
    ) -> Result<(Draft, Option<TemplateLease>)> {
        let name = self.checked_name(id, request)?;
        let asked = Asked {
            cpus: request.cpus,
            memory_mib: request.memory_mib,
            budgets: request.budgets.clone(),
            queue_seconds: request.queue_timeout_seconds.unwrap_or(self.settings.queue_timeout_seconds),
        };
        let (template, basis, budgets, kept) = self.basis(&request.template, asked).await?;
        let (runner, github, labels) = (request.runner.kind(), request.runner.github()?, request.labels.clone());
        if github.as_ref().is_some_and(|g| g.registration == Registration::Managed) && self.github.is_none() {
            return Err(Error::new(Code::GitHubNotConfigured, "this service has no credentials for GitHub")
                .field("/runner", "needs `[github]` in the configuration, or `jit_config` or `registration_token`"));
        }
        Ok((
            Draft { id, name, template, basis, runner, github, pool, labels, budgets, instance_per_attempt: true },
            kept,
        ))
    }

    fn checked_name(&self, id: VmId, request: &VmRequest) -> Result<String> {
        let invalid = |what: &str| Error::new(Code::RequestInvalid, what.to_owned());
        let name = match &request.name {
            None => format!("vm-{}", &id.0.simple().to_string()[20..]),
            Some(name) => {
                if !is_name(name) {
                    return Err(invalid("the name is not usable").field("/name", NAME_RULE));
                }
                name.clone()
            }
        };
        if request.labels.len() > 32 {
            return Err(invalid("there are too many labels").field("/labels", "at most 32"));
        }
        for (key, value) in &request.labels {
            let plain =
                |s: &str| s.chars().count() <= 128 && !s.chars().any(|c| c.is_control() || c == '"' || c == '\\');
            if key.is_empty() || !plain(key) || !plain(value) {
                return Err(invalid("a label is not usable").field(
                    "/labels",
                    "keys and values: at most 128 characters, no quotes, backslashes or control characters",
                ));
            }
        }
        Ok(name)
    }

    /// How far the image is that the vm waits for. `None`: it waits for none, or nothing is known yet.
    pub fn image_progress(&self, vm: &Vm) -> Option<PullProgress> {
        match vm.draft.basis {
            Basis::Awaited { .. } => self.puller.progress(&vm.id().to_string()),
            Basis::Known(_) => None,
        }
    }

    /// Ends a vm, now or when its runner is done. See *DELETE, exactly* in the API guide.
    pub async fn end_vm(&self, id: VmId, caller: &Caller, force: bool) -> Result<EndRequested> {
        // Its decision rests on the whole row, so it is made again if the row changed meanwhile. A vm has a bounded number of
        // states, and each turn of this loop needs a commit of somebody else.
        for _ in 0..64 {
            let vm = self
                .reader
                .vm(id)
                .await?
                .ok_or_else(|| Error::new(Code::VmNotFound, format!("no vm has the id {id}")))?;
            let generation = vm.generation;
            if vm.state == State::Deleted {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: true });
            }
            let Some(event) = ending(&vm, caller, force) else {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: false });
            };
            // Its job has ended, so its guest was configured: that report was lost.
            let only_a_sign_of_life = matches!(event, Event::GuestConfigured);
            let applied = self.ledger.apply(id, Expect::Generation(generation), event, self.clock.now()).await?;
            if applied.as_expected && !only_a_sign_of_life {
                return Ok(EndRequested { vm: applied.vm, was_deleted: false });
            }
        }
        Err(Error::new(Code::StoreUnavailable, "the vm changed faster than it could be ended").retry_after(1))
    }

    /// The vm once its generation is greater than `generation`, or as it is when `timeout` has passed.
    pub async fn wait_vm(&self, id: VmId, generation: i64, timeout: Duration) -> Result<Vm> {
        let mut changes = self.changes().of(id);
        let gone = || Error::new(Code::VmNotFound, format!("no vm has the id {id}"));
        let mut vm = self.reader.vm(id).await?.ok_or_else(gone)?;
        let deadline = clock::monotonic() + timeout;
        while vm.generation <= generation && vm.state != State::Deleted {
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {
                    if let Some(now) = changes.borrow_and_update().as_deref()
                        && now.generation > vm.generation
                    {
                        vm = now.clone();
                    }
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok(vm)
    }

    /// The file that a vm's log is in; it may not exist (yet).
    pub async fn vm_log(&self, id: VmId, source: LogSource) -> Result<PathBuf> {
        let vm =
            self.reader.vm(id).await?.ok_or_else(|| Error::new(Code::VmNotFound, format!("no vm has the id {id}")))?;
        if source == LogSource::Console
            && vm.state.holds_slot()
            && let Some(spec) = vm.draft.spec()
            && let Some(driver) = self.drivers.get(&spec.driver)
            && let Some(live) = driver.console_log(&vm.instance())
            && tokio::fs::try_exists(&live).await.unwrap_or(false)
        {
            return Ok(live);
        }
        Ok(self.logs.path(id, source))
    }
}

/// What a DELETE means for this vm; `None` when it is ending already and the call adds nothing.
fn ending(vm: &Vm, caller: &Caller, force: bool) -> Option<Event> {
    if vm.outcome.is_some() {
        return None;
    }
    match caller {
        Caller::Guest(_) => match vm.announced_by {
            Some(_) => None,
            None if matches!(vm.state, State::Booting | State::Configuring) => Some(Event::GuestConfigured),
            None => Some(Event::EndAnnounced { by: Announcer::Hook }),
        },
        Caller::Token { .. } if force => Some(Event::EndForced { by: Announcer::Admin }),
        Caller::Token { .. } => {
            if vm.state == State::Draining {
                return None;
            }
            let up = matches!(vm.state, State::Booting | State::Configuring | State::Running);
            // A command begins as soon as its guest may start it, and says so a moment later.
            let begins = vm.draft.runner == RunnerKind::Command && vm.runner_status == RunnerStatus::Registering;
            // A runner that GitHub may be giving a job this moment is taken away there first.
            let at_work = up && (vm.runner_status.may_hold_a_job() || begins || vm.draft.managed().is_some());
            Some(if at_work {
                Event::EndAnnounced { by: Announcer::Admin }
            } else {
                Event::EndForced { by: Announcer::Admin }
            })
        }
    }
}

impl Runner {
    pub fn kind(&self) -> RunnerKind {
        match self {
            Runner::Command { .. } => RunnerKind::Command,
            Runner::Script { .. } => RunnerKind::Script,
            Runner::GitHub { .. } => RunnerKind::GitHub,
            Runner::None => RunnerKind::None,
        }
    }

    fn github(&self) -> Result<Option<GitHubRunner>> {
        let Runner::GitHub { scope, labels, group, jit_config, registration_token, .. } = self else {
            return Ok(None);
        };
        let registration = match (jit_config, registration_token) {
            (None, None) => Registration::Managed,
            (Some(_), None) => Registration::JitConfig,
            (None, Some(_)) => Registration::Token,
            (Some(_), Some(_)) => {
                return Err(Error::new(Code::RequestInvalid, "there are two registrations of one runner")
                    .field("/runner/registration_token", "give this or `jit_config`, not both"));
            }
        };
        let runner = GitHubRunner { scope: scope.clone(), labels: labels.clone(), group: group.clone(), registration };
        runner.check("/runner")?;
        Ok(Some(runner))
    }

    fn payload(&self) -> Result<Option<RunnerSecrets>> {
        let (secret, env, field) = match self {
            Runner::Command { command, env } => (Some(command), env, "command"),
            Runner::Script { script, env } => (Some(script), env, "script"),
            Runner::GitHub { jit_config, registration_token, env, .. } => {
                let field = if jit_config.is_some() { "jit_config" } else { "registration_token" };
                (jit_config.as_ref().or(registration_token.as_ref()), env, field)
            }
            Runner::None => return Ok(None),
        };
        let (script, registration) = match self {
            Runner::GitHub { .. } => (None, secret.cloned()),
            Runner::Command { .. } | Runner::Script { .. } | Runner::None => (secret.cloned(), None),
        };
        let payload = RunnerSecrets { script, registration, env: env.clone() };
        payload.check("/runner", field)?;
        let clear = env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect();
        crate::guest::kit::check_env(&clear).map_err(|refused| {
            Error::new(Code::RequestInvalid, "the runner cannot be handed to a guest")
                .field("/runner/env", refused.to_string())
        })?;
        Ok(Some(payload))
    }
}

impl VmRequest {
    /// Equal bytes for equal requests, whatever the order and spacing of their JSON. Holds secrets: for the fingerprint only.
    fn canonical(&self, payload: Option<&RunnerSecrets>) -> Vec<u8> {
        let clear = serde_json::json!({
            "template": self.template,
            "name": self.name,
            "runner": self.runner.kind(),
            "github": self.runner.github().ok().flatten(),
            "cpus": self.cpus,
            "memory_mib": self.memory_mib,
            "labels": self.labels,
            "queue_timeout_seconds": self.queue_timeout_seconds,
            "budgets": self.budgets,
        });
        let mut bytes = serde_json::to_vec(&clear).expect("strings and numbers serialise");
        if let Some(payload) = payload {
            bytes.extend(payload.to_bytes());
        }
        bytes
    }
}
