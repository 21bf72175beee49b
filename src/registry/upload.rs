//! Uploads blobs and a manifest to one repository.
//!
//! Every attempt first asks whether the blob exists, so a blob that arrived in an attempt whose answer was lost, or
//! in an earlier push, is not sent again. An interrupted blob is sent from its beginning: registries keep an upload
//! only when it is complete, and some do not support resuming.

use std::{
    io::{self, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    time::Instant,
};
use tokio_util::io::ReaderStream;

use super::{
    RegistryClient, RegistryOptions,
    auth::Refusals,
    client::BodyChunk,
    credentials::CredentialSource,
    error::{RegistryError, describe, out_of_reach},
    retry::Attempts,
};
use crate::{
    platform::clock,
    registry::oci::{
        Digest, Reference,
        manifest::{self, Blob},
    },
};

/// Size of a read.
const BUFFER: usize = 256 << 10;

/// After it has received a blob, a registry may hash and move it before it answers: its time limit is multiplied by
/// this.
const COMMIT: u32 = 5;

/// The source of a blob's bytes.
#[derive(Clone, Debug)]
pub enum UploadSource {
    Bytes(BodyChunk),
    /// Must not change while it is read.
    File(PathBuf),
}

/// How a blob came to the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It existed.
    There,
    /// The registry mounted it from another repository.
    Mounted,
    Sent,
}

/// Called with the number of bytes sent (negative: bytes that have to be sent again).
pub type Sent = Arc<dyn Fn(i64) + Send + Sync>;

pub struct Uploader {
    client: RegistryClient,
    reference: Reference,
    idle: Duration,
    /// Limit of a request's body in bytes; `None`: each blob in one request.
    part_size: Option<u64>,
}

impl Uploader {
    /// Uploads to the repository of this reference. `mounts`: repositories of the same registry from which blobs may
    /// be mounted.
    pub fn new(
        reference: &Reference,
        options: &RegistryOptions,
        source: Arc<dyn CredentialSource>,
        mounts: &[String],
        part_size: Option<u64>,
    ) -> Result<Uploader, RegistryError> {
        let mut scopes = vec![format!("repository:{}:pull,push", reference.repository())];
        scopes.extend(mounts.iter().map(|from| format!("repository:{from}:pull")));
        // A blob may take an hour before its answer begins, so stalls are detected by its bytes.
        let client = RegistryClient::with(reference, options, source, None, scopes)?;
        Ok(Uploader { client, reference: reference.clone(), idle: options.idle_timeout, part_size })
    }

