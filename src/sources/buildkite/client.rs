//! Sends requests with the agent token, repeats them where that is safe, and registers the stack before the first one.

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::RwLock;
use reqwest::{Client, Method, StatusCode, header::AUTHORIZATION};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{queue::BuildkiteQueue, refusal};
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

/// A pause that a limit of requests asks for and that is waited for within a request. The limits count by the second.
const SHORT_PAUSE: Duration = Duration::from_secs(3);
/// The type of stacks that are not the vendor's.
const STACK_TYPE: &str = "custom";

/// Settings of the client for one queue.
#[derive(Clone, Debug)]
pub struct BuildkiteOptions {
    pub queue: BuildkiteQueue,
    /// File with an agent token of the queue's cluster.
    pub token_file: PathBuf,
    /// PEM certificates of authorities that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// Time limit of one complete answer.
    pub timeout: Duration,
    /// Retries of requests that may be repeated.
    pub retry: Retry,
    pub clock: Clock,
}

impl BuildkiteOptions {
    pub fn new(queue: BuildkiteQueue, token_file: PathBuf) -> BuildkiteOptions {
        BuildkiteOptions {
            queue,
            token_file,
            ca_file: None,
            connect_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(60),
            retry: Retry {
                attempts: 4,
                first_pause: Duration::from_millis(500),
                longest_pause: Duration::from_secs(5),
            },
            clock: Clock::system(),
        }
    }
}

pub struct BuildkiteClient {
    http: Client,
    pub(super) options: BuildkiteOptions,
    token: TokenFile,
    /// Whether the stack was registered since the start.
    registered: AtomicBool,
    /// Whether the queue was paused when it was last listed. `None`: it was not listed yet.
    pub(super) paused: RwLock<Option<bool>>,
}

/// A request of the stacks API.
pub(super) struct StackCall {
    pub method: Method,
    /// Below the stack.
    pub path: Vec<String>,
    pub query: Vec<(&'static str, String)>,
    pub body: Option<Value>,
    /// The purpose of the request, for messages.
    pub what: String,
    /// Whether a repetition has no further effect.
    pub repeatable: bool,
}

impl fmt::Debug for BuildkiteClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = &self.options.queue;
        f.debug_struct("BuildkiteClient").field("queue", &queue.queue()).finish_non_exhaustive()
    }
}

impl BuildkiteClient {
    /// Reads the token and the certificates, and connects to nothing.
    pub fn new(options: BuildkiteOptions) -> Result<BuildkiteClient, SourceError> {
        let settings = |what: String| SourceError::new(SourceKind::Buildkite, SourceErrorKind::Settings, what);
        let trust = match &options.ca_file {
            Some(path) => Trust::SystemAnd(read_certificates(path).map_err(settings)?),
            None => Trust::System,
        };
        // Redirects are not followed: the token would be sent to another server.
        let http = ClientOptions {
            total_timeout: Some(options.timeout),
            trust,
            use_proxy: !options.queue.is_loopback(),
            ..ClientOptions::new(options.connect_timeout)
        };
        let http = http.build().map_err(|error| settings(error_chain(&error.without_url())))?;
        let token = TokenFile::read(&options.token_file, "agent token").map_err(settings)?;
        Ok(BuildkiteClient { http, options, token, registered: AtomicBool::new(false), paused: RwLock::new(None) })
    }

    pub fn queue(&self) -> &BuildkiteQueue {
        &self.options.queue
    }

    fn now(&self) -> Timestamp {
        self.options.clock.now()
    }

