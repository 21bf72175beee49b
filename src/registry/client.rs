//! Downloads manifests and blobs of one repository, and resumes after interruptions.
//!
//! Received data is not trusted: this module checks manifests against their digests, and the consumer of a blob
//! checks its content. The bytes of a blob are delivered in order, each once, and as many as requested.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE},
};
use tokio::sync::mpsc;

pub use super::body::BodyChunk;

use super::{
    auth::{Authorizer, Refusals},
    body::{LeastRate, MeteredBody},
    credentials::{CredentialSource, registry_name},
    error::{RegistryError, describe, out_of_reach, said},
    pace::{BandwidthLimits, TransferPace},
    retry::Attempts,
};
use crate::{
    domain::network::is_public,
    platform::{
        clock, error_chain,
        http::{ClientOptions, Trust, is_loopback, read_certificates},
        reach::{CheckedClient, ServerReach},
        retry::{Retry, retry_after},
    },
    registry::oci::{
        Digest, Reference,
        manifest::{self, Blob},
    },
};

/// An attempt with this progress, in bytes, resets the count of attempts. The blob's size bounds their number.
const HEADWAY: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// PEM certificates of authorities that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Use plain HTTP. Refused for registries on other hosts, unless `plain_http_anywhere`.
    pub plain_http: bool,
    pub plain_http_anywhere: bool,
    pub connect_timeout: Duration,
    /// Time limit for the beginning of an answer, and between two pieces of it.
    pub idle_timeout: Duration,
    /// Bytes per second below which an answer is given up, as an average over `idle_timeout`.
    pub slowest: u64,
    pub retry: Retry,
    /// Rate limits of blobs.
    pub limits: BandwidthLimits,
    /// Exceptions for single registries, by their normalised names. These registries may have private addresses.
    pub hosts: BTreeMap<String, HostOptions>,
    /// Other servers that a registry may refer to although they have private addresses: those of job sources.
    pub origins: Vec<Url>,
}

/// Exceptions for one registry. `None`: as for all registries.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    pub ca_file: Option<PathBuf>,
    /// If it is set for one registry, it is allowed on any host.
    pub plain_http: Option<bool>,
}

impl RegistryOptions {
    /// The options for this registry.
    fn of(&self, registry: &str) -> RegistryOptions {
        let mut options = RegistryOptions { hosts: BTreeMap::new(), ..self.clone() };
        options.origins.extend(self.hosts.iter().filter_map(|(name, host)| {
            let scheme = if host.plain_http.unwrap_or(self.plain_http) { "http" } else { "https" };
            Url::parse(&format!("{scheme}://{name}")).ok()
        }));
        if let Some(host) = registry_name(registry).and_then(|name| self.hosts.get(&name)) {
            options.ca_file = host.ca_file.clone().or(options.ca_file);
            if let Some(plain) = host.plain_http {
                options.plain_http = plain;
                options.plain_http_anywhere = plain;
            }
        }
        options
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            ca_file: None,
            plain_http: false,
            plain_http_anywhere: false,
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            slowest: 4 << 10,
            retry: crate::registry::retry::TRANSFERS,
            limits: BandwidthLimits::default(),
            hosts: BTreeMap::new(),
            origins: Vec::new(),
        }
    }
}

/// A manifest as stored: its digest is of these bytes.
#[derive(Clone, Debug)]
pub struct RawManifest {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub content_type: Option<String>,
}

/// Why a blob did not arrive completely.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The consumer has stopped, and knows why.
    #[error("the receiver of the blob is gone")]
    ReceiverGone,
    #[error("{error}, after {received} bytes")]
    Registry { error: RegistryError, received: u64 },
}

