//! The stacks API.

use axum::http::Method;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    api::Request,
    reply::Reply,
    world::{AcquisitionToken, Stack, World},
};

const BATCH: usize = 1000;
const DETAIL: usize = 4096;
const LONGEST: i64 = 3600;
const USUAL: i64 = 900;

type Operation = fn(&mut World, &Request, &[&str]) -> Reply;

pub fn route(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    if !request.token().is_some_and(|token| world.tokens.contains(token)) {
        return Reply::refuse(401, "Authentication required. Please supply a valid agent token.");
    }
    let (stack, scope, reply): (&str, &'static str, Operation) = match (&request.method, path) {
        (&Method::POST, ["register"]) => ("", "default", register),
        (&Method::POST, [key, "deregister"]) => (*key, "default", deregister),
        (&Method::GET, [key, "scheduled-jobs"]) => (*key, "list-scheduled-jobs", list),
        (&Method::PUT, [key, "scheduled-jobs", "batch-reserve"]) => (*key, "batch-reserve", reserve),
        (&Method::POST, [key, "jobs", "get-states"]) => (*key, "batch-load-job-states", states),
        (&Method::POST, [key, "jobs", _, "finish"]) => (*key, "finish-job", finish),
        (&Method::POST, [key, "notifications"]) => (*key, "default", notify),
        (&Method::POST, [key, "job-acquisition-tokens"]) => (*key, "default", issue),
        _ => return Reply::refuse(404, "Not Found"),
    };
    if !stack.is_empty() && !world.stacks.contains_key(stack) {
        return Reply::refuse(404, "Stack not found");
    }
    match world.limits.count(stack, scope) {
        Err(refused) => *refused,
        Ok(headers) => headers.iter().fold(reply(world, request, path), |reply, (name, value)| reply.with(name, value)),
    }
}

fn register(world: &mut World, request: &Request, _: &[&str]) -> Reply {
    let text = |key: &str| request.body[key].as_str().unwrap_or_default().to_owned();
    let (key, kind, queue) = (text("key"), text("type"), text("queue_key"));
    let plain =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !plain(&key) || key.len() > 80 {
        return Reply::refuse(422, "Validation failed: Key is invalid");
    }
    if !matches!(kind.as_str(), "kubernetes" | "elastic" | "custom") {
        return Reply::refuse(422, "Validation failed: Type is invalid");
    }
    let small = |(name, value): (&String, &Value)| {
        name.chars().count() <= 64 && value.as_str().is_some_and(|value| value.chars().count() <= 256)
    };
    if !request.body["metadata"].as_object().is_some_and(|all| all.len() <= 100 && all.iter().all(small)) {
        return Reply::refuse(422, "Validation failed: Metadata is invalid");
    }
    if queue.is_empty() {
        return Reply::refuse(422, "Validation failed: Queue key can't be blank");
    }
    if !world.queues.contains_key(&queue) {
        return Reply::refuse(404, "Cluster queue not found");
    }
    let known = world.stacks.contains_key(&key);
    if !known && world.stacks.len() >= world.knobs.most_stacks {
        return Reply::refuse(403, "Your organization has reached its limit of stacks");
    }
    let id = uuid::Uuid::new_v4().to_string();
    let metadata = request.body["metadata"].clone();
    let stack = world.stacks.entry(key.clone()).or_insert(Stack { id, queue: queue.clone(), kind, metadata });
    stack.queue.clone_from(&queue);
    let answer = json!({
        "id": stack.id, "organization_uuid": "12345678-abcd-ef01-2345-6789abcdef01", "key": key, "type": stack.kind,
        "cluster_queue_key": queue, "metadata": stack.metadata, "last_connected_on": null, "state": "connected",
    });
    Reply::new(if known { 200 } else { 201 }, answer)
}

fn deregister(world: &mut World, _: &Request, path: &[&str]) -> Reply {
    world.stacks.remove(path[0]);
    Reply::empty(204)
}

