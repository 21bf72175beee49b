use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures_util::StreamExt;
use mayfly::domain::VmId;
use reqwest::Method;
use serde_json::json;

use super::{Api, api};

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
