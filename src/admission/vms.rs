//! Validates requests for vms, resolves and leases their templates, and stores them with a slot or a place in the
//! queue. `reconcile` does the rest.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use crate::{
    domain::{
        Budgets, Code, Error, GuestRole, Pool, RemoteId, ResolvedSpec, Result, SourceKind, SourceName,
        TemplateOverrides, TemplateSource, Vm, VmId, VmRequest,
        capacity::Capacity,
        job_env::check_env,
        name::{NAME_RULE, is_name},
        runner_secrets::RunnerSecrets,
        source_runner::Registration,
        template::Template,
        token::CallerToken,
        token_limits::TokenLimits,
        vm_spec::{NetworkUser, VmSpec, kept_at_most},
    },
    drivers::{inspector::HostInspector, registry::DriverRegistry},
    parts::Parts,
    platform::{Clock, clock},
    registry::oci::reference::{Reference, ReferenceError, ReferenceTarget},
    sources::Sources,
    store::{
        Ledger, Reader, Vault,
        idempotency::RequestHash,
        ledger::{Admission, IdempotencyKey, KeyOwner, NewVm, TokenQuota, VmCreation},
        placement::{HostOffer, QueueSnapshot},
        pools::PoolFaults,
    },
    templates::{Catalog, TemplateLease, pull::Puller},
};

/// How often the host is inspected for a request that does not wait, while slots are being released.
const TRIES_NOW: u32 = 3;
/// How long a request that does not wait waits for hypervisors to list their instances.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Settings {
    /// How many vms may be queued at once.
    pub max_queued: u32,
    /// Longest wait for a slot if the request does not set it, in seconds.
    pub queue_timeout_seconds: u32,
    /// Budgets of templates that do not define any.
    pub budgets: Budgets,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_queued: 1000, queue_timeout_seconds: 3600, budgets: Budgets::default() }
    }
}

/// The result of a creation: the vm, its token, and whether it is new.
pub struct Created {
    pub vm: Arc<Vm>,
    pub token: SecretString,
    pub new: bool,
}

/// On whose behalf a vm is created.
#[derive(Clone, Copy)]
enum Requester<'a> {
    /// A caller of the API.
    Token(&'a CallerToken),
    /// A loop of the service: for a job of this pool, or to test a new version.
    Service { pool: Option<&'a str> },
}

impl<'a> Requester<'a> {
    fn limits(self) -> Option<&'a TokenLimits> {
        match self {
            Requester::Token(token) => token.limits.as_deref(),
            Requester::Service { .. } => None,
        }
    }

    fn pool(self) -> Option<&'a str> {
        match self {
            Requester::Token(_) => None,
            Requester::Service { pool } => pool,
        }
    }

    fn key_owner(self) -> KeyOwner {
        match self {
            Requester::Token(token) if token.limits.is_some() => KeyOwner::Token(token.id),
            Requester::Token(_) => KeyOwner::Tokens,
            Requester::Service { .. } => KeyOwner::Service,
        }
    }

    fn quota(self) -> Option<TokenQuota> {
        let Requester::Token(token) = self else { return None };
        let limits = token.limits.as_ref()?;
        Some(TokenQuota { token: token.id, max_live_vms: limits.max_live_vms })
    }
}

/// Whether runners of this kind can be registered at this source.
fn check_source(sources: &Sources, name: &SourceName, kind: SourceKind) -> Result<()> {
    if sources.server(name).is_some_and(|server| server.kind() == kind) {
        return Ok(());
    }
    let title = kind.title();
    let found = match sources.get(name) {
        Some(source) if source.kind != kind => format!("the source {name} is of the kind {}", source.kind.as_str()),
        _ => format!("this service has no credentials for {title} under the name {name}"),
    };
    let (pointer, remedy) = match kind {
        SourceKind::GitHub if name.is_github() => {
            ("/runner", "needs `[github]` in the configuration, or `jit_config` or `registration_token`".to_owned())
        }
        SourceKind::GitHub | SourceKind::Gitea | SourceKind::Buildkite => (
            "/runner/source",
            format!("needs `[sources.{name}]` with `kind = \"{}\"` in the configuration", kind.as_str()),
        ),
    };
    Err(Error::new(kind.not_configured(), found).field(pointer, remedy))
}

