//! Webhooks: what is sent where, signed, recorded, and sometimes lost, doubled or shuffled.

use std::sync::Arc;

use aws_lc_rs::hmac;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{Double, api::ApiRequest, reply::Reply, world::World};

pub struct Hook {
    pub id: u64,
    pub url: String,
    pub secret: String,
    /// Deliveries of which the next ones are never sent.
    pub drop: u32,
    pub duplicate: u32,
    pub wrong_signature: u32,
    /// Held back until there are so many, and then sent in any order.
    pub shuffle: usize,
    /// Held back until this is false again.
    pub hold: bool,
    /// Actions that nobody hears of.
    pub mute: Vec<String>,
    /// Of a hundred deliveries, how many are never sent, and how many are sent twice.
    pub lose_percent: u32,
    pub double_percent: u32,
    /// Each is sent some time from now until then, so that they overtake each other.
    pub delay_seconds: u32,
    pub late: Vec<(Timestamp, Sent)>,
    pub held: Vec<Sent>,
    pub due: Vec<Sent>,
}

#[derive(Clone)]
pub struct Sent {
    pub delivery: u64,
    pub hook: u64,
    pub guid: String,
    pub url: String,
    pub event: String,
    pub body: String,
    pub signature: String,
}

fn signature(secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

/// Something happened that every hook hears of.
pub fn tell(world: &mut World, event: &str, action: &str, payload: &Value) {
    let hears = |hook: &&Hook| !hook.mute.iter().any(|mute| mute == action);
    let hooks: Vec<u64> = world.hooks.iter().filter(hears).map(|hook| hook.id).collect();
    for hook in hooks {
        let guid = uuid::Uuid::new_v4().to_string();
        deliver(world, hook, &guid, event, action, payload, false);
    }
}

fn deliver(world: &mut World, hook: u64, guid: &str, event: &str, action: &str, payload: &Value, redelivery: bool) {
    let (delivery, at) = (world.id(), world.now());
    let count = world.hooks.iter().find(|h| h.id == hook).map_or(0, |h| h.shuffle);
    let order: Vec<usize> = (0..count).rev().map(|n| world.draw(n + 1)).collect();
    let luck = (world.draw(100), world.draw(100), world.draw(1000));
    let Some(hook) = world.hooks.iter_mut().find(|h| h.id == hook) else { return };
    let body = payload.to_string();
    let mut sent = Sent {
        delivery,
        hook: hook.id,
        guid: guid.to_owned(),
        url: hook.url.clone(),
        event: event.to_owned(),
        signature: signature(&hook.secret, body.as_bytes()),
        body,
    };
    if hook.wrong_signature > 0 {
        hook.wrong_signature -= 1;
        sent.signature = signature("somebody else's", sent.body.as_bytes());
    }
    let below = |luck: usize, percent: u32| luck < percent as usize;
    let dropped = hook.drop > 0 || below(luck.0, hook.lose_percent);
    if dropped {
        hook.drop = hook.drop.saturating_sub(1);
    } else if hook.delay_seconds > 0 {
        let delay = i64::from(hook.delay_seconds) * luck.2 as i64;
        hook.late.push((at + SignedDuration::from_millis(delay), sent));
    } else if hook.hold {
        hook.held.push(sent);
    } else if hook.shuffle > 0 {
        hook.held.push(sent);
        if hook.held.len() >= hook.shuffle {
            let mut held = std::mem::take(&mut hook.held);
            hook.due.extend(order.into_iter().map(|n| held.swap_remove(n.min(held.len() - 1))));
        }
    } else {
        if hook.duplicate > 0 || below(luck.1, hook.double_percent) {
            hook.duplicate = hook.duplicate.saturating_sub(1);
            hook.due.push(sent.clone());
        }
        hook.due.push(sent);
    }
    let (status, code) = if dropped { ("failed to connect to host", 0) } else { ("pending", 0) };
    world.payloads.insert(delivery, payload.clone());
    world.deliveries.push(json!({
        "id": delivery, "guid": guid, "delivered_at": at, "redelivery": redelivery, "duration": 0.03, "status": status,
        "status_code": code, "event": event, "action": action, "installation_id": payload["installation"]["id"],
        "repository_id": payload["repository"]["id"],
    }));
}

/// As a new hook hears first.
pub fn ping(world: &mut World, id: u64) {
    let payload = json!({
        "zen": "Keep it logically awesome.", "hook_id": id, "sender": {"login": "dev", "id": 6},
        "hook": {
            "type": "App", "id": id, "name": "web", "active": true, "events": ["workflow_job"],
            "config": {"content_type": "json", "insecure_ssl": "0", "secret": "********"},
        },
    });
    deliver(world, id, &uuid::Uuid::new_v4().to_string(), "ping", "", &payload, false);
}

/// What is to be sent now.
pub fn due(world: &mut World) -> Vec<Sent> {
    let now = world.now();
    for hook in &mut world.hooks {
        let (mut ripe, late): (Vec<_>, Vec<_>) = std::mem::take(&mut hook.late).into_iter().partition(|l| l.0 <= now);
        ripe.sort_by_key(|(at, _)| *at);
        hook.due.extend(ripe.into_iter().map(|(_, sent)| sent));
        hook.late = late;
    }
    world.hooks.iter_mut().flat_map(|hook| std::mem::take(&mut hook.due)).collect()
}

/// One after the other, so that the order is the one that was decided on.
pub fn send(double: &Arc<Double>, sends: Vec<Sent>) {
    if sends.is_empty() {
        return;
    }
    let double = double.clone();
    tokio::spawn(async move {
        for sent in sends {
            let answer = double
                .http
                .post(&sent.url)
                .header("user-agent", "GitHub-Hookshot/d0ub1e")
                .header("content-type", "application/json")
                .header("x-github-event", &sent.event)
                .header("x-github-delivery", &sent.guid)
                .header("x-github-hook-id", sent.hook.to_string())
                .header("x-github-hook-installation-target-type", "integration")
                .header("x-github-hook-installation-target-id", "1")
                .header("x-hub-signature-256", &sent.signature)
                .body(sent.body.clone())
                .send()
                .await;
            let code = answer.map_or(0, |a| a.status().as_u16());
            let mut world = double.world.lock().expect("no code panics with it");
            if let Some(record) = world.deliveries.iter_mut().find(|d| d["id"] == sent.delivery) {
                record["status_code"] = json!(code);
                record["status"] = json!(if (200..300).contains(&code) { "OK" } else { "failed" });
            }
        }
    });
}

fn kept(world: &World) -> impl Iterator<Item = &Value> {
    // Three days, and no longer.
    let oldest = world.now() - SignedDuration::from_hours(72);
    let young = move |d: &&Value| {
        d["delivered_at"].as_str().and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t >= oldest)
    };
    world.deliveries.iter().rev().filter(young)
}

