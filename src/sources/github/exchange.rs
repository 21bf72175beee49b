//! One request with given credentials: redirects, retries where they are safe, rate limits.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, LOCATION},
};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};

use super::{
    GitHubError, GitHubOptions,
    budget::{Class, Moment, RateLimiter, answered_at},
    refusal,
};
use crate::{
    domain::network::is_public,
    platform::{
        clock, error_chain,
        http::{ClientOptions, Trust, read_certificates},
        reach::{CheckedClient, ServerReach},
    },
};

/// GitHub allows a hundred concurrent requests per credential.
const AT_ONCE: usize = 20;
const REDIRECTS: usize = 5;
/// Limit of an answer. A page of a hundred runners with many labels is below 1 MiB, a delivery below 25.
const LARGEST: usize = 32 << 20;
/// How often one request waits for a limit to end.
const WAITS: usize = 2;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub method: Method,
    pub url: Url,
    pub body: Option<Value>,
    /// The purpose of the request, for messages.
    pub what: String,
    pub class: Class,
    /// Whether a repetition has no further effect.
    pub repeatable: bool,
    /// Whether the answer contains a secret, and must never be shown.
    pub secret: bool,
    pub if_none_match: Option<String>,
}

/// The complete answer. Overwritten when it is dropped, because some answers are secrets.
pub(super) struct ApiResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
    /// Whether it is from the server that the credentials are for.
    pub ours: bool,
}

/// What GitHub's latest answers said about the server and the credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our clock less theirs.
    pub clock_ahead: Option<SignedDuration>,
    /// Of an Enterprise Server.
    pub enterprise_version: Option<String>,
    /// Of a classic token, by GitHub's word.
    pub token_scopes: Option<String>,
    pub token_expires: Option<String>,
    pub api_version: Option<String>,
}

pub(super) struct ApiExchange {
    http: CheckedClient,
    options: GitHubOptions,
    at_once: Semaphore,
    /// Changes are made one after the other; start of the latest one.
    writes: Mutex<Option<tokio::time::Instant>>,
    observed: parking_lot::Mutex<Observed>,
}

/// An attempt without an answer.
struct Broken {
    cause: String,
    sent: bool,
}

impl ApiExchange {
    /// Reads the certificates, and connects to nothing.
    pub fn new(options: GitHubOptions) -> Result<ApiExchange, GitHubError> {
        let settings = |what: String| GitHubError::Settings { what };
        let trust = match &options.ca_file {
            Some(path) => Trust::SystemAnd(read_certificates(path).map_err(settings)?),
            None => Trust::System,
        };
        // `send` follows redirects: reqwest would turn a POST into a GET.
        let http = ClientOptions {
            total_timeout: Some(options.timeout),
            trust,
            use_proxy: !options.server.is_loopback(),
            ..ClientOptions::new(options.connect_timeout)
        };
        // A redirect may lead to another server.
        let reach = ServerReach::new([options.server.web().clone(), options.server.api().clone()], is_public);
        let http = http.build_within(reach).map_err(|error| settings(error_chain(&error.without_url())))?;
        Ok(ApiExchange {
            http,
            options,
            at_once: Semaphore::new(AT_ONCE),
            writes: Mutex::new(None),
            observed: parking_lot::Mutex::default(),
        })
    }

    pub fn options(&self) -> &GitHubOptions {
        &self.options
    }

    pub fn observed(&self) -> Observed {
        self.observed.lock().clone()
    }

    pub fn server(&self) -> String {
        self.options.server.name()
    }