/// No source of jobs has the name that the field says.
pub fn no_source(name: &SourceName, pointer: &str) -> Error {
    Error::new(Code::RequestInvalid, format!("no source of jobs has the name {name}"))
        .field(pointer, "the name of a source in the configuration: `github`, or one of `[sources.<name>]`")
}

/// Creates vms. Cheap to clone.
#[derive(Clone)]
pub struct VmAdmission {
    ledger: Ledger,
    reader: Reader,
    pool_faults: PoolFaults,
    vault: Arc<Vault>,
    catalog: Arc<Catalog>,
    puller: Puller,
    drivers: Arc<DriverRegistry>,
    host: HostInspector,
    capacity: Capacity,
    clock: Clock,
    sources: Sources,
    settings: Settings,
}

impl VmAdmission {
    pub fn new(parts: &Parts, settings: Settings) -> Self {
        let Parts {
            ledger, reader, pool_faults, vault, catalog, puller, drivers, host, capacity, clock, sources, ..
        } = parts.clone();
        Self { ledger, reader, pool_faults, vault, catalog, puller, drivers, host, capacity, clock, sources, settings }
    }

    /// Stores a vm for a caller of the API, within the limits of its token. A repeated request with the same
    /// idempotency key or name and equal content returns the same vm.
    pub async fn create(
        &self,
        request: VmRequest,
        idempotency_key: Option<String>,
        token: &CallerToken,
    ) -> Result<Created> {
        self.create_of(request, idempotency_key, Requester::Token(token)).await
    }

    /// Stores a vm that tests a new version of a template.
    pub async fn create_for_test(&self, request: VmRequest, idempotency_key: String) -> Result<Created> {
        self.create_of(request, Some(idempotency_key), Requester::Service { pool: None }).await
    }

    /// Stores a vm for a job of this pool. An error is recorded as the pool's fault.
    pub async fn create_for_pool(&self, pool: &Pool, job: &RemoteId, idempotency_key: String) -> Result<Created> {
        let requester = Requester::Service { pool: Some(&pool.name) };
        let created = match self.sources.kind(&pool.job_source) {
            Some(kind) => self.create_of(VmRequest::for_pool(pool, kind, job), Some(idempotency_key), requester).await,
            None => Err(no_source(&pool.job_source, "/job_source")),
        };
        match &created {
            Ok(_) => self.pool_faults.clear(&pool.name),
            Err(error) => self.pool_faults.set(&pool.name, error, self.clock.now()),
        }
        created
    }