    /// Ensures that the repository has a blob whose bytes are not available here. `None`: it does not have it.
    pub async fn reuse(&self, blob: Blob, from: Option<&str>) -> Result<Option<Arrival>, RegistryError> {
        let mut attempts = Attempts::of(self.client.retry);
        loop {
            let attempt = async {
                if self.has(blob).await? {
                    return Ok(Some(Arrival::There));
                }
                match self.begin(blob.digest, from).await? {
                    None => Ok(Some(Arrival::Mounted)),
                    Some(session) => {
                        self.give_up(session).await;
                        Ok(None)
                    }
                }
            };
            // Without a repository to mount it from, an upload makes no sense.
            let outcome = match from {
                Some(_) => attempt.await,
                None => self.has(blob).await.map(|there| there.then_some(Arrival::There)),
            };
            match outcome {
                Ok(outcome) => return Ok(outcome),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    /// Ensures that the repository has this blob.
    pub async fn put(
        &self,
        blob: Blob,
        source: &UploadSource,
        from: Option<&str>,
        sent: &Sent,
    ) -> Result<Arrival, RegistryError> {
        let mut attempts = Attempts::of(self.client.retry);
        loop {
            let count = Arc::new(Mutex::new(0_i64));
            let counted: Sent = {
                let (count, sent) = (count.clone(), sent.clone());
                Arc::new(move |n| {
                    *count.lock() += n;
                    sent(n);
                })
            };
            match self.put_once(blob, source, from, &counted).await {
                Ok(arrival) => return Ok(arrival),
                Err(error) => {
                    sent(-*count.lock());
                    attempts.pause_after(error).await?;
                }
            }
        }
    }

    async fn put_once(
        &self,
        blob: Blob,
        source: &UploadSource,
        from: Option<&str>,
        sent: &Sent,
    ) -> Result<Arrival, RegistryError> {
        if self.has(blob).await? {
            return Ok(Arrival::There);
        }
        let Some(mut session) = self.begin(blob.digest, from).await? else { return Ok(Arrival::Mounted) };
        let what = self.upload_of(blob.digest);
        let mut at = 0;
        while let Some(part) = self.part_size.filter(|part| blob.size - at > *part) {
            let range = (CONTENT_RANGE, format!("{at}-{}", at + part - 1));
            let body = Body { source, start: at, size: part, sent };
            let answer = self.send(Method::PATCH, &session, &[range], Some(&body), &what).await?;
            // 202 according to the specification; Amazon's registry answers 201.
            if !matches!(answer.status(), StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT) {
                return Err(self.failed_session(answer, &what).await);
            }
            at += part;
            let kept = answer.headers().get(RANGE).and_then(|v| v.to_str().ok());
            if let Some(end) = kept.and_then(|kept| kept.trim_start_matches("bytes=").strip_prefix("0-"))
                && end.parse() != Ok(at - 1)
            {
                let found = format!("that it has the bytes to {end:.40}, after {at} of them");
                return Err(self.client.doubtful(&what, found));
            }
            if answer.headers().contains_key(LOCATION) {
                session = self.location(&answer, &what)?;
            }
        }
        session.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let body = Body { source, start: at, size: blob.size - at, sent };
        let answer = self.send(Method::PUT, &session, &[], Some(&body), &what).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(Arrival::Sent),
            // Amazon's registry may also answer 202 here. Whether the blob is complete is checked afterwards.
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT if self.has(blob).await? => {
                Ok(Arrival::Sent)
            }
            _ => Err(self.failed_session(answer, &what).await),
        }
    }

    /// Whether the repository has the blob.
    async fn has(&self, blob: Blob) -> Result<bool, RegistryError> {
        let what = format!("the blob {} in {}", blob.digest, self.reference.repository());
        let url = self.client.url(&format!("blobs/{}", blob.digest), &what)?;
        let answer = self.send(Method::HEAD, &url, &[], None, &what).await?;
        match answer.status() {
            StatusCode::OK => {
                let length = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok());
                // A blob of another size is not the same, whatever its digest.
                Ok(length.is_none_or(|length| length.parse() == Ok(blob.size)))
            }
            StatusCode::NOT_FOUND => Ok(false),
            // Storage to which a registry redirects may accept signed URLs only for reading.
            _ if answer.url().origin() != self.client.base.origin() => Ok(false),
            _ => Err(self.failed(answer, &what).await),
        }
    }

    /// Starts an upload. `None`: the blob was mounted, and no upload is needed.
    async fn begin(&self, digest: Digest, from: Option<&str>) -> Result<Option<Url>, RegistryError> {
        let what = self.upload_of(digest);
        let mut url = self.client.url("blobs/uploads/", &what)?;
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        }
        let answer = self.send(Method::POST, &url, &[], None, &what).await;
        // Without read permission on that repository, an upload may still be allowed.
        let may_not_mount = match &answer {
            Ok(answer) => {
                matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
            }
            Err(error) => matches!(error, RegistryError::Denied { .. }),
        };
        if from.is_some() && may_not_mount {
            return Box::pin(self.begin(digest, None)).await;
        }
        let answer = answer?;
        match answer.status() {
            StatusCode::CREATED if from.is_some() => Ok(None),
            StatusCode::ACCEPTED => self.location(&answer, &what).map(Some),
            _ => Err(self.failed(answer, &what).await),
        }
    }

