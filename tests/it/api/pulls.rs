//! Pulls as operations: started, followed, joined, waited out, cancelled, and tested before their name moves.

use std::{path::PathBuf, time::Duration};

use mayfly::{
    domain::{
        Event, VmId,
        event::{EndProof, ReadyVia},
        runner::RunnerFact,
    },
    http,
    platform::{Clock, retry::Retry},
    reconcile::pulls::Settings,
    registry::RegistryOptions,
};
use serde_json::{Value, json};

use super::{Api, api_of, events::Stream, pointer};
use crate::support::{
    proxy::{Fault, Proxy, Rule},
    registry::Registry,
    tart_image::{Content, Encoding, TartImage},
};

/// A registry, the way to it, and a service that pulls.
pub struct Rig {
    pub registry: Registry,
    pub proxy: Proxy,
    pub api: Api,
}

/// How long failures are waited out, and the pauses between attempts.
#[derive(Clone, Copy)]
pub struct Patience {
    pub deadline: Duration,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

pub const QUICK: Patience = Patience {
    deadline: Duration::from_secs(3600),
    first_pause: Duration::from_millis(50),
    longest_pause: Duration::from_millis(200),
};

impl Rig {
    pub async fn new(patience: Patience, clock: Clock) -> Rig {
        let registry = Registry::open().await;
        let proxy = Proxy::before(&registry).start().await;
        let ca_file = registry.authority.file();
        let Patience { deadline, first_pause, longest_pause } = patience;
        let mut api = api_of(http::Settings::default(), |setup| {
            let retry =
                Retry { attempts: 1, first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(1) };
            setup.registries.pull.registry =
                RegistryOptions { ca_file: Some(ca_file), retry, ..RegistryOptions::default() };
            setup.clock = clock;
            setup.service.pulls.deadline = deadline;
            setup.reconcile.pulls = Settings { first_pause, longest_pause };
        })
        .await;
        api.pull();
        Rig { registry, proxy, api }
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("{}/ci/base:{tag}", self.proxy.address())
    }

    /// An image that differs from others by its seed.
    pub async fn push(&self, tag: &str, seed: u64) -> TartImage {
        let image = TartImage::new(&[Content::Text(seed, 1 << 16), Content::Noise(seed, 1 << 20)], Encoding::Linked);
        image.push(&self.registry, "ci/base", tag).await;
        image
    }

    /// Asks for the image as `base`, with whatever else; gives the pull.
    async fn start(&self, tag: &str, more: Value) -> Value {
        let mut body = json!({"name": "base", "image": self.reference(tag)});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.api.post("/templates", &self.api.admin, body).await.ok(202)
    }

    fn staging(&self, image: &str) -> PathBuf {
        let hex = image.strip_prefix("sha256:").unwrap();
        self.api.dir.path().join("templates/staging").join(format!("pull-{hex}"))
    }