pub struct RegistryClient {
    pub(super) http: CheckedClient,
    pub(super) base: Url,
    pub(super) registry: String,
    pub(super) auth: Authorizer,
    pub(super) retry: Retry,
    pub(super) pace: TransferPace,
    pub(super) least: LeastRate,
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl RegistryClient {
    /// A client of the repository of this reference. Reads the certificates, and connects to nothing.
    pub fn new(
        reference: &Reference,
        options: &RegistryOptions,
        source: Arc<dyn CredentialSource>,
    ) -> Result<RegistryClient, RegistryError> {
        RegistryClient::with(reference, options, source, Some(options.idle_timeout), Vec::new())
    }

    /// `read_timeout`: for the beginning of an answer, counted from the start of the request, and between two pieces
    /// of it. `scopes`: additional scopes of tokens.
    pub(super) fn with(
        reference: &Reference,
        options: &RegistryOptions,
        source: Arc<dyn CredentialSource>,
        read_timeout: Option<Duration>,
        scopes: Vec<String>,
    ) -> Result<RegistryClient, RegistryError> {
        let repository = Some(reference.repository());
        Self::of_registry(reference.registry(), repository, options, source, read_timeout, scopes)
    }

    /// Authenticates once against `/v2/` with the source's credentials: repeated wrong passwords may lock the
    /// account.
    pub async fn knock(
        registry: &str,
        options: &RegistryOptions,
        source: Arc<dyn CredentialSource>,
    ) -> Result<LoginCheck, RegistryError> {
        const WHAT: &str = "its entrance, /v2/";
        let client = Self::of_registry(registry, None, options, source, Some(options.idle_timeout), Vec::new())?;
        let ask = async |authorization: Option<_>| {
            let mut request = client.http.get(client.base.clone()).map_err(|e| out_of_reach(registry, WHAT, &e))?;
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            request.send().await.map_err(|e| describe(registry, WHAT, e))
        };
        let first = ask(None).await?;
        match first.status() {
            StatusCode::OK => return Ok(LoginCheck::NotAsked),
            StatusCode::UNAUTHORIZED => {}
            _ => return Err(client.refused(first, WHAT).await),
        }
        client.auth.log_in(&client.http, first.headers()).await?;
        let (_, authorization) = client.auth.current().await;
        let second = ask(authorization).await?;
        match second.status() {
            StatusCode::OK => Ok(LoginCheck::LetIn),
            _ => Err(client.refused(second, WHAT).await),
        }
    }

    fn of_registry(
        registry: &str,
        repository: Option<&str>,
        options: &RegistryOptions,
        source: Arc<dyn CredentialSource>,
        read_timeout: Option<Duration>,
        scopes: Vec<String>,
    ) -> Result<RegistryClient, RegistryError> {
        let registry = registry.to_owned();
        let is_configured = registry_name(&registry).is_some_and(|name| options.hosts.contains_key(&name));
        let options = options.of(&registry);
        let settings = |what: String| RegistryError::Settings { registry: registry.clone(), what };
        let scheme = if options.plain_http { "http" } else { "https" };
        let path = repository.map(|repository| format!("{repository}/")).unwrap_or_default();
        // docker.io in references stands for another host.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { &registry };
        let base = Url::parse(&format!("{scheme}://{host}/v2/{path}")).map_err(|e| settings(e.to_string()))?;
        let local = base.host_str().is_some_and(is_loopback);
        if options.plain_http && !local && !options.plain_http_anywhere {
            let what = "plain HTTP exposes passwords and does not authenticate the registry; allow it explicitly if it is required";
            return Err(settings(what.into()));
        }
        let plain_http = options.plain_http;
        let trust = match &options.ca_file {
            Some(path) => Trust::SystemAnd(read_certificates(path).map_err(settings)?),
            None => Trust::System,
        };
        let least = LeastRate { window: options.idle_timeout, bytes_per_second: options.slowest };
        let mut origins = options.origins.clone();
        // One of these settings is needed to use a registry on this host, so they stand for its table.
        if is_configured || local && (options.plain_http || options.ca_file.is_some()) {
            origins.push(base.clone());
        }
        let reach = ServerReach::new(origins, is_public);
        // reqwest drops `Authorization` if host or port change.
        let redirects = reach.redirects(5, move |url| match url.scheme() {
            "https" => Ok(()),
            _ if plain_http => Ok(()),
            _ => Err("it redirects to an address that is not https"),
        });
        let http = ClientOptions {
            read_timeout,
            redirects,
            trust,
            use_proxy: !local,
            // One connection per blob is faster than one for all.
            http1_only: true,
            ..ClientOptions::new(options.connect_timeout)
        };
        let http = http.build_within(reach).map_err(|error| settings(error_chain(&error.without_url())))?;
        let plain_tokens = options.plain_http && options.plain_http_anywhere;
        let auth = Authorizer::new(&registry, repository, plain_tokens, source, scopes, least);
        let pace = TransferPace::urgent(options.limits.clone());
        Ok(RegistryClient { http, base, registry, auth, retry: options.retry, pace, least })
    }

    /// Uses the rate limits of the background, until its pace is told to hurry.
    pub fn in_background(mut self, limits: BandwidthLimits) -> RegistryClient {
        self.pace = TransferPace::background(limits);
        self
    }

    pub fn pace(&self) -> &TransferPace {
        &self.pace
    }

    /// The manifest of the reference, verified if the reference has a digest.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        let mut attempts = Attempts::of(self.retry);
        loop {
            match self.manifest_once(reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    async fn manifest_once(&self, reference: &Reference) -> Result<RawManifest, RegistryError> {
        let what = format!("the manifest of {reference}");
        let url = self.url(&format!("manifests/{}", reference.target()), &what)?;
        let accepted = manifest::ACCEPTED.join(", ");
        let response = self.get(&url, &[(ACCEPT, accepted)], &what).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response, &what).await);
        }
        let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let content_type = text(CONTENT_TYPE.as_str());
        let said_digest = text("docker-content-digest");
        let mut body = MeteredBody::new(response, self.least);
        let bytes = body.read_to_end(manifest::LARGEST).await.map_err(|e| e.into_error(&self.registry, &what))?;
        let bytes = bytes.ok_or_else(|| self.unusable(&what, format!("more than {} bytes", manifest::LARGEST)))?;
        let digest = Digest::of(&bytes);
        if let Some(wanted) = reference.digest()
            && wanted != digest
        {
            return Err(self.doubtful(&what, format!("one with the digest {digest}")));
        }
        if let Some(said) = said_digest
            && said.starts_with("sha256:")
            && said != digest.to_string()
        {
            let found = format!("one with the digest {digest}, while its header says {:.100}", said);
            return Err(self.doubtful(&what, found));
        }
        Ok(RawManifest { bytes, digest, content_type })
    }

