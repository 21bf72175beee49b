use std::time::Duration;

use mayfly::http::Settings;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{Got, api, api_with};

async fn raw(api: &super::Api, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut buffer = vec![0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(15), stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test]
async fn a_slow_body_is_given_up() {
    let settings = Settings { request_timeout: Duration::from_secs(1), ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let head = format!(
        "POST /vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{\"temp",
        api.admin
    );
    let answer = read_some(&mut raw(&api, &head).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request.timeout"), "{answer}");
    // Who waits on purpose is not in a hurry.
    let (id, _) = api.vm("one").await;
    let path = format!("/vms/{id}?wait_generation=1&timeout_seconds=2");
    api.get(&path, &api.read).await.ok(200);
}

#[tokio::test]
async fn too_many_requests_are_refused_with_retry_after_and_health_checks_are_not() {
    let settings = Settings { max_concurrent: 1, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let head = format!(
        "POST /vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{",
        api.admin
    );
    // It holds the only seat until its body comes, which is never.
    let held = raw(&api, &head).await;
    let refused = loop {
        let got = api.get("/host", &api.read).await;
        if got.status.as_u16() == 503 {
            break got;
        }
        tokio::task::yield_now().await;
    };
    refused.problem(503, "service.overloaded");
    assert!(!refused.header("retry-after").is_empty());
    api.get("/healthz", "").await.ok(200);
    drop(held);
    while api.get("/host", &api.read).await.status.as_u16() != 200 {
        tokio::task::yield_now().await;
    }

    // Those who wait have a room of their own.
    let stream = api.request(Method::GET, "/events", &api.read).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 200);
    api.get("/host", &api.read).await.ok(200);
    let second = api.request(Method::GET, "/events", &api.read).send().await.unwrap();
    Got::of(second).await.problem(503, "service.overloaded");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let settings = Settings { max_concurrent: 1, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    for _ in 0..5 {
        loop {
            let stream = api.request(Method::GET, "/events", &api.read).send().await.unwrap();
            if stream.status().as_u16() == 200 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_no_http_is_cut() {
    let api = api().await;
    let answer = read_some(&mut raw(&api, "\u{16}\u{3}\u{1} hello\r\n\r\n").await).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n", "x".repeat(600_000));
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let answer = read_some(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    api.get("/healthz", "").await.ok(200);
}

#[tokio::test]
async fn readiness_follows_the_host_and_the_shutdown() {
    let api = api().await;
    api.get("/readyz", "").await.ok(200);
    api.host.update(|view| view.observed = false);
    let got = api.get("/readyz", "").await;
    got.problem(503, "host.unavailable");
    assert_eq!(got.header("retry-after"), "2");
    api.get("/healthz", "").await.ok(200);
    let refused = json!({"template": "micro", "queue_timeout_seconds": 0});
    // Whether a slot is free is not known yet.
    api.post("/vms", &api.create, refused).await.problem(503, "host.unavailable");
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_take_its_change_with_it() {
    let api = api().await;
    let mut bell = api.ledger.changes().subscribe();
    let (ids, mut heard) = (50, 0);
    for n in 0..ids {
        let body = format!(r#"{{"template":"micro","name":"v{n}"}}"#);
        let head = format!(
            "POST /vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            api.create,
            body.len()
        );
        let stream = raw(&api, &head).await;
        // At another point of the request each time.
        tokio::time::sleep(Duration::from_micros(n * 40)).await;
        drop(stream);
    }
    // Whatever was committed was also told to those who listen.
    let mut committed = 0;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = api.reader.last_seq().await.unwrap();
        if now == committed && now > 0 {
            break;
        }
        committed = now;
    }
    while tokio::time::timeout(Duration::from_millis(500), bell.recv()).await.is_ok() {
        heard += 1;
    }
    assert_eq!(heard, api.reader.last_seq().await.unwrap());
}

/// The head of a request with a body that does not come.
fn unfinished(path: &str, token: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{"
    )
}

#[tokio::test]
async fn no_token_takes_the_requests_of_another() {
    let settings = Settings { max_concurrent: 16, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(raw(&api, &unfinished("/vms", &api.create)).await);
    }
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(api.request(Method::GET, "/events", &api.create).send().await.unwrap());
    }
    let open = streams.iter().filter(|answer| answer.status().as_u16() == 200).count();
    assert_eq!(open, 8);
    for _ in 0..20 {
        api.get("/host", &api.read).await.ok(200);
    }
    let stream = api.request(Method::GET, "/events", &api.read).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 200);
    // Neither do requests without a token.
    for _ in 0..40 {
        held.push(raw(&api, "POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{").await);
        held.push(raw(&api, &unfinished("/vms", "wrong")).await);
    }
    api.post("/vms", &api.admin, json!({"template": "micro"})).await.ok(201);
}

/// A client that follows many vms can still end one of them.
#[tokio::test]
async fn requests_that_wait_do_not_take_the_sender_its_other_requests() {
    let settings = Settings { max_concurrent: 16, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let (id, _) = api.vm("one").await;
    let mut polls = JoinSet::new();
    for _ in 0..20 {
        let path = format!("/vms/{id}?wait_generation=1000&timeout_seconds=20");
        polls.spawn(api.request(Method::GET, &path, &api.create).send());
    }
    // Eight may wait, so the others are refused.
    for _ in 0..12 {
        let refused = polls.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(refused.status().as_u16(), 503);
    }
    api.request(Method::DELETE, &format!("/vms/{id}"), &api.create).send().await.unwrap().error_for_status().unwrap();
    // The others hear of it at once.
    while let Some(heard) = polls.join_next().await {
        assert_eq!(heard.unwrap().unwrap().status().as_u16(), 200);
    }
}

#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    let settings = Settings { max_connections: 16, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(api.address).await.unwrap());
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..50 {
        let answer = client.get(format!("{}/healthz", api.url)).timeout(Duration::from_secs(5)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        idle.push(TcpStream::connect(api.address).await.unwrap());
    }
}

#[tokio::test]
async fn bodies_share_the_memory_for_them() {
    let settings = Settings { max_body_memory: 4 << 20, max_body_bytes: 1 << 20, ..Settings::default() };
    let api = api_with(settings, Default::default()).await;
    let part = format!("{{\"labels\":{{\"x\":\"{}", "x".repeat(900_000));
    let head = unfinished("/vms", &api.create).replace("content-length: 50", "content-length: 1000000");
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut stream = raw(&api, &head).await;
        stream.write_all(part.as_bytes()).await.unwrap();
        held.push(stream);
    }
    // The oldest ones were ended to make room, with an answer that says so.
    let answer = read_some(&mut held[0]).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("service.overloaded"), "{answer}");
    api.post("/vms", &api.read, json!({})).await.problem(403, "auth.scope_missing");
    api.post("/vms", &api.admin, json!({"template": "micro"})).await.ok(201);
}

#[tokio::test]
async fn text_of_a_client_is_never_a_label_of_a_metric() {
    mayfly::telemetry::start_metrics();
    let api = api().await;
    let requests = || {
        let text = mayfly::telemetry::render_metrics();
        text.lines().filter(|line| line.starts_with("mayfly_http_request")).count()
    };
    for method in ["PROPFIND", "M-0"] {
        read_some(&mut raw(&api, &format!("{method} /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")).await).await;
        read_some(&mut raw(&api, &format!("{method} /vms HTTP/1.1\r\nhost: x\r\n\r\n")).await).await;
    }
    let before = requests();
    assert!(before > 0);
    for n in 1..100 {
        for path in ["/nowhere".to_owned(), format!("/nowhere/{n}"), "/vms".to_owned(), format!("/vms/{n}")] {
            let head = format!("M-{n} {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            assert!(read_some(&mut raw(&api, &head).await).await.starts_with("HTTP/1.1 40"));
        }
    }
    // At most those of one route that was not asked for before.
    assert!(requests() <= before + 20, "{} of {before}", requests());
}
