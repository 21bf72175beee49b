//! How tests prepare this Gitea. Everything is a `POST` of JSON to `/_double/…`.
//!
//! ```text
//! users {login, administrator}
//! orgs {name, owners, members}                     users that are not there yet are made
//! repos {full_name, private, collaborators {login: read|write|admin}}
//! tokens {user, scopes}                            → token; scopes: `all`, or `read:repository`, …
//! revoke {token}
//! hooks {scope, url, secret}                       → id; scope: system, orgs/acme, users/dev, repos/acme/app
//! hook {id, drop, duplicate, wrong_signature, shuffle, hold, mute,
//!       lose_percent, double_percent, delay_seconds}
//!                                                  of one hook, or of all without an id
//! jobs {repository, name, labels, steps [{name, run}], script, run, waiting}
//!                                                  → id, run; `script` is the text of a single step
//! release|cancel|skip|rerun {job}
//! clock {seconds}                                  later
//! knobs {…}                                        see `world::Knobs`; also root_url, next_job
//! faults [..], calm {}                             see `faults::Fault`; no faults any more
//! requests {}                                      since the last time it was asked
//! state {}                                         everything, see `state.rs`
//! ```

use std::{collections::BTreeMap, sync::Arc};

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    Double,
    accounts::Token,
    faults::Fault,
    jobs::{self, NewJob, Step},
    reply::Reply,
    state,
    webhooks::{self, Hook},
    world::{Scope, Table, World},
};

pub fn handle(double: &Arc<Double>, path: &[String], body: &[u8]) -> Reply {
    let told: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    if told.is_null() {
        return Reply::wrong("not JSON");
    }
    let [what] = path else { return Reply::wrong(format!("there is no {}", path.join("/"))) };
    let mut world = double.world.lock().expect("no code panics with it");
    let reply = tell(&mut world, what, &told);
    jobs::sweep(&mut world);
    webhooks::hand_over(&mut world, &double.outbox);
    reply
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn text<'v>(told: &'v Value, key: &str) -> &'v str {
    told[key].as_str().unwrap_or_default()
}

fn done() -> Reply {
    Reply::ok(json!({}))
}

fn tell(world: &mut World, what: &str, told: &Value) -> Reply {
    match what {
        "users" => {
            world.add_user(text(told, "login"), told["administrator"] == true);
            done()
        }
        "orgs" => {
            world.add_organization(text(told, "name"), strings(&told["owners"]), strings(&told["members"]));
            done()
        }
        "repos" => {
            let pairs = told["collaborators"].as_object().into_iter().flatten();
            let collaborators: BTreeMap<String, String> =
                pairs.map(|(login, mode)| (login.clone(), mode.as_str().unwrap_or_default().to_owned())).collect();
            for login in collaborators.keys() {
                if !world.users.contains_key(login) {
                    world.add_user(login, false);
                }
            }
            match world.add_repository(text(told, "full_name"), told["private"] == true, collaborators) {
                true => done(),
                false => Reply::wrong("there is no such owner"),
            }
        }
        "tokens" => {
            let user = text(told, "user").to_owned();
            if !world.users.contains_key(&user) {
                return Reply::wrong("there is no such user");
            }
            let token = format!("{:0<40}", uuid::Uuid::new_v4().simple());
            world.tokens.insert(token.clone(), Token { user, scopes: strings(&told["scopes"]) });
            Reply::new(201, json!({"token": token}))
        }
        "revoke" => {
            world.tokens.remove(text(told, "token"));
            done()
        }
        "hooks" => {
            let scope = Scope::parse(text(told, "scope")).filter(|scope| world.known_scope(scope));
            let Some(scope) = scope else { return Reply::wrong("there is no such scope") };
            let id = world.id(Table::Hook);
            world.hooks.push(Hook::new(id, scope, text(told, "url"), text(told, "secret")));
            Reply::new(201, json!({"id": id}))
        }
        "hook" => hook(world, told),
        "jobs" => queue(world, told),
        "release" | "cancel" | "skip" | "rerun" => {
            let id = told["job"].as_u64().unwrap_or_default();
            if !world.jobs.contains_key(&id) {
                return Reply::not_found(world);
            }
            let outcome = match what {
                "release" => jobs::release(world, id),
                "cancel" => jobs::cancel(world, id),
                "skip" => jobs::skip(world, id),
                _ => jobs::rerun(world, id),
            };
            outcome.map_or_else(|why| Reply::new(409, json!({"message": why})), |()| done())
        }
        "clock" => {
            world.ahead += SignedDuration::from_secs(told["seconds"].as_i64().unwrap_or(0));
            Reply::ok(json!({"now": world.now()}))
        }
        "knobs" => knobs(world, told),
        "faults" => match serde_json::from_value::<Vec<Fault>>(told.clone()) {
            Ok(faults) => {
                world.faults.extend(faults);
                done()
            }
            Err(error) => Reply::wrong(error.to_string()),
        },
        "calm" => {
            world.faults.clear();
            done()
        }
        "requests" => Reply::ok(Value::Array(std::mem::take(&mut world.requests).into())),
        "state" => state::state(world),
        _ => Reply::wrong(format!("there is no {what}")),
    }
}