    /// Cancels an upload. Registries remove uploads that are not cancelled after some time.
    async fn give_up(&self, session: Url) {
        let answer = self.send(Method::DELETE, &session, &[], None, "an upload that is given up").await;
        if let Err(failure) = answer {
            tracing::debug!(error = %failure, "cannot cancel a blob upload; it is left to the registry");
        }
    }

    /// Uploads the manifest under the reference. All its blobs must exist.
    pub async fn put_manifest(&self, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let mut attempts = Attempts::of(self.client.retry);
        loop {
            match self.put_manifest_once(bytes).await {
                Ok(digest) => return Ok(digest),
                Err(error) => attempts.pause_after(error).await?,
            }
        }
    }

    async fn put_manifest_once(&self, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let what = format!("the manifest of {}", self.reference);
        let digest = Digest::of(bytes);
        let url = self.client.url(&format!("manifests/{}", self.reference.target()), &what)?;
        let source = UploadSource::Bytes(BodyChunk::copy_from_slice(bytes));
        let ignored: Sent = Arc::new(|_| {});
        let body = Body { source: &source, start: 0, size: bytes.len() as u64, sent: &ignored };
        let content_type = (CONTENT_TYPE, manifest::MEDIA_TYPE.to_owned());
        let answer = self.send(Method::PUT, &url, &[content_type], Some(&body), &what).await?;
        if !matches!(answer.status(), StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED) {
            return Err(self.failed(answer, &what).await);
        }
        let said = answer.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        let kept = match said {
            Some(said) => said.to_owned(),
            // Not every registry reports it; then the received bytes count.
            None => {
                let read = tokio::time::timeout(self.idle * COMMIT, self.client.manifest(&self.reference)).await;
                read.map_err(|_| self.silent(&what))??.digest.to_string()
            }
        };
        if kept != digest.to_string() {
            let found = format!("that it keeps it as {kept:.100}, and it is {digest}");
            return Err(self.client.doubtful(&what, found));
        }
        Ok(digest)
    }

    fn upload_of(&self, digest: Digest) -> String {
        format!("an upload to {} ({digest})", self.reference.repository())
    }

    /// The location at which the registry expects it.
    fn location(&self, answer: &Response, what: &str) -> Result<Url, RegistryError> {
        let location = answer.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let url = location.and_then(|location| answer.url().join(location).ok());
        match url {
            // Signed URLs of a bucket are on another host; but plain HTTP is used only for hosts that the caller
            // named.
            Some(url) if url.scheme() == "https" || url.origin() == self.client.base.origin() => Ok(url),
            Some(_) => Err(self.client.unusable(what, "an address that is not https".into())),
            None => Err(self.client.doubtful(what, "no address to upload to".into())),
        }
    }

    /// For a started upload: if the registry has lost it, or has another part of it, it starts again.
    async fn failed_session(&self, answer: Response, what: &str) -> RegistryError {
        match self.failed(answer, what).await {
            RegistryError::Refused { registry, status: status @ (400 | 416), what, said, .. } => {
                RegistryError::UploadLost { registry, status, what, said }
            }
            RegistryError::NotFound { registry, what } => {
                RegistryError::UploadLost { registry, status: 404, what, said: String::new() }
            }
            error => error,
        }
    }

    async fn failed(&self, answer: Response, what: &str) -> RegistryError {
        let refusal = tokio::time::timeout(self.idle, self.client.refused(answer, what)).await;
        refusal.unwrap_or_else(|_| self.silent(what))
    }

    fn silent(&self, what: &str) -> RegistryError {
        let registry = self.client.registry.clone();
        RegistryError::Unreachable { registry, what: format!("{what}: nothing moves any more") }
    }