    async fn create_of(
        &self,
        request: VmRequest,
        idempotency_key: Option<String>,
        requester: Requester<'_>,
    ) -> Result<Created> {
        if let Some(key) = &idempotency_key
            && (key.is_empty() || key.len() > 255 || !key.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(Error::new(Code::RequestInvalid, "the Idempotency-Key is not usable")
                .field("header:Idempotency-Key", "1 to 255 visible ASCII characters"));
        }
        let id = VmId::mint();
        let secrets = checked_secrets(&request)?;
        let request_hash = RequestHash {
            current: self.vault.fingerprint(&request.canonical(secrets.as_ref())),
            former: Some(self.vault.fingerprint(&request.canonical_with_secrets(secrets.as_ref()))),
        };
        let idempotency_key = idempotency_key.map(|key| IdempotencyKey { owner: requester.key_owner(), key });
        let (key, name) = (idempotency_key.as_ref(), request.name.as_deref());
        if let Some(vm) = self.reader.requested(key, name, &request_hash, requester.quota()).await? {
            let token = self.vault.vm_token(vm.id(), GuestRole::Wrapper);
            return Ok(Created { token, vm: Arc::new(vm), new: false });
        }
        // The lease lasts until the vm is in the database, from where pruning learns that the template is needed.
        let (spec, _lease) = self.vm_spec(id, &request, requester).await?;
        let sealed = secrets.map(|s| self.vault.seal(id, &s.to_bytes()));
        let opened = self
            .store(|admission| NewVm {
                spec: spec.clone(),
                request_hash,
                idempotency_key: idempotency_key.clone(),
                quota: requester.quota(),
                sealed: sealed.clone(),
                admission,
            })
            .await?;
        let vm = opened.vm().clone();
        let new = matches!(opened, VmCreation::Created(_));
        if new {
            // An image reference is the caller's own text, which must not become a label.
            let template = if is_name(&vm.spec.template) { vm.spec.template.clone() } else { "(image)".to_owned() };
            metrics::counter!("mayfly_vms_created_total", "template" => template).increment(1);
            tracing::info!(vm.id = %vm.id(), vm.name = %vm.spec.name, template.name = %vm.spec.template, "vm created");
        }
        Ok(Created { token: self.vault.vm_token(vm.id(), GuestRole::Wrapper), vm, new })
    }

