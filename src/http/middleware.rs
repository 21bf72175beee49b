//! Middleware for every request: its id, its permit, its time limit, and the final form of failures, panics included.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};
use tracing::{Instrument, Span};

use super::{
    Settings, auth,
    bodies::{Bodies, BodyReader},
    lanes::{Lanes, RequestPermits, Shares, WaitingLane},
    problem::{self, Problem, Unrendered},
    sender::{Peer, Sender},
    surface::Surface,
};
use crate::{
    domain::{Code, Error},
    platform::clock,
    service::guests::Guests,
};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What one router shares between its requests.
#[derive(Clone)]
pub struct Middleware {
    surface: Surface,
    largest_body: usize,
    timeout: Duration,
    /// For the guest API: verifies vm tokens, and notes in a vm's log that it is at its limit.
    guests: Option<Guests>,
    lanes: Lanes,
    bodies: Bodies,
    requests: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
}

impl Middleware {
    pub fn new(surface: Surface, settings: &Settings, shares: Shares) -> Self {
        let requests = settings.max_concurrent;
        Self {
            surface,
            largest_body: settings.max_body_bytes,
            timeout: settings.request_timeout,
            guests: None,
            lanes: Lanes::new(shares),
            bodies: Bodies::new(settings.bodies()),
            requests: Arc::new(Semaphore::new(requests)),
            waiters: Arc::new(Semaphore::new(requests)),
        }
    }

    pub fn for_guests(self, guests: Guests) -> Self {
        Self { guests: Some(guests), ..self }
    }

    fn sender(&self, request: &Request) -> Sender {
        let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Unknown);
        match &self.guests {
            Some(guests) => match auth::bearer(request.headers()).ok().and_then(|token| guests.vm_of_token(&token)) {
                Some((vm, _)) => Sender::Vm(vm),
                None => Sender::Peer(peer),
            },
            None => Sender::of_caller(request.headers(), peer),
        }
    }

    /// The permits for a request.
    fn admit(&self, sender: Sender, method: &Method) -> Result<(Taken, Option<WaitingLane>), Problem> {
        let (place, waiting_lane) = self.lanes.enter(sender, method).ok_or_else(|| self.refuse(sender))?;
        let listeners = if place.is_report {
            None
        } else {
            Some(self.requests.clone().try_acquire_owned().map_err(|_| overloaded())?)
        };
        Ok(((Some(place), listeners), Some(waiting_lane)))
    }

    /// The answer to a request of a sender that has its share of a limit.
    fn refuse(&self, sender: Sender) -> Problem {
        if let (Sender::Vm(vm), Some(guests)) = (sender, &self.guests)
            && self.lanes.is_note_due(vm)
        {
            let guests = guests.clone();
            tokio::spawn(async move { guests.note_limit(vm, "concurrent requests to Mayfly").await });
        }
        crowded()
    }
}

/// A request's permit among the requests that are served at once. A request that only waits (long poll, stream)
/// exchanges it for one of a separate limit, so that a thousand waiting clients cannot block a hook's DELETE.
#[derive(Clone)]
pub struct RequestPermit {
    taken: Arc<Mutex<Option<Taken>>>,
    /// The sender's own permits for waiting. Health checks have none.
    waiting_lane: Option<WaitingLane>,
    waiting: Arc<AtomicBool>,
    waiters: Arc<Semaphore>,
}

/// The sender's and the listener's permits. Health checks have none, and reports of guests none of the listener's.
type Taken = (Option<RequestPermits>, Option<OwnedSemaphorePermit>);

/// The permits of a request that only waits, until they are dropped.
pub struct WaitPermit {
    _own: Option<OwnedSemaphorePermit>,
    _listeners: OwnedSemaphorePermit,
}

impl RequestPermit {
    /// Gives up the request's permits and disables its time limit. The returned value holds the permits for waiting
    /// requests.
    pub fn wait(&self) -> Result<WaitPermit, Problem> {
        let own = match &self.waiting_lane {
            Some(lane) => Some(lane.enter().ok_or_else(crowded)?),
            None => None,
        };
        let listeners = self.waiters.clone().try_acquire_owned().map_err(|_| overloaded())?;
        self.disable_timeout();
        *self.taken.lock() = None;
        Ok(WaitPermit { _own: own, _listeners: listeners })
    }

    /// Disables the time limit, for requests that work for a long time.
    pub fn disable_timeout(&self) {
        self.waiting.store(true, Ordering::Release);
    }
}

impl<S: Sync> FromRequestParts<S> for RequestPermit {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<RequestPermit>()
            .cloned()
            .ok_or_else(|| Error::internal("a route without the middleware").into())
    }
}

fn overloaded() -> Problem {
    Error::new(Code::Overloaded, "too many requests are being served").retry_after(2).into()
}

fn crowded() -> Problem {
    let error = Error::new(Code::Overloaded, "as many requests of this caller are being served as it may have at once");
    error.retry_after(1).into()
}

