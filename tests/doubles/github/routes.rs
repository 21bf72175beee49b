//! The paths.

use std::collections::BTreeMap;

use axum::http::Method;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    api::ApiRequest,
    auth::{self, Holder, Token, Who},
    jit,
    page::page,
    reply::Reply,
    world::{Place, Runner, World},
};

/// Permission of Apps, and scope of classic tokens, for the runners of a place.
fn runners_take(place: &str) -> (&'static str, &'static str) {
    match place.split('/').next() {
        Some("repos") => ("administration", "repo"),
        Some("orgs") => ("organization_self_hosted_runners", "admin:org"),
        _ => ("enterprise_runners_are_for_classic_tokens", "manage_runners:enterprise"),
    }
}

pub fn route(world: &mut World, origin: &str, asked: &ApiRequest, who: &Who) -> Reply {
    let path: Vec<&str> = asked.path.iter().map(String::as_str).collect();
    let get = asked.method == Method::GET;
    match path.as_slice() {
        ["app", rest @ ..] => app(world, asked, who, rest),
        [kind @ ("orgs" | "enterprises" | "users"), name, "installation"] if get => {
            let kind = if *kind == "users" { "orgs" } else { kind };
            installation_in(world, who, &format!("{kind}/{name}"))
        }
        ["repos", owner, name, "installation"] if get => installation_in(world, who, &format!("repos/{owner}/{name}")),
        ["repos", owner, name, "actions", rest @ ..] => {
            actions(world, origin, asked, who, &format!("repos/{owner}/{name}"), rest)
        }
        [kind @ ("orgs" | "enterprises"), name, "actions", rest @ ..] => {
            actions(world, origin, asked, who, &format!("{kind}/{name}"), rest)
        }
        _ => Reply::not_found(),
    }
}

fn actions(world: &mut World, origin: &str, asked: &ApiRequest, who: &Who, place: &Place, rest: &[&str]) -> Reply {
    let jobs = matches!(rest.first(), Some(&("runs" | "jobs")));
    let (permission, scope) = if jobs { ("actions", "repo") } else { runners_take(place) };
    let write = asked.method != Method::GET;
    if let Err(refusal) = auth::may(world, who, place, permission, write, scope) {
        return refusal;
    }
    let (get, post, delete) =
        (asked.method == Method::GET, asked.method == Method::POST, asked.method == Method::DELETE);
    let number = |text: &str| text.parse::<u64>().ok();
    match rest {
        ["runners"] if get => runners(world, asked, place),
        ["runners", "generate-jitconfig"] if post => generate(world, origin, asked, place),
        ["runners", kind @ ("registration-token" | "remove-token")] if post => {
            let expires = world.now() + SignedDuration::from_hours(1);
            let text = format!("A{}{}", kind.len(), world.id()).repeat(4);
            let expires = expires.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string();
            Reply::new(201, json!({"token": text, "expires_at": expires}))
        }
        ["runners", "downloads"] if get => Reply::ok(json!([
            {"os": "osx", "architecture": "arm64", "download_url": "https://x/r.tar.gz", "filename": "r.tar.gz"},
            {"os": "linux", "architecture": "x64", "download_url": "https://x/l.tar.gz", "filename": "l.tar.gz"},
        ])),
        ["runners", id] if get => {
            let runner = number(id).and_then(|id| world.places[place].runners.get(&id));
            runner.map_or_else(Reply::not_found, |runner| Reply::ok(world.show_runner(runner)))
        }
        ["runners", id] if delete => {
            let runners = &mut world.place(place).runners;
            let Some(runner) = number(id).and_then(|id| runners.get(&id)) else { return Reply::not_found() };
            if runner.job.is_some() {
                let said = format!("Bad request - Runner \"{}\" is still running a job\"", runner.name);
                return Reply::refuse(422, said);
            }
            let id = runner.id;
            runners.remove(&id);
            Reply::empty(204)
        }
        ["runner-groups"] if get && !place.starts_with("repos/") => {
            let groups = world.places[place].groups.clone();
            page(asked, Some("runner_groups"), groups)
        }
        ["runs"] if get => runs(world, asked, place),
        ["runs", run, "jobs"] if get => {
            let Some(run) = number(run) else { return Reply::not_found() };
            let of_run = || world.jobs.values().filter(|j| j.repository == *place && j.run == run);
            if of_run().next().is_none() {
                return Reply::not_found();
            }
            let last = of_run().map(|j| j.attempt).max().unwrap_or(1);
            let all = asked.query("filter") == Some("all");
            let jobs = of_run().filter(|j| all || j.attempt == last).map(|j| world.show_job(j)).collect();
            page(asked, Some("jobs"), jobs)
        }
        ["jobs", id] if get => {
            let job = number(id).and_then(|id| world.jobs.get(&id)).filter(|j| j.repository == *place);
            job.map_or_else(Reply::not_found, |job| Reply::ok(world.show_job(job)))
        }
        _ => Reply::not_found(),
    }
}

