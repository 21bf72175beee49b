//! A template that follows a tag.

use std::time::Duration;

use jiff::Timestamp;
use mayfly::platform::Clock;
use serde_json::{Value, json};

use super::{
    pointer,
    pulls::{QUICK, Rig},
};
use crate::support::proxy::{Fault, Rule};

impl Rig {
    /// The watch of `base` once it is so.
    async fn watch_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..600 {
            let watch = self.api.get("/templates/base/watch", &self.api.read).await.ok(200);
            if is_so(&watch) {
                return watch;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {:#}", self.api.get("/templates/base/watch", &self.api.read).await.json());
    }

    async fn looked_since(&self, before: &Value) -> Value {
        self.watch_until("it does not look", |watch| watch["looked_at"] != before["looked_at"]).await
    }
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

fn clock() -> Clock {
    Clock::manual("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_takes_the_name_along() {
    let clock = clock();
    let rig = Rig::new(QUICK, clock.clone()).await;
    let api = &rig.api;
    let image = rig.push("latest", 1).await;
    let body = json!({"image": rig.reference("latest"), "every_seconds": 600});
    let watch = api.put("/templates/base/watch", &api.admin, body.clone()).await.ok(200);
    assert_eq!((&watch["template"], &watch["looked_at"]), (&json!("base"), &json!(null)));

    // There is no such template yet: it is pulled.
    let first = rig.watch_until("nothing is pulled", |watch| watch["pull"].is_string()).await;
    assert_eq!(first["image_digest"], image.digest());
    let pull = api.pull_ended(first["pull"].as_str().unwrap(), "done").await;
    assert_eq!((&pull["background"], &pull["name"]), (&json!(true), &json!("base")));

    // About as often as was asked for; and nothing comes of a tag that stays.
    let (looked, next) = (time(&first["looked_at"]), time(&first["next_look_at"]));
    assert!((540..=660).contains(&next.duration_since(looked).as_secs()), "{first:#}");
    clock.advance(Duration::from_secs(661));
    let second = rig.looked_since(&first).await;
    assert_eq!(second["pull"], first["pull"]);

    // The new version is like the one before it, with what was said by hand then.
    let password = api.dir.path().join("password");
    std::fs::write(&password, "admin\n").unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let by_hand = json!({"name": "base", "image": rig.reference("latest"), "handover": "ssh",
        "ssh_password_file": password, "cpus": 3});
    let by_hand = api.post("/templates", &api.admin, by_hand).await.ok(202);
    api.pull_ended(by_hand["id"].as_str().unwrap(), "done").await;
    let image = rig.push("latest", 2).await;
    clock.advance(Duration::from_secs(661));
    let third = rig.watch_until("the tag's move is not seen", |watch| watch["pull"] != first["pull"]).await;
    assert_eq!(third["image_digest"], image.digest());
    let pull = api.pull_ended(third["pull"].as_str().unwrap(), "done").await;
    let template = api.get("/templates/base", &api.read).await.ok(200);
    assert_eq!(template["digest"], pull["digest"]);
    assert_eq!(
        (&template["handover"], &template["ssh_password"], &template["cpus"]),
        (&json!("ssh"), &json!(true), &json!(3))
    );
    let happened = api.happened("base").await;
    for (kind, times) in [("watch_set", 1), ("pull_started", 3), ("tag_moved", 2), ("name_moved", 3), ("pulled", 3)] {
        assert_eq!(happened.iter().filter(|k| *k == kind).count(), times, "{kind}: {happened:?}");
    }

    api.delete("/templates/base/watch", &api.admin).await.ok(204);
    api.get("/templates/base/watch", &api.read).await.problem(404, "watch.not_found");
    api.delete("/templates/base/watch", &api.admin).await.problem(404, "watch.not_found");

    // Whoever deletes a template does not want it back.
    api.put("/templates/base/watch", &api.admin, body).await.ok(200);
    api.delete("/templates/base", &api.admin).await.ok(204);
    api.get("/templates/base/watch", &api.read).await.problem(404, "watch.not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_one_event_and_asked_less_often() {
    let clock = clock();
    let rig = Rig::new(QUICK, clock.clone()).await;
    let api = &rig.api;
    rig.push("latest", 1).await;
    rig.proxy.on(Rule::get("*", Fault::status(503)));
    let body = json!({"image": rig.reference("latest"), "every_seconds": 600});
    api.put("/templates/base/watch", &api.admin, body).await.ok(200);
    let mut watch = rig.watch_until("no failure", |watch| watch["failures"] == 1).await;
    assert_eq!(watch["error"]["code"], "image.unavailable");
    clock.advance(Duration::from_secs(2 * 661));
    watch = rig.looked_since(&watch).await;
    assert_eq!(watch["failures"], 2);
    let (looked, due) = (time(&watch["looked_at"]), time(&watch["next_look_at"]));
    assert!((4 * 540..=4 * 660).contains(&due.duration_since(looked).as_secs()), "{watch:#}");
    assert_eq!(api.happened("base").await, ["watch_set", "watch_failed"]);
    rig.proxy.clear();
    clock.advance(Duration::from_secs(4 * 661));
    watch = rig.watch_until("it does not recover", |watch| watch["pull"].is_string()).await;
    assert_eq!((&watch["failures"], &watch["error"]), (&json!(0), &json!(null)));
    api.pull_ended(watch["pull"].as_str().unwrap(), "done").await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let rig = Rig::new(QUICK, clock()).await;
    let api = &rig.api;
    let image = rig.reference("latest");
    let pinned = format!("{}/ci/base@sha256:{}", rig.proxy.address(), "0".repeat(64));
    for (name, body, status, code, at) in [
        ("base", json!({"image": pinned}), 400, "request.invalid", "/image"),
        ("base", json!({"image": "x"}), 400, "request.invalid", "/image"),
        ("base", json!({}), 400, "request.invalid", "/image"),
        ("base", json!({"image": image, "every_seconds": 59}), 400, "request.invalid", "/every_seconds"),
        ("base", json!({"image": image, "every": 60}), 400, "request.invalid", "/every"),
        ("base", json!({"image": image, "canary": {"command": ""}}), 400, "request.invalid", "/canary/command"),
        ("A b", json!({"image": image}), 422, "template.invalid", "/name"),
        // A template of something else.
        ("micro", json!({"image": image}), 409, "template.exists", "/name"),
    ] {
        let path = format!("/templates/{}/watch", name.replace(' ', "%20"));
        let problem = api.put(&path, &api.admin, body).await.problem(status, code);
        assert_eq!(pointer(&problem), at, "{problem:#}");
    }
    api.put("/templates/base/watch", &api.create, json!({"image": image})).await.problem(403, "auth.scope_missing");
}
