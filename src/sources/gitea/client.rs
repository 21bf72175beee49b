//! Sends requests with the access token, repeats them where that is safe, and reads lists in pages.

use std::{collections::HashSet, fmt, path::PathBuf, time::Duration};

use jiff::Timestamp;
use parking_lot::RwLock;
use reqwest::{
    Client, Method, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{model::GiteaVersion, refusal, server::GiteaServer};
use crate::{
    domain::SourceKind,
    platform::{
        Clock, error_chain,
        files::read_secret,
        http::{ClientOptions, Trust, bounded_body, read_certificates},
        retry::Retry,
    },
    sources::error::{SourceError, SourceErrorKind},
};

/// Limit of an answer. A page of fifty jobs is below 100 KiB.
const LARGEST: usize = 16 << 20;
/// The largest page that a server gives by default.
const PAGE: usize = 50;
/// Ten thousand runners or jobs.
const MOST_PAGES: usize = 200;
/// How often a list that changes is read.
const READINGS: usize = 3;

/// Settings of the client for one Gitea server.
#[derive(Clone, Debug)]
pub struct GiteaOptions {
    pub server: GiteaServer,
    /// File with an access token of a user.
    pub token_file: PathBuf,
    /// PEM certificates of authorities that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// Time limit of one complete answer.
    pub timeout: Duration,
    /// Retries of requests that may be repeated.
    pub retry: Retry,
    /// How long after a runner was disabled an assignment of a job that began before may still be stored.
    pub settle: Duration,
    pub clock: Clock,
}

impl GiteaOptions {
    pub fn new(server: GiteaServer, token_file: PathBuf) -> GiteaOptions {
        GiteaOptions {
            server,
            token_file,
            ca_file: None,
            connect_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(60),
            retry: Retry {
                attempts: 4,
                first_pause: Duration::from_millis(500),
                longest_pause: Duration::from_secs(5),
            },
            settle: Duration::from_secs(1),
            clock: Clock::system(),
        }
    }
}

pub struct GiteaClient {
    http: Client,
    pub(super) options: GiteaOptions,
    token: RwLock<SecretString>,
    /// The version of the server, as far as it was asked for.
    pub(super) version: RwLock<Option<GiteaVersion>>,
}

/// A request.
pub(super) struct GiteaCall {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<Value>,
    /// The purpose of the request, for messages.
    pub what: String,
    /// Whether a repetition has no further effect.
    pub repeatable: bool,
    /// Whether it carries the access token.
    pub with_token: bool,
}

/// The complete answer. Overwritten when it is dropped, because some answers are secrets.
pub(super) struct GiteaAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for GiteaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GiteaClient").field("server", &self.options.server.name()).finish_non_exhaustive()
    }
}

impl GiteaClient {
    /// Reads the token and the certificates, and connects to nothing.
    pub fn new(options: GiteaOptions) -> Result<GiteaClient, SourceError> {
        let settings = |what: String| SourceError::new(SourceKind::Gitea, SourceErrorKind::Settings, what);
        let trust = match &options.ca_file {
            Some(path) => Trust::SystemAnd(read_certificates(path).map_err(settings)?),
            None => Trust::System,
        };
        // Redirects are not followed: a change that became a GET would be taken for carried out, and the token would be
        // sent to another server.
        let http = ClientOptions {
            total_timeout: Some(options.timeout),
            trust,
            use_proxy: !options.server.is_loopback(),
            ..ClientOptions::new(options.connect_timeout)
        };
        let http = http.build().map_err(|error| settings(error_chain(&error.without_url())))?;
        let token = token(&options).map_err(settings)?;
        Ok(GiteaClient { http, options, token: RwLock::new(token), version: RwLock::new(None) })
    }

    pub fn server(&self) -> &GiteaServer {
        &self.options.server
    }

    pub(super) fn now(&self) -> Timestamp {
        self.options.clock.now()
    }

    /// A request of the REST API with the access token. GET, PATCH and DELETE may be repeated.
    pub(super) fn request(&self, method: Method, path: &[String], query: &[(&str, String)], what: String) -> GiteaCall {
        GiteaCall {
            url: self.options.server.api(path, query),
            repeatable: method.is_idempotent() || method == Method::PATCH,
            method,
            headers: HeaderMap::new(),
            body: None,
            what,
            with_token: true,
        }
    }

    /// The answer, after one more attempt if the token was refused and its file has another one by now.
    pub(super) async fn send(&self, call: &GiteaCall) -> Result<GiteaAnswer, SourceError> {
        let answer = self.retried(call).await?;
        if answer.status == StatusCode::UNAUTHORIZED && call.with_token && self.reload() {
            return self.retried(call).await;
        }
        Ok(answer)
    }

