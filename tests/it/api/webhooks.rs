//! GitHub's webhook as it arrives, and what is shown of jobs.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use mayfly::{domain::SourceName, service};
use reqwest::{Client, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Api, api_with};
use crate::support::github::signature;

const SECRETS: [&str; 2] = ["the old one", "It's a Secret to Everybody"];
const OTHER: &str = "the secret of the other source";

/// With two sources.
async fn api() -> Api {
    let other = SourceName::new("other").unwrap();
    let webhook_secrets =
        BTreeMap::from([(SourceName::github(), SECRETS.map(Into::into).to_vec()), (other, vec![OTHER.into()])]);
    api_with(Default::default(), service::Settings { webhook_secrets, ..Default::default() }).await
}

/// What is sent of a webhook.
struct Sent<'a> {
    event: &'a str,
    guid: &'a str,
    signature: Option<String>,
    kind: &'a str,
    body: Vec<u8>,
}

impl Sent<'_> {
    fn signed(body: &[u8]) -> Sent<'static> {
        Sent {
            event: "workflow_job",
            guid: "g-1",
            signature: Some(signature(SECRETS[1], body)),
            kind: "application/json",
            body: body.to_vec(),
        }
    }

    async fn to(self, api: &Api) -> (StatusCode, Value) {
        self.sent_to(api, "github").await
    }

    async fn sent_to(self, api: &Api, source: &str) -> (StatusCode, Value) {
        let url = format!("{}/webhooks/{source}", api.url);
        let mut request = Client::builder().no_proxy().build().unwrap().post(url);
        request = request.header("X-GitHub-Event", self.event).header("X-GitHub-Delivery", self.guid);
        if let Some(signature) = self.signature {
            request = request.header("X-Hub-Signature-256", signature);
        }
        let answer = request.header(CONTENT_TYPE, self.kind).body(self.body).send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }
}

async fn stored(api: &Api) -> Vec<Value> {
    let list = api.get("/webhooks/github/deliveries", &api.read).await.json();
    list["items"].as_array().unwrap().clone()
}

fn queued() -> Vec<u8> {
    let payload = json!({
        "action": "queued",
        "workflow_job": {"id": 9001, "run_id": 7001, "run_attempt": 1, "name": "build", "status": "queued", "labels": ["macos"]},
        "repository": {"full_name": "acme/app"},
    });
    serde_json::to_vec(&payload).unwrap()
}

/// Two servers number their jobs and their deliveries independently.
#[tokio::test]
async fn each_source_has_its_own_secret_and_its_own_deliveries() {
    let api = api().await;
    let body = queued();
    let signed = |secret| Sent { signature: Some(signature(secret, &body)), ..Sent::signed(&body) };
    for (source, secret) in [("github", OTHER), ("other", SECRETS[1])] {
        let (status, problem) = signed(secret).sent_to(&api, source).await;
        assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("webhook.unproven")), "{source}");
    }
    for (source, secret) in [("github", SECRETS[1]), ("other", OTHER), ("other", OTHER)] {
        assert_eq!(signed(secret).sent_to(&api, source).await.0, StatusCode::ACCEPTED, "{source}");
    }
    for (source, stored) in [("github", 1), ("other", 1), ("third", 0)] {
        let list = api.get(&format!("/webhooks/{source}/deliveries"), &api.read).await.json();
        assert_eq!(list["items"].as_array().unwrap().len(), stored, "{source}");
    }
    for unknown in ["third", "GitHub"] {
        let (status, problem) = signed(OTHER).sent_to(&api, unknown).await;
        assert_eq!(problem["code"], json!("webhook.not_configured"), "{status} {unknown}");
    }
    let wrong = api.get("/webhooks/GitHub/deliveries", &api.read).await.problem(400, "request.invalid");
    assert_eq!(super::pointer(&wrong), "path:source");
    let pending = api.reader.pending_deliveries(9).await.unwrap();
    let sources: Vec<_> = pending.iter().map(|delivery| delivery.source.as_str()).collect();
    assert_eq!(sources, ["github", "other"]);
}

