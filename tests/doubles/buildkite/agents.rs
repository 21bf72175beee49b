//! The part of the agent API that an agent needs that was started with a job acquisition token.
//!
//! Requests and answers are those of Buildkite's agent 3.137. It asks as itself (its access token) until it has its job, and
//! for the job with the job's own token, which is void when the job is over or its agent is lost. Streaming (gRPC) is not
//! simulated: an agent polls if the address knows nothing of it.

use std::io::Read;

use axum::http::Method;
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::{
    api::Request,
    reply::Reply,
    world::{Agent, Job, World},
};

/// The largest part of a log, in bytes, and the largest log.
const PART: u64 = 102_400;
const LOG: u64 = 32 << 20;

pub fn route(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    if let (&Method::POST, ["register"]) = (&request.method, path) {
        return register(world, request);
    }
    match path {
        ["jobs", id, act] if *act == "acquire" && request.method == Method::PUT => {
            as_agent(world, request, |world, at| acquire(world, request, at, id))
        }
        ["jobs", id, rest @ ..] => with_job(world, request, id, rest),
        _ => as_agent(world, request, |world, at| {
            let now = world.now().to_string();
            match (&request.method, path) {
                (&Method::POST, ["connect"]) => Reply::ok(json!({})),
                (&Method::POST, ["heartbeat"]) => match request.body["sent_at"].as_str() {
                    Some(sent) => Reply::ok(json!({"sent_at": sent, "received_at": now})),
                    None => Reply::refuse(422, "sent_at is required"),
                },
                // It was registered for one job: there is no other for it.
                (&Method::GET, ["ping"]) => Reply::ok(json!({})),
                (&Method::POST, ["disconnect"]) => {
                    let agent = &mut world.agents[at];
                    (agent.gone, agent.works) = (true, false);
                    Reply::ok(json!({}))
                }
                _ => Reply::refuse(404, "Not Found"),
            }
        }),
    }
}

/// A request with the access token of an agent; `then` gets its place.
fn as_agent(world: &mut World, request: &Request, then: impl FnOnce(&mut World, usize) -> Reply) -> Reply {
    let known = |agent: &Agent| !agent.gone && request.token() == Some(&agent.access_token);
    let Some(at) = world.agents.iter().position(known) else { return Reply::refuse(401, "Invalid access token") };
    world.agents[at].heard_at = world.now();
    then(world, at)
}

fn register(world: &mut World, request: &Request) -> Reply {
    let now = world.now();
    let token = request.token().unwrap_or_default().to_owned();
    let Some(known) = world.acquisition_tokens.get_mut(&token).filter(|token| !token.used && token.expires_at > now)
    else {
        return Reply::refuse(401, "Invalid agent token");
    };
    // An agent for one job says so: it would get other jobs otherwise.
    if request.body["ignore_in_dispatches"] != true {
        return Reply::refuse(422, "Job acquisition tokens are for agents that ignore dispatches");
    }
    known.used = true;
    let text = |key: &str| request.body[key].as_str().unwrap_or_default().to_owned();
    let agent = Agent {
        id: uuid::Uuid::new_v4().to_string(),
        name: text("name"),
        version: text("version"),
        tags: request.body["meta_data"].clone(),
        access_token: format!("bkaa_{}", uuid::Uuid::new_v4().simple()),
        only: known.job.clone(),
        works: false,
        gone: false,
        heard_at: now,
    };
    let answer = json!({
        "id": agent.id, "name": agent.name, "access_token": agent.access_token, "heartbeat_interval": 60,
        "ping_interval": 5, "job_status_interval": 5, "endpoint": world.knobs.endpoint, "meta_data": agent.tags,
    });
    world.agents.push(agent);
    Reply::ok(answer)
}

fn acquire(world: &mut World, request: &Request, at: usize, id: &str) -> Reply {
    let World { agents, jobs, knobs, .. } = world;
    let agent = &mut agents[at];
    if id != agent.only {
        return Reply::refuse(403, "This agent may not use this job");
    }
    let Some(job) = jobs.iter_mut().find(|job| job.id == id) else { return Reply::refuse(404, "Job not found") };
    if request.header("x-buildkite-lock-acquire-job") != Some("1") {
        return Reply::refuse(422, "Expected X-Buildkite-Lock-Acquire-Job to be set to 1");
    }
    if !matches!(job.state, "scheduled" | "reserved") {
        return Reply::refuse(422, format!("Job is {} and cannot be acquired", job.state));
    }
    let token = format!("bkaj_{}", uuid::Uuid::new_v4().simple());
    (job.state, job.reserved, job.token, agent.works) = ("accepted", None, Some(token.clone()), true);
    Reply::ok(json!({
        "id": id, "state": "accepted", "endpoint": knobs.endpoint, "token": token, "env": environment(job, agent),
        "step": {"command": job.command}, "chunks_max_size_bytes": PART, "chunks_interval_seconds": 1,
        "log_max_size_bytes": LOG, "runnable_at": job.scheduled_at.to_string(), "priority": 0,
    }))
}

