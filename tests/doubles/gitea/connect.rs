//! What runners call: the Connect protocol in JSON, `POST /api/actions/runner.v1.RunnerService/<procedure>`.
//!
//! Messages are those of `runner.v1` (actions-proto-go 0.6) as protobuf is written in JSON: 64-bit numbers as strings, members
//! with their default left out.

#![expect(clippy::result_large_err, reason = "a refusal is an answer like any other, and no path here is hot")]

use axum::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::Request,
    jobs::{self, Job, Status},
    reply::Reply,
    runners::{self, Runner},
    show,
    world::{Scope, World},
};

/// Outputs are cut off above, and keys longer than this are dropped.
const LONGEST_KEY: usize = 255;

pub fn call(world: &mut World, request: &Request, service: &str, procedure: &str) -> Reply {
    if !matches!((service, procedure), ("runner.v1.RunnerService", _) | ("ping.v1.PingService", "Ping")) {
        return Reply::not_found(world);
    }
    if request.method != Method::POST {
        return Reply::empty(405).with("allow", "POST");
    }
    let kind = request.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind != "application/json" {
        return Reply::empty(415).with("accept-post", "application/json");
    }
    if request.header("connect-protocol-version").is_some_and(|version| version != "1") {
        return Reply::connect("invalid_argument", "connect-protocol-version must be \"1\"");
    }
    let Ok(message @ Value::Object(_)) = serde_json::from_slice::<Value>(&request.body) else {
        return Reply::connect("invalid_argument", "unmarshal message: not a JSON object");
    };
    // Clients of the protocol take nothing else, not even with a charset.
    let reply = answer(world, request, procedure, &message).unwrap_or_else(|refusal| refusal);
    reply.with("content-type", "application/json")
}

fn answer(world: &mut World, request: &Request, procedure: &str, message: &Value) -> Result<Reply, Reply> {
    match procedure {
        // What `register` of the runner program asks first.
        "Ping" => return Ok(Reply::ok(json!({"data": format!("Hello, {}!", text(message, "data"))}))),
        "Register" => return register(world, message),
        _ => {}
    }
    let id = known(world, request)?;
    let now = world.now();
    let row = world.runners.get_mut(&id).expect("it was found");
    row.online_at = Some(now);
    if matches!(procedure, "UpdateTask" | "UpdateLog") {
        row.active_at = Some(now);
    }
    match procedure {
        "Declare" => {
            row.labels = strings(&message["labels"]);
            row.version = text(message, "version").to_owned();
            Ok(Reply::ok(json!({"runner": described(row)})))
        }
        "FetchTask" => Ok(fetch(world, id, message)),
        "UpdateTask" => update_task(world, id, message),
        "UpdateLog" => update_log(world, id, message),
        _ => Err(Reply::connect("unimplemented", "no such procedure")),
    }
}

/// The row of the program that calls.
fn known(world: &World, request: &Request) -> Result<u64, Reply> {
    let (uuid, token) = (request.header("x-runner-uuid"), request.header("x-runner-token"));
    let proven = |row: &&Runner| !row.deleted && Some(row.uuid.as_str()) == uuid && Some(row.token.as_str()) == token;
    let row = world.runners.values().find(proven);
    row.map(|row| row.id).ok_or_else(|| Reply::grpc("Unauthenticated", "unregistered runner"))
}

fn register(world: &mut World, message: &Value) -> Result<Reply, Reply> {
    let (token, name) = (text(message, "token"), text(message, "name"));
    if token.is_empty() || name.is_empty() {
        return Err(Reply::connect("unknown", "missing runner token, name"));
    }
    let scope: Option<Scope> =
        world.registration_tokens.iter().find(|(_, known)| *known == token).map(|(scope, _)| scope.clone());
    let scope = scope.ok_or_else(|| Reply::connect("unknown", "runner registration token not found"))?;
    let labels = strings(&message["labels"]);
    let ephemeral = message["ephemeral"].as_bool().unwrap_or(false);
    let id = runners::register(world, scope, name, labels, text(message, "version"), ephemeral);
    let row = &world.runners[&id];
    let mut shown = described(row);
    // Given once.
    shown["token"] = json!(row.token);
    Ok(Reply::ok(json!({"runner": shown})))
}

/// `runner.v1.Runner`
fn described(row: &Runner) -> Value {
    let mut shown = json!({"id": row.id.to_string(), "uuid": row.uuid, "name": row.name});
    if !row.version.is_empty() {
        shown["version"] = json!(row.version);
    }
    if !row.labels.is_empty() {
        shown["labels"] = json!(row.labels);
    }
    if row.ephemeral {
        shown["ephemeral"] = json!(true);
    }
    shown
}

/// Answers at once, whether there is a task or not. A runner that knows the version of the tasks gets none: there was none for
/// it when it got that version.
fn fetch(world: &mut World, runner: u64, message: &Value) -> Reply {
    let version = world.tasks_version;
    let known = whole(&message["tasksVersion"]) == Some(version);
    let version = version.to_string();
    let task = if known { None } else { jobs::take(world, runner) };
    let Some(task) = task else { return Reply::ok(json!({"tasksVersion": version})) };
    let job = &world.jobs[&world.tasks[&task].job];
    let (owner, _) = job.repository.split_once('/').unwrap_or((&job.repository, ""));
    let context = json!({
        "event_name": "push", "job": job.name, "repository": job.repository, "repository_owner": owner,
        "run_id": job.run.to_string(), "run_attempt": job.attempt.to_string(), "ref": "refs/heads/main",
        "ref_name": "main", "server_url": world.root, "api_url": format!("{}/api/v1", world.root),
    });
    let payload = STANDARD.encode(workflow(job));
    let task = json!({"id": task.to_string(), "workflowPayload": payload, "context": context});
    Reply::ok(json!({"task": task, "tasksVersion": version}))
}