fn runners(world: &World, asked: &ApiRequest, place: &Place) -> Reply {
    let named = asked.query("name");
    let runners = world.places[place].runners.values().filter(|r| named.is_none_or(|name| r.name == name));
    page(asked, Some("runners"), runners.map(|r| world.show_runner(r)).collect())
}

fn generate(world: &mut World, origin: &str, asked: &ApiRequest, place: &Place) -> Reply {
    let invalid = |why: String| Reply::refuse(422, why);
    let Some(Value::Object(body)) = asked.json() else { return Reply::refuse(400, "Problems parsing JSON") };
    for key in ["name", "runner_group_id", "labels"] {
        if !body.contains_key(key) {
            return invalid(format!("Invalid input: object is missing required key: {key}"));
        }
    }
    let Some(name) = body["name"].as_str().filter(|n| !n.is_empty()) else {
        return invalid(format!("Invalid property /name: {} is not of type string.", body["name"]));
    };
    let Some(group) = body["runner_group_id"].as_u64() else {
        return invalid(format!(
            "Invalid property /runner_group_id: {} is not of type integer.",
            body["runner_group_id"]
        ));
    };
    let labels: Option<Vec<String>> =
        body["labels"].as_array().and_then(|l| l.iter().map(|l| l.as_str().map(str::to_owned)).collect());
    let Some(labels) = labels else {
        return invalid("Invalid property /labels: not of type array of string.".to_owned());
    };
    if labels.is_empty() {
        return invalid("Invalid property /labels: 1 item required; only 0 were supplied.".to_owned());
    }
    if labels.len() > 100 {
        return invalid(format!(
            "Invalid property /labels: no more than 100 items are allowed; {} were supplied.",
            labels.len()
        ));
    }
    let entity = &world.places[place];
    if !entity.groups.iter().any(|g| g["id"] == group) {
        return Reply::not_found();
    }
    if entity.runners.values().any(|r| r.name == name) {
        return Reply::refuse(409, format!("Already exists - A runner with the name \"{name}\" already exists."));
    }
    let id = world.id();
    let secret = format!("jit-secret-{id}-{}", world.draw(1 << 30));
    let runner = Runner {
        id,
        name: name.to_owned(),
        labels,
        group,
        online: false,
        job: None,
        busy_since: None,
        secret,
        connected: false,
        seen: None,
    };
    let url = format!("{origin}/{}", place.split_once('/').map_or("", |(_, name)| name));
    let server = world.knobs.server_url.as_deref().unwrap_or(origin);
    let config = jit::encode(&runner, server, &url);
    let shown = world.show_runner(&runner);
    world.place(place).runners.insert(id, runner);
    Reply::new(201, json!({"runner": shown, "encoded_jit_config": config}))
}

fn runs(world: &World, asked: &ApiRequest, place: &Place) -> Reply {
    let mut runs: BTreeMap<u64, Vec<&crate::world::Job>> = BTreeMap::new();
    for job in world.jobs.values().filter(|j| j.repository == *place) {
        runs.entry(job.run).or_default().push(job);
    }
    let shown = runs.iter().map(|(id, jobs)| {
        let last = jobs.iter().map(|j| j.attempt).max().unwrap_or(1);
        let of_last: Vec<_> = jobs.iter().filter(|j| j.attempt == last).collect();
        let status = if of_last.iter().all(|j| j.status == "completed") {
            "completed"
        } else if of_last.iter().all(|j| j.status == "queued") {
            "queued"
        } else {
            "in_progress"
        };
        json!({"id": id, "run_attempt": last, "status": status, "created_at": jobs[0].created_at, "name": "ci"})
    });
    let wanted = asked.query("status");
    let mut shown: Vec<Value> = shown.filter(|run| wanted.is_none_or(|w| run["status"] == w)).collect();
    // Newest first; of a filtered list there is no more than this.
    shown.reverse();
    shown.truncate(1000);
    page(asked, Some("workflow_runs"), shown)
}