/// What the pipeline says, below what Buildkite says.
fn environment(job: &Job, agent: &Agent) -> Value {
    let mut env = job.env.clone();
    let page = format!("https://buildkite.com/acme/{}/builds/{}", job.pipeline, job.build);
    for (key, value) in [
        ("CI", "true"),
        ("BUILDKITE", "true"),
        ("BUILDKITE_JOB_ID", &job.id),
        ("BUILDKITE_AGENT_ID", &agent.id),
        ("BUILDKITE_AGENT_NAME", &agent.name),
        ("BUILDKITE_AGENT_META_DATA_QUEUE", &job.queue),
        ("BUILDKITE_ORGANIZATION_SLUG", "acme"),
        ("BUILDKITE_PIPELINE_SLUG", &job.pipeline),
        ("BUILDKITE_PIPELINE_PROVIDER", "git"),
        ("BUILDKITE_REPO", "https://git.example/acme/app.git"),
        ("BUILDKITE_BRANCH", "main"),
        ("BUILDKITE_COMMIT", "HEAD"),
        ("BUILDKITE_BUILD_NUMBER", &job.build.to_string()),
        ("BUILDKITE_BUILD_URL", &page),
        ("BUILDKITE_STEP_KEY", job.step.as_deref().unwrap_or_default()),
        ("BUILDKITE_TIMEOUT", "false"),
        ("BUILDKITE_ARTIFACT_PATHS", ""),
        ("BUILDKITE_COMMAND", &job.command),
        ("BUILDKITE_SCRIPT_PATH", &job.command),
    ] {
        env.insert(key.to_owned(), value.to_owned());
    }
    json!(env)
}

/// A request with the token of the job.
fn with_job(world: &mut World, request: &Request, id: &str, rest: &[&str]) -> Reply {
    let now = world.now();
    let World { agents, jobs, .. } = world;
    let known = |job: &&mut Job| job.token.is_some() && request.token() == job.token.as_deref();
    let Some(job) = jobs.iter_mut().find(known) else { return Reply::refuse(401, "Invalid access token") };
    if job.id != id {
        return Reply::refuse(404, "Job not found");
    }
    let agent = agents.iter_mut().find(|agent| agent.only == id && agent.works && !agent.gone);
    let Some(agent) = agent else { return Reply::refuse(401, "Invalid access token") };
    agent.heard_at = now;
    let body = &request.body;
    match (&request.method, rest) {
        (&Method::GET, []) => Reply::ok(json!({"id": id, "state": job.state})),
        (&Method::PUT, ["start"]) if job.state == "accepted" && body["started_at"].is_string() => {
            job.state = "running";
            job.starts += 1;
            Reply::ok(json!({}))
        }
        (&Method::POST, ["chunks"]) => match log(job, request) {
            Ok(()) => Reply::empty(200),
            Err(why) => Reply::refuse(400, why),
        },
        (&Method::POST, ["header_times"]) if body["header_times"].is_object() => Reply::ok(json!({})),
        (&Method::PUT, ["finish"]) if matches!(job.state, "running" | "canceling") => {
            // A number, but written as a text.
            let Some(status) = body["exit_status"].as_str().and_then(|status| status.parse::<i64>().ok()) else {
                return Reply::refuse(422, "exit_status is required");
            };
            let canceled = job.state == "canceling";
            job.finish(json!({
                "by": "agent", "exit_status": status, "signal": body["signal"], "signal_reason": body["signal_reason"],
                "parts_lost": body["chunks_failed_count"],
            }));
            if canceled {
                job.state = "canceled";
            }
            agent.works = false;
            Reply::ok(json!({}))
        }
        (_, ["start" | "finish" | "header_times"]) => Reply::refuse(422, format!("Job is {}", job.state)),
        _ => Reply::refuse(404, "Not Found"),
    }
}

/// Takes a part of the log: gzip, with its number, and its place in the log.
fn log(job: &mut Job, request: &Request) -> Result<(), String> {
    let number = |name: &str| request.query(name).and_then(|text| text.parse::<u64>().ok());
    let (Some(sequence), Some(_), Some(size)) = (number("sequence"), number("offset"), number("size")) else {
        return Err("sequence, offset and size are required".to_owned());
    };
    if request.header("content-encoding") != Some("gzip") {
        return Err("Content-Encoding has to be gzip".to_owned());
    }
    let mut part = Vec::new();
    let read = GzDecoder::new(request.raw.as_ref()).take(PART + 1).read_to_end(&mut part);
    if read.is_err() || part.len() as u64 != size || size > PART {
        return Err(format!("the part has {} bytes", part.len()));
    }
    job.log.parts.insert(sequence, part);
    Ok(())
}