/// Adds the middleware to every route.
pub fn with_middleware<S: Clone + Send + Sync + 'static>(router: Router<S>, limits: Middleware) -> Router<S> {
    let always = SetResponseHeaderLayer::overriding;
    let unless_set = SetResponseHeaderLayer::if_not_present;
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(limits, around))
        .layer(always(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")))
        .layer(always(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")))
        .layer(unless_set(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        // Only pages load resources.
        .layer(unless_set(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
        ))
}

async fn around(State(limits): State<Middleware>, mut request: Request, next: Next) -> Response {
    let started = clock::monotonic();
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let span = tracing::info_span!("request", request.id = %id);

    let sender = limits.sender(&request);
    // A health check is answered even if other requests are refused: restarting a busy service does not help.
    let is_probe = path == "/healthz";
    let admitted = if is_probe { Ok(((None, None), None)) } else { limits.admit(sender, &method) };
    let response = match admitted {
        Err(problem) => problem.into_response(),
        Ok((taken, waiting_lane)) => {
            let permit = RequestPermit {
                taken: Arc::new(Mutex::new(Some(taken))),
                waiting_lane,
                waiting: Arc::new(AtomicBool::new(false)),
                waiters: limits.waiters.clone(),
            };
            let waiting = permit.waiting.clone();
            let extensions = request.extensions_mut();
            extensions.insert(limits.surface);
            extensions.insert(BodyReader::new(limits.bodies.clone(), sender, limits.largest_body));
            // `permit` stays here: the request may be dropped long before its answer is ready.
            extensions.insert(permit.clone());
            let answer = answer(next, request, span);
            let too_slow = async {
                tokio::time::sleep(limits.timeout).await;
                if waiting.load(Ordering::Acquire) {
                    std::future::pending::<()>().await;
                }
            };
            let response = tokio::select! {
                biased;
                answer = answer => answer,
                () = too_slow => {
                    Problem::new(Code::RequestTimeout, format!("the limit is {} s", limits.timeout.as_secs_f32())).into_response()
                }
            };
            drop(permit);
            response
        }
    };
    let response = finish(response, &id, &path);
    let (took, status) = (clock::elapsed(started).as_secs_f64(), response.status().as_u16());
    // The route instead of the path, and only known methods: each label value is a permanent time series.
    let route = route.unwrap_or_else(|| "(none)".to_owned());
    let known = known_method(&method);
    metrics::counter!("mayfly_http_requests_total", "method" => known, "route" => route.clone(), "status" => status.to_string())
        .increment(1);
    metrics::histogram!("mayfly_http_request_duration_seconds", "method" => known, "route" => route.clone())
        .record(took);
    tracing::debug!(
        request.id = %id,
        http.method = %method,
        http.route = route,
        http.status = status,
        duration_ms = took * 1000.0,
        "request answered"
    );
    response
}

/// A method as a label. A client may invent methods.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("(other)")
}

/// Runs the handler. A request that changes something runs to its end even if the client disconnects: otherwise its
/// commit could stand without the notifications that follow it.
async fn answer(next: Next, request: Request, span: Span) -> Response {
    if request.method().is_safe() {
        return next.run(request).instrument(span).await;
    }
    let run = tokio::spawn(next.run(request).instrument(span));
    run.await.unwrap_or_else(|_| Problem::new(Code::ShuttingDown, "the service is ending").into_response())
}

/// Renders problems of all origins, and adds the request id.
fn finish(mut response: Response, id: &str, path: &str) -> Response {
    let unrendered = response.extensions_mut().remove::<Unrendered>().or_else(|| by_status(response.status()));
    if let Some(unrendered) = unrendered {
        response = problem::render(&unrendered, id, path, response.headers());
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// An error of a library, not of a handler.
fn by_status(status: StatusCode) -> Option<Unrendered> {
    let problem = match status {
        StatusCode::NOT_FOUND => Problem::new(Code::NotFound, "no resource has this path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::new(Code::MethodNotAllowed, "see the Allow header for what this resource takes")
        }
        status if status.is_client_error() || status.is_server_error() => {
            Error::internal(format!("a response with status {status} that is no problem document")).into()
        }
        _ => return None,
    };
    Some(problem.into())
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Problem::from(Error::internal(format!("a handler panicked: {said}"))).into_response()
}

/// The caller's own request id if it is safe in a log and a header, otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| (1..=128).contains(&id.len()))
        .filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b)))
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn boom() -> &'static str {
        panic!("secret-cause")
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_that_keeps_its_cause_to_itself() {
        let settings = Settings { max_concurrent: 1, ..Settings::default() };
        let limits = Middleware::new(Surface::Admin, &settings, Shares::of_admin(1));
        let router = with_middleware(Router::new().route("/boom", get(boom).post(boom)), limits);
        // More often than there are permits: a panic returns its permit.
        for method in ["GET", "POST", "GET", "POST"] {
            let request = Request::builder().method(method).uri("/boom").body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains("\"internal\"") && !body.contains("secret-cause"), "{body}");
        }
    }
}
