//! The part of the agent API that an agent needs that was started with a job acquisition token.

use axum::http::Method;
use serde_json::{Value, json};

use crate::{
    api::Request,
    reply::Reply,
    world::{Agent, World},
};

pub fn route(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    if let (&Method::POST, ["register"]) = (&request.method, path) {
        return register(world, request);
    }
    let now = world.now();
    let known = |agent: &&mut Agent| !agent.gone && request.token() == Some(&agent.access_token);
    let Some(agent) = world.agents.iter_mut().find(known) else {
        return Reply::refuse(401, "Invalid access token");
    };
    agent.heard_at = now;
    let (only, id) = (agent.only.clone(), agent.id.clone());
    match (&request.method, path) {
        (&Method::POST, ["connect"]) => Reply::ok(json!({})),
        (&Method::POST, ["heartbeat"]) => {
            Reply::ok(json!({"sent_at": now.to_string(), "received_at": now.to_string()}))
        }
        (&Method::POST, ["disconnect"]) => {
            (agent.gone, agent.works) = (true, false);
            Reply::ok(json!({}))
        }
        (&Method::PUT, ["jobs", job, act]) => {
            if *job != only {
                return Reply::refuse(403, "This agent may not use this job");
            }
            let works = agent.works;
            let (reply, works) = act_on(world, &only, act, works, &request.body);
            if let Some(agent) = world.agents.iter_mut().find(|agent| agent.id == id) {
                agent.works = works;
            }
            reply
        }
        _ => Reply::refuse(404, "Not Found"),
    }
}

fn register(world: &mut World, request: &Request) -> Reply {
    let now = world.now();
    let token = request.token().unwrap_or_default().to_owned();
    let Some(known) = world.acquisition_tokens.get_mut(&token).filter(|token| !token.used && token.expires_at > now)
    else {
        return Reply::refuse(401, "Invalid agent token");
    };
    known.used = true;
    let text = |key: &str| request.body[key].as_str().unwrap_or_default().to_owned();
    let agent = Agent {
        id: uuid::Uuid::new_v4().to_string(),
        name: text("name"),
        tags: request.body["meta_data"].clone(),
        access_token: uuid::Uuid::new_v4().simple().to_string(),
        only: known.job.clone(),
        works: false,
        gone: false,
        heard_at: now,
    };
    let answer = json!({
        "id": agent.id, "name": agent.name, "access_token": agent.access_token, "hearbeat_interval": 60,
        "ping_interval": 5, "job_status_interval": 5, "endpoint": world.root, "meta_data": agent.tags,
    });
    world.agents.push(agent);
    Reply::ok(answer)
}

/// The answer, and whether the agent works afterwards.
fn act_on(world: &mut World, id: &str, act: &str, works: bool, body: &Value) -> (Reply, bool) {
    let Some(job) = world.job(id) else { return (Reply::refuse(404, "Job not found"), works) };
    match act {
        "acquire" if matches!(job.state, "scheduled" | "reserved") => {
            (job.state, job.reserved) = ("accepted", None);
            let answer = json!({"id": id, "state": "accepted", "env": {"BUILDKITE_JOB_ID": id}, "endpoint": ""});
            (Reply::ok(answer), true)
        }
        "acquire" => (Reply::refuse(422, format!("Job is {} and cannot be acquired", job.state)), works),
        "start" if works && job.state == "accepted" => {
            job.state = "running";
            job.starts += 1;
            (Reply::ok(json!({})), true)
        }
        "finish" if works && !job.is_over() => {
            let canceled = job.state == "canceling";
            job.finish(json!({"by": "agent", "exit_status": body["exit_status"]}));
            if canceled {
                job.state = "canceled";
            }
            (Reply::ok(json!({})), false)
        }
        _ => (Reply::refuse(422, format!("Job is {}", job.state)), works),
    }
}
