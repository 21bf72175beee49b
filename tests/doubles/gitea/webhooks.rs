//! Webhooks: what is sent where, signed, recorded, and, if a test wants it, lost, doubled, delayed or shuffled.
//!
//! The real one sends each delivery once, one after the other, and never again whatever the answer was.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    Double,
    world::{Scope, World},
};

const EVENT: &str = "workflow_job";

pub struct Hook {
    pub id: u64,
    pub scope: Scope,
    pub url: String,
    pub secret: String,
    pub faults: HookFaults,
    late: Vec<(Timestamp, Sent)>,
    held: Vec<Sent>,
    due: Vec<Sent>,
}

/// What the next deliveries meet on their way. The real one does none of this by itself; networks and proxies do.
#[derive(Clone, Default)]
pub struct HookFaults {
    /// So many are never sent.
    pub drop: u32,
    /// So many are sent twice.
    pub duplicate: u32,
    pub wrong_signature: u32,
    /// Held back until there are so many, and then sent in any order.
    pub shuffle: usize,
    /// Held back until this is false again.
    pub hold: bool,
    /// Actions that are not sent.
    pub mute: Vec<String>,
    /// Of a hundred deliveries, how many are never sent, and how many are sent twice.
    pub lose_percent: u32,
    pub double_percent: u32,
    /// Each is sent some time from now until then, so that they overtake each other.
    pub delay_seconds: u32,
}

#[derive(Clone)]
pub struct Sent {
    pub delivery: usize,
    uuid: String,
    url: String,
    body: String,
    /// Hexadecimal; empty without a secret.
    sha1: String,
    sha256: String,
    target: &'static str,
}

impl Hook {
    pub fn new(id: u64, scope: Scope, url: &str, secret: &str) -> Hook {
        let (url, secret) = (url.to_owned(), secret.to_owned());
        Hook {
            id,
            scope,
            url,
            secret,
            faults: HookFaults::default(),
            late: Vec::new(),
            held: Vec::new(),
            due: Vec::new(),
        }
    }

    /// What was held back goes out, unless it still has a reason to wait.
    pub fn let_go(&mut self) {
        if !self.faults.hold && self.faults.shuffle == 0 {
            self.due.append(&mut self.held);
        }
    }

    fn target(&self) -> &'static str {
        match self.scope {
            Scope::System => "system",
            Scope::Organization(_) => "organization",
            Scope::User(_) => "user",
            Scope::Repository(_) => "repository",
        }
    }
}

fn signed(algorithm: hmac::Algorithm, secret: &str, body: &str) -> String {
    if secret.is_empty() {
        return String::new();
    }
    hex::encode(hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), body.as_bytes()))
}

/// A hook at each level gets a delivery of its own.
pub fn tell(world: &mut World, repository: &str, action: &str, payload: &Value) {
    let repository = &world.repositories[repository];
    let hears = |hook: &&Hook| hook.scope.covers(repository) && !hook.faults.mute.iter().any(|muted| muted == action);
    let hooks: Vec<u64> = world.hooks.iter().filter(hears).map(|hook| hook.id).collect();
    for hook in hooks {
        deliver(world, hook, action, payload);
    }
}

