use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use mayfly::domain::{Event, TemplateEvent, VmId, queue::QueueReason};
use reqwest::Method;
use serde_json::Value;

use super::{Api, Got, api};

/// One message of the stream.
#[derive(Debug)]
pub struct Message {
    /// 0: it has none.
    pub id: i64,
    pub kind: String,
    pub data: Value,
}

pub struct Stream {
    bytes: futures_util::stream::BoxStream<'static, Vec<u8>>,
    buffer: String,
}

impl Stream {
    pub async fn open(api: &Api, query: &str, resume: Option<i64>) -> Stream {
        let mut request = api.request(Method::GET, &format!("/events{query}"), &api.read);
        if let Some(id) = resume {
            request = request.header("Last-Event-ID", id.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let bytes = response.bytes_stream().map(|chunk| chunk.map(|b| b.to_vec()).unwrap_or_default()).boxed();
        Stream { bytes, buffer: String::new() }
    }

    /// The next event; `None` when the stream is over.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let fields: BTreeMap<_, _> = block.lines().filter_map(|line| line.split_once(": ")).collect();
                let message = fields.get("data").map(|data| Message {
                    id: fields.get("id").map_or(0, |id| id.parse().unwrap()),
                    kind: fields["event"].to_owned(),
                    data: serde_json::from_str(data).unwrap(),
                });
                self.buffer = rest.to_owned();
                match message {
                    Some(message) => return Some(message),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.bytes.next()).await.expect("no event came");
            self.buffer.push_str(std::str::from_utf8(&chunk?).unwrap());
        }
    }
}

/// Back and forth between two reasons: as many events as one likes.
async fn stir(api: &Api, id: VmId, times: usize) {
    for n in 0..times {
        let reason = if n % 2 == 0 { QueueReason::Host } else { QueueReason::Slot };
        api.apply(id, Event::QueueReasonChanged { reason }).await;
    }
}

#[tokio::test]
async fn the_stream_tells_what_happens_from_now_on() {
    let api = api().await;
    let (before, _) = api.vm("before").await;
    let mut stream = Stream::open(&api, "", None).await;
    let (id, _) = api.vm("after").await;
    let first = stream.next().await.unwrap();
    assert_eq!((first.kind.as_str(), first.data["vm_id"].as_str()), ("created", Some(id.to_string().as_str())));
    assert_eq!(first.data["vm_name"], "after");
    assert_eq!(first.data["seq"], first.id);
    assert_eq!(first.data["type"], "created");
    assert_eq!(first.data["state"], "queued");
    assert_eq!(first.data["draft"]["template"], "micro");
    api.apply(before, Event::SlotTaken).await;
    let second = stream.next().await.unwrap();
    assert_eq!((second.kind.as_str(), second.data["vm_name"].as_str()), ("slot_taken", Some("before")));
    assert_eq!(second.id, first.id + 1);
    assert_eq!(second.data["generation"], 2);
}

#[tokio::test]
async fn a_resumed_stream_loses_and_repeats_nothing() {
    let api = api().await;
    let (id, _) = api.vm("busy").await;
    let writer = {
        let ledger = api.ledger.clone();
        let services = api.services.clone();
        tokio::spawn(async move {
            for n in 0..1500 {
                let reason = if n % 2 == 0 { QueueReason::Host } else { QueueReason::Slot };
                let event = Event::QueueReasonChanged { reason };
                ledger.apply(id, mayfly::store::Expect::Anything, event, services.hosts.now()).await.unwrap();
            }
        })
    };
    // Cut every so often, and taken up again at the last event seen, while the writer goes on.
    let mut seen = Vec::new();
    let mut last = 0;
    while seen.len() < 1501 {
        let mut stream = Stream::open(&api, "", Some(last)).await;
        for _ in 0..97.min(1501 - seen.len()) {
            let message = stream.next().await.unwrap();
            last = message.id;
            seen.push(message.data["generation"].as_i64().unwrap());
        }
    }
    writer.await.unwrap();
    assert_eq!(seen, (1..=1501).collect::<Vec<_>>());
}

/// Something that happened to a template; its digest tells which one it was.
async fn note(api: &Api, template: &str, n: usize) -> i64 {
    let event = TemplateEvent::Registered { digest: n.to_string() };
    api.ledger.record_template(template, event, api.services.hosts.now()).await.unwrap()
}