/// One job of a workflow, in a fixed form that a shell script can read.
fn workflow(job: &Job) -> String {
    let labels = job.labels.iter().map(|label| json!(label).to_string()).collect::<Vec<_>>().join(", ");
    let mut written = format!(
        "name: ci\n\"on\": push\njobs:\n  job:\n    name: {}\n    runs-on: [{labels}]\n    steps:\n",
        json!(job.name)
    );
    for step in &job.steps {
        written.push_str(&format!("      - name: {}\n        run: |\n", json!(step.name)));
        for line in step.run.lines() {
            written.push_str(&format!("          {line}\n"));
        }
    }
    written
}

/// The task, if it is one of this runner's.
fn own_task(world: &World, runner: u64, id: &Value, doing: &str) -> Result<u64, Reply> {
    let task = whole(id).and_then(|id| world.tasks.get(&id));
    let task = task.ok_or_else(|| Reply::grpc("Internal", &format!("{doing}: resource does not exist")))?;
    if task.runner == runner {
        return Ok(task.id);
    }
    Err(Reply::grpc("Internal", "invalid runner for task"))
}

fn update_task(world: &mut World, runner: u64, message: &Value) -> Result<Reply, Reply> {
    let state = &message["state"];
    let id = own_task(world, runner, &state["id"], "update task")?;
    let result = match status(&state["result"]) {
        Ok(result) => result,
        Err(word) => {
            return Err(Reply::connect("invalid_argument", &format!("unmarshal message: invalid value {word}")));
        }
    };
    let now = world.now();
    let task = world.tasks.get_mut(&id).expect("it was found");
    for (key, value) in message["outputs"].as_object().into_iter().flatten() {
        if key.len() <= LONGEST_KEY {
            task.outputs.entry(key.clone()).or_insert_with(|| value.as_str().unwrap_or_default().to_owned());
        }
    }
    let sent: Vec<String> = task.outputs.keys().cloned().collect();
    if !task.done {
        task.updated_at = now;
        for step in state["steps"].as_array().into_iter().flatten() {
            update_step(task, step);
        }
        if let Some(result) = result {
            // By the clock of the runner; nothing at all is 1970.
            jobs::end_task(world, id, result, instant(&state["stoppedAt"]).unwrap_or(Timestamp::UNIX_EPOCH));
        }
    }
    let mut answered = json!({"id": id.to_string()});
    if let Some(result) = show::result(world.tasks[&id].result) {
        answered["result"] = json!(format!("RESULT_{}", result.to_uppercase()));
    }
    let mut reply = json!({"state": answered});
    if !sent.is_empty() {
        reply["sentOutputs"] = json!(sent);
    }
    Ok(Reply::ok(reply))
}

/// Times are those of the runner's clock.
fn update_step(task: &mut jobs::Task, told: &Value) {
    // The first one's number is the default, and left out.
    let number = whole(&told["id"]).unwrap_or(0);
    let Some(step) = usize::try_from(number).ok().and_then(|number| task.steps.get_mut(number)) else { return };
    (step.started_at, step.stopped_at) = (instant(&told["startedAt"]), instant(&told["stoppedAt"]));
    match status(&told["result"]) {
        Ok(Some(result)) => step.status = result,
        _ if step.started_at.is_some() => step.status = Status::Running,
        _ => {}
    }
}

fn update_log(world: &mut World, runner: u64, message: &Value) -> Result<Reply, Reply> {
    let id = own_task(world, runner, &message["taskId"], "get task")?;
    let now = world.now();
    let rows = message["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let index = whole(&message["index"]).and_then(|index| usize::try_from(index).ok()).unwrap_or(0);
    let task = world.tasks.get_mut(&id).expect("it was found");
    let known = task.log.len();
    // Rows after a gap are dropped, and those that are known already.
    let fresh = if index <= known { rows.get(known - index..).unwrap_or_default() } else { &[] };
    if task.log_ended && !fresh.is_empty() {
        return Err(Reply::grpc("AlreadyExists", "log file has been archived"));
    }
    let ends = message["noMore"].as_bool().unwrap_or(false) && index <= known;
    if !task.log_ended && (ends || !fresh.is_empty()) {
        task.log.extend(fresh.iter().map(|row| text(row, "content").to_owned()));
        (task.updated_at, task.log_ended) = (now, ends);
    }
    let known = task.log.len();
    Ok(Reply::ok(if known == 0 { json!({}) } else { json!({"ackIndex": known.to_string()}) }))
}

/// `runner.v1.Result`, by name or by number; none is the default.
fn status(result: &Value) -> Result<Option<Status>, String> {
    Ok(Some(match (result.as_str(), result.as_u64()) {
        (Some("RESULT_SUCCESS"), _) | (_, Some(1)) => Status::Success,
        (Some("RESULT_FAILURE"), _) | (_, Some(2)) => Status::Failure,
        (Some("RESULT_CANCELLED"), _) | (_, Some(3)) => Status::Cancelled,
        (Some("RESULT_SKIPPED"), _) | (_, Some(4)) => Status::Skipped,
        (Some("RESULT_UNSPECIFIED"), _) | (_, Some(0)) => return Ok(None),
        _ if result.is_null() => return Ok(None),
        _ => return Err(result.to_string()),
    }))
}

fn instant(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// A 64-bit number, which may be written as a string.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn text<'v>(message: &'v Value, key: &str) -> &'v str {
    message[key].as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
