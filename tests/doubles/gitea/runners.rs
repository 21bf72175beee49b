//! Rows of runners: registration, what the lists say of them, deletion.

#![expect(clippy::result_large_err, reason = "a refusal is an answer like any other, and no path here is hot")]

use std::cmp::Reverse;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    api::Request,
    page::page,
    reply::Reply,
    show,
    world::{Scope, Table, World},
};

pub struct Runner {
    pub id: u64,
    pub uuid: String,
    pub token: String,
    pub name: String,
    pub version: String,
    pub labels: Vec<String>,
    pub scope: Scope,
    pub ephemeral: bool,
    /// It gets no tasks.
    pub disabled: bool,
    /// When its program last called, and when it last reported on a task.
    pub online_at: Option<Timestamp>,
    pub active_at: Option<Timestamp>,
    pub deleted: bool,
}

/// 40 hexadecimal digits, as both kinds of token are.
fn random_token() -> String {
    let (a, b) = (uuid::Uuid::new_v4().simple().to_string(), uuid::Uuid::new_v4().simple().to_string());
    format!("{a}{}", &b[..8])
}

/// One per scope, the same at each call.
pub fn registration_token(world: &mut World, scope: &Scope) -> String {
    world.registration_tokens.entry(scope.clone()).or_insert_with(random_token).clone()
}

/// Names need not be unique.
pub fn register(
    world: &mut World,
    scope: Scope,
    name: &str,
    labels: Vec<String>,
    version: &str,
    ephemeral: bool,
) -> u64 {
    let id = world.id(Table::Runner);
    let runner = Runner {
        id,
        uuid: uuid::Uuid::new_v4().to_string(),
        token: random_token(),
        name: name.chars().take(255).collect(),
        version: version.to_owned(),
        labels,
        scope,
        ephemeral,
        disabled: false,
        online_at: None,
        active_at: None,
        deleted: false,
    };
    world.runners.insert(id, runner);
    id
}

impl World {
    fn silent_for(&self, since: Option<Timestamp>) -> SignedDuration {
        since.map_or(SignedDuration::MAX, |since| self.now().duration_since(since))
    }

    pub fn is_online(&self, runner: &Runner) -> bool {
        self.silent_for(runner.online_at) <= SignedDuration::from_secs(self.knobs.offline_seconds)
    }

    /// Not whether it has a task, but whether it reported on one a moment ago: a runner that was cut off, or that was killed,
    /// is shown as idle after ten seconds while its task is still running.
    pub fn is_busy(&self, runner: &Runner) -> bool {
        self.is_online(runner)
            && self.silent_for(runner.active_at) <= SignedDuration::from_secs(self.knobs.idle_seconds)
    }

    /// The task that it has not ended.
    pub fn task_of(&self, runner: u64) -> Option<u64> {
        self.tasks.values().find(|task| task.runner == runner && !task.done).map(|task| task.id)
    }
}

/// Those of this scope alone, but all of them for the server's. The one that called last comes first, so pages may overlap.
/// This list has no links and no `X-Total-Count`.
pub fn list(world: &World, request: &Request, scope: &Scope) -> Reply {
    let mut found: Vec<&Runner> = world.runners.values().filter(|r| !r.deleted && editable_in(r, scope)).collect();
    if let Some(asked) = request.query("disabled").and_then(|word| word.parse::<bool>().ok()) {
        found.retain(|runner| runner.disabled == asked);
    }
    found.sort_by_key(|runner| Reverse(runner.online_at));
    let shown: Vec<Value> = found.into_iter().map(|runner| show::runner(world, runner)).collect();
    page(world, request, "runners", shown, false)
}

fn editable_in(runner: &Runner, scope: &Scope) -> bool {
    *scope == Scope::System || runner.scope == *scope
}

/// Its id, if there is such a row and it is of this scope.
pub fn editable(world: &World, scope: &Scope, id: Option<u64>) -> Result<u64, Reply> {
    match id.and_then(|id| world.runners.get(&id)).filter(|runner| !runner.deleted) {
        None => Err(Reply::missing(world, "Runner not found")),
        Some(runner) if !editable_in(runner, scope) => {
            Err(Reply::missing(world, "No permission to access this runner"))
        }
        Some(runner) => Ok(runner.id),
    }
}

/// It keeps the task that it has. Others ask for tasks anew.
pub fn disable(world: &mut World, id: u64, disabled: bool) {
    world.runners.get_mut(&id).expect("the caller found it").disabled = disabled;
    world.tasks_version += 1;
}

/// By request: whatever it does at the moment.
pub fn delete(world: &mut World, id: u64) {
    let task = world.task_of(id);
    let at = world.now();
    let runner = world.runners.get_mut(&id).expect("the caller found it");
    runner.deleted = true;
    let job = task.map(|task| world.tasks[&task].job);
    world
        .deletions
        .push(json!({"id": id, "name": world.runners[&id].name, "job": job, "busy": job.is_some(), "at": at}));
}