    /// Downloads a blob's bytes, in order and each once. Resumes after interruptions.
    pub async fn fetch(&self, blob: Blob, to: &mpsc::Sender<BodyChunk>) -> Result<(), FetchError> {
        let mut attempts = Attempts::of(self.retry);
        let mut received = 0;
        let mut headway = 0;
        loop {
            let error = match self.fetch_once(blob, &mut received, to).await {
                Ok(()) => return Ok(()),
                Err(Interrupted::ReceiverGone) => return Err(FetchError::ReceiverGone),
                Err(Interrupted::Failed(error)) => error,
            };
            if received - headway >= HEADWAY {
                headway = received;
                attempts.restart();
            }
            attempts.pause_after(error).await.map_err(|error| FetchError::Registry { error, received })?;
        }
    }

    async fn fetch_once(
        &self,
        blob: Blob,
        received: &mut u64,
        to: &mpsc::Sender<BodyChunk>,
    ) -> Result<(), Interrupted> {
        let what = format!("the blob {}", blob.digest);
        let url = self.url(&format!("blobs/{}", blob.digest), &what)?;
        let start = *received;
        let range = (start > 0).then(|| (RANGE, format!("bytes={start}-")));
        let response = self.get(&url, range.as_slice(), &what).await?;
        let begins = match (response.status(), start) {
            // A server without support for ranges starts at the beginning.
            (StatusCode::OK, _) => 0,
            (StatusCode::PARTIAL_CONTENT, 1..) => start,
            _ => return Err(self.refused(response, &what).await.into()),
        };
        check_extent(response.status(), response.headers(), begins, blob.size)
            .map_err(|found| self.doubtful(&what, found))?;
        let mut body = MeteredBody::new(response, self.least);
        let mut at = begins;
        loop {
            let piece = body.next().await.map_err(|e| e.into_error(&self.registry, &what))?;
            let Some(mut piece) = piece else { break };
            // This piece may exceed the limit; the next one is not read before the limit allows it.
            self.pace.allow(piece.len()).await;
            let end = at + piece.len() as u64;
            if end > blob.size {
                let found = format!("more than the {} bytes it should have", blob.size);
                return Err(self.unusable(&what, found).into());
            }
            if end > *received {
                let known = received.saturating_sub(at) as usize;
                let new = piece.split_off(known);
                *received = end;
                to.send(new).await.map_err(|_| Interrupted::ReceiverGone)?;
            } else if to.is_closed() {
                return Err(Interrupted::ReceiverGone);
            }
            at = end;
        }
        if at < blob.size {
            // Without a length in its header, a body that broke off ends like this.
            let what = format!("{what}: the answer ended after {at} of {} bytes", blob.size);
            return Err(RegistryError::Unreachable { registry: self.registry.clone(), what }.into());
        }
        Ok(())
    }