    /// Returns the answer, once the registry has accepted the credentials.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, String)],
        body: Option<&Body<'_>>,
        what: &str,
    ) -> Result<Response, RegistryError> {
        let RegistryClient { http, base, registry, auth, .. } = &self.client;
        // A server to which the registry redirected does not decide where credentials are sent.
        let ours = url.origin() == base.origin();
        let mut refusals = Refusals::default();
        loop {
            let (generation, authorization) = auth.current().await;
            let pulse = Arc::new(Pulse::new());
            let request = http.request(method.clone(), url.clone());
            let mut request = request.map_err(|e| out_of_reach(registry, what, &e))?;
            if let Some(authorization) = authorization.filter(|_| ours) {
                request = request.header(AUTHORIZATION, authorization);
            }
            if body.is_some() && !headers.iter().any(|(name, _)| *name == CONTENT_TYPE) {
                request = request.header(CONTENT_TYPE, "application/octet-stream");
            }
            for (name, value) in headers {
                request = request.header(name, value);
            }
            request = match body {
                Some(body) => {
                    let stream = body.stream(pulse.clone()).await;
                    let stream = stream.map_err(|e| self.client.unusable(what, e.to_string()))?;
                    request.header(CONTENT_LENGTH, body.size).body(stream)
                }
                // Some servers require an explicit length of zero.
                None if method == Method::POST => {
                    pulse.all_sent();
                    request.header(CONTENT_LENGTH, 0)
                }
                None => request,
            };
            let response = tokio::select! {
                response = request.send() => response.map_err(|e| describe(registry, what, e))?,
                () = pulse.stops(self.idle) => return Err(self.silent(what)),
            };
            auth.answered(generation, response.status());
            if !ours || !auth.after_refusal(http, base, generation, &response, &mut refusals).await? {
                return Ok(response);
            }
            if let Some(body) = body {
                (body.sent)(-pulse.taken());
            }
        }
    }
}

/// A part of a blob, sent as often as necessary.
struct Body<'a> {
    source: &'a UploadSource,
    start: u64,
    size: u64,
    sent: &'a Sent,
}

impl Body<'_> {
    async fn stream(&self, pulse: Arc<Pulse>) -> io::Result<reqwest::Body> {
        let (sent, size) = (self.sent.clone(), self.size);
        let note = move |piece: &BodyChunk| {
            sent(piece.len() as i64);
            pulse.beat(piece.len() as u64, size);
        };
        match self.source {
            UploadSource::Bytes(bytes) => {
                let whole = bytes.slice(self.start as usize..(self.start + self.size) as usize);
                let stream = futures_util::stream::iter([Ok::<_, io::Error>(whole)]).inspect_ok(note);
                Ok(reqwest::Body::wrap_stream(stream))
            }
            UploadSource::File(path) => {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(SeekFrom::Start(self.start)).await?;
                let stream = ReaderStream::with_capacity(file.take(self.size), BUFFER).inspect_ok(note);
                Ok(reqwest::Body::wrap_stream(stream))
            }
        }
    }
}

/// Time of the last progress.
struct Pulse {
    last: Mutex<(Instant, u64)>,
    all_sent: AtomicBool,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse { last: Mutex::new((clock::monotonic(), 0)), all_sent: AtomicBool::new(false) }
    }

    fn beat(&self, bytes: u64, of: u64) {
        let mut last = self.last.lock();
        *last = (clock::monotonic(), last.1 + bytes);
        if last.1 >= of {
            self.all_sent();
        }
    }

    fn all_sent(&self) {
        self.all_sent.store(true, Ordering::Relaxed);
    }

    fn taken(&self) -> i64 {
        i64::try_from(self.last.lock().1).unwrap_or(i64::MAX)
    }

    /// Ends when there was no progress for this long.
    async fn stops(&self, idle: Duration) {
        loop {
            let quiet = clock::elapsed(self.last.lock().0);
            let allowed = if self.all_sent.load(Ordering::Relaxed) { idle * COMMIT } else { idle };
            let Some(left) = allowed.checked_sub(quiet).filter(|left| !left.is_zero()) else { return };
            tokio::time::sleep(left).await;
        }
    }
}