/// Newest first, by cursor: this list has no numbers of pages.
pub fn list(world: &World, asked: &ApiRequest) -> Reply {
    let per_page: usize = asked.query("per_page").and_then(|v| v.parse().ok()).unwrap_or(30).clamp(1, 100);
    let before: u64 = asked.query("cursor").and_then(|c| c.strip_prefix("v1_")?.parse().ok()).unwrap_or(u64::MAX);
    let mut rest: Vec<Value> =
        kept(world).filter(|d| d["id"].as_u64().is_some_and(|id| id < before)).cloned().collect();
    let more = rest.len() > per_page;
    rest.truncate(per_page);
    let last = rest.last().and_then(|d| d["id"].as_u64());
    let reply = Reply::ok(Value::Array(rest));
    match last {
        Some(last) if more => {
            reply.with("link", &format!("<{}?per_page={per_page}&cursor=v1_{last}>; rel=\"next\"", asked.url))
        }
        _ => reply,
    }
}

pub fn show(world: &World, id: &str) -> Reply {
    let Some(delivery) = kept(world).find(|d| id.parse::<u64>().is_ok_and(|id| d["id"] == id)) else {
        return Reply::not_found();
    };
    let mut shown = delivery.clone();
    let id = delivery["id"].as_u64().expect("it has one");
    shown["request"] = json!({"headers": {"X-GitHub-Event": delivery["event"]}, "payload": world.payloads[&id]});
    shown["response"] = json!({"headers": {}, "payload": ""});
    Reply::ok(shown)
}

/// The same guid again, and a record of its own.
pub fn again(world: &mut World, id: &str) -> Reply {
    let Some(delivery) = kept(world).find(|d| id.parse::<u64>().is_ok_and(|id| d["id"] == id)).cloned() else {
        return Reply::not_found();
    };
    let number = delivery["id"].as_u64().expect("it has one");
    let payload = world.payloads[&number].clone();
    let text = |key: &str| delivery[key].as_str().unwrap_or_default().to_owned();
    let hooks: Vec<u64> = world.hooks.iter().map(|hook| hook.id).collect();
    for hook in hooks {
        deliver(world, hook, &text("guid"), &text("event"), &text("action"), &payload, true);
    }
    Reply::new(202, json!({}))
}