fn list(world: &mut World, request: &Request, _: &[&str]) -> Reply {
    let Some(key) = request.query("queue_key") else { return Reply::refuse(400, "queue_key is required") };
    let limit = match request.query("limit").map(str::parse::<usize>) {
        None => 100,
        Some(Ok(limit @ 1..=BATCH)) => limit,
        Some(_) => return Reply::refuse(400, "limit must be a positive integer, at most 1000"),
    };
    let after = match request.query("after") {
        None => 0,
        Some(cursor) => {
            let number = STANDARD.decode(cursor).ok().and_then(|b| String::from_utf8(b).ok()?.parse::<usize>().ok());
            match number {
                Some(number) => number,
                None => return Reply::refuse(400, "after is not a valid cursor"),
            }
        }
    };
    let Some(queue) = world.queues.get(key) else { return Reply::refuse(404, "Cluster queue not found") };
    let fits = |(n, job): &(usize, &crate::world::Job)| *n >= after && job.queue == key && job.state == "scheduled";
    let found: Vec<_> = world.jobs.iter().enumerate().filter(fits).collect();
    let more = found.len() > limit;
    let page = &found[..found.len().min(limit)];
    let cursor = page.last().map(|(n, _)| STANDARD.encode((n + 1).to_string()));
    // Nested objects are always there, their values may be null.
    let shown = page.iter().map(|(_, job)| {
        json!({
            "id": job.id, "priority": 0, "agent_query_rules": job.rules, "scheduled_at": time(job.scheduled_at),
            "pipeline": {"slug": job.pipeline, "uuid": "pipeline-uuid"},
            "build": {"number": job.build, "branch": "main", "uuid": "build-uuid"},
            "step": {"key": job.step},
        })
    });
    let jobs: Vec<Value> = shown.collect();
    let mut cluster_queue = json!({"id": queue.id});
    cluster_queue[&world.knobs.pause_field] = queue.paused.into();
    Reply::ok(json!({
        "jobs": jobs,
        "page_info": {"has_next_page": more, "end_cursor": cursor},
        "cluster_queue": cluster_queue,
    }))
}

fn uuids(request: &Request) -> Result<Vec<String>, Box<Reply>> {
    let all = request.body["job_uuids"].as_array();
    let all = all.ok_or_else(|| Box::new(Reply::refuse(400, "job_uuids must be an array")))?;
    if all.len() > BATCH {
        return Err(Box::new(Reply::refuse(400, "job_uuids must have at most 1000 entries")));
    }
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let all: Option<Vec<String>> = all.iter().map(text).collect();
    all.ok_or_else(|| Box::new(Reply::refuse(400, "job_uuids must be an array of strings")))
}

/// A number of seconds from 1 to an hour.
fn seconds(request: &Request, field: &str) -> Result<SignedDuration, Box<Reply>> {
    match &request.body[field] {
        Value::Null => Ok(SignedDuration::from_secs(USUAL)),
        value => match value.as_i64() {
            Some(seconds @ 1..=LONGEST) => Ok(SignedDuration::from_secs(seconds)),
            _ => Err(Box::new(Reply::refuse(400, format!("{field} must be an integer from 1 to {LONGEST}")))),
        },
    }
}

fn reserve(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    let (ids, expiry) = match (uuids(request), seconds(request, "reservation_expiry_seconds")) {
        (Ok(ids), Ok(expiry)) => (ids, expiry),
        (Err(refused), _) | (_, Err(refused)) => return *refused,
    };
    let until = world.now() + expiry;
    let (mut reserved, mut not_reserved) = (Vec::new(), Vec::new());
    for id in ids {
        match world.job(&id) {
            Some(job) if job.state == "scheduled" || job.reserved.as_ref().is_some_and(|(by, _)| by == path[0]) => {
                (job.state, job.reserved) = ("reserved", Some((path[0].to_owned(), until)));
                reserved.push(id);
            }
            _ => not_reserved.push(id),
        }
    }
    Reply::ok(json!({"reserved": reserved, "not_reserved": not_reserved}))
}

