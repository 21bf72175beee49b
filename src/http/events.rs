//! Events: of one vm or one template as a list, of all as a stream.
//!
//! The stream neither loses nor repeats events. It subscribes first and reads the database afterwards; notifications
//! only say *that* there are new events. A notified event is sent directly if it is the very next one; after a gap (a
//! lagging subscription, or reordered notifications) the database is read again from the last event that was sent.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::State as FromState,
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response, Sse, sse},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    auth::{Allowed, PathVm, Read},
    extract::{Name, Query, page_size},
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
    pulls::PullProgressEvent,
    time::Time,
};
use crate::{
    domain::{Code, Event, State, VmId, event::Recorded, template_event::RecordedOfTemplate},
    service::events::Entry,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How often a comment is sent, and how often the database is read even without a change signal.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Interval at which a client reconnects after it lost the stream.
const RECONNECT: Duration = Duration::from_secs(1);
/// Events read from the database at once.
const PAGE: u32 = 256;

/// One event of a vm. The fields of its type are beside the fields listed here.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventView {
    /// Position in the ledger: grows with every event of every vm and template.
    pub seq: i64,
    #[schema(value_type = String, format = "uuid")]
    pub vm_id: VmId,
    pub vm_name: String,
    /// The vm's generation after this event.
    pub generation: i64,
    pub at: Time,
    /// The vm's state after this event.
    pub state: State,
    /// What happened, for example `created`, `slot_taken`, `guest_configured`, `end_announced`, `instance_absent`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The rest of the event, by type.
    #[serde(flatten)]
    pub payload: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize, ToSchema)]
pub struct EventList {
    /// Oldest first.
    pub items: Vec<EventView>,
    /// Pass it as `after` to get the next events; null if there were no more.
    pub next_after: Option<i64>,
}

/// One event of a template. The fields of its type are beside the fields listed here.
#[derive(Serialize, ToSchema)]
#[schema(as = TemplateEvent)]
pub struct TemplateEventView {
    /// Position in the ledger: grows with every event of every vm and template.
    pub seq: i64,
    /// The template's name, or its digest if it has no name.
    pub template: String,
    pub at: Time,
    /// What happened, for example `registered`, `pulled`, `pull_failed`, `name_moved`, `deleted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The rest of the event, by type.
    #[serde(flatten)]
    pub payload: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize, ToSchema)]
pub struct TemplateEventList {
    /// Oldest first.
    pub items: Vec<TemplateEventView>,
    /// Pass it as `after` to get the next events; null if there were no more.
    pub next_after: Option<i64>,
}

impl TemplateEventView {
    fn new(recorded: &RecordedOfTemplate) -> Result<Self, Problem> {
        Ok(Self {
            seq: recorded.seq,
            template: recorded.template.clone(),
            at: recorded.at.into(),
            kind: recorded.event.kind(),
            payload: payload(&recorded.event)?,
        })
    }
}

