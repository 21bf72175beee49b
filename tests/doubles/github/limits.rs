//! So many requests per hour and credential.

use axum::http::{HeaderValue, StatusCode};
use jiff::{SignedDuration, Timestamp};

use crate::{reply::Reply, world::World};

pub struct Bucket {
    pub limit: u64,
    pub used: u64,
    pub resets_at: Timestamp,
}

pub const CORE: &str = "core";
pub const REGISTRATION: &str = "actions_runner_registration";

/// The bucket of this credential and resource; `None` where there are no limits.
fn bucket<'w>(world: &'w mut World, whose: &str, resource: &str) -> Option<&'w mut Bucket> {
    let now = world.now();
    let limit = if resource == REGISTRATION { world.knobs.registration_limit } else { world.knobs.rate_limit }?;
    let fresh = || Bucket { limit, used: 0, resets_at: now + SignedDuration::from_hours(1) };
    let bucket = world.buckets.entry(format!("{whose}/{resource}")).or_insert_with(fresh);
    if bucket.resets_at <= now {
        *bucket = fresh();
    }
    bucket.limit = limit;
    Some(bucket)
}

/// Which resource this counts under.
pub fn resource(world: &World, path: &[String]) -> &'static str {
    let registers = path.last().is_some_and(|p| p == "generate-jitconfig" || p == "registration-token");
    if registers && world.knobs.registration_limit.is_some() { REGISTRATION } else { CORE }
}

/// Whether there is nothing left.
pub fn spent(world: &mut World, whose: &str, resource: &str) -> bool {
    bucket(world, whose, resource).is_some_and(|b| b.used >= b.limit)
}

/// Counts an answer, and writes the headers.
pub fn count(world: &mut World, whose: &str, resource: &str, reply: &mut Reply) {
    let Some(bucket) = bucket(world, whose, resource) else { return };
    if !(reply.free || reply.status == StatusCode::NOT_MODIFIED) {
        bucket.used = (bucket.used + 1).min(bucket.limit);
    }
    for (name, value) in [
        ("x-ratelimit-limit", bucket.limit.to_string()),
        ("x-ratelimit-remaining", (bucket.limit - bucket.used).to_string()),
        ("x-ratelimit-used", bucket.used.to_string()),
        ("x-ratelimit-reset", bucket.resets_at.as_second().to_string()),
        ("x-ratelimit-resource", resource.to_owned()),
    ] {
        reply.headers.insert(name, HeaderValue::from_str(&value).expect("a number or a name"));
    }
}

/// `GET /rate_limit`
pub fn show(world: &mut World, whose: &str) -> Reply {
    let mut resources = serde_json::Map::new();
    for resource in [CORE, REGISTRATION] {
        if let Some(b) = bucket(world, whose, resource) {
            let shown = serde_json::json!({
                "limit": b.limit, "used": b.used, "remaining": b.limit - b.used, "reset": b.resets_at.as_second(),
            });
            resources.insert(resource.to_owned(), shown);
        }
    }
    if resources.is_empty() {
        return Reply::refuse(404, "Rate limiting is not enabled.");
    }
    let core = resources.get(CORE).cloned();
    Reply { free: true, ..Reply::ok(serde_json::json!({"resources": resources, "rate": core})) }
}
