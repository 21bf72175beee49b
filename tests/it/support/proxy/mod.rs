//! A proxy of the tests' own between a client and the registry. It does what networks, load balancers and busy registries
//! do, to the requests that a test names, and remembers what was asked.

mod body;
mod rules;
mod tokens;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use body::{Failure, Flushing, Shape, shaped};
use futures_util::StreamExt;
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Frame, Incoming},
    header::{self, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
pub use rules::{Fault, Rule};
pub use tokens::Tokens;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::registry::Registry;

type Body = UnsyncBoxBody<Bytes, Failure>;

/// Who is let in.
enum Access {
    /// Whoever the registry lets in.
    Registry,
    /// Whoever has a token.
    Bearer(Tokens),
    /// Whoever has nothing: blobs behind a signed URL, where a second way to log in is an error.
    Signed,
}

/// One request, as it came. Secrets are not kept.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub range: Option<String>,
    /// The scheme, if `Authorization` came along: `Basic` or `Bearer`.
    pub authorization: Option<String>,
    /// None until it is answered.
    pub status: Option<u16>,
    /// Bytes of the answer's body that went to the client so far.
    pub sent: u64,
    /// Bytes of the request's body so far.
    pub received: u64,
}

struct State {
    upstream: reqwest::Client,
    registry: String,
    /// What opens the registry when the client's own authorization does not go there.
    opens: Option<HeaderValue>,
    access: Access,
    base: String,
    script: rules::Script,
    seen: watch::Sender<Vec<Seen>>,
    release: watch::Sender<bool>,
}

pub struct Proxy {
    state: Arc<State>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// A proxy that is not there yet.
pub struct Front<'a> {
    registry: &'a Registry,
    ip: Ipv4Addr,
    tls: bool,
    expired: bool,
    access: Access,
}

impl Front<'_> {
    /// Without TLS.
    pub fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// With a certificate of the registry's authority that has expired.
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// Another host, as far as clients can tell.
    pub fn elsewhere(mut self) -> Self {
        self.ip = Ipv4Addr::new(127, 0, 0, 2);
        self
    }

    /// Asks for tokens of its own instead of the registry's login.
    pub fn bearer(mut self, tokens: Tokens) -> Self {
        self.access = Access::Bearer(tokens);
        self
    }

    /// As the storage that a registry sends its clients to: 400 for whoever brings `Authorization`.
    pub fn signed(mut self) -> Self {
        self.access = Access::Signed;
        self
    }

    pub async fn start(self) -> Proxy {
        let listener = TcpListener::bind((self.ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let authority = &self.registry.authority;
        let issue = || if self.expired { authority.issue_expired() } else { authority.issue() };
        let tls = self.tls.then(|| issue().server());
        let opens = self.registry.login.as_ref().map(|login| format!("Basic {}", login.basic()));
        let state = Arc::new(State {
            upstream: self.registry.authority.client(),
            registry: self.registry.url(),
            opens: opens.map(|value| HeaderValue::try_from(value).unwrap()),
            access: self.access,
            base: format!("{}://{address}", if self.tls { "https" } else { "http" }),
            script: Default::default(),
            seen: watch::Sender::new(Vec::new()),
            release: watch::Sender::new(false),
        });
        let serving = tokio::spawn(accept(listener, tls, state.clone()));
        Proxy { state, address, serving }
    }
}

impl Proxy {
    pub fn before(registry: &Registry) -> Front<'_> {
        Front { registry, ip: Ipv4Addr::LOCALHOST, tls: true, expired: false, access: Access::Registry }
    }

    /// What an image reference starts with.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self) -> String {
        self.state.base.clone()
    }

    /// Rules stay until they are cleared. Of those that match, the first whose turn it is decides.
    pub fn on(&self, rule: Rule) {
        self.state.script.add(rule);
    }

    pub fn clear(&self) {
        self.state.script.clear();
    }

    /// Lets go what [`Fault::Hold`] holds, now and later.
    pub fn release(&self) {
        self.state.release.send_replace(true);
    }

    /// No token that was given out so far is good any longer.
    pub fn expire_tokens(&self) {
        match &self.state.access {
            Access::Bearer(tokens) => tokens.expire(),
            _ => panic!("this proxy has no tokens"),
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.borrow().clone()
    }

    /// The requests of one method for a path that ends so.
    pub fn asked(&self, method: &str, ending: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.method == method && seen.path.ends_with(ending)).collect()
    }

    /// Bytes of bodies that went to clients.
    pub fn sent(&self) -> u64 {
        self.seen().iter().map(|seen| seen.sent).sum()
    }

    /// Waits until what was asked and sent fulfils this.
    pub async fn until(&self, what: &str, done: impl FnMut(&Vec<Seen>) -> bool) {
        let mut seen = self.state.seen.subscribe();
        match tokio::time::timeout(Duration::from_secs(30), seen.wait_for(done)).await {
            Ok(Ok(_)) => {}
            _ => panic!("waited too long until {what}: {:#?}", self.seen()),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections are the task's, and end with it.
        self.serving.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, state: Arc<State>) {
    let tls = tls.map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted.expect("a connection is accepted").0,
        };
        let _ = stream.set_nodelay(true);
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, state).await,
                // A client that does not trust us goes away: its own affair.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, state: Arc<State>) {
    let flushed = Arc::new(watch::Sender::new(0));
    let io = TokioIo::new(Flushing { inner: stream, flushed: flushed.clone() });
    let service = service_fn(move |request| {
        let (state, flushed) = (state.clone(), flushed.clone());
        async move { state.answer(request, flushed).await }
    });
    // It ends badly whenever a test wants it to.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

