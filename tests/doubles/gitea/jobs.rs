//! The life of a job, and of the tasks that are made of it: one each time a runner takes it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::{
    show, webhooks,
    world::{Table, World},
};

/// As the database has it; what is shown has other words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Blocked,
    Waiting,
    Running,
    Success,
    Failure,
    Cancelled,
    Skipped,
}

impl Status {
    pub fn is_done(self) -> bool {
        !matches!(self, Status::Blocked | Status::Waiting | Status::Running)
    }

    /// `status` and `conclusion` as they are shown.
    pub fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Status::Blocked => ("waiting", None),
            Status::Waiting => ("queued", None),
            Status::Running => ("in_progress", None),
            Status::Success => ("completed", Some("success")),
            Status::Failure => ("completed", Some("failure")),
            Status::Cancelled => ("completed", Some("cancelled")),
            Status::Skipped => ("completed", Some("skipped")),
        }
    }

    /// What a list with this word in `status` contains.
    pub fn asked(word: &str) -> Option<Vec<Status>> {
        Some(match word {
            "pending" | "waiting" | "requested" | "action_required" => vec![Status::Blocked],
            "queued" => vec![Status::Waiting],
            "in_progress" => vec![Status::Running],
            "completed" => vec![Status::Success, Status::Failure, Status::Skipped, Status::Cancelled],
            "failure" => vec![Status::Failure],
            "success" => vec![Status::Success],
            "skipped" | "neutral" => vec![Status::Skipped],
            "cancelled" | "timed_out" => vec![Status::Cancelled],
            _ => return None,
        })
    }
}

#[derive(Clone)]
pub struct Step {
    pub name: String,
    pub run: String,
}

#[derive(Clone)]
pub struct Job {
    pub id: u64,
    pub run: u64,
    /// `owner/name`
    pub repository: String,
    pub name: String,
    pub labels: Vec<String>,
    pub steps: Vec<Step>,
    /// 0 until a runner takes it for the first time.
    pub attempt: u32,
    pub status: Status,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    /// Of its present attempt.
    pub task: Option<u64>,
}

pub struct StepState {
    pub status: Status,
    pub started_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
}

pub struct Task {
    pub id: u64,
    pub job: u64,
    pub runner: u64,
    pub attempt: u32,
    pub updated_at: Timestamp,
    pub done: bool,
    pub result: Option<Status>,
    /// It was given up because its runner fell silent.
    pub lost: bool,
    pub log: Vec<String>,
    pub log_ended: bool,
    pub outputs: BTreeMap<String, String>,
    pub steps: Vec<StepState>,
}

pub struct NewJob {
    pub repository: String,
    pub name: String,
    pub labels: Vec<String>,
    pub steps: Vec<Step>,
    pub run: Option<u64>,
    /// It waits for other jobs.
    pub blocked: bool,
}

pub fn queue(world: &mut World, new: NewJob) -> (u64, u64) {
    let run = new.run.unwrap_or_else(|| world.id(Table::Run));
    let (id, now) = (world.id(Table::Job), world.now());
    let job = Job {
        id,
        run,
        repository: new.repository,
        name: new.name,
        labels: new.labels,
        steps: new.steps,
        attempt: 0,
        status: if new.blocked { Status::Blocked } else { Status::Waiting },
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        task: None,
    };
    world.jobs.insert(id, job);
    set(world, id, |_| {});
    (id, run)
}

/// Hooks are told what the job is now.
fn tell(world: &mut World, id: u64) {
    let job = &world.jobs[&id];
    let payload = show::payload(world, job);
    let repository = job.repository.clone();
    webhooks::tell(world, &repository, job.status.words().0, &payload);
}

fn set(world: &mut World, id: u64, change: impl FnOnce(&mut Job)) {
    let now = world.now();
    let job = world.jobs.get_mut(&id).expect("jobs stay");
    change(job);
    job.updated_at = now;
    let waits = job.status == Status::Waiting;
    world.tasks_version += u64::from(waits);
    tell(world, id);
}

/// What it waited for is there.
pub fn release(world: &mut World, id: u64) -> Result<(), &'static str> {
    if world.jobs[&id].status != Status::Blocked {
        return Err("the job does not wait for others");
    }
    set(world, id, |job| job.status = Status::Waiting);
    Ok(())
}

/// Ends at once, whatever its runner does: the runner's row goes, and the runner can report nothing more.
pub fn cancel(world: &mut World, id: u64) -> Result<(), &'static str> {
    let job = &world.jobs[&id];
    if job.status.is_done() {
        return Err("the job is over");
    }
    match job.task {
        Some(task) => stop_task(world, task, Status::Cancelled),
        None => {
            let now = world.now();
            set(world, id, |job| (job.status, job.completed_at) = (Status::Cancelled, Some(now)));
        }
    }
    Ok(())
}