fn show_installation(world: &World, id: u64) -> Value {
    let i = &world.installations[&id];
    let account = if i.target_type == "Enterprise" {
        json!({"slug": i.account, "id": 5})
    } else {
        json!({"login": i.account, "id": 5})
    };
    let app = world.apps.iter().find(|a| a.id == i.app);
    json!({
        "id": id, "app_id": i.app, "account": account, "target_type": i.target_type, "permissions": i.permissions,
        "events": app.map(|a| a.events.clone()), "repository_selection": if i.repositories.is_some() { "selected" } else { "all" },
        "suspended_at": i.suspended_at, "suspended_by": null, "app_slug": app.map(|a| a.slug.clone()),
    })
}

fn installation_in(world: &World, who: &Who, place: &str) -> Reply {
    let Who::App(app) = who else { return Reply::refuse(401, "A JSON web token could not be decoded") };
    let parts: Vec<&str> = place.split('/').collect();
    let found = world.installations.iter().find(|(_, i)| {
        i.app == *app
            && i.account == parts[1]
            && (parts[0] == "enterprises") == (i.target_type == "Enterprise")
            && (parts.len() < 3 || i.repositories.as_ref().is_none_or(|names| names.contains(parts[2])))
    });
    match found {
        Some((id, _)) if world.places.contains_key(place) => Reply::ok(show_installation(world, *id)),
        _ => Reply::not_found(),
    }
}

fn app(world: &mut World, asked: &ApiRequest, who: &Who, rest: &[&str]) -> Reply {
    let Who::App(app) = *who else { return Reply::refuse(401, "A JSON web token could not be decoded") };
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    let ours = |world: &World, id: &str| {
        id.parse::<u64>().ok().filter(|id| world.installations.get(id).is_some_and(|i| i.app == app))
    };
    match rest {
        [] if get => {
            let app = world.apps.iter().find(|a| a.id == app).expect("it was just found");
            Reply::ok(json!({
                "id": app.id, "slug": app.slug, "name": format!("The {}", app.slug), "client_id": app.client_id,
                "permissions": app.permissions, "events": app.events, "owner": {"login": "acme"}, "html_url": "",
            }))
        }
        ["installations"] if get => {
            let all = world.installations.iter().filter(|(_, i)| i.app == app);
            let all = all.map(|(id, _)| show_installation(world, *id)).collect();
            page(asked, None, all)
        }
        ["installations", id] if get => match ours(world, id) {
            Some(id) => Reply::ok(show_installation(world, id)),
            None => Reply::not_found(),
        },
        ["installations", id, "access_tokens"] if post => match ours(world, id) {
            Some(id) => access_token(world, asked, id),
            None => Reply::not_found(),
        },
        ["hook", "deliveries"] if get => crate::webhooks::list(world, asked),
        ["hook", "deliveries", id] if get => crate::webhooks::show(world, id),
        ["hook", "deliveries", id, "attempts"] if post => crate::webhooks::again(world, id),
        _ => Reply::not_found(),
    }
}

fn access_token(world: &mut World, asked: &ApiRequest, id: u64) -> Reply {
    let installation = &world.installations[&id];
    if installation.suspended_at.is_some() {
        return Reply::refuse(403, "This installation has been suspended");
    }
    let body = if asked.body.is_empty() { Some(json!({})) } else { asked.json() };
    let Some(body) = body else { return Reply::refuse(400, "Problems parsing JSON") };
    let rank = |level: &str| ["read", "write", "admin"].iter().position(|l| *l == level).map_or(0, |n| n + 1);
    let mut permissions = installation.permissions.clone();
    if let Some(wanted) = body["permissions"].as_object() {
        permissions = BTreeMap::new();
        for (name, level) in wanted {
            let level = level.as_str().unwrap_or_default();
            if rank(installation.permissions.get(name).map_or("", String::as_str)) < rank(level) {
                return Reply::refuse(422, "The permissions requested are not granted to this installation.");
            }
            permissions.insert(name.clone(), level.to_owned());
        }
        permissions.insert("metadata".to_owned(), "read".to_owned());
    }
    let selection = if installation.repositories.is_some() { "selected" } else { "all" };
    let expires_at = world.now() + SignedDuration::from_secs(world.knobs.token_seconds);
    // As since 2026: the installation, and a JWT, some 520 characters with dots.
    let (head, body, signature) = ("a".repeat(33), "b".repeat(290), "c".repeat(170));
    let text = format!("ghs_{id}_eyJ{head}.eyJ{}{body}.{signature}", world.id());
    let shown = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let reply =
        json!({"token": text, "expires_at": shown, "permissions": permissions, "repository_selection": selection});
    let holder = Holder::Installation { id, permissions };
    world.tokens.insert(text, Token { holder, expires_at: Some(expires_at), unknown_times: 0 });
    Reply::new(201, reply)
}
