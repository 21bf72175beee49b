//! Pulls: listing, reading, waiting, cancelling. `POST /templates` with an image starts one.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::{FromRequestParts, Path, State as FromState},
    http::request::Parts,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::{Query, page_size},
    fault::FaultView,
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::{
    domain::{
        Code, Fault, PullId, VmId,
        pull::{FetchProgress, Pull, PullState},
    },
    service::{
        Services,
        pulls::{ProgressUpdate, PullProgress},
    },
};

const LONGEST_WAIT: u32 = 60;

/// Progress of a pull.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = PullProgress)]
pub struct ProgressView {
    /// Bytes to download from the registry; null until that is known.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: Option<u8>,
    /// Bytes downloaded from the registry. Content that is on the host already is in neither number.
    pub bytes_done: u64,
    /// 0 until the size is known.
    pub bytes_total: u64,
    /// Chunks of the disk, from the registry or from the host.
    pub chunks_done: u64,
    pub chunks_total: u64,
    /// Current rate; null if no data is being transferred.
    pub bytes_per_second: Option<u64>,
    /// Remaining time at the current rate; null if unknown.
    pub eta_seconds: Option<u64>,
}

/// `None`: nothing has to be downloaded, or the size is not known yet.
fn percent(done: u64, total: u64) -> Option<u8> {
    let percent = (u128::from(done.min(total)) * 100).checked_div(u128::from(total))?;
    u8::try_from(percent).ok()
}

impl ProgressView {
    pub fn moving(progress: &PullProgress) -> Self {
        Self {
            bytes_per_second: Some(progress.rate),
            eta_seconds: progress.eta.map(|eta| eta.as_secs()),
            ..Self::still(FetchProgress::from(progress))
        }
    }

    fn still(fetched: FetchProgress) -> Self {
        Self {
            percent: percent(fetched.bytes_done, fetched.bytes_total),
            bytes_done: fetched.bytes_done,
            bytes_total: fetched.bytes_total,
            chunks_done: fetched.chunks_done,
            chunks_total: fetched.chunks_total,
            bytes_per_second: None,
            eta_seconds: None,
        }
    }
}

/// A pull: an image that is being downloaded to become a template.
#[derive(Serialize, ToSchema)]
#[schema(as = Pull)]
pub struct PullView {
    #[schema(value_type = String, format = "uuid")]
    id: PullId,
    /// The image reference of the request.
    image: String,
    /// The template's future name.
    name: String,
    state: PullState,
    /// Grows with every change except progress.
    generation: i64,
    /// No vm and no person waits for it: a watch started it.
    background: bool,
    /// Whether a vm of the new version must pass a test before the name moves.
    canary: bool,
    /// The version that the name pointed at when the pull began.
    previous_digest: Option<String>,
    /// The image's digest, after the reference was resolved. From then on the pull is about this image.
    image_digest: Option<String>,
    /// The template's digest, when it is complete.
    digest: Option<String>,
    /// The vm that runs the test.
    #[schema(value_type = Option<String>, format = "uuid")]
    vm_id: Option<VmId>,
    progress: ProgressView,
    /// The most recent error. Unless the pull has failed, it is retried.
    #[schema(value_type = Option<Fault>)]
    error: Option<FaultView>,
    /// Consecutive failures.
    failures: u32,
    /// Time of the next retry.
    retry_at: Option<Time>,
    /// No retry after this time.
    deadline: Time,
    /// Downloaded data that did not become a template was removed.
    discarded: bool,
    created_at: Time,
    updated_at: Time,
    ended_at: Option<Time>,
}

impl PullView {
    pub fn of(pull: &Pull, services: &Services) -> Self {
        let progress = match services.pulls.progress(pull.id) {
            Some(progress) if !pull.state.is_ended() && pull.retry_at.is_none() => ProgressView::moving(&progress),
            _ => ProgressView::still(pull.fetched),
        };
        Self {
            id: pull.id,
            image: pull.spec.image.clone(),
            name: pull.spec.name.clone(),
            state: pull.state,
            generation: pull.generation,
            background: pull.spec.background,
            canary: pull.spec.canary.is_some(),
            previous_digest: pull.previous.clone(),
            image_digest: pull.image_digest.clone(),
            digest: pull.digest.clone(),
            vm_id: pull.vm,
            progress,
            error: pull.fault.as_ref().map(FaultView::from),
            failures: pull.failures,
            retry_at: pull.retry_at.map(Time),
            deadline: pull.deadline.into(),
            discarded: pull.discarded,
            created_at: pull.created_at.into(),
            updated_at: pull.updated_at.into(),
            ended_at: pull.ended_at.map(Time),
        }
    }
}

/// Progress of a pull in the event stream, about once a second during the transfer. It has no position and is not
/// stored.
#[derive(Serialize, ToSchema)]
pub struct PullProgressEvent {
    #[serde(rename = "type")]
    #[schema(example = "pull_progress")]
    kind: &'static str,
    #[schema(value_type = String, format = "uuid")]
    pull: PullId,
    template: String,
    image: String,
    #[serde(flatten)]
    progress: ProgressView,
}

impl PullProgressEvent {
    pub const KIND: &str = "pull_progress";

