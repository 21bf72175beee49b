use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures_util::StreamExt;
use mayfly::{domain::VmId, http, platform::Clock};
use reqwest::Method;
use serde_json::json;

use super::{Api, api, api_of};

async fn say(api: &Api, id: VmId, token: &str, text: &str) {
    let body = json!({"type": "log", "source": "job", "data_base64": BASE64.encode(text)});
    api.post(&format!("/vms/{id}/events"), token, body).await.ok(202);
}

#[tokio::test]
async fn a_log_is_read_whole_or_from_its_end() {
    let api = api().await;
    let (id, token) = api.running("one").await;
    let path = format!("/vms/{id}/logs");
    let empty = api.get(&path, &api.read).await;
    assert_eq!((empty.status.as_u16(), empty.text.as_str()), (200, ""));
    assert!(empty.header("content-type").starts_with("text/plain"));
    say(&api, id, &token, "hello <world>\n").await;
    say(&api, id, &token, "bye\n").await;
    assert_eq!(api.get(&format!("{path}?source=job"), &api.read).await.text, "hello <world>\nbye\n");
    assert_eq!(api.get(&format!("{path}?source=job&tail_bytes=4"), &api.read).await.text, "bye\n");
    assert_eq!(api.get(&format!("{path}?source=job&tail_bytes=0"), &api.read).await.text, "");
    assert_eq!(api.get(&format!("{path}?source=boot"), &api.read).await.text, "");
    // A client goes on where a log broke off, with what the first response said.
    let first = api.get(&format!("{path}?source=job&tail_bytes=4"), &api.read).await;
    let offset: u64 = first.headers["mayfly-log-offset"].to_str().unwrap().parse().unwrap();
    for (offset, rest) in [(offset, "bye\n"), (offset + 4, ""), (offset + 1, "ye\n"), (u64::MAX >> 1, "")] {
        let rest_of = api.get(&format!("{path}?source=job&offset={offset}"), &api.read).await;
        assert_eq!(
            (rest_of.text.as_str(), rest_of.headers.contains_key("mayfly-log-offset")),
            (rest, true),
            "{offset}"
        );
    }
    for query in [
        "offset=-1",
        "offset=9223372036854775808",
        "offset=1&tail_bytes=1",
        "source=other",
        "tail_bytes=-1",
        "tail_bytes=1048577",
        "follow=maybe",
        "sauce=job",
    ] {
        api.get(&format!("{path}?{query}"), &api.read).await.problem(400, "request.invalid");
    }
    api.get(&format!("/vms/{}/logs", VmId::mint()), &api.read).await.problem(404, "vm.not_found");
}

#[tokio::test]
async fn a_log_is_read_from_a_time_on() {
    let clock = Clock::manual("2026-01-02T00:00:00Z".parse().unwrap());
    let of = clock.clone();
    let api = api_of(http::Settings::default(), move |setup| setup.clock = of).await;
    let (id, token) = api.running("one").await;
    let since = async |source: &str, since: jiff::Timestamp| {
        api.get(&format!("/vms/{id}/logs?source={source}&since={since}"), &api.read).await
    };
    let before = clock.now();
    say(&api, id, &token, "old\n").await;
    // What is written within a second belongs together.
    clock.advance(Duration::from_secs(1));
    let between = clock.now();
    say(&api, id, &token, "new\n").await;
    let later = between + jiff::SignedDuration::from_hours(1);
    for (at, text, offset) in [(before, "old\nnew\n", 0), (between, "new\n", 4), (later, "", 8)] {
        let log = since("job", at).await;
        assert_eq!((log.text.as_str(), log.header("mayfly-log-offset")), (text, offset.to_string().as_str()), "{at}");
    }
    assert_eq!(since("boot", before).await.text, "");
    for query in [
        "source=console&since=2026-01-01T00:00:00Z",
        "source=job&since=today",
        "source=job&since=2026-01-01T00:00:00Z&offset=1",
    ] {
        let problem = api.get(&format!("/vms/{id}/logs?{query}"), &api.read).await.problem(400, "request.invalid");
        assert_eq!(super::pointer(&problem), "query:since", "{query}");
    }
}

#[tokio::test]
async fn a_followed_log_ends_with_its_vm() {
    let api = api().await;
    let (id, token) = api.running("one").await;
    let path = format!("/vms/{id}/logs?source=job&follow=true");
    // Before there is any file.
    let response = api.request(Method::GET, &path, &api.read).send().await.unwrap();
    let mut chunks = response.bytes_stream();
    say(&api, id, &token, "one\n").await;
    let mut text = String::new();
    while text != "one\n" {
        text.push_str(std::str::from_utf8(&chunks.next().await.unwrap().unwrap()).unwrap());
    }
    say(&api, id, &token, "two\n").await;
    api.finish(id).await;
    while let Some(chunk) = chunks.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    assert_eq!(text, "one\ntwo\n");
}

#[tokio::test]
async fn a_shutdown_ends_a_followed_log() {
    let mut api = api().await;
    let (id, token) = api.running("one").await;
    say(&api, id, &token, "one\n").await;
    let path = format!("/vms/{id}/logs?source=job&follow=true");
    let mut response = api.request(Method::GET, &path, &api.read).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "one\n");
    api.stop().await;
    assert_eq!(response.chunk().await.unwrap(), None);
}
