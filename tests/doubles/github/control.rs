//! How tests make this GitHub what they need. Everything is a `POST` of JSON but `requests` and `state`, which take anything.
//!
//! ```text
//! places {places}                       repositories, organisations, enterprises
//! groups {place, names}                 runner groups
//! apps {permissions, events}            → id, client_id, and its private key in both forms, given once
//! installations {app, account, …}       → id
//! tokens {classic|fine_grained, sees}   → token
//! runners {place, count, prefix}        registered, offline
//! runner/{id} {online, busy}            busy gives it a job of nobody
//! clock {seconds}                       later
//! knobs {…}                             see `world::Knobs`
//! faults [..]                           see `faults::Fault`
//! calm {}                               no faults any more
//! expire-tokens, unknown-tokens {times} of installations
//! suspend {installation}, rename {from, to}
//! hooks {url, secret, ping, mute}, hook {drop, duplicate, shuffle, hold, wrong_signature,
//!                                             lose_percent, double_percent, delay_seconds}
//! jobs {repository, labels}, cancel {job}, dispatch {}, session/{connect|poll|renew|log|completejob|disconnect} {jit}
//! ```

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    Double,
    auth::{Holder, Token},
    faults::Fault,
    keys::AppKey,
    reply::Reply,
    webhooks::{self, Hook},
    work,
    world::{App, Installation, Runner, World},
};

pub async fn handle(double: &Arc<Double>, path: &[String], body: &[u8]) -> Reply {
    let told: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
    if told.is_null() {
        return Reply::refuse(400, "not JSON");
    }
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let (reply, sends) = {
        let mut world = double.world.lock().expect("no code panics with it");
        let reply = tell(&mut world, &path, &told);
        work::sweep(&mut world);
        (reply, webhooks::due(&mut world))
    };
    webhooks::send(double, sends);
    reply
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

fn text<'v>(told: &'v Value, key: &str) -> &'v str {
    told[key].as_str().unwrap_or_default()
}