    /// A blob that fits in memory, verified.
    pub async fn small_blob(&self, blob: Blob) -> Result<Vec<u8>, RegistryError> {
        let mut attempts = Attempts::of(self.retry);
        loop {
            let (to, mut pieces) = mpsc::channel::<BodyChunk>(8);
            let collect = async move {
                let mut bytes = Vec::new();
                while let Some(piece) = pieces.recv().await {
                    bytes.extend_from_slice(&piece);
                }
                bytes
            };
            let fetch = async move { self.fetch(blob, &to).await };
            let (fetched, bytes) = tokio::join!(fetch, collect);
            if let Err(FetchError::Registry { error, .. }) = fetched {
                return Err(error);
            }
            let found = Digest::of(&bytes);
            if found == blob.digest {
                return Ok(bytes);
            }
            let what = format!("the blob {}", blob.digest);
            attempts.pause_after(self.doubtful(&what, format!("one with the digest {found}"))).await?;
        }
    }

    pub(super) fn url(&self, path: &str, what: &str) -> Result<Url, RegistryError> {
        self.base.join(path).map_err(|e| self.unusable(what, e.to_string()))
    }

    /// No attempt changes this answer.
    pub(super) fn unusable(&self, what: &str, found: String) -> RegistryError {
        RegistryError::Unusable { registry: self.registry.clone(), what: what.to_owned(), found }
    }

    /// The next attempt may get another answer.
    pub(super) fn doubtful(&self, what: &str, found: String) -> RegistryError {
        RegistryError::Answer { registry: self.registry.clone(), what: what.to_owned(), found }
    }

    /// Returns the answer, once the registry has accepted the credentials.
    async fn get(
        &self,
        url: &Url,
        headers: &[(reqwest::header::HeaderName, String)],
        what: &str,
    ) -> Result<Response, RegistryError> {
        let mut refusals = Refusals::default();
        loop {
            let (generation, authorization) = self.auth.current().await;
            let request = self.http.get(url.clone());
            let mut request = request.map_err(|e| out_of_reach(&self.registry, what, &e))?;
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.send().await.map_err(|e| describe(&self.registry, what, e))?;
            self.auth.answered(generation, response.status());
            // A server to which the registry redirected does not decide where credentials are sent.
            let ours = response.url().origin() == self.base.origin();
            if !ours || !self.auth.after_refusal(&self.http, &self.base, generation, &response, &mut refusals).await? {
                return Ok(response);
            }
        }
    }

    pub(super) async fn refused(&self, response: Response, what: &str) -> RegistryError {
        let (status, headers) = (response.status(), response.headers().clone());
        let registry = self.registry.clone();
        let is_ours = response.url().origin() == self.base.origin();
        let said = match MeteredBody::new(response, self.least).read_to_end(4096).await {
            Ok(Some(body)) if is_ours => said(&body),
            Ok(_) | Err(_) => String::new(),
        };
        let what = what.to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let what = format!("{} for {what}: {said:?}", status.as_u16());
                RegistryError::Denied { registry, what }
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what },
            status => {
                let retry_after = retry_after(&headers, clock::now());
                RegistryError::Refused { registry, status: status.as_u16(), what, said, retry_after }
            }
        }
    }
}