/// Jobs that do not exist are left out: not documented.
fn states(world: &mut World, request: &Request, _: &[&str]) -> Reply {
    let ids = match uuids(request) {
        Ok(ids) => ids,
        Err(refused) => return *refused,
    };
    let known = world.jobs.iter().filter(|job| ids.contains(&job.id));
    let states: serde_json::Map<String, Value> = known.map(|job| (job.id.clone(), job.state.into())).collect();
    Reply::ok(json!({ "states": states }))
}

/// At most once for a job, and not while an agent has it. What a second call is answered is not documented.
fn finish(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    let Some(detail) = request.body["detail"].as_str().filter(|detail| !detail.is_empty()) else {
        return Reply::refuse(422, "Validation failed: Detail can't be blank");
    };
    if detail.len() > DETAIL {
        return Reply::refuse(422, "Validation failed: Detail is too long");
    }
    let exit_status = match &request.body["exit_status"] {
        Value::Null => -1,
        value => match value.as_i64() {
            Some(status) => status,
            None => return Reply::refuse(400, "exit_status must be an integer"),
        },
    };
    let Some(job) = world.job(path[2]) else { return Reply::refuse(404, "Job not found") };
    if !matches!(job.state, "scheduled" | "reserved") {
        return Reply::refuse(422, format!("Job is {} and cannot be finished by a stack", job.state));
    }
    job.finish(json!({"by": "stack", "exit_status": exit_status, "detail": detail, "signal_reason": "stack_error"}));
    Reply::ok(json!({}))
}

/// Each is taken or refused by itself. Which jobs a stack may write to is not documented: here, those that it reserved.
fn notify(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    let Some(notes) = request.body["notifications"].as_array().filter(|notes| notes.len() <= BATCH) else {
        return Reply::refuse(400, "notifications must be an array with at most 1000 entries");
    };
    let mut errors: Vec<Value> = Vec::new();
    for (at, note) in notes.iter().enumerate() {
        let detail = note["detail"].as_str().unwrap_or_default();
        let job = note["job_uuid"].as_str().and_then(|id| world.job(id));
        let error = match job {
            _ if detail.is_empty() => "detail is required",
            _ if detail.chars().count() > 256 => "detail exceeds its length limit of 256",
            _ if note["timestamp"].as_str().is_none_or(|at| at.parse::<Timestamp>().is_err()) => "timestamp is invalid",
            Some(job) if job.reserved.as_ref().is_some_and(|(by, _)| by == path[0]) => {
                job.notifications.push(detail.to_owned());
                continue;
            }
            _ => "job not found",
        };
        errors.push(json!({"error": error, "indexes": [at]}));
    }
    Reply::ok(json!({ "errors": errors }))
}

fn issue(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    let (ids, lifetime) = match (uuids(request), seconds(request, "token_lifetime_seconds")) {
        (Ok(ids), Ok(lifetime)) => (ids, lifetime),
        (Err(refused), _) | (_, Err(refused)) => return *refused,
    };
    let now = world.now();
    let (mut issued, mut not_issued) = (Vec::new(), Vec::new());
    for id in ids {
        let reserved = world.job(&id).filter(|job| job.state == "reserved").and_then(|job| job.reserved.clone());
        match reserved {
            Some((by, until)) if by == path[0] => {
                // The token ends with the reservation at the latest.
                let expires_at = (now + lifetime).min(until);
                let token = format!("bkjat_{}", uuid::Uuid::new_v4().simple());
                issued.push(json!({
                    "job_uuid": id, "job_acquisition_token": token, "expires_at": time(expires_at),
                }));
                world.acquisition_tokens.insert(token, AcquisitionToken { job: id, expires_at, used: false });
            }
            _ => not_issued.push(id),
        }
    }
    Reply::new(201, json!({"job_acquisition_tokens": issued, "not_issued": not_issued}))
}

fn time(at: Timestamp) -> String {
    format!("{at:.3}")
}
