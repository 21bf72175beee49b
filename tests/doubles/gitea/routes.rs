//! The paths of the REST API, below `/api/v1`.

#![expect(clippy::result_large_err, reason = "a refusal is an answer like any other, and no path here is hot")]

use axum::http::Method;
use serde_json::{Value, json};

use crate::{
    access::{self, Right},
    api::Request,
    jobs::Status,
    page::page,
    reply::Reply,
    runners, show,
    world::{Scope, World},
};

pub fn route(world: &mut World, request: &Request, path: &[&str]) -> Reply {
    judged(world, request, path).unwrap_or_else(|refusal| refusal)
}

fn judged(world: &mut World, request: &Request, path: &[&str]) -> Result<Reply, Reply> {
    let get = request.method == Method::GET;
    match path {
        ["version"] if get => {
            access::caller(world, request)?;
            Ok(Reply::ok(json!({"version": world.knobs.version})))
        }
        ["user"] if get => {
            let caller = access::scoped(world, request, "user")?;
            let mut shown = show::user(world, &world.users[&caller.login]);
            // Users see this of themselves alone.
            shown["is_admin"] = json!(caller.administrator);
            Ok(Reply::ok(shown))
        }
        ["user", "actions", rest @ ..] => {
            let caller = access::scoped(world, request, "user")?;
            actions(world, request, &Scope::User(caller.login), rest)
        }
        ["orgs", name] if get => {
            let caller = access::scoped(world, request, "organization")?;
            access::organization(world, &caller, name, Right::Jobs)?;
            let organization = world.organization(name).ok_or_else(|| Reply::not_found(world))?;
            Ok(Reply::ok(show::organization(world, organization)))
        }
        ["orgs", name, "actions", rest @ ..] => {
            let caller = access::scoped(world, request, "organization")?;
            let scope = access::organization(world, &caller, name, right(rest))?;
            actions(world, request, &scope, rest)
        }
        ["admin", "actions", rest @ ..] => {
            let caller = access::scoped(world, request, "admin")?;
            let scope = access::system(world, &caller)?;
            actions(world, request, &scope, rest)
        }
        ["repos", owner, name] if get => {
            let caller = access::scoped(world, request, "repository")?;
            access::repository(world, &caller, owner, name, Right::Jobs)?;
            let repository = world.repository(owner, name).ok_or_else(|| Reply::not_found(world))?;
            Ok(Reply::ok(show::repository(world, repository, access::permissions(world, &caller, repository))))
        }
        ["repos", owner, name, "actions", rest @ ..] => {
            let caller = access::scoped(world, request, "repository")?;
            let scope = access::repository(world, &caller, owner, name, right(rest))?;
            actions(world, request, &scope, rest)
        }
        _ => Err(Reply::not_found(world)),
    }
}

fn right(rest: &[&str]) -> Right {
    if rest.first() == Some(&"runners") { Right::Runners } else { Right::Jobs }
}

fn actions(world: &mut World, request: &Request, scope: &Scope, rest: &[&str]) -> Result<Reply, Reply> {
    let in_repository = matches!(scope, Scope::Repository(_));
    match (request.method.as_str(), rest) {
        ("GET", ["jobs"]) => jobs(world, request, scope, None),
        ("GET", ["jobs", id]) if in_repository => {
            let job = number(id).and_then(|id| world.jobs.get(&id)).filter(|job| covers(world, scope, &job.repository));
            job.map(|job| Reply::ok(show::job(world, job))).ok_or_else(|| Reply::not_found(world))
        }
        ("GET", ["runs", run, "jobs"]) if in_repository => {
            let run = number(run).ok_or_else(|| Reply::not_found(world))?;
            let of_run =
                |world: &World| world.jobs.values().any(|job| job.run == run && covers(world, scope, &job.repository));
            if of_run(world) { jobs(world, request, scope, Some(run)) } else { Err(Reply::not_found(world)) }
        }
        ("POST", ["runners", "registration-token"]) => {
            Ok(Reply::ok(json!({"token": runners::registration_token(world, scope)})))
        }
        ("GET", ["runners"]) => Ok(runners::list(world, request, scope)),
        ("GET", ["runners", id]) => {
            let id = runners::editable(world, scope, number(id))?;
            Ok(Reply::ok(show::runner(world, &world.runners[&id])))
        }
        ("PATCH", ["runners", id]) => {
            let id = runners::editable(world, scope, number(id))?;
            let told: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
            let Some(disabled) = told["disabled"].as_bool() else {
                return Err(Reply::refuse(world, 422, "[Disabled]: Required"));
            };
            runners::disable(world, id, disabled);
            Ok(Reply::ok(show::runner(world, &world.runners[&id])))
        }
        ("DELETE", ["runners", id]) => {
            let id = runners::editable(world, scope, number(id))?;
            runners::delete(world, id);
            Ok(Reply::empty(204))
        }
        (_, ["jobs"] | ["jobs", _] | ["runs", _, "jobs"] | ["runners"] | ["runners", _]) => Err(Reply::empty(405)),
        _ => Err(Reply::not_found(world)),
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn covers(world: &World, scope: &Scope, repository: &str) -> bool {
    world.repositories.get(repository).is_some_and(|repository| scope.covers(repository))
}

/// In the order of their ids; `status` may be there several times.
fn jobs(world: &World, request: &Request, scope: &Scope, run: Option<u64>) -> Result<Reply, Reply> {
    let mut wanted: Vec<Status> = Vec::new();
    for (_, word) in request.query.iter().filter(|(key, value)| key == "status" && !value.is_empty()) {
        match Status::asked(word) {
            Some(statuses) => wanted.extend(statuses),
            None => return Err(Reply::refuse(world, 400, &format!("Invalid status {word}"))),
        }
    }
    let shown: Vec<Value> = world
        .jobs
        .values()
        .filter(|job| run.is_none_or(|run| job.run == run) && covers(world, scope, &job.repository))
        .filter(|job| wanted.is_empty() || wanted.contains(&job.status))
        .map(|job| show::job(world, job))
        .collect();
    Ok(page(world, request, "jobs", shown, true))
}
