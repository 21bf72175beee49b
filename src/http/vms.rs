//! Creates, shows and ends vms.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::State as FromState,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    auth::{Allowed, Create, OfVm, Read},
    extract::{Json, Query, page_size},
    fault::FaultView,
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
    pulls::ProgressView,
    time::Time,
};
use crate::{
    domain::{
        Announcer, Budget, Budgets, Code, EndSignal, Error, GuestOs, NetworkMode, Outcome, OutcomeResult, QueueReason,
        RemoteId, ResultSource, RunnerStatus, Scope, SourceName, State, TokenId, Vm, VmId, VmRequest,
        endpoint::Endpoint,
        job_record::JobRecord,
        ready_check::ReadyKind,
        runner::{RunnerKind, RunnerStarted},
        source_runner::{Registration, SourceRunner},
    },
    service::{
        Services,
        vms::{PullProgress, QueuePlace, VmFilter},
    },
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest long poll, in seconds.
const MAX_WAIT_SECONDS: u32 = 60;

/// One ephemeral virtual machine.
#[derive(Serialize, ToSchema)]
#[schema(as = Vm)]
pub struct VmView {
    #[schema(value_type = String, format = "uuid")]
    pub id: VmId,
    /// Unique among live vms.
    pub name: String,
    pub state: State,
    /// Grows by one with every event of this vm; see `wait_generation`.
    pub generation: i64,
    /// The template's name, or the image reference of the request.
    pub template: String,
    /// The version that it pointed at when the vm was created or its image was pulled. Null, like everything that
    /// follows from the template, while the vm waits for its image (`queue.reason` is `template`).
    pub template_digest: Option<String>,
    pub driver: Option<String>,
    pub os: Option<GuestOs>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    /// What the guest may reach. Null also for vms that were created by a version without network modes.
    pub network: Option<NetworkMode>,
    pub labels: BTreeMap<String, String>,
    /// The pool that the vm was made for.
    pub pool: Option<String>,
    /// The API token with which the vm was created. Null for vms of pools and tests, and for vms that were created by a
    /// version that did not record it.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub created_by: Option<TokenId>,
    pub runner: RunnerView,
    /// What the vm waits for; null unless it is queued.
    pub queue: Option<QueueView>,
    /// The budget that is running, and when it is spent.
    pub deadline: Option<DeadlineView>,
    /// Since when the budgets that wait for the CI server are paused, because it does not answer; usually null.
    pub paused_since: Option<Time>,
    pub budgets: Budgets,
    /// Number of attempts: how often the vm got a slot; more than 1 after failed boots.
    pub attempt: u32,
    /// The success of the template's readiness check in the guest of this attempt; null until then, and for a template
    /// without such a check.
    pub ready: Option<ReadyView>,
    /// Address of the guest's SSH port, as seen from the host; null once the guest is gone.
    pub ssh: Option<Endpoint>,
    /// What announced the end first.
    pub announced_by: Option<Announcer>,
    pub announced_at: Option<Time>,
    /// The first signal that proved the end.
    pub end_signal: Option<EndSignal>,
    /// How the vm ended; set once.
    pub outcome: Option<Outcome>,
    /// How the job ended, if the guest reported it.
    pub job: Option<VmJobView>,
    /// The jobs that its runner was given.
    pub jobs: Vec<JobRecord>,
    /// The most recent fault, whether or not a retry succeeded.
    pub last_fault: Option<FaultView>,
    /// All states so far, each with the time at which it was entered.
    pub timeline: Vec<TimelineView>,
    pub created_at: Time,
    pub updated_at: Time,
    pub deleted_at: Option<Time>,
}

#[derive(Serialize, ToSchema)]
pub struct ReadyView {
    pub check: ReadyKind,
    /// The version that the service in the guest reported, in its own words; only with `preset: guest-daemon`.
    #[schema(max_length = 100)]
    pub version: Option<String>,
    /// The runner's state as the service in the guest reported it: 1 offline, 2 idle, 3 preparing, 4 running,
    /// 5 finished; only with `preset: runner-agent`.
    pub state: Option<u32>,
    /// From the start of the guest's boot until the check succeeded.
    pub seconds: f64,
}

impl ReadyView {
    fn new(vm: &Vm) -> Option<Self> {
        let readiness = vm.ready.as_ref()?;
        Some(Self {
            check: vm.spec.resolved()?.ready.as_ref()?.kind()?,
            version: readiness.version.clone(),
            state: readiness.state,
            seconds: vm.ready_after()?.as_secs_f64(),
        })
    }
}

#[derive(Serialize, ToSchema)]
pub struct RunnerView {
    pub kind: RunnerKind,
    pub status: RunnerStatus,
    /// Whether the job runs as another user than the wrapper that supervises it, and cannot switch to that user. If not,
    /// the job can forge the wrapper's reports. Null until the guest has reported it.
    pub separate_users: Option<bool>,
    /// Whether the runner program was started. A vm whose guest ended gets another guest only while this is `no`.
    pub started: RunnerStarted,
    /// For a runner of the kind `github`.
    pub github: Option<SourceRunnerView>,
    /// For a runner of the kind `gitea`.
    pub gitea: Option<SourceRunnerView>,
    /// For a runner of the kind `buildkite`: the agent. Its id is the one of its job.
    pub buildkite: Option<SourceRunnerView>,
}

/// A runner as registered at its source of jobs.
#[derive(Serialize, ToSchema)]
pub struct SourceRunnerView {
    /// The name of the source of jobs.
    #[schema(value_type = String, example = "github")]
    pub source: SourceName,
    /// Where it is registered: `owner/name`, an organisation's login, `enterprises/slug`, or `*` for a whole server.
    #[schema(value_type = String, example = "acme/app")]
    pub scope: Scope,
    pub labels: Vec<String>,
    /// Null: the default group.
    pub group: Option<String>,
    pub registration: Registration,
    /// The job that it takes, at a source whose runners are for one particular job (Buildkite); null at others.
    pub job: Option<RemoteId>,
    /// Its name there; null until it is registered, and for a `jit_config` that contains no name.
    pub name: Option<String>,
    /// Its id there; null for a runner that registers itself with a `registration_token`.
    pub id: Option<RemoteId>,
}

impl SourceRunnerView {
    /// `None`: the vm's runner is of another kind.
    fn new(vm: &Vm, kind: RunnerKind) -> Option<Self> {
        let runner = vm.spec.source_runner.clone().filter(|_| vm.spec.runner == kind)?;
        let SourceRunner { source, scope, labels, group, registration, job } = runner;
        let registered = vm.registered.as_ref();
        let (name, id) = (registered.map(|r| r.name.clone()), registered.and_then(|r| r.runner_id.clone()));
        Some(Self { source, scope, labels, group, registration, job, name, id })
    }
}

#[derive(Serialize, ToSchema)]
pub struct QueueView {
    pub reason: QueueReason,
    /// 1: it is next.
    #[schema(minimum = 1)]
    pub position: i64,
    /// When the vm stops waiting and fails.
    pub deadline: Time,
    /// How many slots are held by failed vms that are kept for debugging (`keep_on_failure`); 0 unless the vm waits for a
    /// slot. `GET /host` names them.
    #[schema(minimum = 0)]
    pub kept_vms: i64,
    /// Progress of its image; null unless the image is being pulled.
    pub pull: Option<ProgressView>,
}

#[derive(Serialize, ToSchema)]
pub struct DeadlineView {
    pub budget: Budget,
    pub at: Time,
}

#[derive(Serialize, ToSchema)]
#[schema(as = JobView)]
pub struct VmJobView {
    /// Of several reports, the one from the most reliable source counts (`reported_by`), and of equally reliable ones the
    /// last one before the end.
    pub exit_code: i32,
    /// Who reported `exit_code`.
    pub reported_by: ResultSource,
    /// The guest reported different exit codes: the job reported a result of its own, or something in the guest did.
    pub results_differ: bool,
}

#[derive(Serialize, ToSchema)]
pub struct TimelineView {
    pub state: State,
    pub at: Time,
}

/// A vm and its token.
#[derive(Serialize, ToSchema)]
pub struct CreatedVm {
    #[serde(flatten)]
    pub vm: VmView,
    /// For the guest only: it allows reading, reporting and ending this vm, and nothing else. Shown by `POST /vms`
    /// only.
    pub callback_token: String,
}

#[derive(Serialize, ToSchema)]
pub struct VmPage {
    /// Newest first.
    pub items: Vec<VmView>,
    /// Pass it as `cursor` to get the next page; null on the last page.
    pub next_cursor: Option<String>,
}

impl VmView {
    /// `place` is used while the vm is queued.
    fn new(vm: &Vm, place: QueuePlace, pull: Option<PullProgress>) -> Self {
        let spec = &vm.spec;
        let resolved = spec.resolved();
        Self {
            id: spec.id,
            name: spec.name.clone(),
            state: vm.state,
            generation: vm.generation,
            template: spec.template.clone(),
            template_digest: resolved.map(|s| s.template_digest.clone()),
            driver: resolved.map(|s| s.driver.clone()),
            os: resolved.map(|s| s.os),
            cpus: resolved.map(|s| s.cpus),
            memory_mib: resolved.map(|s| s.memory_mib),
            network: resolved.and_then(|s| s.network),
            labels: spec.labels.clone(),
            pool: spec.pool.clone(),
            created_by: spec.created_by,
            runner: RunnerView {
                kind: spec.runner,
                status: vm.runner_status,
                separate_users: vm.separate_users,
                started: vm.started(),
                github: SourceRunnerView::new(vm, RunnerKind::GitHub),
                gitea: SourceRunnerView::new(vm, RunnerKind::Gitea),
                buildkite: SourceRunnerView::new(vm, RunnerKind::Buildkite),
            },
            queue: vm.queue.as_ref().map(|q| QueueView {
                reason: q.reason,
                // It may have left the queue between the two reads; a position is at least 1 in any case.
                position: place.position.max(1),
                deadline: q.deadline.into(),
                kept_vms: place.kept_slots,
                pull: pull.as_ref().map(ProgressView::moving),
            }),
            deadline: vm.deadline().map(|(budget, at)| DeadlineView { budget, at: at.into() }),
            paused_since: vm.paused_at.map(Time),
            budgets: spec.budgets.clone(),
            attempt: vm.attempt,
            ready: ReadyView::new(vm),
            // The record still has the address of the last guest.
            ssh: vm.ssh.clone().filter(|_| vm.state.holds_slot()),
            announced_by: vm.announced_by,
            announced_at: vm.announced_at.map(Time),
            end_signal: vm.end_signal,
            outcome: vm.outcome.clone(),
            job: vm.job_exit_code.map(|exit_code| VmJobView {
                exit_code,
                reported_by: vm.job_result_from,
                results_differ: vm.job_results_differ,
            }),
            jobs: vm.jobs.clone(),
            last_fault: vm.last_fault.as_ref().map(FaultView::from),
            timeline: vm.timeline.iter().map(|t| TimelineView { state: t.state, at: t.at.into() }).collect(),
            created_at: vm.created_at.into(),
            updated_at: vm.updated_at.into(),
            deleted_at: vm.deleted_at().map(Time),
        }
    }

    pub async fn of(vm: &Vm, services: &Services) -> Result<Self, Problem> {
        let place = services.vms.queue_place(vm).await?;
        Ok(Self::new(vm, place, services.vms.image_progress(vm)))
    }
}

pub fn no_vm(id: VmId) -> Error {
    Error::new(Code::VmNotFound, format!("no vm has the id {id}"))
}

/// Create a vm
///
/// The vm is stored before the answer and survives a crash from then on. Without a free slot, or without its image,
/// it waits in the queue with a reason, a position and a deadline. Repeating the same request, by `Idempotency-Key`
/// or by `name`, answers 200 with the same vm.
#[utoipa::path(
    post, path = "/vms", tag = "vms",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept as long as the vm's record", min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "run-4711-attempt-1")),
    request_body(content = VmRequest, examples(
        ("command" = (summary = "One job", value = json!(examples::vm_request()))),
        ("github" = (summary = "A GitHub runner", value = json!(examples::github_vm_request()))),
        ("gitea" = (summary = "A Gitea runner", value = json!(examples::gitea_vm_request()))),
        ("buildkite" = (summary = "A Buildkite agent", value = json!(examples::buildkite_vm_request()))),
        ("smallest" = (summary = "A vm without a runner", value = json!({"template": "micro"})))
    )),
    responses(
        (status = 201, description = "The vm is stored", body = CreatedVm,
            headers(("Location" = String, description = "`/vms/{id}`")), example = json!(examples::created_vm())),
        (status = 200, description = "The same request was made before: the same vm", body = CreatedVm,
            headers(("Location" = String, description = "`/vms/{id}`")), example = json!(examples::created_vm())),
    ),
    security(("token" = ["create"])),
)]
pub async fn create_vm(
    FromState(http): FromState<Arc<Http>>,
    Allowed { token, .. }: Allowed<Create>,
    headers: HeaderMap,
    Json(request): Json<VmRequest>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Answer<CreatedVm>), Problem> {
    let key = match headers.get(IDEMPOTENCY_KEY) {
        None => None,
        Some(key) => Some(
            key.to_str()
                .map_err(|_| Problem::invalid("header:Idempotency-Key", "1 to 255 visible ASCII characters"))?
                .to_owned(),
        ),
    };
    let created = http.services.admission.create(request, key, &token).await?;
    let status = if created.new { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/vms/{}", created.vm.id());
    let vm = VmView::of(&created.vm, &http.services).await?;
    let callback_token = created.token.expose_secret().to_owned();
    Ok((status, [(header::LOCATION, location)], Answer(CreatedVm { vm, callback_token })))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListVms {
    /// Only these states; repeatable. Without it: every state but `deleted`, and with `job_id` or `outcome` every state.
    #[serde(default)]
    #[param(explode)]
    state: Vec<State>,
    /// Only the vm with this name.
    #[param(min_length = 1)]
    name: Option<String>,
    /// Only vms whose name begins with this.
    #[param(min_length = 1)]
    name_prefix: Option<String>,
    /// Only vms whose id begins with this: hexadecimal digits and dashes in their places.
    #[param(pattern = "^[0-9a-fA-F-]{4,36}$")]
    id_prefix: Option<String>,
    /// Only vms that ended like this.
    outcome: Option<OutcomeResult>,
    /// Only vms of this template: its name, or its digest.
    #[param(min_length = 1)]
    template: Option<String>,
    /// Only vms with this label, as `key=value`; repeatable, and all of them must match.
    #[serde(default)]
    #[param(explode, value_type = Vec<String>, example = json!(["team=core"]))]
    label: Vec<String>,
    /// Only vms that were made for this pool.
    #[param(min_length = 1)]
    pool: Option<String>,
    /// Only vms that were created at this time (RFC 3339) or later.
    #[param(value_type = Option<String>, format = DateTime)]
    created_since: Option<Timestamp>,
    /// Only vms whose runner was given a job with this id. At GitHub it is the number in the address of the job's page. Jobs of
    /// two sources may have the same id.
    job_id: Option<String>,
    /// Largest number of vms in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^[0-9a-f]{32}$")]
    cursor: Option<String>,
}

impl ListVms {
    fn filter(self) -> Result<(VmFilter, u32), Problem> {
        let limit = page_size(self.limit)?;
        let labels = self.label.iter().map(|label| split_label(label)).collect::<Result<_, _>>()?;
        let before = self.cursor.as_deref().map(parse_cursor).transpose()?;
        if self
            .job_id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(Problem::invalid(
                "query:job_id",
                "the id of a job at its source: 1 to 64 visible ASCII characters",
            ));
        }
        let is_id_char = |c: char| c.is_ascii_hexdigit() || c == '-';
        if self
            .id_prefix
            .as_ref()
            .is_some_and(|prefix| !(4..=36).contains(&prefix.len()) || !prefix.chars().all(is_id_char))
        {
            return Err(Problem::invalid("query:id_prefix", "expected 4 to 36 hexadecimal digits and dashes"));
        }
        // One more than requested shows whether there is a next page.
        let filter = VmFilter {
            states: self.state,
            name: self.name,
            id_prefix: self.id_prefix.map(|prefix| prefix.to_ascii_lowercase()),
            name_prefix: self.name_prefix,
            outcome: self.outcome,
            template: self.template,
            labels,
            pool: self.pool,
            job: self.job_id,
            created_since: self.created_since,
            before,
            limit: limit + 1,
        };
        Ok((filter, limit))
    }
}

fn split_label(label: &str) -> Result<(String, String), Problem> {
    match label.split_once('=') {
        // No label has such a key, because creation refuses it.
        Some((key, _)) if key.is_empty() || key.contains(['"', '\\']) || key.contains(char::is_control) => {
            Err(Problem::invalid("query:label", "the key holds quotes, backslashes or control characters, or is empty"))
        }
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Problem::invalid("query:label", "expected key=value")),
    }
}