fn tell(world: &mut World, path: &[&str], told: &Value) -> Reply {
    let done = || Reply::ok(json!({}));
    match path {
        ["places"] => {
            for place in strings(&told["places"]) {
                world.place(&place);
            }
            done()
        }
        ["groups"] => {
            for name in strings(&told["names"]) {
                let id = world.id();
                let group =
                    json!({"id": id, "name": name, "visibility": "selected", "default": false, "runners_url": ""});
                world.place(text(told, "place")).groups.push(group);
            }
            done()
        }
        ["apps"] => {
            let (key, private) = AppKey::make();
            let id = world.id();
            let app = App {
                id,
                client_id: format!("Iv23li{id}"),
                slug: format!("mayfly-{id}"),
                key,
                permissions: map(&told["permissions"]),
                events: strings(&told["events"]),
            };
            let shown = json!({"id": id, "client_id": app.client_id, "pkcs1": private.pkcs1, "pkcs8": private.pkcs8});
            world.apps.push(app);
            Reply::new(201, shown)
        }
        ["installations"] => {
            let id = world.id();
            let repositories =
                told["repositories"].as_array().map(|_| strings(&told["repositories"]).into_iter().collect());
            let kind = told["target_type"].as_str().unwrap_or("Organization").to_owned();
            let installation = Installation {
                app: told["app"].as_u64().unwrap_or_default(),
                account: text(told, "account").to_owned(),
                target_type: kind,
                permissions: map(&told["permissions"]),
                repositories,
                suspended_at: None,
            };
            world.installations.insert(id, installation);
            Reply::new(201, json!({"id": id}))
        }
        ["suspend"] => {
            let now = world.now();
            let found = told["installation"].as_u64().and_then(|id| world.installations.get_mut(&id));
            found.map_or_else(Reply::not_found, |i| {
                i.suspended_at = Some(now);
                done()
            })
        }
        ["tokens"] => {
            let id = world.id();
            let sees = strings(&told["sees"]);
            let (prefix, holder) = match told["classic"].as_str() {
                Some(scopes) => ("ghp_", Holder::Classic { scopes: scopes.to_owned(), sees }),
                None => ("github_pat_", Holder::FineGrained { permissions: map(&told["fine_grained"]), sees }),
            };
            let token = format!("{prefix}{id}{}", "y".repeat(30));
            let expires_at = told["seconds"].as_i64().map(|s| world.now() + SignedDuration::from_secs(s));
            world.tokens.insert(token.clone(), Token { holder, expires_at, unknown_times: 0 });
            Reply::new(201, json!({"token": token}))
        }
        ["revoke"] => {
            world.tokens.remove(text(told, "token"));
            done()
        }
        ["expire-tokens"] => {
            let now = world.now();
            of_installations(world).for_each(|token| token.expires_at = Some(now));
            done()
        }
        ["unknown-tokens"] => {
            let times = told["times"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
            of_installations(world).for_each(|token| token.unknown_times = times);
            done()
        }
        ["runners"] => {
            let count = told["count"].as_u64().unwrap_or(1);
            let labels = strings(&told["labels"]);
            for n in 0..count {
                let id = world.id();
                let runner = Runner {
                    id,
                    name: format!("{}{n}", text(told, "prefix")),
                    labels: labels.clone(),
                    group: 1,
                    online: false,
                    job: None,
                    busy_since: None,
                    secret: String::new(),
                    connected: false,
                    seen: None,
                };
                world.place(text(told, "place")).runners.insert(id, runner);
            }
            done()
        }
        ["runner", id] => {
            let now = world.now();
            let Some((_, runner)) = id.parse().ok().and_then(|id| world.runner_of(id)) else {
                return Reply::not_found();
            };
            if let Some(online) = told["online"].as_bool() {
                (runner.online, runner.connected) = (online, online || runner.connected);
            }
            if let Some(busy) = told["busy"].as_bool() {
                runner.job = busy.then_some(0);
                runner.busy_since = busy.then_some(now);
            }
            done()
        }
        ["clock"] => {
            world.ahead += SignedDuration::from_secs(told["seconds"].as_i64().unwrap_or(0));
            let now: Timestamp = world.now();
            Reply::ok(json!({"now": now}))
        }
        ["knobs"] => knobs(world, told),
        ["faults"] => match serde_json::from_value::<Vec<Fault>>(told.clone()) {
            Ok(faults) => {
                world.faults.extend(faults);
                done()
            }
            Err(error) => Reply::refuse(400, error.to_string()),
        },
        ["calm"] => {
            world.faults.clear();
            done()
        }
        ["rename"] => {
            let (from, to) = (text(told, "from").to_owned(), text(told, "to").to_owned());
            let Some(entity) = world.places.remove(&from) else { return Reply::not_found() };
            world.places.insert(to.clone(), entity);
            world.renamed.insert(from, to);
            done()
        }
        ["requests"] => Reply::ok(Value::Array(std::mem::take(&mut world.requests))),
        ["hooks"] => {
            let id = world.id();
            world.hooks.push(Hook {
                id,
                url: text(told, "url").to_owned(),
                secret: text(told, "secret").to_owned(),
                drop: 0,
                duplicate: 0,
                wrong_signature: 0,
                shuffle: 0,
                hold: false,
                lose_percent: 0,
                double_percent: 0,
                delay_seconds: 0,
                late: Vec::new(),
                mute: strings(&told["mute"]),
                held: Vec::new(),
                due: Vec::new(),
            });
            if told["ping"] == true {
                webhooks::ping(world, id);
            }
            Reply::new(201, json!({"id": id}))
        }
        ["hook"] => {
            let number = |key: &str| told[key].as_u64().and_then(|n| u32::try_from(n).ok());
            for hook in &mut world.hooks {
                hook.drop = number("drop").unwrap_or(hook.drop);
                hook.duplicate = number("duplicate").unwrap_or(hook.duplicate);
                hook.wrong_signature = number("wrong_signature").unwrap_or(hook.wrong_signature);
                hook.shuffle = number("shuffle").map_or(hook.shuffle, |n| n as usize);
                hook.lose_percent = number("lose_percent").unwrap_or(hook.lose_percent);
                hook.double_percent = number("double_percent").unwrap_or(hook.double_percent);
                hook.delay_seconds = number("delay_seconds").unwrap_or(hook.delay_seconds);
                hook.hold = told["hold"].as_bool().unwrap_or(hook.hold);
                if !hook.hold && hook.shuffle == 0 {
                    hook.due.append(&mut hook.held);
                }
            }
            done()
        }
        ["jobs"] => work::queue(world, told),
        ["cancel"] => work::cancel(world, told["job"].as_u64().unwrap_or_default()),
        ["dispatch"] => work::dispatch(world),
        ["session", what] => work::runner_says(world, what, told),
        ["state"] => state(world),
        _ => Reply::not_found(),
    }
}

fn of_installations(world: &mut World) -> impl Iterator<Item = &mut Token> {
    world.tokens.values_mut().filter(|token| matches!(token.holder, Holder::Installation { .. }))
}

fn knobs(world: &mut World, told: &Value) -> Reply {
    for (key, value) in told.as_object().into_iter().flatten() {
        let (knobs, flag, number) = (&mut world.knobs, value.as_bool(), value.as_i64());
        match key.as_str() {
            "rate_limit" => knobs.rate_limit = value.as_u64(),
            "registration_limit" => knobs.registration_limit = value.as_u64(),
            "busy_lag_seconds" => knobs.busy_lag_seconds = number.unwrap_or(0),
            "lease_seconds" => knobs.lease_seconds = number.unwrap_or(600),
            "token_seconds" => knobs.token_seconds = number.unwrap_or(3600),
            "session_seconds" => knobs.session_seconds = number.unwrap_or(0),
            "live" => knobs.live = flag.unwrap_or(false),
            "server_url" => knobs.server_url = value.as_str().map(str::to_owned),
            "lower_case_labels" => knobs.lower_case_labels = flag.unwrap_or(false),
            "unknown_keys" => knobs.unknown_keys = flag.unwrap_or(false),
            "omit_optional" => knobs.omit_optional = flag.unwrap_or(false),
            _ => return Reply::refuse(400, format!("there is no knob {key}")),
        }
    }
    Reply::ok(json!({}))
}

/// Everything that a test may want to hold against what it expected.
fn state(world: &World) -> Reply {
    let places: BTreeMap<&String, Vec<Value>> = world
        .places
        .iter()
        .map(|(place, entity)| (place, entity.runners.values().map(|r| world.show_runner(r)).collect()))
        .collect();
    let jobs: Vec<Value> = world
        .jobs
        .values()
        .map(|job| {
            let mut shown = world.show_job(job);
            shown["log"] = json!(job.log);
            shown["lost"] = json!(job.lost);
            shown["outputs"] = json!(job.outputs);
            shown
        })
        .collect();
    Reply::ok(json!({"runners": places, "jobs": jobs, "deliveries": world.deliveries, "now": world.now()}))
}