    pub fn new(update: &ProgressUpdate) -> Self {
        Self {
            kind: Self::KIND,
            pull: update.pull.id,
            template: update.pull.spec.name.clone(),
            image: update.pull.spec.image.clone(),
            progress: ProgressView::moving(&update.progress),
        }
    }
}

/// The pull in the path. Text that is not an id is answered like an unknown pull.
pub struct PathPull(PullId);

impl FromRequestParts<Arc<Http>> for PathPull {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        let no_pull = |what: &str| Problem::new(Code::PullNotFound, format!("no pull has the id {what}"));
        match Path::<String>::from_request_parts(parts, http).await {
            Ok(Path(id)) => id.parse().map(PathPull).map_err(|_| no_pull(&format!("{id:?} (ids are UUIDs)"))),
            Err(_) => Err(no_pull("in this path")),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListPulls {
    /// Largest number of pulls in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^[0-9a-f]{32}$")]
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct PullPage {
    items: Vec<PullView>,
    /// Pass it as `cursor` to get the next page; null on the last page.
    next_cursor: Option<String>,
}

fn cursor(id: PullId) -> String {
    id.0.simple().to_string()
}

/// List pulls
#[utoipa::path(
    get, path = "/pulls", tag = "templates", params(ListPulls),
    responses((status = 200, description = "One page, newest first", body = PullPage, example = json!({"items": [examples::pull()], "next_cursor": null}))),
    security(("token" = ["read"])),
)]
pub async fn list_pulls(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Query(asked): Query<ListPulls>,
) -> Result<Answer<PullPage>, Problem> {
    let limit = page_size(asked.limit)?;
    let before = match asked.cursor {
        None => None,
        Some(text) => {
            let id = text.parse::<PullId>().ok().filter(|id| cursor(*id) == text);
            Some(id.ok_or_else(|| Problem::invalid("query:cursor", "not a cursor of this listing"))?)
        }
    };
    let mut pulls = http.services.pulls.list(before, limit + 1).await?;
    let more = pulls.len() > limit as usize;
    pulls.truncate(limit as usize);
    let next_cursor = pulls.last().filter(|_| more).map(|pull| cursor(pull.id));
    let items = pulls.iter().map(|pull| PullView::of(pull, &http.services)).collect();
    Ok(Answer(PullPage { items, next_cursor }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GetPull {
    /// Answer when the pull has changed or ended, or after this time. Progress is not a change. Without it, the
    /// answer comes at once.
    #[param(minimum = 0, maximum = 60)]
    timeout_seconds: Option<u32>,
    /// The pull has changed if its generation is greater than this; default: the current one.
    #[param(minimum = 0)]
    wait_generation: Option<i64>,
}

/// Read a pull, or wait for it to change
#[utoipa::path(
    get, path = "/pulls/{id}", tag = "templates",
    params(("id" = String, Path, format = "uuid"), GetPull),
    responses((status = 200, description = "The pull as it is now", body = PullView, example = json!(examples::pull()))),
    security(("token" = ["read"])),
)]
pub async fn get_pull(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    PathPull(id): PathPull,
    Query(asked): Query<GetPull>,
    permit: RequestPermit,
) -> Result<Answer<PullView>, Problem> {
    if asked.timeout_seconds.is_some_and(|timeout| timeout > LONGEST_WAIT) {
        return Err(Problem::invalid("query:timeout_seconds", format!("0 to {LONGEST_WAIT}")));
    }
    if asked.wait_generation.is_some_and(|generation| generation < 0) {
        return Err(Problem::invalid("query:wait_generation", "must not be negative"));
    }
    if asked.timeout_seconds.is_some() || asked.wait_generation.is_some() {
        let timeout = Duration::from_secs(asked.timeout_seconds.unwrap_or(30).into());
        let _place = permit.wait()?;
        tokio::select! {
            // A service that shuts down answers with the current state; the client repeats the request.
            () = http.shutdown.cancelled() => {}
            pull = http.services.pulls.wait(id, asked.wait_generation, timeout) => {
                return Ok(Answer(PullView::of(&pull?, &http.services)));
            }
        }
    }
    Ok(Answer(PullView::of(&http.services.pulls.get(id).await?, &http.services)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CancelPull {
    /// Also remove the downloaded data, unless another pull needs it. Otherwise it is kept for a week, for the next
    /// attempt.
    #[serde(default)]
    discard: bool,
}

/// Cancel a pull
///
/// Answers with the pull after the request. An ended pull does not change; `discard` removes its remaining data.
#[utoipa::path(
    delete, path = "/pulls/{id}", tag = "templates",
    params(("id" = String, Path, format = "uuid"), CancelPull),
    responses((status = 200, description = "The pull has ended", body = PullView, example = json!(examples::cancelled_pull()))),
    security(("token" = ["admin"])),
)]
pub async fn cancel_pull(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    PathPull(id): PathPull,
    Query(asked): Query<CancelPull>,
) -> Result<Answer<PullView>, Problem> {
    let pull = http.services.pulls.cancel(id, asked.discard).await?;
    Ok(Answer(PullView::of(&pull, &http.services)))
}
