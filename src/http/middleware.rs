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
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};
use tracing::{Instrument, Span};

use super::{
    auth,
    lanes::Lanes,
    problem::{self, Problem, Unrendered},
    surface::Surface,
};
use crate::{
    domain::{Code, Error, VmId},
    platform::clock,
    service::tokens::Tokens,
};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Largest body that this listener accepts, in bytes.
#[derive(Clone, Copy)]
pub struct BodyLimit(pub usize);

/// What one router shares between its requests.
#[derive(Clone)]
pub struct Middleware {
    surface: Surface,
    body_limit: usize,
    timeout: Duration,
    /// For the guest API: verifies vm tokens and limits the concurrent requests of each vm.
    guests: Option<(Tokens, Lanes)>,
    requests: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
}

impl Middleware {
    pub fn new(surface: Surface, body_limit: usize, timeout: Duration, max_concurrent: usize) -> Self {
        Self {
            surface,
            body_limit,
            timeout,
            guests: None,
            requests: Arc::new(Semaphore::new(max_concurrent)),
            waiters: Arc::new(Semaphore::new(max_concurrent)),
        }
    }

    /// The concurrent requests of each vm.
    pub fn for_guests(mut self, tokens: Tokens) -> Self {
        self.guests = Some((tokens, Lanes::new()));
        self
    }

    /// The vm of this token, without reading the database.
    fn vm_of(tokens: &Tokens, headers: &HeaderMap) -> Option<VmId> {
        tokens.vm_of_token(&auth::bearer(headers).ok()?)
    }
}

/// A request's permit among the requests that are served at once. A request that only waits (long poll, stream)
/// exchanges it for one of a separate limit, so that a thousand waiting clients cannot block a hook's DELETE.
#[derive(Clone)]
pub struct RequestPermit {
    taken: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    waiting: Arc<AtomicBool>,
    waiters: Arc<Semaphore>,
}

impl RequestPermit {
    /// Gives up the request's permit and disables its time limit. The returned value holds the permit for waiting
    /// requests.
    pub fn wait(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = self.waiters.clone().try_acquire_owned().map_err(|_| overloaded())?;
        self.disable_timeout();
        *self.taken.lock() = None;
        Ok(place)
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

    // A health check is answered even if other requests are refused: restarting a busy service does not help.
    let is_probe = path == "/healthz";
    let lane = match &limits.guests {
        Some((tokens, lanes)) if !is_probe => {
            lanes.enter(Middleware::vm_of(tokens, request.headers()), &method).map(Some).ok_or_else(crowded)
        }
        _ => Ok(None),
    };
    let place = match &lane {
        Ok(lane) if is_probe || lane.as_ref().is_some_and(|lane| lane.is_report) => Ok(None),
        _ => limits.requests.clone().try_acquire_owned().map(Some).map_err(|_| overloaded()),
    };
    let response = match (lane, place) {
        (Err(problem), _) | (_, Err(problem)) => problem.into_response(),
        (Ok(lane), Ok(place)) => {
            let permit = RequestPermit {
                taken: Arc::new(Mutex::new(place)),
                waiting: Arc::new(AtomicBool::new(false)),
                waiters: limits.waiters.clone(),
            };
            let waiting = permit.waiting.clone();
            let extensions = request.extensions_mut();
            extensions.insert(limits.surface);
            extensions.insert(BodyLimit(limits.body_limit));
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
            drop((permit, lane));
            response
        }
    };
    let response = finish(response, &id, &path);
    let (took, status) = (clock::elapsed(started).as_secs_f64(), response.status().as_u16());
    // The route instead of the path, and only known methods: each label value is a permanent time series.
    let route = route.unwrap_or_else(|| "(none)".to_owned());
    let known =
        if response.status() == StatusCode::METHOD_NOT_ALLOWED { "(other)" } else { method.as_str() }.to_owned();
    metrics::counter!("mayfly_http_requests_total", "method" => known.clone(), "route" => route.clone(), "status" => status.to_string())
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
        let limits = Middleware::new(Surface::Admin, 1, Duration::from_secs(5), 1);
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