#[tokio::test]
async fn templates_events_are_in_the_stream_in_their_place() {
    let api = api().await;
    let mut stream = Stream::open(&api, "", None).await;
    let (id, _) = api.vm("one").await;
    let mut alone = Stream::open(&api, &format!("?after=0&vm_id={id}"), None).await;
    let seq = note(&api, "micro", 7).await;
    api.apply(id, Event::SlotTaken).await;
    assert_eq!(stream.next().await.unwrap().kind, "created");
    let message = stream.next().await.unwrap();
    assert_eq!((message.id, message.kind.as_str()), (seq, "registered"));
    assert_eq!(message.data["template"], "micro");
    assert_eq!(message.data["digest"], "7");
    assert_eq!(message.data["type"], "registered");
    for of_vms in ["vm_id", "vm_name", "generation", "state"] {
        assert!(message.data.get(of_vms).is_none(), "{of_vms}: {}", message.data);
    }
    assert_eq!(stream.next().await.unwrap().kind, "slot_taken");
    // Whoever asks for a vm gets that vm.
    assert_eq!(alone.next().await.unwrap().kind, "created");
    assert_eq!(alone.next().await.unwrap().kind, "slot_taken");
}

#[tokio::test]
async fn a_stream_of_both_resumes_without_loss_or_repetition() {
    let api = api().await;
    let (id, _) = api.vm("busy").await;
    let writer = {
        let (ledger, services) = (api.ledger.clone(), api.services.clone());
        tokio::spawn(async move {
            let mut made = Vec::new();
            for n in 0..900 {
                if n % 3 == 0 {
                    let event = TemplateEvent::Registered { digest: n.to_string() };
                    made.push(ledger.record_template("micro", event, services.hosts.now()).await.unwrap());
                } else {
                    let reason = if n % 3 == 1 { QueueReason::Host } else { QueueReason::Slot };
                    let event = Event::QueueReasonChanged { reason };
                    ledger.apply(id, mayfly::store::Expect::Anything, event, services.hosts.now()).await.unwrap();
                }
            }
            made
        })
    };
    let (mut seen, mut of_templates, mut last) = (Vec::new(), Vec::new(), 0);
    while seen.len() < 901 {
        let mut stream = Stream::open(&api, "", Some(last)).await;
        for _ in 0..61.min(901 - seen.len()) {
            let message = stream.next().await.unwrap();
            last = message.id;
            seen.push(message.id);
            if message.data.get("template").is_some() {
                of_templates.push(message.id);
            }
        }
    }
    assert_eq!(seen, (1..=901).collect::<Vec<_>>());
    assert_eq!(of_templates, writer.await.unwrap());
}