/// Its condition was not met: it never gets a runner.
pub fn skip(world: &mut World, id: u64) -> Result<(), &'static str> {
    if !matches!(world.jobs[&id].status, Status::Blocked | Status::Waiting) {
        return Err("the job has begun");
    }
    let now = world.now();
    set(world, id, |job| (job.status, job.completed_at) = (Status::Skipped, Some(now)));
    Ok(())
}

/// The same id, the same time of creation, and still the number of the attempt before.
pub fn rerun(world: &mut World, id: u64) -> Result<(), &'static str> {
    let run = world.jobs[&id].run;
    if world.jobs.values().any(|job| job.run == run && !job.status.is_done()) {
        return Err("this workflow run is not done");
    }
    set(world, id, |job| {
        job.status = Status::Waiting;
        (job.started_at, job.completed_at, job.task) = (None, None, None);
    });
    Ok(())
}

/// The job that waited longest among those that this runner can run, and the task made of it.
pub fn take(world: &mut World, runner: u64) -> Option<u64> {
    let row = &world.runners[&runner];
    if row.disabled {
        return None;
    }
    // A runner for one job gets no second one, not even while its first is running.
    if row.ephemeral && world.tasks.values().any(|task| task.runner == runner) {
        return None;
    }
    let fits = |job: &&Job| {
        let repository = world.repositories.get(&job.repository);
        job.status == Status::Waiting
            && job.labels.iter().all(|label| row.labels.contains(label))
            && repository.is_some_and(|repository| row.scope.covers(repository))
    };
    let job = world.jobs.values().filter(fits).min_by_key(|job| (job.updated_at, job.id))?.id;
    let (id, now) = (world.id(Table::Task), world.now());
    let taken = world.jobs.get_mut(&job).expect("it was found");
    taken.attempt += 1;
    (taken.status, taken.started_at, taken.task) = (Status::Running, Some(now), Some(id));
    let untouched = || StepState { status: Status::Waiting, started_at: None, stopped_at: None };
    let task = Task {
        id,
        job,
        runner,
        attempt: taken.attempt,
        updated_at: now,
        done: false,
        result: None,
        lost: false,
        log: Vec::new(),
        log_ended: false,
        outputs: BTreeMap::new(),
        steps: taken.steps.iter().map(|_| untouched()).collect(),
    };
    world.tasks.insert(id, task);
    set(world, job, |_| {});
    Some(id)
}

/// Ends a task without its runner.
fn stop_task(world: &mut World, id: u64, status: Status) {
    let now = world.now();
    let task = world.tasks.get_mut(&id).expect("tasks stay");
    for step in task.steps.iter_mut().filter(|step| !step.status.is_done()) {
        step.status = status;
        step.started_at.get_or_insert(now);
        step.stopped_at = Some(now);
    }
    end_task(world, id, status, now);
}

/// The job ends with it, and so does the row of a runner for one job.
pub fn end_task(world: &mut World, id: u64, status: Status, at: Timestamp) {
    let task = world.tasks.get_mut(&id).expect("tasks stay");
    (task.done, task.result) = (true, Some(status));
    let (job, runner) = (task.job, task.runner);
    if let Some(row) = world.runners.get_mut(&runner).filter(|row| row.ephemeral) {
        row.deleted = true;
    }
    set(world, job, |job| (job.status, job.completed_at) = (status, Some(at)));
}

/// What time does: tasks whose runner fell silent are given up, jobs that no runner takes are cancelled.
pub fn sweep(world: &mut World) {
    let now = world.now();
    let round = last_round(world, now);
    let zombie = SignedDuration::from_secs(world.knobs.zombie_seconds);
    let given_up: Vec<u64> = world
        .tasks
        .values()
        .filter(|task| !task.done && round.duration_since(task.updated_at) >= zombie)
        .map(|task| task.id)
        .collect();
    for id in given_up {
        world.tasks.get_mut(&id).expect("tasks stay").lost = true;
        stop_task(world, id, Status::Failure);
    }
    let abandoned = SignedDuration::from_secs(world.knobs.abandoned_seconds);
    let waiting = |job: &&Job| matches!(job.status, Status::Blocked | Status::Waiting);
    let old = world.jobs.values().filter(waiting).filter(|job| now.duration_since(job.updated_at) >= abandoned);
    for id in old.map(|job| job.id).collect::<Vec<_>>() {
        set(world, id, |job| (job.status, job.completed_at) = (Status::Cancelled, Some(now)));
    }
}

/// When tasks were last looked through.
fn last_round(world: &World, now: Timestamp) -> Timestamp {
    match world.knobs.cron_seconds {
        0 => now,
        every => world.started + SignedDuration::from_secs(now.duration_since(world.started).as_secs() / every * every),
    }
}