    /// From now on the large chunk of this image stops in the middle, until the proxy is told to release it.
    fn hold(&self, image: &TartImage) {
        self.proxy.on(Rule::get(&format!("*{}", image.chunk(1).digest()), Fault::Hold { after: 300_000 }));
    }
}

fn id(pull: &Value) -> &str {
    pull["id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_followed_from_its_start_to_its_end() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let image = rig.push("v1", 1).await;
    rig.hold(&image);
    let api = &rig.api;
    let mut stream = Stream::open(api, "", None).await;
    let body = json!({"name": "base", "image": rig.reference("v1")});
    let got = api.post("/templates", &api.admin, body.clone()).await;
    let pull = got.ok(202);
    assert_eq!(got.header("location"), format!("/pulls/{}", id(&pull)));
    assert_eq!((&pull["state"], &pull["generation"], &pull["name"]), (&json!("pulling"), &json!(1), &json!("base")));
    let begun = stream.next().await.unwrap();
    assert_eq!((begun.kind.as_str(), &begun.data["template"]), ("pull_started", &json!("base")));
    assert_eq!(begun.data["pull"], pull["id"]);

    // The same request joins; it starts nothing.
    let again = api.post("/templates", &api.admin, body.clone()).await.ok(200);
    assert_eq!(again["id"], pull["id"]);

    // How far it is comes without a position, until the chunk stands still.
    let said = loop {
        let message = stream.next().await.unwrap();
        assert_eq!((message.id, message.kind.as_str()), (0, "pull_progress"), "{message:?}");
        assert_eq!((&message.data["pull"], &message.data["type"]), (&pull["id"], &json!("pull_progress")));
        if message.data["bytes_done"].as_u64().unwrap() >= 300_000 {
            break message.data;
        }
    };
    assert!(said["bytes_total"].as_u64().unwrap() > 1 << 20, "{said}");
    let now = api.get(&format!("/pulls/{}", id(&pull)), &api.read).await.ok(200);
    assert!(now["progress"]["bytes_done"].as_u64().unwrap() >= 300_000, "{now:#}");
    assert_eq!(now["progress"]["chunks_total"], 2);
    assert_eq!(now["image_digest"], image.digest());
    let (vm, _) = api.vm("between").await;

    rig.proxy.release();
    let done = api.pull_ended(id(&pull), "done").await;
    assert_eq!(done["progress"]["bytes_done"], done["progress"]["bytes_total"]);
    assert_eq!(
        (&done["error"], &done["failures"], &done["progress"]["eta_seconds"]),
        (&json!(null), &json!(0), &json!(null))
    );
    let template = api.get("/templates/base", &api.read).await.ok(200);
    assert_eq!(template["digest"], done["digest"]);

    // In their places, also for whoever comes late.
    let mut late = Stream::open(api, "", Some(begun.id)).await;
    let mut live = Vec::new();
    while live.len() < 3 {
        let message = stream.next().await.unwrap();
        if message.id > 0 {
            live.push((message.id, message.kind));
        }
    }
    let kinds: Vec<_> = live.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds, ["created", "name_moved", "pulled"]);
    for expected in &live {
        let message = late.next().await.unwrap();
        assert_eq!((message.id, &message.kind), (expected.0, &expected.1));
    }
    api.finish(vm).await;

    // It is here: a pull all the same, which has nothing to do. By its digest, not even the registry is asked.
    let pinned = format!("{}/ci/base@{}", rig.proxy.address(), image.digest());
    let asked = rig.proxy.seen().len();
    let more = api.post("/templates", &api.admin, json!({"name": "base", "image": pinned})).await.ok(202);
    let more = api.pull_ended(id(&more), "done").await;
    assert_eq!((&more["digest"], &more["progress"]["bytes_total"]), (&done["digest"], &json!(0)));
    assert_eq!(rig.proxy.seen().len(), asked);
    assert_eq!(api.happened("base").await, ["pull_started", "name_moved", "pulled", "pull_started", "pulled"]);

    let page = api.get("/pulls?limit=1", &api.read).await.ok(200);
    assert_eq!(page["items"][0]["id"], more["id"]);
    let next = page["next_cursor"].as_str().unwrap();
    let page = api.get(&format!("/pulls?limit=1&cursor={next}"), &api.read).await.ok(200);
    assert_eq!((&page["items"][0]["id"], &page["next_cursor"]), (&pull["id"], &json!(null)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_at_once_is_refused_at_once() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let api = &rig.api;
    let image = rig.reference("v1");
    for (body, status, code, at) in [
        (json!({"name": "x", "image": "nowhere"}), 400, "request.invalid", "/image"),
        (json!({"name": "X y", "image": image}), 422, "template.invalid", "/name"),
        (json!({"name": "micro", "image": image}), 409, "template.exists", "/name"),
        (json!({"name": "x", "image": image, "ssh_key": "key"}), 400, "request.invalid", "/ssh_key"),
        (json!({"name": "x", "image": image, "canary": {"command": " "}}), 400, "request.invalid", "/canary/command"),
        (
            json!({"name": "x", "image": image, "canary": {"command": "true", "timeout_seconds": 0}}),
            400,
            "request.invalid",
            "/canary/timeout_seconds",
        ),
        (json!({"name": "x", "disk": "/d", "canary": {"command": "true"}}), 400, "request.invalid", "/canary"),
    ] {
        let problem = api.post("/templates", &api.admin, body).await.problem(status, code);
        assert_eq!(pointer(&problem), at, "{problem:#}");
    }
    assert_eq!(api.get("/pulls", &api.read).await.ok(200)["items"], json!([]));
    api.post("/templates", &api.create, json!({"name": "x", "image": image})).await.problem(403, "auth.scope_missing");
    for path in ["/pulls/x", &format!("/pulls/{}", VmId::mint())] {
        api.get(path, &api.read).await.problem(404, "pull.not_found");
        api.delete(path, &api.admin).await.problem(404, "pull.not_found");
    }
    for query in ["timeout_seconds=61", "wait_generation=-1", "wait=1"] {
        api.get(&format!("/pulls/{}?{query}", VmId::mint()), &api.read).await.problem(400, "request.invalid");
    }
    for query in ["limit=0", "cursor=x"] {
        api.get(&format!("/pulls?{query}"), &api.read).await.problem(400, "request.invalid");
    }
    // What only the registry can know.
    let pull = rig.start("v1", json!({})).await;
    let failed = api.pull_ended(id(&pull), "failed").await;
    assert_eq!(failed["error"]["code"], "image.refused", "{failed:#}");
    assert_eq!(api.happened("base").await, ["pull_started", "pull_failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_out() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let image = rig.push("v1", 1).await;
    rig.proxy.on(Rule::get("*", Fault::status(503)));
    let pull = rig.start("v1", json!({})).await;
    let waits = rig.api.pull_until(id(&pull), |pull| pull["failures"].as_i64() >= Some(2)).await;
    assert_eq!((&waits["state"], &waits["error"]["code"]), (&json!("pulling"), &json!("image.unavailable")));
    assert!(waits["retry_at"].is_string() && waits["ended_at"].is_null(), "{waits:#}");
    // It comes back, and goes away in the middle of a chunk.
    rig.proxy.clear();
    rig.proxy.on(Rule::get(&format!("*{}", image.chunk(1).digest()), Fault::Cut { after: 300_000 }).nth(1..=2));
    let done = rig.api.pull_ended(id(&pull), "done").await;
    assert_eq!((&done["error"], &done["retry_at"]), (&json!(null), &json!(null)));
    assert_eq!(rig.api.happened("base").await, ["pull_started", "name_moved", "pulled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_waited_out_for_ever() {
    let rig = Rig::new(Patience { deadline: Duration::from_millis(400), ..QUICK }, Clock::system()).await;
    rig.proxy.on(Rule::get("*", Fault::status(503)));
    let pull = rig.start("v1", json!({})).await;
    let failed = rig.api.pull_ended(id(&pull), "failed").await;
    assert_eq!(failed["error"]["code"], "image.unavailable");
    assert!(failed["failures"].as_i64() >= Some(1), "{failed:#}");
    assert_eq!(rig.api.happened("base").await, ["pull_started", "pull_failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_gets_the_pause_that_it_asks_for() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    rig.push("v1", 1).await;
    rig.proxy.on(Rule::get("*/manifests/*", Fault::retry_after(429, "1800")));
    let pull = rig.start("v1", json!({})).await;
    let waits = rig.api.pull_until(id(&pull), |pull| pull["failures"].as_i64() >= Some(1)).await;
    assert_eq!((&waits["state"], &waits["error"]["code"]), (&json!("pulling"), &json!("image.unavailable")));
    let at = |field: &str| waits[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let pause = at("retry_at").duration_since(at("updated_at")).as_secs();
    assert!((1799..=1800).contains(&pause), "{waits:#}");
    assert_eq!(rig.proxy.asked("GET", "/manifests/v1").len(), 1);

    // A pause beyond the pull's deadline is its end.
    rig.proxy.clear();
    rig.proxy.on(Rule::get("*/manifests/*", Fault::retry_after(503, "86400")));
    let pull = rig.start("v2", json!({"name": "other"})).await;
    let failed = rig.api.pull_ended(id(&pull), "failed").await;
    assert_eq!(failed["error"]["code"], "image.unavailable");
    assert!(failed["error"]["detail"].as_str().unwrap().contains("a pause of 86400 s"), "{failed:#}");
}

/// A blob that is refused or absent for good ends the pull, as a manifest does.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_refused_ends_the_pull() {
    for status in [400, 403, 404, 410] {
        let rig = Rig::new(QUICK, Clock::system()).await;
        let image = rig.push("v1", 1).await;
        rig.proxy.on(Rule::get(&format!("*{}", image.chunk(1).digest()), Fault::status(status)));
        let pull = rig.start("v1", json!({})).await;
        let failed = rig.api.pull_ended(id(&pull), "failed").await;
        assert_eq!((&failed["error"]["code"], &failed["failures"]), (&json!("image.refused"), &json!(0)), "{failed:#}");
        assert!(!rig.staging(&image.digest()).exists(), "the data of a pull that cannot succeed is still there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_for_good_is_not_waited_out() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let image = rig.push("v1", 1).await;
    rig.registry.rot(&image.chunk(1).digest(), |bytes| bytes[500_000] ^= 0xff);
    let pull = rig.start("v1", json!({})).await;
    let failed = rig.api.pull_ended(id(&pull), "failed").await;
    assert_eq!((&failed["error"]["code"], &failed["failures"]), (&json!("template.invalid"), &json!(0)), "{failed:#}");
    let detail = failed["error"]["detail"].as_str().unwrap();
    assert!(detail.contains("layer 2 (the disk from byte 65536 on)"), "{detail}");
    assert_eq!(rig.api.happened("base").await, ["pull_started", "pull_failed"]);
    assert!(!rig.staging(&image.digest()).exists(), "the data of a pull that cannot succeed is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_keeps_its_data_unless_told_to_discard_it() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let image = rig.push("v1", 1).await;
    rig.hold(&image);
    let api = &rig.api;
    let held = async |pull: &Value| {
        let path = format!("/pulls/{}", id(pull));
        for _ in 0..400 {
            if api.get(&path, &api.read).await.ok(200)["progress"]["bytes_done"].as_u64() >= Some(300_000) {
                return path;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("nothing comes: {:#}", api.get(&path, &api.read).await.json());
    };
    let pull = rig.start("v1", json!({})).await;
    let path = held(&pull).await;
    api.delete(&path, &api.create).await.problem(403, "auth.scope_missing");
    let cancelled = api.delete(&path, &api.admin).await.ok(200);
    assert_eq!((&cancelled["state"], &cancelled["discarded"]), (&json!("cancelled"), &json!(false)));
    assert!(cancelled["ended_at"].is_string() && cancelled["progress"]["bytes_done"].as_u64() >= Some(300_000));
    assert!(rig.staging(&image.digest()).exists());
    // Cancelling again changes nothing; discarding is done when it is asked for.
    assert_eq!(api.delete(&path, &api.admin).await.ok(200)["generation"], cancelled["generation"]);
    let discarded = api.delete(&format!("{path}?discard=true"), &api.admin).await.ok(200);
    assert_eq!((&discarded["state"], &discarded["discarded"]), (&json!("cancelled"), &json!(true)));
    assert!(!rig.staging(&image.digest()).exists());

    // Two names for one image: what the other one needs stays.
    let one = rig.start("v1", json!({})).await;
    let one_path = held(&one).await;
    let two = rig.start("v1", json!({"name": "other"})).await;
    held(&two).await;
    api.pull_until(id(&two), |pull| pull["image_digest"].is_string()).await;
    let cancelled = api.delete(&format!("{one_path}?discard=true"), &api.admin).await.ok(200);
    assert_eq!((&cancelled["state"], &cancelled["discarded"]), (&json!("cancelled"), &json!(false)));
    rig.proxy.release();
    api.pull_ended(id(&two), "done").await;
    api.get("/templates/base", &api.read).await.problem(404, "template.not_found");
    assert_eq!(api.happened("base").await, ["pull_started", "pull_cancelled", "pull_started", "pull_cancelled"]);
    // A pull that is done has nothing to cancel.
    let done = api.delete(&format!("/pulls/{}?discard=true", id(&two)), &api.admin).await.ok(200);
    assert_eq!((&done["state"], &done["discarded"]), (&json!("done"), &json!(false)));
}

/// The vm of a test, from the queue to its end, as a guest and a hypervisor would have it.
async fn play(api: &Api, vm: VmId, exit_code: i32) {
    for event in [
        Event::SlotTaken,
        Event::Cloned,
        Event::GuestReady { via: ReadyVia::GuestAgent },
        Event::GuestConfigured,
        Event::RunnerChanged { fact: RunnerFact::JobStarted },
        Event::JobFinished { exit_code, by: mayfly::domain::GuestRole::Wrapper },
        Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) },
        Event::InstanceStopped,
        Event::InstanceAbsent,
    ] {
        api.apply(vm, event).await;
    }
}

async fn in_test(rig: &Rig, pull: &Value) -> VmId {
    let pull = rig.api.pull_until(id(pull), |pull| pull["vm_id"].is_string()).await;
    assert_eq!(pull["state"], "testing");
    pull["vm_id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_moves_when_the_test_of_the_new_version_passed() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let api = &rig.api;
    rig.push("v1", 1).await;
    let first = api.pull_ended(id(&rig.start("v1", json!({})).await), "done").await;
    rig.push("v2", 2).await;
    let canary = json!({"canary": {"command": "test -d /Applications", "timeout_seconds": 77}});

    let pull = rig.start("v2", canary.clone()).await;
    let vm = in_test(&rig, &pull).await;
    let row = api.get(&format!("/vms/{vm}"), &api.read).await.ok(200);
    assert_eq!(row["labels"]["mayfly.canary"], pull["id"]);
    assert_eq!((&row["runner"]["kind"], &row["budgets"]["lifetime_seconds"]), (&json!("command"), &json!(77)));
    let new = row["template_digest"].as_str().unwrap().to_owned();
    assert_ne!(new, first["digest"].as_str().unwrap());
    // Nobody else gets the new version yet, and nobody throws it away.
    assert_eq!(api.get("/templates/base", &api.read).await.ok(200)["digest"], first["digest"]);
    assert_eq!(api.reader.digests_in_test().await.unwrap(), std::slice::from_ref(&new));
    play(api, vm, 0).await;
    let done = api.pull_ended(id(&pull), "done").await;
    assert_eq!((&done["digest"], &done["previous_digest"]), (&json!(new), &first["digest"]));
    assert_eq!(api.get("/templates/base", &api.read).await.ok(200)["digest"], new.as_str());
    let events = api.get("/templates/base/events", &api.read).await.ok(200);
    let moved = events["items"].as_array().unwrap().iter().rfind(|e| e["type"] == "name_moved").unwrap();
    assert_eq!(
        (&moved["from"], &moved["to"], &moved["why"]),
        (&first["digest"], &json!(new), &json!("its test passed"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_stays_when_the_test_failed() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    let api = &rig.api;
    rig.push("v1", 1).await;
    let first = api.pull_ended(id(&rig.start("v1", json!({})).await), "done").await;
    rig.push("v2", 2).await;
    let canary = json!({"canary": {"command": "false"}});

    let pull = rig.start("v2", canary.clone()).await;
    let vm = in_test(&rig, &pull).await;
    play(api, vm, 3).await;
    let failed = api.pull_ended(id(&pull), "failed").await;
    assert_eq!(failed["error"]["code"], "template.canary_failed");
    assert!(failed["error"]["detail"].as_str().unwrap().contains("exit code 3"), "{failed:#}");
    assert_eq!(api.get("/templates/base", &api.read).await.ok(200)["digest"], first["digest"]);
    // The version stays, without a name, to be looked at.
    let new = failed["digest"].as_str().unwrap();
    assert_eq!(api.get(&format!("/templates/{new}"), &api.read).await.ok(200)["name"], new);
    let kinds = api.happened("base").await;
    assert_eq!(kinds[3..], ["pull_started", "canary_failed", "pull_failed"]);
    assert!(api.reader.digests_in_test().await.unwrap().is_empty());

    // Ended by somebody: a test that did not come to its end is none that passed.
    let pull = rig.start("v2", canary.clone()).await;
    let vm = in_test(&rig, &pull).await;
    api.finish(vm).await;
    assert_eq!(api.pull_ended(id(&pull), "failed").await["error"]["code"], "template.canary_failed");

    // Cancelled: its vm goes, too.
    let pull = rig.start("v2", canary).await;
    let vm = in_test(&rig, &pull).await;
    assert_eq!(api.delete(&format!("/pulls/{}", id(&pull)), &api.admin).await.ok(200)["state"], "cancelled");
    assert!(api.reader.vm(vm).await.unwrap().unwrap().outcome.is_some());
    assert_eq!(api.get("/templates/base", &api.read).await.ok(200)["digest"], first["digest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_is_gone_on_with_after_a_restart() {
    let mut rig = Rig::new(QUICK, Clock::system()).await;
    rig.push("v1", 1).await;
    let pull = rig.start("v1", json!({"canary": {"command": "true"}})).await;
    let vm = in_test(&rig, &pull).await;
    // Whoever drove it is gone; its vm ends meanwhile.
    rig.api.shutdown.cancel();
    rig.api.stop().await;
    play(&rig.api, vm, 0).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let driving = tokio::spawn(rig.api.pull_loops().run(shutdown.clone()));
    let id = id(&pull).parse().unwrap();
    let done = loop {
        let pull = rig.api.services.pulls.wait(id, None, Duration::from_secs(1)).await.unwrap();
        if pull.state.is_ended() {
            break pull;
        }
    };
    assert_eq!((done.state.as_str(), done.vm), ("done", Some(vm)));
    assert_eq!(rig.api.services.templates.get("base").await.unwrap().digest, done.digest.unwrap());
    assert_eq!(rig.api.reader.live_vms().await.unwrap(), vec![]);
    shutdown.cancel();
    driving.await.unwrap();
}

/// Whether a pull can ever succeed decides whether its data stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_pull_goes_with_a_final_verdict_and_stays_for_one_that_may_pass() {
    let rig = Rig::new(QUICK, Clock::system()).await;
    // Cancelled: the next pull of the image continues it.
    let image = rig.push("v1", 1).await;
    rig.hold(&image);
    let pull = rig.start("v1", json!({})).await;
    rig.proxy.until("the large chunk is held", |all| all.iter().any(|seen| seen.sent == 300_000)).await;
    rig.api.delete(&format!("/pulls/{}", id(&pull)), &rig.api.admin).await.ok(200);
    assert!(rig.staging(&image.digest()).exists());
    rig.proxy.clear();

    // The registry serves other bytes than its manifest promises: no attempt will change that.
    let wrong = image.chunk(1).digest();
    rig.registry.rot(&wrong, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let pull = rig.start("v1", json!({})).await;
    let failed = rig.api.pull_ended(id(&pull), "failed").await;
    assert_eq!(failed["error"]["code"], "template.invalid", "{failed:#}");
    assert!(!rig.staging(&image.digest()).exists(), "the data of a pull that cannot succeed is still there");
}