#[tokio::test]
async fn a_templates_own_log_is_a_list() {
    let api = api().await;
    let digest = api.get("/templates/micro", &api.read).await.ok(200)["digest"].as_str().unwrap().to_owned();
    for n in 0..3 {
        note(&api, "micro", n).await;
    }
    note(&api, &digest, 3).await;
    note(&api, "other", 4).await;
    let of = async |path: &str| -> Vec<String> {
        let list = api.get(path, &api.read).await.ok(200);
        list["items"].as_array().unwrap().iter().map(|e| e["digest"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("/templates/micro/events").await, ["0", "1", "2", "3"]);
    assert_eq!(of(&format!("/templates/{digest}/events")).await, ["3"]);
    // It is not here any more, or never came to be; what happened to it is.
    assert_eq!(of("/templates/other/events").await, ["4"]);
    let page = api.get("/templates/micro/events?limit=3", &api.read).await.ok(200);
    let after = page["next_after"].as_i64().unwrap();
    assert_eq!(of(&format!("/templates/micro/events?after={after}")).await, ["3"]);
    assert_eq!(of(&format!("/templates/other/events?after={}", after + 100)).await, Vec::<String>::new());
    api.get("/templates/never/events", &api.read).await.problem(404, "template.not_found");
    api.get("/templates/micro/events?limit=0", &api.read).await.problem(400, "request.invalid");
}

#[tokio::test]
async fn registering_and_deleting_are_events() {
    let api = api().await;
    let disk = super::disk(&api.dir, "other.raw", 9);
    let body = serde_json::json!({"name": "made", "driver": "fake", "disk": disk});
    for status in [201, 200] {
        api.post("/templates", &api.admin, body.clone()).await.ok(status);
    }
    api.delete("/templates/made", &api.admin).await.ok(204);
    let list = api.get("/templates/made/events", &api.read).await.ok(200);
    let kinds: Vec<_> = list["items"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["registered", "deleted"]);
}

#[tokio::test]
async fn a_listener_that_falls_behind_reads_the_database() {
    let api = api().await;
    let (id, _) = api.vm("busy").await;
    let mut stream = Stream::open(&api, "?after=0", None).await;
    assert_eq!(stream.next().await.unwrap().kind, "created");
    // More than the bell remembers, and more than the connection buffers, while nobody reads.
    stir(&api, id, 4000).await;
    for generation in 2..=4001 {
        assert_eq!(stream.next().await.unwrap().data["generation"], generation);
    }
}

#[tokio::test]
async fn many_writers_at_once_come_out_in_order() {
    let api = api().await;
    let mut stream = Stream::open(&api, "", None).await;
    let names: Vec<_> = (0..60).map(|n| format!("v{n}")).collect();
    futures_util::future::join_all(names.iter().map(|name| api.vm(name))).await;
    let mut last = 0;
    for _ in 0..60 {
        let message = stream.next().await.unwrap();
        assert!(message.id > last, "{} after {last}", message.id);
        last = message.id;
    }
    assert_eq!(last, 60);
}

#[tokio::test]
async fn one_vm_alone() {
    let api = api().await;
    let (noise, _) = api.vm("noise").await;
    let (id, _) = api.vm("asked-for").await;
    let mut stream = Stream::open(&api, &format!("?after=0&vm_id={id}"), None).await;
    assert_eq!(stream.next().await.unwrap().kind, "created");
    stir(&api, noise, 300).await;
    api.apply(id, Event::SlotTaken).await;
    stir(&api, noise, 3).await;
    api.apply(id, Event::Cloned).await;
    for kind in ["slot_taken", "cloned"] {
        let message = stream.next().await.unwrap();
        assert_eq!((message.kind.as_str(), message.data["vm_name"].as_str()), (kind, Some("asked-for")));
    }
}

#[tokio::test]
async fn a_shutdown_ends_streams_at_once() {
    let mut api = api().await;
    api.vm("one").await;
    let mut stream = Stream::open(&api, "?after=0", None).await;
    assert!(stream.next().await.is_some());
    api.stop().await;
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_bad_position_is_refused_and_one_from_the_future_waits_for_now() {
    let api = api().await;
    for query in ["?after=-1", "?after=x", "?vm_id=x", "?since=1"] {
        api.get(&format!("/events{query}"), &api.read).await.problem(400, "request.invalid");
    }
    let request = api.request(Method::GET, "/events", &api.read).header("Last-Event-ID", "yesterday");
    Got::of(request.send().await.unwrap()).await.problem(400, "request.invalid");
    let mut stream = Stream::open(&api, "", Some(1_000_000)).await;
    api.vm("one").await;
    assert_eq!(stream.next().await.unwrap().kind, "created");
}

#[tokio::test]
async fn a_vms_own_log_is_a_list() {
    let api = api().await;
    let (id, _) = api.vm("one").await;
    stir(&api, id, 5).await;
    let path = format!("/vms/{id}/events");
    let all = api.get(&path, &api.read).await.ok(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 6);
    assert_eq!(all["items"][1]["reason"], "host");
    assert_eq!(all["next_after"], Value::Null);
    let page = api.get(&format!("{path}?limit=2"), &api.read).await.ok(200);
    let after = page["next_after"].as_i64().unwrap();
    let rest = api.get(&format!("{path}?after={after}&limit=200"), &api.read).await.ok(200);
    assert_eq!(rest["items"].as_array().unwrap().len(), 4);
    api.get(&format!("{path}?limit=0"), &api.read).await.problem(400, "request.invalid");
    api.get(&format!("/vms/{}/events", VmId::mint()), &api.read).await.problem(404, "vm.not_found");
}