    /// The parsed answer, if it is successful.
    pub(super) async fn get<T: DeserializeOwned>(&self, call: &GiteaCall) -> Result<T, SourceError> {
        let answer = self.send(call).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(call, &answer));
        }
        self.parsed(call, &answer.body)
    }

    /// All entries of a list, page by page, each once. Runners are listed by when they last called, so a list that changes
    /// while it is read shows entries twice, and leaves others out: then it is read again.
    pub(super) async fn list<P: DeserializeOwned, T>(
        &self,
        path: &[String],
        query: &[(&str, String)],
        what: &str,
        entries: impl Fn(P) -> (Vec<T>, u64),
        id: impl Fn(&T) -> u64,
    ) -> Result<Vec<T>, SourceError> {
        for _ in 0..READINGS {
            let mut all = Vec::new();
            let mut seen = HashSet::new();
            for page in 1..=MOST_PAGES {
                let mut query = query.to_vec();
                query.extend([("page", page.to_string()), ("limit", PAGE.to_string())]);
                let call = self.request(Method::GET, path, &query, what.to_owned());
                let (found, total) = entries(self.get(&call).await?);
                let ended = found.is_empty();
                all.extend(found.into_iter().filter(|entry| seen.insert(id(entry))));
                if u64::try_from(all.len()).unwrap_or(u64::MAX) >= total {
                    return Ok(all);
                }
                if ended {
                    break;
                }
            }
        }
        Err(self
            .unparsable(what, &format!("a list that changes too fast, or has more than {} entries", MOST_PAGES * PAGE)))
    }

    pub(super) fn refused(&self, call: &GiteaCall, answer: &GiteaAnswer) -> SourceError {
        let server = self.options.server.name();
        if answer.status.is_success() {
            return self.unparsable(&call.what, &format!("the status {}", answer.status.as_u16()));
        }
        refusal::meaning(&server, &call.what, answer.status, &answer.headers, &answer.body, self.now())
    }

    /// The error does not quote values: some answers are secrets.
    pub(super) fn parsed<T: DeserializeOwned>(&self, call: &GiteaCall, body: &[u8]) -> Result<T, SourceError> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            self.unparsable(&call.what, &format!("something else at `{}`, {} bytes in all", error.path(), body.len()))
        })
    }

    pub(super) fn unparsable(&self, what: &str, found: &str) -> SourceError {
        let detail = format!("{} returned an unusable answer for {what}: {found}", self.options.server.name());
        SourceError::new(SourceKind::Gitea, SourceErrorKind::Unparsable, detail)
    }

    async fn retried(&self, call: &GiteaCall) -> Result<GiteaAnswer, SourceError> {
        let mut pauses = self.options.retry.pauses();
        loop {
            let attempt = self.once(call).await;
            let again = match &attempt {
                Ok(answer) => call.repeatable && answer.status.is_server_error(),
                Err(error) => call.repeatable || !error.maybe_done(),
            };
            let Some(pause) = again.then(|| pauses.next()).flatten() else { return attempt };
            let why = match &attempt {
                Ok(answer) => format!("status {}", answer.status.as_u16()),
                Err(error) => error.detail.clone(),
            };
            tracing::warn!(request = %call.what, error = %why, "retrying a request to Gitea");
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(&self, call: &GiteaCall) -> Result<GiteaAnswer, SourceError> {
        let unavailable = |cause: String, sent| {
            let detail = format!("{} cannot be reached for {}: {cause}", self.options.server.name(), call.what);
            SourceError::new(SourceKind::Gitea, SourceErrorKind::Unavailable { sent }, detail)
        };
        let broken = |error: reqwest::Error| {
            let sent = !error.is_connect() && !error.is_builder();
            unavailable(error_chain(&error.without_url()), sent)
        };
        let mut request = self.http.request(call.method.clone(), call.url.clone()).headers(call.headers.clone());
        if call.with_token {
            request = request.header(AUTHORIZATION, authorization(&self.token.read()));
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = bounded_body(response, LARGEST).await.map_err(broken)?;
        let body = body.ok_or_else(|| unavailable(format!("the answer is larger than {} MiB", LARGEST >> 20), true))?;
        Ok(GiteaAnswer { status, headers, body: Zeroizing::new(body) })
    }

    /// Reads the token file again. Returns whether the token changed.
    fn reload(&self) -> bool {
        let Ok(loaded) = token(&self.options) else { return false };
        let mut token = self.token.write();
        let changed = token.expose_secret() != loaded.expose_secret();
        *token = loaded;
        changed
    }
}

fn token(options: &GiteaOptions) -> Result<SecretString, String> {
    let text = read_secret(&options.token_file)?;
    let token = text.expose_secret().trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{}: expected one line with an access token", options.token_file.display()));
    }
    Ok(token.into())
}

fn authorization(token: &SecretString) -> HeaderValue {
    let text = Zeroizing::new(format!("token {}", token.expose_secret()));
    let mut value = HeaderValue::from_str(&text).expect("a token is visible ASCII");
    value.set_sensitive(true);
    value
}
