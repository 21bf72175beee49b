//! The client of the REST API: one request, one answer or one failure with a remedy. For commands and for adapters.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode, Url, header};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use crate::platform::{
    error_chain,
    http::{ClientOptions, Trust, read_certificates},
};

mod endpoint;
mod error;
mod session;

use endpoint::ServiceEndpoint;
pub use endpoint::{OptionNames, ServiceOptions};
pub use error::{ApiProblem, Error, FieldProblem};
pub use session::{
    CallerTerminal, LARGEST_PIECE, SessionEnd, SessionEvent, SessionEvents, SessionInput, SessionLoss, SessionStart,
};

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than any answer of the service takes, except long polls.
const ANSWER: Duration = Duration::from_secs(90);

#[derive(Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    endpoint: ServiceEndpoint,
}

impl ApiClient {
    pub fn new(options: &ServiceOptions) -> Result<ApiClient, Error> {
        let endpoint = ServiceEndpoint::of(options)?;
        let trust = match options.ca_file.as_deref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => {
                let certificates = read_certificates(path)
                    .map_err(|error| Error::Usage(format!("{}: {error}", options.names.ca_file)))?;
                Trust::SystemAnd(certificates)
            }
            None if endpoint.base.scheme() == "http" => Trust::NoServer,
            None => Trust::System,
        };
        // Without redirects: following one would send the token to the address that it names.
        let http = ClientOptions {
            trust,
            use_proxy: !endpoint.is_local(),
            unix_socket: endpoint.socket.clone(),
            // Its connections can become WebSockets.
            http1_only: true,
            ..ClientOptions::new(CONNECT)
        };
        let http =
            http.build().map_err(|error| Error::Other(format!("cannot set up HTTP: {}", error_chain(&error))))?;
        Ok(ApiClient { http, endpoint })
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.endpoint.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Error> {
        self.json(self.request(Method::GET, path, query).timeout(ANSWER)).await
    }

    pub async fn post(&self, path: &[&str], body: &Value, headers: &[(&str, &str)]) -> Result<Value, Error> {
        let mut request = self.request(Method::POST, path, &[]).timeout(ANSWER).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.json(request).await
    }

    pub async fn put(&self, path: &[&str], body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::PUT, path, &[]).timeout(ANSWER).json(body)).await
    }

    pub async fn patch(&self, path: &[&str], body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::PATCH, path, &[]).timeout(ANSWER).json(body)).await
    }

    /// For requests without a time limit.
    pub async fn post_patiently(&self, path: &[&str], body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::POST, path, &[]).json(body)).await
    }

    pub async fn put_patiently(&self, path: &[&str], body: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::PUT, path, &[]).json(body)).await
    }

    /// Opens a WebSocket. What the service refuses, it refuses before.
    async fn web_socket(&self, path: &[&str]) -> Result<WebSocketStream<reqwest::Upgraded>, Error> {
        let key = generate_key();
        let request = self
            .request(Method::GET, path, &[])
            .timeout(ANSWER)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = self.send(request).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).and_then(|accept| accept.to_str().ok());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || accepted != Some(&derive_accept_key(key.as_bytes()))
        {
            return Err(Error::Other(format!(
                "{} opened no WebSocket; a proxy in front of the service must pass on `Upgrade` and `Connection`",
                self.endpoint.name()
            )));
        }
        let stream = response.upgrade().await.map_err(|error| self.no_answer(&error))?;
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
    }

    /// What the user should know of the way to the service.
    pub fn warning(&self) -> Option<&str> {
        self.endpoint.warning.as_deref()
    }

    /// For messages: the address of the service.
    pub fn service_name(&self) -> String {
        self.endpoint.name()
    }

    /// Says so if `what` would travel over an unencrypted connection.
    pub fn cleartext_warning(&self, what: &str) -> Option<String> {
        if self.endpoint.base.scheme() == "https" || self.endpoint.is_local() {
            return None;
        }
        let at = self.endpoint.name();
        Some(format!("{what} would travel to {at} in clear: use https, or do it on that machine"))
    }

    /// Refuses to send `what` over an unencrypted connection.
    pub fn refuse_cleartext(&self, what: &str) -> Result<(), Error> {
        self.cleartext_warning(what).map_or(Ok(()), |warning| Err(Error::Usage(warning)))
    }

    pub async fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Error> {
        self.json(self.request(Method::DELETE, path, query).timeout(ANSWER)).await
    }

    /// A stream without a time limit.
    pub async fn stream(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Response, Error> {
        self.send(self.request(Method::GET, path, query)).await
    }

    /// Every page of a listing.
    pub async fn list(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let page = self.get(path, &query).await?;
            let Value::Object(mut page) = page else { return Err(self.stranger()) };
            match page.remove("items") {
                Some(Value::Array(mut more)) => items.append(&mut more),
                _ => return Err(self.stranger()),
            }
            let next = page.remove("next_cursor").and_then(|c| c.as_str().map(str::to_owned));
            if next.is_none() || next == cursor {
                return Ok(items);
            }
            cursor = next;
        }
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let request = self.http.request(method, self.url(path, query));
        match &self.endpoint.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value, Error> {
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let body = response.bytes().await.map_err(|error| self.no_answer(&error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|_| self.stranger())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let hint = (status == StatusCode::UNAUTHORIZED).then(|| self.endpoint.token_hint.clone());
        let is_problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|t| t.to_str().ok())
            .is_some_and(|t| t.starts_with("application/problem+json") || t.starts_with("application/json"));
        let body = response.bytes().await.unwrap_or_default();
        let mut problem: ApiProblem =
            if is_problem { serde_json::from_slice(&body).unwrap_or_default() } else { ApiProblem::default() };
        if problem.title.is_empty() {
            // A proxy answered, or another program than the service.
            problem.title = format!("{} answered {status} and did not say why", self.endpoint.name());
        }
        problem.status = status.as_u16();
        Err(Error::Problem(Box::new(problem), hint))
    }

    fn no_answer(&self, error: &reqwest::Error) -> Error {
        let at = self.endpoint.name();
        if error.is_builder() {
            return Error::Usage(format!("the request cannot be sent: {}", root_cause(error)));
        }
        let why = if error.is_timeout() { "it took too long".to_owned() } else { root_cause(error) };
        let next = if why.contains("certificate") {
            format!("give the certificate of its authority with {} or MAYFLY_CA_FILE", self.endpoint.names.ca_file)
        } else {
            self.endpoint.remedy()
        };
        Error::Unreachable(format!("no answer from Mayfly at {at}: {why}; {next}"))
    }

    fn stranger(&self) -> Error {
        Error::Other(format!(
            "what answers at {} does not speak Mayfly's API; see {}, {} and MAYFLY_URL",
            self.endpoint.name(),
            self.endpoint.names.data_dir,
            self.endpoint.names.url
        ))
    }

    /// A value of the API in the shape that is shown.
    pub fn view<T: serde::de::DeserializeOwned>(&self, value: &Value) -> Result<T, Error> {
        T::deserialize(value).map_err(|_| self.stranger())
    }
}

/// The innermost cause: the outer ones repeat the URL, which the message names already.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
