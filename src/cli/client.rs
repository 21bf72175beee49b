//! The client of the REST API: one request, one answer or one failure with a remedy.

use std::{path::Path, time::Duration};

use reqwest::{Method, Response, StatusCode, Url, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{
    Global,
    failure::{ApiProblem, CommandFailure},
    output,
};
use crate::{
    config,
    platform::{
        error_chain,
        http::{ClientOptions, Trust, is_loopback, read_certificates},
    },
};

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than any answer of the service takes, except long polls.
const ANSWER: Duration = Duration::from_secs(90);

pub(super) struct ApiClient {
    http: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
    /// Shown if the token is refused.
    token_hint: String,
}

impl ApiClient {
    pub fn new(global: &Global) -> Result<ApiClient, CommandFailure> {
        let base = Url::parse(&global.url)
            .ok()
            .filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host() && !u.cannot_be_a_base())
            .ok_or_else(|| {
                CommandFailure::Usage(format!(
                    "--url: expected a URL such as http://127.0.0.1:8470, found {:?}",
                    global.url
                ))
            })?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(CommandFailure::Usage(
                "--url: must not hold a user or password; use --token-file or MAYFLY_TOKEN".into(),
            ));
        }
        let here = is_local(&base);
        let (token, token_hint) = find_token(global, here)?;
        if base.scheme() == "http" && !here && token.is_some() {
            output::note(&format!("warning: the token travels to {} in clear; use https", base.authority()));
        }
        let trust = match given(global.ca_file.as_deref()) {
            Some(path) => {
                let certificates =
                    read_certificates(path).map_err(|error| CommandFailure::Usage(format!("--ca-file: {error}")))?;
                Trust::SystemAnd(certificates)
            }
            None if base.scheme() == "http" => Trust::NoServer,
            None => Trust::System,
        };
        // Without redirects: following one would send the token to the address that it names.
        let http = ClientOptions { trust, use_proxy: !here, ..ClientOptions::new(CONNECT) };
        let http = http
            .build()
            .map_err(|error| CommandFailure::Other(format!("cannot set up HTTP: {}", error_chain(&error))))?;
        Ok(ApiClient { http, base, token, token_hint })
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CommandFailure> {
        self.json(self.request(Method::GET, path, query).timeout(ANSWER)).await
    }

    pub async fn post(&self, path: &[&str], body: &Value, headers: &[(&str, &str)]) -> Result<Value, CommandFailure> {
        let mut request = self.request(Method::POST, path, &[]).timeout(ANSWER).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.json(request).await
    }

    pub async fn put(&self, path: &[&str], body: &Value) -> Result<Value, CommandFailure> {
        self.json(self.request(Method::PUT, path, &[]).timeout(ANSWER).json(body)).await
    }

    /// For requests without a time limit.
    pub async fn post_patiently(&self, path: &[&str], body: &Value) -> Result<Value, CommandFailure> {
        self.json(self.request(Method::POST, path, &[]).json(body)).await
    }

    pub async fn put_patiently(&self, path: &[&str], body: &Value) -> Result<Value, CommandFailure> {
        self.json(self.request(Method::PUT, path, &[]).json(body)).await
    }

    /// Refuses to send `what` over an unencrypted connection.
    pub fn refuse_cleartext(&self, what: &str) -> Result<(), CommandFailure> {
        if self.base.scheme() == "https" || is_local(&self.base) {
            return Ok(());
        }
        let at = self.base.authority();
        Err(CommandFailure::Usage(format!("{what} would travel to {at} in clear: use https, or do it on that machine")))
    }

    pub async fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, CommandFailure> {
        self.json(self.request(Method::DELETE, path, query).timeout(ANSWER)).await
    }

    /// A stream without a time limit.
    pub async fn stream(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Response, CommandFailure> {
        self.send(self.request(Method::GET, path, query)).await
    }

    /// Every page of a listing.
    pub async fn list(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Vec<Value>, CommandFailure> {
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
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value, CommandFailure> {
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

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, CommandFailure> {
        let response = request.send().await.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let hint = (status == StatusCode::UNAUTHORIZED).then(|| self.token_hint.clone());
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
            problem.title = format!("{} answered {status} and did not say why", self.base.authority());
        }
        problem.status = status.as_u16();
        Err(CommandFailure::Problem(Box::new(problem), hint))
    }

    fn no_answer(&self, error: &reqwest::Error) -> CommandFailure {
        let at = self.base.authority();
        if error.is_builder() {
            return CommandFailure::Usage(format!("the request cannot be sent: {}", root_cause(error)));
        }
        let why = if error.is_timeout() { "it took too long".to_owned() } else { root_cause(error) };
        let next = if why.contains("certificate") {
            "give the certificate of its authority with --ca-file or MAYFLY_CA_FILE"
        } else if is_local(&self.base) {
            "start it with `mayfly serve`, or name another with --url or MAYFLY_URL"
        } else {
            "see whether it runs, and whether --url or MAYFLY_URL is right"
        };
        CommandFailure::Unreachable(format!("no answer from Mayfly at {at}: {why}; {next}"))
    }

    fn stranger(&self) -> CommandFailure {
        CommandFailure::Other(format!(
            "what answers at {} does not speak Mayfly's API; see --url or MAYFLY_URL",
            self.base.authority()
        ))
    }

    /// A value of the API in the shape that is shown.
    pub fn view<T: serde::de::DeserializeOwned>(&self, value: &Value) -> Result<T, CommandFailure> {
        T::deserialize(value).map_err(|_| self.stranger())
    }
}

fn is_local(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// The token, and a hint for the case that it is refused. The admin token of this machine is sent to services on
/// this machine only, and not to any address that `--url` names.
fn find_token(global: &Global, here: bool) -> Result<(Option<SecretString>, String), CommandFailure> {
    if let Some(path) = given(global.token_file.as_deref()) {
        let token =
            read(path).map_err(|error| CommandFailure::Usage(format!("--token-file: {}: {error}", path.display())))?;
        return Ok((Some(usable(&token)?), format!("the token in {} is not accepted", path.display())));
    }
    if let Some(token) = std::env::var("MAYFLY_TOKEN").ok().filter(|t| !t.is_empty()) {
        return Ok((Some(usable(&token)?), "the token in MAYFLY_TOKEN is not accepted".into()));
    }
    if !here {
        return Ok((None, "give a token with MAYFLY_TOKEN or --token-file".into()));
    }
    let Ok(dir) = config::data_dir_or_default(global.data_dir.clone()) else {
        return Ok((None, "give a token with MAYFLY_TOKEN or --token-file".into()));
    };
    let path = dir.join(config::ADMIN_TOKEN_FILE);
    match std::fs::read_to_string(&path) {
        Ok(token) => {
            let hint = format!(
                "the token in {} is not accepted: is this service's data elsewhere? See --data-dir, MAYFLY_TOKEN and --token-file",
                path.display()
            );
            Ok((Some(usable(&token)?), hint))
        }
        Err(error) => Ok((
            None,
            format!("no token: cannot read {} ({error}); give one with MAYFLY_TOKEN or --token-file", path.display()),
        )),
    }
}

fn usable(token: &str) -> Result<SecretString, CommandFailure> {
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(CommandFailure::Usage("the token must be one word of visible characters".into()));
    }
    Ok(SecretString::from(token))
}

/// An empty variable counts as not set.
fn given(path: Option<&Path>) -> Option<&Path> {
    path.filter(|p| !p.as_os_str().is_empty())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// The innermost cause: the outer ones repeat the URL, which the message names already.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
