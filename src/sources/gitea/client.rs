//! Sends requests with the access token, repeats them where that is safe, and reads lists in pages.

use std::{collections::HashSet, fmt, path::PathBuf, time::Duration};

use jiff::Timestamp;
use parking_lot::RwLock;
use reqwest::{
    Client, Method, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{model::GiteaVersion, refusal, server::GiteaServer};
use crate::{
    domain::SourceKind,
    platform::{
        Clock, error_chain,
        http::{ClientOptions, Trust, read_certificates},
        retry::Retry,
    },
    sources::{
        error::{SourceError, SourceErrorKind},
        server_answer::ServerAnswer,
        token_file::TokenFile,
    },
};

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
    token: TokenFile,
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
        let token = TokenFile::read(&options.token_file, "access token").map_err(settings)?;
        Ok(GiteaClient { http, options, token, version: RwLock::new(None) })
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
    pub(super) async fn send(&self, call: &GiteaCall) -> Result<ServerAnswer, SourceError> {
        let answer = self.retried(call).await?;
        if answer.status == StatusCode::UNAUTHORIZED && call.with_token && self.token.reload() {
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
        self.parsed(call, &answer)
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

    pub(super) fn refused(&self, call: &GiteaCall, answer: &ServerAnswer) -> SourceError {
        let server = self.options.server.name();
        if answer.status.is_success() {
            return self.unparsable(&call.what, &format!("the status {}", answer.status.as_u16()));
        }
        refusal::meaning(&server, &call.what, answer.status, &answer.headers, &answer.body, self.now())
    }

    pub(super) fn parsed<T: DeserializeOwned>(
        &self,
        call: &GiteaCall,
        answer: &ServerAnswer,
    ) -> Result<T, SourceError> {
        answer.parsed().map_err(|found| self.unparsable(&call.what, &found))
    }

    pub(super) fn unparsable(&self, what: &str, found: &str) -> SourceError {
        let detail = format!("{} returned an unusable answer for {what}: {found}", self.options.server.name());
        SourceError::new(SourceKind::Gitea, SourceErrorKind::Unparsable, detail)
    }

    async fn retried(&self, call: &GiteaCall) -> Result<ServerAnswer, SourceError> {
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

    async fn once(&self, call: &GiteaCall) -> Result<ServerAnswer, SourceError> {
        let mut request = self.http.request(call.method.clone(), call.url.clone()).headers(call.headers.clone());
        if call.with_token {
            request = request.header(AUTHORIZATION, self.token.authorization("token"));
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        ServerAnswer::to(request, SourceKind::Gitea, &self.options.server.name(), &call.what).await
    }
}