fn deliver(world: &mut World, hook: u64, action: &str, payload: &Value) {
    let (delivery, now) = (world.deliveries.len(), world.now());
    let luck = (world.draw(100), world.draw(100), world.draw(1000));
    let shuffled = world.hooks.iter().find(|h| h.id == hook).map_or(0, |h| h.faults.shuffle);
    let order: Vec<usize> = (0..shuffled).rev().map(|n| world.draw(n + 1)).collect();
    let Some(hook) = world.hooks.iter_mut().find(|h| h.id == hook) else { return };
    // Indented, as the real one writes it.
    let body = serde_json::to_string_pretty(payload).expect("a payload is JSON");
    let mut secret = hook.secret.clone();
    if hook.faults.wrong_signature > 0 {
        hook.faults.wrong_signature -= 1;
        secret.push_str(" of another server");
    }
    let sent = Sent {
        delivery,
        uuid: uuid::Uuid::new_v4().to_string(),
        url: hook.url.clone(),
        sha1: signed(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &secret, &body),
        sha256: signed(hmac::HMAC_SHA256, &secret, &body),
        body,
        target: hook.target(),
    };
    let record = json!({
        "hook": hook.id, "target": sent.target, "uuid": sent.uuid, "action": action, "job": payload["workflow_job"]["id"],
        "run_attempt": payload["workflow_job"]["run_attempt"], "at": now, "attempts": 0, "status": null,
    });
    let below = |luck: usize, percent: u32| luck < percent as usize;
    let faults = &mut hook.faults;
    if faults.drop > 0 || below(luck.0, faults.lose_percent) {
        faults.drop = faults.drop.saturating_sub(1);
    } else if faults.delay_seconds > 0 {
        let delay = i64::from(faults.delay_seconds) * luck.2 as i64;
        hook.late.push((now + SignedDuration::from_millis(delay), sent));
    } else if faults.hold {
        hook.held.push(sent);
    } else if faults.shuffle > 0 {
        hook.held.push(sent);
        if hook.held.len() >= shuffled {
            let mut held = std::mem::take(&mut hook.held);
            hook.due.extend(order.into_iter().map(|n| held.swap_remove(n.min(held.len() - 1))));
        }
    } else {
        if faults.duplicate > 0 || below(luck.1, faults.double_percent) {
            faults.duplicate = faults.duplicate.saturating_sub(1);
            hook.due.push(sent.clone());
        }
        hook.due.push(sent);
    }
    world.deliveries.push(record);
}

/// Passes on what is to be sent now.
pub fn hand_over(world: &mut World, outbox: &mpsc::UnboundedSender<Sent>) {
    let now = world.now();
    for hook in &mut world.hooks {
        let (mut ripe, late): (Vec<_>, Vec<_>) = std::mem::take(&mut hook.late).into_iter().partition(|l| l.0 <= now);
        ripe.sort_by_key(|(at, _)| *at);
        hook.due.extend(ripe.into_iter().map(|(_, sent)| sent));
        hook.late = late;
        for sent in hook.due.drain(..) {
            // It can only be refused when the program ends.
            let _ = outbox.send(sent);
        }
    }
}

pub async fn send(double: Arc<Double>, mut to_send: mpsc::UnboundedReceiver<Sent>) {
    let http =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    while let Some(sent) = to_send.recv().await {
        let seconds = double.world.lock().expect("no code panics with it").knobs.deliver_seconds;
        let code = post(&http, &sent, Duration::from_secs(seconds)).await;
        let mut world = double.world.lock().expect("no code panics with it");
        let record = &mut world.deliveries[sent.delivery];
        record["attempts"] = json!(record["attempts"].as_u64().unwrap_or(0) + 1);
        record["status"] = json!(code);
    }
}

/// The status of the answer; 0 if there was none.
async fn post(http: &reqwest::Client, sent: &Sent, patience: Duration) -> u16 {
    let mut request = http.post(&sent.url).timeout(patience).header("content-type", "application/json");
    for family in ["x-gitea", "x-gogs", "x-github"] {
        request = request
            .header(format!("{family}-delivery"), &sent.uuid)
            .header(format!("{family}-event"), EVENT)
            .header(format!("{family}-event-type"), EVENT);
    }
    request
        .header("x-gitea-signature", &sent.sha256)
        .header("x-gogs-signature", &sent.sha256)
        .header("x-hub-signature", format!("sha1={}", sent.sha1))
        .header("x-hub-signature-256", format!("sha256={}", sent.sha256))
        .header("x-gitea-hook-installation-target-type", sent.target)
        .header("x-github-hook-installation-target-type", sent.target)
        .header("user-agent", "Go-http-client/1.1")
        .body(sent.body.clone())
        .send()
        .await
        .map_or(0, |answer| answer.status().as_u16())
}
