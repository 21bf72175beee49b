//! What tests compare with what they expected.

use serde_json::{Map, Value, json};

use crate::{
    jobs::{Job, Task},
    reply::Reply,
    show,
    world::World,
};

pub fn state(world: &World) -> Reply {
    let jobs: Vec<Value> = world.jobs.values().map(|job| told(world, job)).collect();
    let runners: Vec<Value> = world
        .runners
        .values()
        .filter(|runner| !runner.deleted)
        .map(|runner| {
            let mut shown = show::runner(world, runner);
            shown["scope"] = json!(runner.scope.text());
            shown["uuid"] = json!(runner.uuid);
            // What `busy` only guesses.
            shown["task"] = json!(world.task_of(runner.id));
            shown
        })
        .collect();
    let busy = world.deletions.iter().filter(|deletion| deletion["busy"] == true).count();
    Reply::ok(json!({
        "jobs": jobs, "runners": runners, "registered": world.runners.len(), "deliveries": world.deliveries,
        "registration_tokens": world.registration_tokens.keys().map(|scope| scope.text()).collect::<Vec<_>>(),
        "deletions": world.deletions, "busy_deletions": busy, "counts": world.counts, "now": world.now(),
    }))
}

/// The job as the API shows it, and each of its attempts.
fn told(world: &World, job: &Job) -> Value {
    let mut shown = show::job(world, job);
    shown["repository"] = json!(job.repository);
    let tasks = world.tasks.values().filter(|task| task.job == job.id);
    let tasks: Vec<Value> = tasks.map(|task| attempt(world, task)).collect();
    let last = tasks.last().cloned().unwrap_or(Value::Object(Map::new()));
    shown["log"] = last["log"].clone();
    shown["outputs"] = last["outputs"].clone();
    shown["attempts"] = Value::Array(tasks);
    shown
}

fn attempt(world: &World, task: &Task) -> Value {
    json!({
        "task": task.id, "run_attempt": task.attempt, "runner_id": task.runner,
        "runner_name": world.runners[&task.runner].name, "result": show::result(task.result), "lost": task.lost,
        "log": task.log.iter().map(|row| format!("{row}\n")).collect::<String>(), "log_ended": task.log_ended, "outputs": task.outputs,
    })
}
