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
    extract::Query,
    frame::Seat,
    openapi::examples,
    problem::Problem,
    time::Time,
    vms::page_size,
};
use crate::{
    domain::{
        Code, Fault, PullId, VmId,
        pull::{FetchProgress, Pull, PullState},
    },
    service::Service,
    templates::pull::PullProgress,
};

const LONGEST_WAIT: u32 = 60;

/// How far a pull is.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = PullProgress)]
pub struct ProgressView {
    /// Of what has to come from the registry; null until it is known what that is.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: Option<u8>,
    /// Of what has to come from the registry. What is here already is in neither number.
    pub bytes_done: u64,
    /// 0 until it is known what has to come.
    pub bytes_total: u64,
    /// Pieces of the disk, wherever they come from.
    pub chunks_done: u64,
    pub chunks_total: u64,
    /// Of late; null when no bytes come.
    pub bytes_per_second: Option<u64>,
    /// At this rate; null when it cannot be said.
    pub eta_seconds: Option<u64>,
}

/// `None`: nothing has to come, or it is not known yet what.
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

/// An image on its way to becoming a template.
#[derive(Serialize, ToSchema)]
#[schema(as = Pull)]
pub struct PullView {
    #[schema(value_type = String, format = "uuid")]
    id: PullId,
    /// The image, as it was asked for.
    image: String,
    /// What the template will be called.
    name: String,
    state: PullState,
    /// Grows with every change but progress.
    generation: i64,
    /// Nobody waits for it: it was started by a watch.
    background: bool,
    /// Whether a vm of the new version has to pass a test before the name moves.
    canary: bool,
    /// What the name pointed at when the pull began.
    previous_digest: Option<String>,
    /// What the reference stands for, once the registry has said so. The pull is about this image from then on.
    image_digest: Option<String>,
    /// The template's, once it is here.
    digest: Option<String>,
    /// The vm that runs the test.
    #[schema(value_type = Option<String>, format = "uuid")]
    vm_id: Option<VmId>,
    progress: ProgressView,
    /// What went wrong: for good when the pull has failed, else it is tried again.
    error: Option<Fault>,
    /// Failures in a row.
    failures: u32,
    /// When it is tried again.
    retry_at: Option<Time>,
    /// Failures are not waited out beyond this.
    deadline: Time,
    /// What was fetched and did not become a template was removed.
    discarded: bool,
    created_at: Time,
    updated_at: Time,
    ended_at: Option<Time>,
}

impl PullView {
    pub fn of(pull: &Pull, service: &Service) -> Self {
        let progress = match service.pull_progress(pull.id) {
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
            error: pull.fault.clone(),
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

/// What the event stream says of a pull about once a second while its bytes come. It has no position and is not kept.
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

    pub fn new(told: &crate::service::pulls::Told) -> Self {
        Self {
            kind: Self::KIND,
            pull: told.pull.id,
            template: told.pull.spec.name.clone(),
            image: told.pull.spec.image.clone(),
            progress: ProgressView::moving(&told.progress),
        }
    }
}

/// The pull in the path. What is no id at all names no pull either.
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
    /// `next_cursor` of the page before.
    #[param(pattern = "^[0-9a-f]{32}$")]
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct PullPage {
    items: Vec<PullView>,
    /// Give it back as `cursor` for the next page; null on the last one.
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
    let mut pulls = http.service.reader().pulls(before, limit + 1).await?;
    let more = pulls.len() > limit as usize;
    pulls.truncate(limit as usize);
    let next_cursor = pulls.last().filter(|_| more).map(|pull| cursor(pull.id));
    let items = pulls.iter().map(|pull| PullView::of(pull, &http.service)).collect();
    Ok(Answer(PullPage { items, next_cursor }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GetPull {
    /// Answer once the pull has changed or ended, or when this time is over. Progress is no change. Without it: at once.
    #[param(minimum = 0, maximum = 60)]
    timeout_seconds: Option<u32>,
    /// What counts as changed: a generation greater than this. The one that it has now, when missing.
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
    seat: Seat,
) -> Result<Answer<PullView>, Problem> {
    if asked.timeout_seconds.is_some_and(|timeout| timeout > LONGEST_WAIT) {
        return Err(Problem::invalid("query:timeout_seconds", format!("0 to {LONGEST_WAIT}")));
    }
    if asked.wait_generation.is_some_and(|generation| generation < 0) {
        return Err(Problem::invalid("query:wait_generation", "must not be negative"));
    }
    if asked.timeout_seconds.is_some() || asked.wait_generation.is_some() {
        let timeout = Duration::from_secs(asked.timeout_seconds.unwrap_or(30).into());
        let _place = seat.wait()?;
        tokio::select! {
            // A service that ends answers with what is known; the client asks again.
            () = http.shutdown.cancelled() => {}
            pull = http.service.wait_pull(id, asked.wait_generation, timeout) => {
                return Ok(Answer(PullView::of(&pull?, &http.service)));
            }
        }
    }
    Ok(Answer(PullView::of(&http.service.get_pull(id).await?, &http.service)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CancelPull {
    /// Remove what was fetched, too, unless another pull needs it. Else it is kept for a week, for the next try.
    #[serde(default)]
    discard: bool,
}

/// Cancel a pull
///
/// Answers with the pull as it is then. One that has ended stays as it is; `discard` removes what is left of it.
#[utoipa::path(
    delete, path = "/pulls/{id}", tag = "templates",
    params(("id" = String, Path, format = "uuid"), CancelPull),
    responses((status = 200, description = "It has ended", body = PullView, example = json!(examples::cancelled_pull()))),
    security(("token" = ["admin"])),
)]
pub async fn cancel_pull(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    PathPull(id): PathPull,
    Query(asked): Query<CancelPull>,
) -> Result<Answer<PullView>, Problem> {
    let pull = http.service.cancel_pull(id, asked.discard).await?;
    Ok(Answer(PullView::of(&pull, &http.service)))
}