/// An event's fields without its type, which is a separate field.
fn payload(event: &impl Serialize) -> Result<serde_json::Map<String, serde_json::Value>, Problem> {
    let mut payload = match serde_json::to_value(event).map_err(crate::domain::Error::internal)? {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    payload.remove("type");
    Ok(payload)
}

impl EventView {
    fn new(recorded: &Recorded, vm_name: String) -> Result<Self, Problem> {
        Ok(Self {
            seq: recorded.seq,
            vm_id: recorded.vm_id,
            vm_name,
            generation: recorded.generation,
            at: recorded.at.into(),
            state: recorded.state,
            kind: recorded.event.kind().as_str(),
            payload: payload(&recorded.event)?,
        })
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    /// Only events after this position (`seq`).
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Largest number of events in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List a vm's events
#[utoipa::path(
    get, path = "/vms/{id}/events", tag = "vms",
    params(("id" = String, Path, format = "uuid"), ListEvents),
    responses((status = 200, description = "Its events, oldest first", body = EventList, example = json!({"items": [examples::event()], "next_after": null}))),
    security(("token" = ["read"])),
)]
pub async fn list_vm_events(
    FromState(http): FromState<Arc<Http>>,
    // Checked before the vm is looked up: a vm's own token gets the same 403 for every id.
    _: Allowed<Read>,
    PathVm(id): PathVm,
    Query(asked): Query<ListEvents>,
) -> Result<Answer<EventList>, Problem> {
    let limit = page_size(asked.limit)?;
    let after = position(asked.after)?.unwrap_or(0);
    let vm = http.services.vms.get(id).await?;
    let mut events = http.services.events.of_vm(id, after, limit + 1).await?;
    let more = events.len() > limit as usize;
    events.truncate(limit as usize);
    let next_after = events.last().filter(|_| more).map(|last| last.seq);
    let items = events.iter().map(|e| EventView::new(e, vm.spec.name.clone())).collect::<Result<_, _>>()?;
    Ok(Answer(EventList { items, next_after }))
}

/// List a template's events
///
/// Also of a deleted template, as long as its events are kept. With a name: the events under this name, and those
/// of the template that it points at.
#[utoipa::path(
    get, path = "/templates/{name}/events", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro"), ListEvents),
    responses((status = 200, description = "Its events, oldest first", body = TemplateEventList, example = json!({"items": [examples::template_event()], "next_after": null}))),
    security(("token" = ["read"])),
)]
pub async fn list_template_events(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(name): Name,
    Query(asked): Query<ListEvents>,
) -> Result<Answer<TemplateEventList>, Problem> {
    let limit = page_size(asked.limit)?;
    let after = position(asked.after)?.unwrap_or(0);
    let template = match http.services.templates.get(&name).await {
        Ok(template) => Some(template),
        Err(error) if error.code == Code::TemplateNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let digest = template.as_ref().map_or(name.as_str(), |t| &t.digest);
    let stored = &http.services.events;
    let mut events = stored.of_template([&name, digest], after, limit + 1).await?;
    // An empty page after the last event is a valid answer; a template that never existed is an error.
    if events.is_empty() && template.is_none() && stored.of_template([&name, digest], 0, 1).await?.is_empty() {
        return Err(Problem::new(Code::TemplateNotFound, format!("there is no template {name}")));
    }
    let more = events.len() > limit as usize;
    events.truncate(limit as usize);
    let next_after = events.last().filter(|_| more).map(|last| last.seq);
    let items = events.iter().map(TemplateEventView::new).collect::<Result<_, _>>()?;
    Ok(Answer(TemplateEventList { items, next_after }))
}

fn position(after: Option<i64>) -> Result<Option<i64>, Problem> {
    match after {
        Some(after) if after < 0 => Err(Problem::invalid("query:after", "must not be negative")),
        after => Ok(after),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamEvents {
    /// Begin after this position. Without it and without `Last-Event-ID`, the stream begins now.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Only events of this vm, and no template events.
    #[param(value_type = Option<String>, format = "uuid")]
    vm_id: Option<VmId>,
}

/// One message of the stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is written as text")]
pub struct StreamedEvent {
    /// The position, for `Last-Event-ID`.
    #[schema(required = false)]
    id: String,
    /// The event's type.
    #[schema(required = false)]
    event: String,
    /// An event of a vm or of a template, as JSON.
    #[schema(content_media_type = "application/json", required = false)]
    data: String,
}

/// Stream events
///
/// Server-sent events of all vms and templates: `id` is the position, `event` the type, `data` an event as JSON,
/// which has `vm_id` if it is about a vm and `template` if it is about a template. `Last-Event-ID` resumes without
/// loss and without repetition. During the pull of an image, `pull_progress` reports the progress once a second;
/// these messages have no `id`, and are left out if the stream is filtered by vm. A comment every 15 seconds keeps
/// the connection alive.
#[utoipa::path(
    get, path = "/events", tag = "events",
    params(StreamEvents, ("Last-Event-ID" = Option<i64>, Header, description = "Begin after this position; takes precedence over `after`", minimum = 0)),
    responses((status = 200, description = "Events as they happen, until the client disconnects or the service ends", body = StreamedEvent, content_type = "text/event-stream",
        example = json!(examples::stream()))),
    security(("token" = ["read"])),
)]
pub async fn stream_events(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Query(asked): Query<StreamEvents>,
    headers: HeaderMap,
    permit: RequestPermit,
) -> Result<Response, Problem> {
    let resumed = match headers.get(LAST_EVENT_ID) {
        None => None,
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.trim().parse::<i64>().ok()).filter(|id| *id >= 0);
            Some(id.ok_or_else(|| Problem::invalid("header:Last-Event-ID", "must be a position of this stream"))?)
        }
    };
    let asked_after = position(asked.after)?;
    let place = permit.wait()?;
    let newest = http.services.events.newest().await?;
    // A position from the future belongs to another database, so there is nothing to resume.
    let sent = resumed.or(asked_after).unwrap_or(newest).min(newest);
    let (out, body) = mpsc::channel(64);
    let stream = EventStream { http, only: asked.vm_id, sent, names: HashMap::new(), out };
    tokio::spawn(async move {
        stream.run().await;
        drop(place);
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        // Proxies such as nginx would hold events back to fill a buffer.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Sse::new(ReceiverStream::new(body))).into_response())
}

struct EventStream {
    http: Arc<Http>,
    only: Option<VmId>,
    /// Every event up to this position was sent or is filtered out.
    sent: i64,
    names: HashMap<VmId, String>,
    out: mpsc::Sender<Result<sse::Event, Infallible>>,
}

/// The client or the database is gone. In both cases the stream ends, and the client can resume.
struct Over;

impl EventStream {
    async fn run(mut self) {
        let shutdown = self.http.shutdown.clone();
        let gone = self.out.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = gone.closed() => {}
            Over = self.follow() => {}
        }
    }

    async fn follow(&mut self) -> Over {
        // Subscribes before the first read of the database: a commit in between is notified, and is seen by the read.
        let mut bell = self.http.services.events.subscribe_vms();
        let mut templates = self.http.services.events.subscribe_templates();
        let mut pulls = self.http.services.events.subscribe_pull_progress();
        let result: Result<Infallible, Over> = async {
            self.send(sse::Event::default().retry(RECONNECT)).await?;
            self.catch_up().await?;
            loop {
                tokio::select! {
                    change = bell.recv() => match change {
                        Ok(change) if change.recorded.seq <= self.sent => {}
                        Ok(change) if change.recorded.seq == self.sent + 1 => {
                            self.pass_on(&change.recorded, Some(&change.vm.spec.name)).await?;
                        }
                        Ok(_) | Err(RecvError::Lagged(_)) => self.catch_up().await?,
                        Err(RecvError::Closed) => return Err(Over),
                    },
                    // The two channels are not ordered: an event that is missing in one was sent in the other.
                    recorded = templates.recv() => match recorded {
                        Ok(recorded) if recorded.seq <= self.sent => {}
                        Ok(recorded) if recorded.seq == self.sent + 1 => self.pass_on_template(&recorded).await?,
                        Ok(_) | Err(RecvError::Lagged(_)) => self.catch_up().await?,
                        Err(RecvError::Closed) => return Err(Over),
                    },
                    // Without a position, because progress is outdated after a second, and no client resumes from it.
                    update = pulls.recv() => if let (Ok(update), None) = (&update, self.only) {
                        let event = sse::Event::default().event(PullProgressEvent::KIND);
                        self.send(event.json_data(PullProgressEvent::new(update)).map_err(|_| Over)?).await?;
                    },
                    () = tokio::time::sleep(KEEP_ALIVE) => {
                        self.send(sse::Event::default().comment("keep-alive")).await?;
                        self.catch_up().await?;
                    }
                }
            }
        }
        .await;
        match result {
            Err(over) => over,
        }
    }

    /// Sends everything that is committed and was not sent yet.
    async fn catch_up(&mut self) -> Result<(), Over> {
        let stored = self.http.services.events.clone();
        // Read first: later commits are sent in the next turn. Commits have the order of their positions.
        let newest = stored.newest().await.map_err(|e| failed(&e))?;
        while self.sent < newest {
            let page = match self.only {
                Some(id) => stored.of_vm(id, self.sent, PAGE).await.map(|p| p.into_iter().map(Entry::Vm).collect()),
                None => stored.all(self.sent, PAGE).await,
            };
            let page: Vec<Entry> = page.map_err(|e| failed(&e))?;
            for entry in &page {
                match entry {
                    Entry::Vm(recorded) => self.pass_on(recorded, None).await?,
                    Entry::Template(recorded) => self.pass_on_template(recorded).await?,
                }
            }
            if page.len() < PAGE as usize {
                self.sent = self.sent.max(newest);
            }
        }
        Ok(())
    }

    async fn pass_on(&mut self, recorded: &Recorded, name: Option<&str>) -> Result<(), Over> {
        self.sent = recorded.seq;
        if self.only.is_some_and(|only| only != recorded.vm_id) {
            return Ok(());
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None => self.name_of(recorded).await?,
        };
        let view = EventView::new(recorded, name).map_err(|_| Over)?;
        self.send(message(view.seq, view.kind, &view)?).await
    }

    async fn pass_on_template(&mut self, recorded: &RecordedOfTemplate) -> Result<(), Over> {
        self.sent = recorded.seq;
        if self.only.is_some() {
            return Ok(());
        }
        let view = TemplateEventView::new(recorded).map_err(|_| Over)?;
        self.send(message(view.seq, view.kind, &view)?).await
    }

    async fn name_of(&mut self, recorded: &Recorded) -> Result<String, Over> {
        if let Event::Created { spec } = &recorded.event {
            return Ok(spec.name.clone());
        }
        if let Some(name) = self.names.get(&recorded.vm_id) {
            return Ok(name.clone());
        }
        let vm = self.http.services.vms.find(recorded.vm_id).await.map_err(|e| failed(&e))?;
        let name = vm.map(|vm| vm.spec.name).unwrap_or_default();
        if self.names.len() >= 1024 {
            self.names.clear();
        }
        self.names.insert(recorded.vm_id, name.clone());
        Ok(name)
    }

    async fn send(&self, message: sse::Event) -> Result<(), Over> {
        self.out.send(Ok(message)).await.map_err(|_| Over)
    }
}

fn message(position: i64, kind: &str, event: &impl Serialize) -> Result<sse::Event, Over> {
    sse::Event::default().id(position.to_string()).event(kind).json_data(event).map_err(|_| Over)
}

fn failed(error: &dyn std::error::Error) -> Over {
    tracing::error!(%error, "cannot read the database for an event stream; closed the stream");
    Over
}