fn as_form(payload: &str) -> String {
    let url = reqwest::Url::parse_with_params("http://x/", [("payload", payload)]).unwrap();
    url.query().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_not_proven_is_refused_and_not_stored() {
    let api = api().await;
    let good = signature(SECRETS[1], &queued());
    for (signature, why) in [
        (None, "no X-Hub-Signature-256"),
        (Some(String::new()), "64 hexadecimal digits"),
        (Some(good.replace("sha256=", "sha1=")), "64 hexadecimal digits"),
        (Some(good[..70].to_owned()), "64 hexadecimal digits"),
        (Some(signature("somebody else's", &queued())), "does not match this body"),
        (Some(signature(SECRETS[1], b"another body")), "does not match this body"),
    ] {
        let (status, problem) = Sent { signature, ..Sent::signed(&queued()) }.to(&api).await;
        assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("webhook.unproven")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    assert_eq!(stored(&api).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_delivery_is_stored_once_however_often_and_however_it_comes() {
    let api = api().await;
    let form = as_form(&String::from_utf8(queued()).unwrap());
    for secret in SECRETS {
        let (status, _) =
            Sent { signature: Some(signature(secret, &queued())), ..Sent::signed(&queued()) }.to(&api).await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    // The id is a header, which the signature does not cover.
    for n in 0..50 {
        let sent = Sent { guid: &format!("again-{n}"), ..Sent::signed(&queued()) };
        assert_eq!(sent.to(&api).await.0, StatusCode::ACCEPTED);
    }
    let sent = Sent { guid: "again", kind: "application/x-www-form-urlencoded", ..Sent::signed(form.as_bytes()) };
    assert_eq!(sent.to(&api).await.0, StatusCode::ACCEPTED);
    let other = String::from_utf8(queued()).unwrap().replace("9001", "9002");
    let other = as_form(&other);
    let sent = Sent { guid: "g-2", kind: "application/x-www-form-urlencoded", ..Sent::signed(other.as_bytes()) };
    assert_eq!(sent.to(&api).await.0, StatusCode::ACCEPTED);
    let ping = Sent { event: "ping", guid: "g-3", ..Sent::signed(br#"{"zen":"Keep it logically awesome."}"#) };
    assert_eq!(ping.to(&api).await.0, StatusCode::ACCEPTED);
    let of_others = Sent { event: "push", guid: "g-4", ..Sent::signed(b"whatever") };
    assert_eq!(of_others.to(&api).await.0, StatusCode::ACCEPTED);

    let stored = stored(&api).await;
    let shown: Vec<_> = stored.iter().map(|d| (d["guid"].as_str().unwrap(), d["result"].as_str().unwrap())).collect();
    assert_eq!(shown, [("g-3", "ignored"), ("g-2", "pending"), ("g-1", "pending")]);
    assert_eq!((&stored[1]["action"], &stored[1]["event"]), (&json!("queued"), &json!("workflow_job")));
    let bodies = api.reader.pending_deliveries(10).await.unwrap();
    assert!(bodies.iter().all(|d| serde_json::from_slice::<Value>(&d.body).unwrap()["action"] == "queued"));
}

/// Its content would be known if it was new when it was first sent, and is not kept for ever.
#[tokio::test]
async fn an_old_delivery_that_is_sent_again_is_refused() {
    let api = api().await;
    let at = |ago: SignedDuration| {
        let time = Timestamp::now() - ago;
        let mut payload: Value = serde_json::from_slice(&queued()).unwrap();
        payload["workflow_job"]["created_at"] = json!("2020-01-01T00:00:00Z");
        payload["workflow_job"]["started_at"] = json!(time);
        payload["workflow_job"]["completed_at"] = Value::Null;
        serde_json::to_vec(&payload).unwrap()
    };
    let (status, problem) = Sent::signed(&at(SignedDuration::from_hours(97))).to(&api).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("webhook.outdated")), "{problem}");
    assert_eq!(Sent::signed(&at(SignedDuration::from_hours(72))).to(&api).await.0, StatusCode::ACCEPTED);
    assert_eq!(stored(&api).await.len(), 1);
}

/// The head of a request whose body never comes, and the answer to it.
async fn answer_to_head(api: &Api, headers: &str) -> String {
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let head = format!("POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("no answer").unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test]
async fn what_cannot_be_proven_is_refused_before_its_body_is_read() {
    let signed = format!("X-Hub-Signature-256: {}\r\n", signature(SECRETS[1], b"x"));
    let without_secret = api_with(Default::default(), Default::default()).await;
    assert!(answer_to_head(&without_secret, &signed).await.starts_with("HTTP/1.1 404"));
    let api = api().await;
    for headers in ["", "X-Hub-Signature-256: sha256=00\r\n", "X-Hub-Signature: sha1=00\r\n"] {
        assert!(answer_to_head(&api, headers).await.starts_with("HTTP/1.1 401"), "{headers}");
    }
}

#[tokio::test]
async fn an_invalid_delivery_is_refused() {
    let api = api().await;
    let (status, problem) = Sent::signed(b"{\"action\":").to(&api).await;
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("request.invalid")), "{problem}");
    let (status, problem) = Sent { guid: "", ..Sent::signed(&queued()) }.to(&api).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(problem["errors"][0]["pointer"], "header:X-GitHub-Delivery");
    let form = Sent { kind: "application/x-www-form-urlencoded", ..Sent::signed(b"a=b") };
    assert_eq!(form.to(&api).await.0, StatusCode::BAD_REQUEST);
    // As large as GitHub sends, and one byte more.
    let mut large = br#"{"action":"queued","x":""#.to_vec();
    large.resize(25_000_000 - 2, b'x');
    large.extend(b"\"}");
    assert_eq!(Sent::signed(&large).to(&api).await.0, StatusCode::ACCEPTED);
    large.push(b' ');
    let (status, problem) = Sent { guid: "g-9", ..Sent::signed(&large) }.to(&api).await;
    assert_eq!((status, &problem["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("request.too_large")), "{problem}");
    assert_eq!(stored(&api).await.len(), 1);
}

#[tokio::test]
async fn without_a_secret_nothing_is_taken() {
    let api = api_with(Default::default(), Default::default()).await;
    let (status, problem) = Sent::signed(&queued()).to(&api).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("webhook.not_configured")));
    assert_eq!(stored(&api).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_delivery_that_makes_no_sense_is_marked_and_left_and_the_next_is_worked() {
    let api = api().await;
    let jobs = tokio::spawn(api.job_loops().run(api.shutdown.clone()));
    for (guid, body) in [
        ("g-1", br#"{"action":"queued"}"#.to_vec()),
        ("g-2", String::from_utf8(queued()).unwrap().replace("\"queued\",\"repo", "\"postponed\",\"repo").into_bytes()),
        // What no row can hold must not be tried for ever.
        ("g-3", String::from_utf8(queued()).unwrap().replace("9001", "18446744073709551615").into_bytes()),
        ("g-4", String::from_utf8(queued()).unwrap().replace("acme/app", "acme/../app").into_bytes()),
        ("g-5", queued()),
    ] {
        assert_eq!(Sent { guid, ..Sent::signed(&body) }.to(&api).await.0, StatusCode::ACCEPTED);
    }
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let job = loop {
        assert!(tokio::time::Instant::now() < end, "it is not worked: {:?}", stored(&api).await);
        let list = api.get("/jobs", &api.read).await.json();
        let worked = stored(&api).await.iter().all(|d| d["result"] != "pending");
        if let (Some(job), true) = (list["items"].get(0), worked) {
            break job.clone();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((&job["id"], &job["pool"], &job["heard"]), (&json!(9001), &Value::Null, &json!("webhook")), "{job}");
    let results: Vec<_> = stored(&api).await.iter().map(|d| d["result"].clone()).collect();
    assert_eq!(results, ["worked", "refused", "refused", "ignored", "refused"]);
    assert!(api.reader.pending_deliveries(10).await.unwrap().is_empty());

    for (query, found) in [
        ("status=queued", 1),
        ("status=completed", 0),
        ("pool=none", 0),
        ("cursor=1", 0),
        ("cursor=2", 1),
        ("source=github", 1),
        ("source=gitea", 0),
    ] {
        let list = api.get(&format!("/jobs?{query}"), &api.read).await.json();
        assert_eq!(list["items"].as_array().unwrap().len(), found, "{query}");
    }
    let wrong = api.get("/jobs?cursor=x", &api.read).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["errors"][0]["pointer"]), (400, &json!("query:cursor")));
    api.shutdown.cancel();
    jobs.await.unwrap();
}

/// Whoever sends is known only at the end of what is sent, so nobody may make others wait.
#[tokio::test]
async fn slow_senders_do_not_delay_others() {
    let api = api().await;
    let slow = |size: &'static str| {
        let url = format!("{}/webhooks/github", api.url);
        async move {
            let (sender, body) = tokio::sync::mpsc::channel::<Result<&[u8], std::io::Error>>(1);
            sender.send(Ok(b"{")).await.unwrap();
            let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(body));
            let request = Client::builder().no_proxy().build().unwrap().post(url).header("Content-Length", size);
            let request = request.header("X-Hub-Signature-256", signature(SECRETS[1], b"of another body"));
            let begun = tokio::time::Instant::now();
            let status = request.body(body).send().await.unwrap().status();
            drop(sender);
            (status, begun.elapsed())
        }
    };
    let all = futures_util::future::join_all((0..8).map(|n| slow(if n < 6 { "20000000" } else { "200" })));
    let all = tokio::spawn(all);
    let begun = tokio::time::Instant::now();
    assert_eq!(Sent::signed(&queued()).to(&api).await.0, StatusCode::ACCEPTED);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    for (status, after) in all.await.unwrap() {
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(after < std::time::Duration::from_secs(28), "{after:?}");
    }
}