    /// Returns the answer, unless it is a limit or there is none. Repeats attempts where that is safe.
    pub async fn send(
        &self,
        call: &Call,
        token: &SecretString,
        budget: &Arc<RateLimiter>,
    ) -> Result<ApiResponse, GitHubError> {
        let mut pauses = self.options.retry.pauses();
        let mut waits = 0;
        loop {
            let limited = match budget.admit(call.class, self.moment()) {
                Err(limited) => Some(limited),
                Ok(()) => match self.once(call, token, budget).await {
                    Ok(answer) if again(answer.status) && call.repeatable => {
                        let Some(pause) = pauses.next() else { return Ok(answer) };
                        let status = answer.status.as_u16();
                        tracing::warn!(request = %call.what, status, pause_ms = millis(pause), "retrying a request to GitHub");
                        drop(answer);
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    Ok(answer) => {
                        let said = refusal::said(&answer.body);
                        match budget.refused(answer.status, &answer.headers, &said, self.moment()) {
                            None => return Ok(answer),
                            limited => limited,
                        }
                    }
                    Err(broken) => {
                        let pause = if call.repeatable || !broken.sent { pauses.next() } else { None };
                        let Some(pause) = pause else {
                            return Err(GitHubError::Unavailable {
                                server: self.server(),
                                what: call.what.clone(),
                                cause: broken.cause,
                                sent: broken.sent,
                            });
                        };
                        tracing::warn!(request = %call.what, error = %broken.cause, pause_ms = millis(pause), "retrying a request to GitHub");
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                },
            };
            let Some((limit, until)) = limited else { continue };
            // A limited request was not processed: waiting and repeating is safe for every request.
            let rest = Duration::try_from(until.duration_since(self.options.clock.now())).unwrap_or_default();
            if waits == WAITS || rest > self.options.patience {
                let (server, what) = (self.server(), call.what.clone());
                return Err(GitHubError::RateLimited { server, what, limit, until });
            }
            waits += 1;
            tokio::time::sleep(rest).await;
        }
    }

    async fn once(&self, call: &Call, token: &SecretString, budget: &RateLimiter) -> Result<ApiResponse, Broken> {
        let changes = !call.method.is_safe() && call.class != Class::Access;
        // In this order, so that changes that wait for each other do not block reads.
        let _turn = if changes { Some(self.turn().await) } else { None };
        let _place = self.at_once.acquire().await.expect("it is never closed");
        let base = &self.options.server;
        let mut url = call.url.clone();
        let mut redirects = 0;
        loop {
            let ours = url.origin() == base.api().origin();
            let request = self.http.request(call.method.clone(), url.clone());
            let mut request = request
                .map_err(|error| Broken { cause: error.to_string(), sent: redirects > 0 })?
                .header(ACCEPT, "application/vnd.github+json")
                .header("x-github-api-version", &self.options.api_version);
            if ours {
                request = request.header(AUTHORIZATION, bearer(token)?);
            }
            if let Some(tag) = &call.if_none_match {
                request = request.header(IF_NONE_MATCH, tag);
            }
            if let Some(body) = &call.body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(broken)?;
            if ours {
                self.observe(&response);
                budget.note(call.class, response.status(), response.headers(), self.moment());
            }
            let Some(next) = redirected(&call.method, &response) else { return whole(response, ours).await };
            let not_followed = |cause: String| Err(Broken { cause, sent: true });
            redirects += 1;
            if redirects > REDIRECTS {
                return not_followed("too many redirects".to_owned());
            }
            url = match url.join(&next) {
                Ok(next) if next.scheme() == "https" || next.origin() == base.api().origin() => next,
                _ => return not_followed("it redirects to an address that is not https".to_owned()),
            };
        }
    }

    /// Waits until a change may be sent. The next change waits until this guard is dropped, and a moment longer.
    async fn turn(&self) -> tokio::sync::MutexGuard<'_, Option<tokio::time::Instant>> {
        let mut last = self.writes.lock().await;
        if let Some(at) = *last {
            tokio::time::sleep_until(at + self.options.write_gap).await;
        }
        *last = Some(clock::monotonic());
        last
    }

    fn moment(&self) -> Moment {
        Moment::now(&self.options.clock)
    }

    fn observe(&self, response: &Response) {
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut observed = self.observed.lock();
        if let Some(date) = answered_at(response.headers()) {
            observed.clock_ahead = Some(self.options.clock.now().duration_since(date));
        }
        observed.enterprise_version = text("x-github-enterprise-version").or(observed.enterprise_version.take());
        observed.token_scopes = text("x-oauth-scopes").or(observed.token_scopes.take());
        observed.token_expires = text("github-authentication-token-expiration").or(observed.token_expires.take());
        observed.api_version = text("x-github-api-version-selected").or(observed.api_version.take());
    }
}

fn bearer(token: &SecretString) -> Result<HeaderValue, Broken> {
    let text = Zeroizing::new(format!("Bearer {}", token.expose_secret()));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Broken { cause: "the token cannot stand in a header".to_owned(), sent: false })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The target of redirects that keep the method. Others are refusals, because a change that became a GET would be
/// taken for carried out.
fn redirected(method: &Method, response: &Response) -> Option<String> {
    let keeps = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => method.is_safe(),
        _ => false,
    };
    let to = response.headers().get(LOCATION)?.to_str().ok()?;
    keeps.then(|| to.to_owned())
}

async fn whole(mut response: Response, ours: bool) -> Result<ApiResponse, Broken> {
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Zeroizing::new(Vec::new());
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        if body.len() + piece.len() > LARGEST {
            return Err(Broken { cause: format!("the answer is larger than {} MiB", LARGEST >> 20), sent: true });
        }
        body.extend_from_slice(&piece);
    }
    Ok(ApiResponse { status, headers, body, ours })
}

/// A connection error, with its causes and without the URL.
fn broken(error: reqwest::Error) -> Broken {
    let sent = !error.is_connect() && !error.is_builder();
    Broken { cause: error_chain(&error.without_url()), sent }
}

/// A temporary error of the server.
fn again(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY)
}

fn millis(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

/// A header as text.
pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}