/// The answer of `/v2/` to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginCheck {
    LetIn,
    /// The registry does not require credentials there.
    NotAsked,
}

enum Interrupted {
    ReceiverGone,
    Failed(RegistryError),
}

impl From<RegistryError> for Interrupted {
    fn from(error: RegistryError) -> Self {
        Interrupted::Failed(error)
    }
}

/// Whether the announced range is the requested one: the bytes from `begins` to the end.
fn check_extent(status: StatusCode, headers: &HeaderMap, begins: u64, size: u64) -> Result<(), String> {
    let text = |name| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    if status == StatusCode::PARTIAL_CONTENT {
        let says = text(CONTENT_RANGE).unwrap_or_default();
        let expected = format!("bytes {begins}-{}/", size - 1);
        let total = says.strip_prefix(&expected);
        if !total.is_some_and(|total| total == "*" || total == size.to_string()) {
            return Err(format!("the range {says:.100?}, expected \"{expected}{size}\""));
        }
    }
    if let Some(length) = text(CONTENT_LENGTH)
        && length.parse() != Ok(size - begins)
    {
        return Err(format!("a body of {length:.100} bytes, expected {}", size - begins));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::registry::credentials::{CredentialError, RegistryCredential};

    struct NoCredentials;

    #[async_trait]
    impl CredentialSource for NoCredentials {
        async fn get(&self, _: &str, _: bool) -> Result<Option<RegistryCredential>, CredentialError> {
            Ok(None)
        }
    }

    #[test]
    fn plain_http_is_for_this_host_unless_allowed() {
        let client = |registry: &str, options: &RegistryOptions| {
            RegistryClient::new(&format!("{registry}/acme/a:1").parse().unwrap(), options, Arc::new(NoCredentials))
        };
        let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
        for local in ["localhost:5000", "127.0.0.1:5000"] {
            assert_eq!(client(local, &plain).unwrap().base.as_str(), format!("http://{local}/v2/acme/a/"));
        }
        for remote in ["registry.example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1:5000"] {
            assert!(matches!(client(remote, &plain), Err(RegistryError::Settings { .. })), "{remote}");
            assert_eq!(client(remote, &RegistryOptions::default()).unwrap().base.scheme(), "https");
        }
        let anywhere = RegistryOptions { plain_http_anywhere: true, ..plain };
        assert_eq!(client("registry.example.com", &anywhere).unwrap().base.scheme(), "http");
        let missing = RegistryOptions { ca_file: Some("/nonexistent/ca.pem".into()), ..RegistryOptions::default() };
        assert!(client("localhost", &missing).unwrap_err().to_string().contains("/nonexistent/ca.pem"));
    }

    #[test]
    fn an_extent_matches_the_requested_range() {
        let check = |status: u16, range: Option<&str>, length: Option<&str>, begins| {
            let mut headers = HeaderMap::new();
            if let Some(range) = range {
                headers.insert(CONTENT_RANGE, range.parse().unwrap());
            }
            if let Some(length) = length {
                headers.insert(CONTENT_LENGTH, length.parse().unwrap());
            }
            check_extent(StatusCode::from_u16(status).unwrap(), &headers, begins, 100).is_ok()
        };
        assert!(check(200, None, None, 0) && check(200, None, Some("100"), 0) && !check(200, None, Some("99"), 0));
        for (range, ok) in [
            (Some("bytes 40-99/100"), true),
            (Some("bytes 40-99/*"), true),
            (Some("bytes 40-98/100"), false),
            (Some("bytes 41-99/100"), false),
            (Some("bytes 40-99/101"), false),
            (Some("bytes */100"), false),
            (None, false),
        ] {
            assert_eq!(check(206, range, Some("60"), 40), ok, "{range:?}");
        }
        assert!(!check(206, Some("bytes 40-99/100"), Some("61"), 40));
    }
}