fn cursor(id: VmId) -> String {
    id.0.simple().to_string()
}

fn parse_cursor(cursor: &str) -> Result<VmId, Problem> {
    let id = cursor.parse().ok().filter(|id| self::cursor(*id) == cursor);
    id.ok_or_else(|| Problem::invalid("query:cursor", "not a cursor of this listing"))
}

/// List vms
#[utoipa::path(
    get, path = "/vms", tag = "vms", params(ListVms),
    responses((status = 200, description = "One page, newest first", body = VmPage, example = json!({"items": [examples::vm()], "next_cursor": null}))),
    security(("token" = ["read"])),
)]
pub async fn list_vms(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Query(asked): Query<ListVms>,
) -> Result<Answer<VmPage>, Problem> {
    let (filter, limit) = asked.filter()?;
    let mut vms = http.services.vms.list(&filter).await?;
    let more = vms.len() > limit as usize;
    vms.truncate(limit as usize);
    let next_cursor = vms.last().filter(|_| more).map(|vm| cursor(vm.id()));
    let mut items = Vec::with_capacity(vms.len());
    for vm in &vms {
        items.push(VmView::of(vm, &http.services).await?);
    }
    Ok(Answer(VmPage { items, next_cursor }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GetVm {
    /// Answer when the vm's generation is greater than this, when the vm is deleted, or when `timeout_seconds` have
    /// passed.
    #[param(minimum = 0)]
    wait_generation: Option<i64>,
    /// How long to wait; only with `wait_generation`.
    #[param(minimum = 0, maximum = 60, default = 30)]
    timeout_seconds: Option<u32>,
}

/// Read a vm, or wait for it to change
#[utoipa::path(
    get, path = "/vms/{id}", tag = "vms",
    params(("id" = String, Path, format = "uuid"), GetVm),
    responses((status = 200, description = "The vm as it is now", body = VmView, example = json!(examples::vm()))),
    security(("token" = ["read"]), ("vm_token" = [])),
)]
pub async fn get_vm(
    FromState(http): FromState<Arc<Http>>,
    OfVm { id, .. }: OfVm<Read>,
    Query(asked): Query<GetVm>,
    permit: RequestPermit,
) -> Result<Answer<VmView>, Problem> {
    let timeout = asked.timeout_seconds.unwrap_or(30);
    if timeout > MAX_WAIT_SECONDS {
        return Err(Problem::invalid("query:timeout_seconds", format!("0 to {MAX_WAIT_SECONDS}")));
    }
    if asked.wait_generation.is_some_and(|generation| generation < 0) {
        return Err(Problem::invalid("query:wait_generation", "must not be negative"));
    }
    if let Some(generation) = asked.wait_generation {
        let _place = permit.wait()?;
        let waited = http.services.vms.wait(id, generation, Duration::from_secs(timeout.into()));
        tokio::select! {
            // A service that shuts down answers with the current state; the client repeats the request.
            () = http.shutdown.cancelled() => {}
            vm = waited => return Ok(Answer(VmView::of(&vm?, &http.services).await?)),
        }
    }
    let vm = http.services.vms.get(id).await?;
    Ok(Answer(VmView::of(&vm, &http.services).await?))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EndVm {
    /// Do not wait for the runner to upload its result. Has no effect with a vm's own token.
    #[serde(default)]
    force: bool,
}

/// End a vm
///
/// Answers at once. A vm whose runner has a job drains first: it is destroyed when its runner has finished, or when
/// the drain budget is spent. Repeating it changes nothing.
#[utoipa::path(
    delete, path = "/vms/{id}", tag = "vms",
    params(("id" = String, Path, format = "uuid"), EndVm),
    responses(
        (status = 202, description = "The vm is ending", body = VmView, example = json!(examples::vm())),
        (status = 200, description = "The vm had ended before: the final record", body = VmView, example = json!(examples::deleted_vm())),
    ),
    security(("token" = ["create"]), ("vm_token" = [])),
)]
pub async fn end_vm(
    FromState(http): FromState<Arc<Http>>,
    OfVm { id, caller, .. }: OfVm<Create>,
    Query(asked): Query<EndVm>,
) -> Result<(StatusCode, Answer<VmView>), Problem> {
    let ended = http.services.vms.end(id, &caller, asked.force).await?;
    let status = if ended.was_deleted { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Answer(VmView::of(&ended.vm, &http.services).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_names_the_vm_it_came_from_and_nothing_else_passes() {
        let id = VmId::mint();
        assert_eq!(parse_cursor(&cursor(id)).unwrap(), id);
        for bad in ["", "x", "AAAA", &id.to_string(), &format!("{}A", cursor(id))] {
            assert!(parse_cursor(bad).is_err(), "{bad}");
        }
    }
}