impl State {
    fn note(&self, index: usize, change: impl FnOnce(&mut Seen)) {
        self.seen.send_modify(|all| change(&mut all[index]));
    }

    /// An error closes the connection without an answer.
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        flushed: Arc<watch::Sender<u64>>,
    ) -> Result<Response<Body>, Failure> {
        let said = |name: HeaderName| {
            request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let authorization = said(header::AUTHORIZATION);
        let seen = Seen {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            range: said(header::RANGE),
            authorization: authorization.as_deref().and_then(|a| a.split(' ').next()).map(str::to_owned),
            status: None,
            sent: 0,
            received: 0,
        };
        let mut index = 0;
        self.seen.send_modify(|all| {
            index = all.len();
            all.push(seen.clone());
        });
        let answered = self.clone().decide(index, &seen, authorization.as_deref(), request, flushed).await;
        if let Ok(response) = &answered {
            self.note(index, |seen| seen.status = Some(response.status().as_u16()));
        }
        answered
    }

    async fn decide(
        self: Arc<Self>,
        index: usize,
        seen: &Seen,
        authorization: Option<&str>,
        request: Request<Incoming>,
        flushed: Arc<watch::Sender<u64>>,
    ) -> Result<Response<Body>, Failure> {
        let token = match &self.access {
            Access::Bearer(tokens) if seen.path == "/token" => Some(tokens),
            _ => None,
        };
        let refused = match &self.access {
            Access::Bearer(_) if token.is_some() => None,
            Access::Bearer(tokens) => tokens
                .challenge(&self.base, &seen.method, &seen.path, authorization)
                .err()
                .map(|challenge| (401, challenge)),
            Access::Signed => authorization.is_some().then(|| (400, String::new())),
            // The registry says so itself, and the requests that it refuses are no rule's business.
            Access::Registry => None,
        };
        if let Some((status, challenge)) = refused {
            let headers: &[_] = if challenge.is_empty() { &[] } else { &[("www-authenticate".to_owned(), challenge)] };
            return plain(request, status, headers, Bytes::new()).await;
        }
        let admitted = !matches!(self.access, Access::Registry)
            || self.opens.as_ref().is_none_or(|opens| authorization.is_some_and(|a| a.as_bytes() == opens.as_bytes()));
        let faults = if admitted { self.script.faults(&seen.method, &seen.path) } else { Vec::new() };
        for fault in &faults {
            match fault {
                Fault::Hangup => return Err(Failure::new("no answer")),
                Fault::Answer { status, headers } => {
                    let mut headers = headers.clone();
                    if *status == 401 && !headers.iter().any(|(name, _)| name == "www-authenticate") {
                        headers.push(("www-authenticate".to_owned(), self.challenge(seen)));
                    }
                    return plain(request, *status, &headers, Bytes::new()).await;
                }
                Fault::Redirect { base } => {
                    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                    let location = ("location".to_owned(), format!("{base}{path}"));
                    return plain(request, 307, &[location], Bytes::new()).await;
                }
                _ => {}
            }
        }
        if let Some(tokens) = token {
            return match tokens.issue(&seen.query, authorization) {
                Some(body) => {
                    let json = ("content-type".to_owned(), "application/json".to_owned());
                    plain(request, 200, &[json], body.to_string().into()).await
                }
                None => plain(request, 401, &[], Bytes::new()).await,
            };
        }
        self.pass_on(index, faults, request, flushed).await
    }

    fn challenge(&self, seen: &Seen) -> String {
        match &self.access {
            Access::Bearer(tokens) => tokens
                .challenge(&self.base, &seen.method, &seen.path, Some("Bearer that-is-none"))
                .expect_err("such a token was never issued"),
            _ => "Basic realm=\"tests\"".to_owned(),
        }
    }

    async fn pass_on(
        self: Arc<Self>,
        index: usize,
        faults: Vec<Fault>,
        request: Request<Incoming>,
        flushed: Arc<watch::Sender<u64>>,
    ) -> Result<Response<Body>, Failure> {
        let (parts, body) = request.into_parts();
        let mut headers = end_to_end(parts.headers);
        if !matches!(self.access, Access::Registry) {
            headers.remove(header::AUTHORIZATION);
            if let Some(opens) = &self.opens {
                headers.insert(header::AUTHORIZATION, opens.clone());
            }
        }
        if faults.iter().any(|fault| matches!(fault, Fault::IgnoreRange)) {
            headers.remove(header::RANGE);
        }
        // The registry makes the URLs that it answers with from these.
        if let Some(host) = headers.remove(header::HOST) {
            headers.insert("x-forwarded-host", host);
        }
        let scheme = if self.base.starts_with("https") { "https" } else { "http" };
        headers.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
        let url = format!("{}{}", self.registry, parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        let mut upstream = self.upstream.request(parts.method.clone(), url);
        let cut = faults.iter().find_map(|fault| match fault {
            Fault::CutRequest { after } => Some(*after),
            _ => None,
        });
        if headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING) {
            headers.remove(header::TRANSFER_ENCODING);
            let state = self.clone();
            let mut received = 0;
            let pieces = BodyStream::new(body).filter_map(move |frame| {
                let mut piece = frame.map_err(Failure::new).map(|frame| frame.into_data().ok()).transpose();
                if let Some(Ok(bytes)) = &piece {
                    received += bytes.len() as u64;
                    state.note(index, |seen| seen.received = received);
                    if cut.is_some_and(|after| received > after) {
                        piece = Some(Err(Failure::new("the request is cut")));
                    }
                }
                std::future::ready(piece)
            });
            upstream = upstream.body(reqwest::Body::wrap_stream(pieces));
        }
        let answered = upstream.headers(headers).send().await.map_err(Failure::new)?;
        if faults.iter().any(|fault| matches!(fault, Fault::LoseAnswer)) {
            return Err(Failure::new("the answer is lost"));
        }

        let status = answered.status();
        let mut headers = end_to_end(answered.headers().clone());
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let mut shape = Shape { announced: length, ..Shape::default() };
        let starts = part_start(&headers);
        for fault in faults {
            match fault {
                Fault::Cut { after } => shape.cut = Some(after),
                Fault::Hold { after } => shape.hold = Some(after),
                Fault::Slow { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
                Fault::Flip { at } => shape.flip = at.checked_sub(starts),
                Fault::Truncate { to } => {
                    shape.limit = Some(to);
                    shape.announced = Some(length.map_or(to, |length| length.min(to)));
                }
                Fault::ContentLength(length) => shape.announced = Some(length),
                Fault::ContentRange(range) => {
                    headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(range).map_err(Failure::new)?);
                }
                Fault::IgnoreRange
                | Fault::Hangup
                | Fault::CutRequest { .. }
                | Fault::LoseAnswer
                | Fault::Answer { .. }
                | Fault::Redirect { .. } => {}
            }
        }
        if let Some(announced) = shape.announced {
            headers.insert(header::CONTENT_LENGTH, announced.into());
        }
        let state = self.clone();
        let count = move |bytes| state.note(index, |seen| seen.sent += bytes);
        let source = answered.bytes_stream().boxed();
        let pieces = shaped(source, shape, flushed, self.release.subscribe(), count);
        let mut response = Response::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// An answer of the proxy's own. What the client still sends is taken first: it may not listen before.
async fn plain(
    request: Request<Incoming>,
    status: u16,
    headers: &[(String, String)],
    body: Bytes,
) -> Result<Response<Body>, Failure> {
    let mut incoming = request.into_body();
    while let Some(frame) = incoming.frame().await {
        frame.map_err(Failure::new)?;
    }
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let body = http_body_util::Full::new(body).map_err(|never| match never {}).boxed_unsync();
    response.body(body).map_err(Failure::new)
}

/// Without what is of one connection only.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [header::CONNECTION, header::TE, header::TRAILER, header::UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers
}

/// Where the answer starts in the blob.
fn part_start(headers: &HeaderMap) -> u64 {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()).unwrap_or(0)
}
