//! How tests prepare this Buildkite. Everything is a `POST` of JSON to `/_double/…`.
//!
//! ```text
//! tokens {}                                   → token, an agent token of the cluster
//! revoke {token}
//! queues {key}
//! pause {queue, paused}
//! jobs {queue, pipeline, rules, step, build, command, env}  → id
//! log {job}                                   → log, what its agent has sent of it
//! cancel {job}                                at once if no agent has it; otherwise it is being cancelled
//! take {job, stack}                           another stack reserves it, for an hour
//! deregister {stack}
//! clock {seconds}                             later
//! knobs {lost_seconds, most_stacks, pause_field, requests_per_second, endpoint}
//! faults [..], calm {}                        see `faults::Fault`; no faults any more
//! requests {}                                 since the last time it was asked, with their bodies
//! state {}                                    everything but tokens
//! ```

use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    Double,
    faults::Fault,
    reply::Reply,
    world::{Job, Log, Queue, World},
};

pub fn handle(double: &Arc<Double>, what: &str, body: &[u8]) -> Reply {
    let Ok(told) = serde_json::from_slice::<Value>(body) else { return Reply::refuse(400, "not JSON") };
    let mut world = double.world.lock().expect("no code panics with it");
    world.sweep();
    let reply = tell(&mut world, what, &told);
    world.sweep();
    reply
}

fn tell(world: &mut World, what: &str, told: &Value) -> Reply {
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    let done = || Reply::ok(json!({}));
    match what {
        "tokens" => {
            let token = format!("bkct_{}", uuid::Uuid::new_v4().simple());
            world.tokens.insert(token.clone());
            Reply::new(201, json!({ "token": token }))
        }
        "revoke" => {
            world.tokens.remove(&text("token"));
            done()
        }
        "queues" => {
            let id = uuid::Uuid::new_v4().to_string();
            world.queues.insert(text("key"), Queue { id, paused: false });
            done()
        }
        "pause" => match world.queues.get_mut(&text("queue")) {
            Some(queue) => {
                queue.paused = told["paused"] == true;
                done()
            }
            None => Reply::refuse(400, "there is no such queue"),
        },
        "jobs" => {
            let queue = text("queue");
            if !world.queues.contains_key(&queue) {
                return Reply::refuse(400, "there is no such queue");
            }
            let rules = told["rules"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned));
            let job = Job {
                id: uuid::Uuid::new_v4().to_string(),
                queue,
                state: "scheduled",
                rules: rules.collect(),
                pipeline: told["pipeline"].as_str().unwrap_or("app").to_owned(),
                build: told["build"].as_u64().unwrap_or(1),
                step: told["step"].as_str().map(str::to_owned),
                scheduled_at: world.now(),
                command: text("command"),
                env: serde_json::from_value(told["env"].clone()).unwrap_or_default(),
                token: None,
                log: Log::default(),
                notifications: Vec::new(),
                reserved: None,
                starts: 0,
                end: None,
            };
            let id = job.id.clone();
            world.jobs.push(job);
            Reply::new(201, json!({ "id": id }))
        }
        "cancel" | "take" => {
            let until = world.now() + SignedDuration::from_hours(1);
            let Some(job) = world.job(&text("job")) else { return Reply::refuse(400, "there is no such job") };
            match (what, job.state) {
                ("cancel", "scheduled" | "reserved") => (job.state, job.reserved) = ("canceled", None),
                ("cancel", "accepted" | "running") => job.state = "canceling",
                ("take", "scheduled") => (job.state, job.reserved) = ("reserved", Some((text("stack"), until))),
                (_, state) => return Reply::refuse(409, format!("the job is {state}")),
            }
            done()
        }
        "log" => match world.job(&text("job")) {
            Some(job) => Reply::ok(json!({"log": job.shown_log()})),
            None => Reply::refuse(400, "there is no such job"),
        },
        "deregister" => {
            world.stacks.remove(&text("stack"));
            done()
        }
        "clock" => {
            world.ahead += SignedDuration::from_secs(told["seconds"].as_i64().unwrap_or(0));
            done()
        }
        "knobs" => {
            for (key, value) in told.as_object().into_iter().flatten() {
                let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
                match (key.as_str(), value.as_i64(), size, value.as_str()) {
                    ("lost_seconds", Some(seconds), ..) => world.knobs.lost_seconds = seconds,
                    ("most_stacks", _, Some(most), _) => world.knobs.most_stacks = most,
                    ("endpoint", .., Some(url)) => world.knobs.endpoint = url.to_owned(),
                    ("pause_field", .., Some(name)) => world.knobs.pause_field = name.to_owned(),
                    ("requests_per_second", _, Some(most), _) => {
                        world.limits.most.values_mut().for_each(|limit| *limit = most);
                    }
                    _ => return Reply::refuse(400, format!("there is no knob {key} with such a value")),
                }
            }
            done()
        }
        "faults" => match serde_json::from_value::<Vec<Fault>>(told.clone()) {
            Ok(faults) => {
                world.faults.extend(faults);
                done()
            }
            Err(error) => Reply::refuse(400, error.to_string()),
        },
        "calm" => {
            world.faults.clear();
            done()
        }
        "requests" => Reply::ok(Value::Array(std::mem::take(&mut world.requests).into())),
        "state" => Reply::ok(world.state()),
        _ => Reply::refuse(400, format!("there is no {what}")),
    }
}
