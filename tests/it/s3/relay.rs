//! Between the client and moto.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Refused in S3's own words.
    Status(u16),
    /// An answer that is begun, without any header that says something, and never ended.
    Hangup,
    /// The answer's body ends after so many bytes, without having ended.
    Cut { after: usize },
    /// This byte of the answer with the object's beginning is another one.
    Flip { at: usize },
    /// The answer to a request for the range that begins here waits until all are released; of 0, of any request.
    Hold { range: usize },
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub range: Option<String>,
}

struct Rule {
    part_of_url: String,
    fault: Fault,
    times: usize,
}

#[derive(Clone)]
pub struct Relay {
    pub url: String,
    to: String,
    http: reqwest::Client,
    rules: Arc<Mutex<Vec<Rule>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    held: watch::Sender<usize>,
    released: watch::Sender<usize>,
}

impl Relay {
    pub async fn before(to: &str) -> Relay {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay {
            url: format!("http://{}", listener.local_addr().unwrap()),
            to: to.to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            rules: Default::default(),
            seen: Default::default(),
            held: watch::Sender::new(0),
            released: watch::Sender::new(0),
        };
        let router = Router::new().fallback(pass).layer(DefaultBodyLimit::disable()).with_state(relay.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        relay
    }

    /// The next requests whose address has this in it.
    pub fn on(&self, part_of_url: &str, fault: Fault, times: usize) {
        self.rules.lock().unwrap().push(Rule { part_of_url: part_of_url.to_owned(), fault, times });
    }

    pub fn clear(&self) {
        self.rules.lock().unwrap().clear();
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns when somebody is held who was not released.
    pub async fn held(&self) {
        let released = *self.released.borrow();
        self.held.subscribe().wait_for(|held| *held > released).await.unwrap();
    }

    pub fn release(&self) {
        let held = *self.held.borrow();
        self.released.send_replace(held);
    }

    /// Moto takes requests that are not signed; it looks for the service's name only.
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> String {
        const SIGNED: &str =
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let mut request =
            self.http.request(method, format!("{}{path}", self.to)).header("authorization", SIGNED).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status}: {text}");
        text
    }

    pub async fn bucket(&self, name: &str) {
        self.ask(Method::PUT, &format!("/{name}"), Vec::new(), &[]).await;
    }

    pub async fn put(&self, path: &str, bytes: &[u8], headers: &[(&str, &str)]) {
        self.ask(Method::PUT, path, bytes.to_vec(), headers).await;
    }

    /// Keys of the uploads that were begun and neither ended nor finished.
    pub async fn uploads(&self, bucket: &str) -> Vec<String> {
        let text = self.ask(Method::GET, &format!("/{bucket}?uploads"), Vec::new(), &[]).await;
        let keys = text.split("<Upload>").skip(1);
        keys.map(|upload| upload.split("<Key>").nth(1).unwrap().split("</Key>").next().unwrap().to_owned()).collect()
    }

    fn fault(&self, head: bool, url: &str, range: Option<&str>) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| {
            let wanted = match rule.fault {
                Fault::Hold { range: 0 } => true,
                Fault::Hold { range: at } => range.is_some_and(|r| r.starts_with(&format!("bytes={at}-"))),
                // There is nothing to cut off in the answer to a HEAD.
                Fault::Cut { .. } => range.is_some(),
                Fault::Flip { .. } => range.is_some_and(|r| r.starts_with("bytes=0-") && r != "bytes=0-0"),
                Fault::Hangup => !head,
                Fault::Status(_) => true,
            };
            rule.times > 0 && url.contains(&rule.part_of_url) && wanted
        })?;
        rule.times -= 1;
        Some(rule.fault)
    }
}

async fn pass(State(relay): State<Relay>, method: Method, uri: Uri, mut headers: HeaderMap, body: Bytes) -> Response {
    let range = headers.get("range").map(|r| r.to_str().unwrap().to_owned());
    relay.seen.lock().unwrap().push(Seen { range: range.clone() });
    let fault = relay.fault(method == Method::HEAD, &uri.to_string(), range.as_deref());
    match fault {
        Some(Fault::Status(status)) => {
            let code = if status == 403 { "AccessDenied" } else { "SlowDown" };
            let said = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>No.</Message></Error>");
            return (StatusCode::from_u16(status).unwrap(), [("content-type", "application/xml")], said)
                .into_response();
        }
        Some(Fault::Hangup) => return broken(Bytes::new(), HeaderMap::new(), StatusCode::OK),
        Some(Fault::Hold { .. }) => {
            let mine = relay.held.borrow().wrapping_add(1);
            relay.held.send_replace(mine);
            relay.released.subscribe().wait_for(|released| *released >= mine).await.unwrap();
        }
        _ => {}
    }
    headers.remove("content-length");
    headers.remove("host");
    let head = method == Method::HEAD;
    let answer = relay.http.request(method, format!("{}{uri}", relay.to)).headers(headers).body(body).send().await;
    let answer = answer.unwrap();
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("connection");
    headers.remove("transfer-encoding");
    let mut bytes = answer.bytes().await.unwrap();
    match fault {
        Some(Fault::Cut { after }) if bytes.len() > after => return broken(bytes.split_to(after), headers, status),
        Some(Fault::Flip { at }) => {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            bytes = changed.into();
        }
        _ => {}
    }
    if !head {
        headers.insert("content-length", bytes.len().into());
    }
    let mut response = Response::new(if head { Body::empty() } else { bytes.into() });
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// Begins an answer, and breaks off.
fn broken(bytes: Bytes, headers: HeaderMap, status: StatusCode) -> Response {
    let pieces = stream::iter([Ok(bytes), Err(std::io::Error::other("cut"))]);
    let mut response = Response::new(Body::from_stream(pieces));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}