    /// Registers the stack. A repetition changes nothing.
    pub async fn register_stack(&self) -> Result<(), SourceError> {
        let queue = &self.options.queue;
        let call = StackCall {
            method: Method::POST,
            path: vec!["register".to_owned()],
            query: Vec::new(),
            body: Some(json!({
                "key": queue.stack(),
                "type": STACK_TYPE,
                "queue_key": queue.queue(),
                "metadata": {"service": "mayfly", "version": env!("CARGO_PKG_VERSION")},
            })),
            what: format!("the stack {} for the queue {}", queue.stack(), queue.queue()),
            repeatable: true,
        };
        let answer = self.authorized(&call).await?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::CREATED) {
            return Err(self.refused(&call, &answer));
        }
        self.registered.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The answer to a request of the registered stack. If Buildkite does not know the stack (it was deregistered by hand, or
    /// by another service of the same name), it is registered again.
    pub(super) async fn send(&self, call: &StackCall) -> Result<ServerAnswer, SourceError> {
        let fresh = !self.registered.load(Ordering::Relaxed);
        if fresh {
            self.register_stack().await?;
        }
        let answer = self.authorized(call).await?;
        if answer.status != StatusCode::NOT_FOUND || fresh {
            return Ok(answer);
        }
        self.registered.store(false, Ordering::Relaxed);
        self.register_stack().await?;
        self.authorized(call).await
    }

    /// The parsed answer, if it has this status.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        call: &StackCall,
        expected: StatusCode,
    ) -> Result<T, SourceError> {
        let answer = self.send(call).await?;
        if answer.status != expected {
            return Err(self.refused(call, &answer));
        }
        answer.parsed().map_err(|found| self.unparsable(&call.what, &found))
    }

    pub(super) fn refused(&self, call: &StackCall, answer: &ServerAnswer) -> SourceError {
        if answer.status.is_success() {
            return self.unparsable(&call.what, &format!("the status {}", answer.status.as_u16()));
        }
        let server = self.options.queue.name();
        refusal::meaning(&server, &call.what, answer.status, &answer.headers, &answer.body, self.now())
    }

    pub(super) fn unparsable(&self, what: &str, found: &str) -> SourceError {
        let detail = format!("{} returned an unusable answer for {what}: {found}", self.options.queue.name());
        SourceError::new(SourceKind::Buildkite, SourceErrorKind::Unparsable, detail)
    }

    /// The answer, after one more attempt if the token was refused and its file has another one by now.
    async fn authorized(&self, call: &StackCall) -> Result<ServerAnswer, SourceError> {
        let answer = self.retried(call).await?;
        if answer.status == StatusCode::UNAUTHORIZED && self.token.reload() {
            return self.retried(call).await;
        }
        Ok(answer)
    }

    async fn retried(&self, call: &StackCall) -> Result<ServerAnswer, SourceError> {
        let mut pauses = self.options.retry.pauses();
        loop {
            let attempt = self.once(call).await;
            // A request that was refused for a limit was not carried out.
            let asked = match &attempt {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => match self.refused(call, answer).kind {
                    SourceErrorKind::RateLimited { until } => {
                        let pause = until.duration_since(self.now());
                        Some(Duration::try_from(pause).unwrap_or_default())
                    }
                    _ => None,
                },
                _ => None,
            };
            let again = match &attempt {
                Ok(_) if asked.is_some() => asked.is_some_and(|pause| pause <= SHORT_PAUSE),
                Ok(answer) => call.repeatable && answer.status.is_server_error(),
                Err(error) => call.repeatable || !error.maybe_done(),
            };
            let Some(pause) = again.then(|| pauses.next()).flatten() else { return attempt };
            let why = match &attempt {
                Ok(answer) => format!("status {}", answer.status.as_u16()),
                Err(error) => error.detail.clone(),
            };
            tracing::warn!(request = %call.what, error = %why, "retrying a request to Buildkite");
            tokio::time::sleep(pause.max(asked.unwrap_or_default())).await;
        }
    }

    async fn once(&self, call: &StackCall) -> Result<ServerAnswer, SourceError> {
        let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
        let url = self.options.queue.api(&path, &call.query);
        let authorization = self.token.authorization("Token");
        let mut request = self.http.request(call.method.clone(), url).header(AUTHORIZATION, authorization);
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        ServerAnswer::to(request, SourceKind::Buildkite, &self.options.queue.name(), &call.what).await
    }
}