    /// Stores the vm, with a slot or a place in the queue.
    async fn store(&self, new: impl Fn(Admission) -> NewVm) -> Result<VmCreation> {
        let queue = Admission::Queue { max_queued: self.settings.max_queued };
        let first = new(queue);
        let spec = match first.spec.resolved() {
            Some(spec) if first.spec.budgets.queue_seconds == 0 => spec.clone(),
            _ => return Ok(self.ledger.create_vm(first, self.clock.now()).await?),
        };
        for tries_left in (0..TRIES_NOW).rev() {
            let before = self.reader.queue_snapshot().await?;
            // A repeated request gets its earlier answer, so an error of the inspection counts only for a new one.
            let room = self.room_now(&spec, before.clone()).await.map(Box::new);
            match self.ledger.create_vm(new(Admission::Slot(room)), self.clock.now()).await.map_err(Error::from) {
                // A slot that was released during the inspection counts as taken, until a later inspection shows that
                // it is free.
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

    /// Resolves the template: one in the catalog, with a lease, or an image that has to be pulled.
    async fn template_source(
        &self,
        wanted: &str,
        asked: TemplateOverrides,
        user: NetworkUser<'_>,
        limits: Option<&TokenLimits>,
    ) -> Result<(String, TemplateSource, Budgets, Option<TemplateLease>)> {
        let capacity = self.capacity;
        let known = |(template, lease): (Template, TemplateLease), shown: Option<String>| {
            let can = self.drivers.network_support(&template.driver);
            let (spec, budgets) = asked.resolve(&template, &self.settings.budgets, &capacity, user, &can)?;
            Ok((shown.unwrap_or(template.name), TemplateSource::Resolved(spec), budgets, Some(lease)))
        };
        if !wanted.contains('/') {
            // Before the catalog is asked: the token's holder need not learn which templates there are.
            limits.map_or(Ok(()), |limits| limits.check_template(wanted))?;
            let taken = self.catalog.take(wanted).await.map_err(|error| match error.code {
                // A 404 would refer to the path of the request, so an unknown template in its body has its own code.
                Code::TemplateNotFound => Error::new(Code::TemplateUnknown, error.detail)
                    .field("/template", "see GET /templates for what is here, or name an image as host/namespace:tag"),
                _ => error,
            })?;
            return known(taken, None);
        }
        let image: Reference = wanted.parse().map_err(|error: ReferenceError| {
            Error::new(Code::RequestInvalid, "the template is not an image reference")
                .field("/template", error.to_string())
        })?;
        // Before the registry is asked for anything.
        limits.map_or(Ok(()), |limits| {
            let target = match image.target() {
                ReferenceTarget::Tag(tag) => format!(":{tag}"),
                ReferenceTarget::Digest(digest) => format!("@{digest}"),
            };
            limits.check_image(image.registry(), image.repository(), &target)
        })?;
        // Only the registry knows where a tag points now; a digest always names the same image.
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
        let budgets = asked.budgets_until_resolved(&self.settings.budgets, &capacity)?;
        Ok((image.to_string(), TemplateSource::Awaited { awaits: asked }, budgets, None))
    }

    async fn vm_spec(
        &self,
        id: VmId,
        request: &VmRequest,
        requester: Requester<'_>,
    ) -> Result<(VmSpec, Option<TemplateLease>)> {
        let name = self.checked_name(id, request)?;
        let (runner, labels) = (request.runner.kind(), request.labels.clone());
        let source_runner = request.runner.source_runner()?;
        let limits = requester.limits();
        if let (Some(limits), Some(runner)) = (limits, &source_runner) {
            limits.check_runner(runner)?;
        }
        let most = self.capacity.max_kept_seconds;
        if request.keep_on_failure.is_some_and(|keep| keep.seconds > most) {
            return Err(Error::new(Code::RequestInvalid, "the guest of a failed vm would be kept for too long")
                .field("/keep_on_failure/seconds", kept_at_most(most)));
        }
        let asked = TemplateOverrides {
            cpus: request.cpus,
            memory_mib: request.memory_mib,
            network: request.network,
            budgets: request.all_budgets()?,
            queue_seconds: request.queue_timeout_seconds.unwrap_or(self.settings.queue_timeout_seconds),
            limits: limits.map(TokenLimits::size).unwrap_or_default(),
        };
        let user = NetworkUser { runner, pool: requester.pool() };
        let (template, source, budgets, lease) = self.template_source(&request.template, asked, user, limits).await?;
        if let (Some(kind), Some(managed)) = (runner.source(), &source_runner)
            && managed.registration == Registration::Managed
        {
            check_source(&self.sources, &managed.source, kind)?;
        }
        let created_by = match requester {
            Requester::Token(token) => Some(token.id),
            Requester::Service { .. } => None,
        };
        let spec = VmSpec {
            id,
            name,
            template,
            source,
            runner,
            source_runner,
            pool: requester.pool().map(str::to_owned),
            created_by,
            labels,
            budgets,
            instance_per_attempt: true,
        };
        Ok((spec, lease))
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

    /// The capacity that the host offers to a vm that does not wait.
    async fn room_now(&self, spec: &ResolvedSpec, before: QueueSnapshot) -> Result<HostOffer> {
        let view = self.host.inspect_since(clock::monotonic(), ANSWER_WITHIN).await;
        let unavailable = |detail: String| Err(Error::new(Code::HostUnavailable, detail).retry_after(5));
        if !view.observed {
            return unavailable("the host's drivers are still being probed".to_owned());
        }
        match view.driver(&spec.driver) {
            None => return unavailable(format!("the driver {} is not enabled in this service", spec.driver)),
            Some(driver) if !driver.usable => {
                let why = driver.fault.as_ref().map(|fault| format!(": {}", fault.detail)).unwrap_or_default();
                return unavailable(format!("the driver {} cannot run guests now{why}", spec.driver));
            }
            Some(_) => {}
        }
        if let Some(fault) = view.unlisted(spec.os, &spec.driver) {
            return unavailable(format!("it is not known whether a slot is free: {}", fault.detail));
        }
        Ok(HostOffer::new(&view, before, self.clock.now()))
    }
}

/// Refuses names that a guest's shell cannot hold while the caller can still be told.
fn checked_secrets(request: &VmRequest) -> Result<Option<RunnerSecrets>> {
    let Some(secrets) = request.runner.secrets()? else { return Ok(None) };
    let clear = secrets.env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect();
    check_env(&clear).map_err(|refused| {
        Error::new(Code::RequestInvalid, "the runner cannot be passed to a guest")
            .field("/runner/env", refused.to_string())
    })?;
    Ok(Some(secrets))
}