fn queue(world: &mut World, told: &Value) -> Reply {
    let repository = told["repository"].as_str().unwrap_or("acme/app").to_owned();
    if !world.repositories.contains_key(&repository) {
        return Reply::wrong("there is no such repository");
    }
    let mut steps: Vec<Step> = Vec::new();
    for step in told["steps"].as_array().into_iter().flatten() {
        steps.push(Step { name: text(step, "name").to_owned(), run: text(step, "run").to_owned() });
    }
    if steps.is_empty() {
        let run = told["script"].as_str().unwrap_or("echo the job").to_owned();
        let name = format!("Run {}", run.lines().next().unwrap_or_default());
        steps.push(Step { name, run });
    }
    let new = NewJob {
        repository,
        name: told["name"].as_str().unwrap_or("build").to_owned(),
        labels: strings(&told["labels"]),
        steps,
        run: told["run"].as_u64(),
        blocked: told["waiting"] == true,
    };
    let (id, run) = jobs::queue(world, new);
    Reply::new(201, json!({"id": id, "run": run}))
}

fn hook(world: &mut World, told: &Value) -> Reply {
    let number = |key: &str| told[key].as_u64().and_then(|n| u32::try_from(n).ok());
    let id = told["id"].as_u64();
    for hook in world.hooks.iter_mut().filter(|hook| id.is_none_or(|id| hook.id == id)) {
        let faults = &mut hook.faults;
        faults.drop = number("drop").unwrap_or(faults.drop);
        faults.duplicate = number("duplicate").unwrap_or(faults.duplicate);
        faults.wrong_signature = number("wrong_signature").unwrap_or(faults.wrong_signature);
        faults.shuffle = number("shuffle").map_or(faults.shuffle, |n| n as usize);
        faults.lose_percent = number("lose_percent").unwrap_or(faults.lose_percent);
        faults.double_percent = number("double_percent").unwrap_or(faults.double_percent);
        faults.delay_seconds = number("delay_seconds").unwrap_or(faults.delay_seconds);
        faults.hold = told["hold"].as_bool().unwrap_or(faults.hold);
        if told["mute"].is_array() {
            faults.mute = strings(&told["mute"]);
        }
        hook.let_go();
    }
    done()
}

fn knobs(world: &mut World, told: &Value) -> Reply {
    for (key, value) in told.as_object().into_iter().flatten() {
        let (knobs, number, text) = (&mut world.knobs, value.as_u64(), value.as_str());
        let (size, seconds) = (number.and_then(|n| usize::try_from(n).ok()), value.as_i64());
        match (key.as_str(), size, seconds, text) {
            ("max_page", Some(size), ..) if size > 0 => knobs.max_page = size,
            ("usual_page", Some(size), ..) if size > 0 => knobs.usual_page = size,
            ("zombie_seconds", _, Some(seconds), _) => knobs.zombie_seconds = seconds,
            ("cron_seconds", _, Some(seconds), _) if seconds >= 0 => knobs.cron_seconds = seconds,
            ("abandoned_seconds", _, Some(seconds), _) => knobs.abandoned_seconds = seconds,
            ("offline_seconds", _, Some(seconds), _) => knobs.offline_seconds = seconds,
            ("idle_seconds", _, Some(seconds), _) => knobs.idle_seconds = seconds,
            ("deliver_seconds", Some(seconds), ..) => knobs.deliver_seconds = seconds as u64,
            ("version", _, _, Some(version)) => knobs.version = version.to_owned(),
            // The job that is queued next gets this id.
            ("next_job", _, Some(id), _) if id > 0 => drop(world.last_ids.insert(Table::Job, id.unsigned_abs() - 1)),
            ("root_url", _, _, Some(root)) => world.root = root.trim_end_matches('/').to_owned(),
            _ => return Reply::wrong(format!("there is no knob {key} with such a value")),
        }
    }
    done()
}
