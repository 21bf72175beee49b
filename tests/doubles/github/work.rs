//! Jobs, who gets them, and how they end.
//!
//! At the end of a job the runner's hook comes first, then the last of the log, then the result, and only with that is the
//! job done and the runner gone. A vm that is killed before leaves the job running until its lease is over; then it failed.

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    jit,
    reply::Reply,
    webhooks,
    world::{Job, World},
};

fn tell(world: &mut World, job: u64, action: &str) {
    let job = world.jobs[&job].clone();
    let name = job.repository.trim_start_matches("repos/").to_owned();
    let (owner, short) = name.split_once('/').unwrap_or(("", &name));
    let repository = world.places.get(&job.repository).map_or(0, |p| p.id);
    let installation = world.installations.iter().find(|(_, i)| i.account == owner).map(|(id, _)| *id);
    let mut payload = json!({
        "action": action, "workflow_job": world.show_job(&job),
        "repository": {
            "id": repository, "name": short, "full_name": name, "private": true,
            "owner": {"login": owner, "id": 5, "type": "Organization"},
        },
        "organization": {"login": owner, "id": 5}, "sender": {"login": "dev", "id": 6},
    });
    if let Some(id) = installation {
        payload["installation"] = json!({"id": id, "node_id": format!("I_{id}")});
    }
    webhooks::tell(world, "workflow_job", action, &payload);
}

pub fn queue(world: &mut World, told: &Value) -> Reply {
    let (id, now) = (world.id(), world.now());
    let repository = format!("repos/{}", told["repository"].as_str().unwrap_or("acme/app"));
    world.place(&repository);
    let run = told["run"].as_u64().unwrap_or_else(|| world.id());
    let texts = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|l| l.as_str().map(str::to_owned)).collect()
    };
    let status = told["status"].as_str().unwrap_or("queued").to_owned();
    let job = Job {
        id,
        run,
        attempt: told["attempt"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
        repository,
        name: told["name"].as_str().unwrap_or("build").to_owned(),
        labels: texts(&told["labels"]),
        status: status.clone(),
        conclusion: None,
        runner: None,
        created_at: now,
        started_at: None,
        completed_at: None,
        lease_until: None,
        log: String::new(),
        outputs: Default::default(),
        lost: false,
    };
    world.jobs.insert(id, job);
    tell(world, id, if status == "waiting" { "waiting" } else { "queued" });
    Reply::new(201, json!({"id": id, "run": run}))
}

/// Before anybody took it: there never was a runner.
pub fn cancel(world: &mut World, id: u64) -> Reply {
    let now = world.now();
    let Some(job) = world.jobs.get_mut(&id) else { return Reply::not_found() };
    if job.status != "queued" && job.status != "waiting" {
        return Reply::refuse(409, "the job has begun");
    }
    (job.status, job.conclusion, job.completed_at) = ("completed".to_owned(), Some("cancelled".to_owned()), Some(now));
    tell(world, id, "completed");
    Reply::ok(json!({}))
}

/// Gives every queued job to some idle runner that fits: to any, as the real thing does.
pub fn dispatch(world: &mut World) -> Reply {
    let queued: Vec<u64> = world.jobs.values().filter(|j| j.status == "queued").map(|j| j.id).collect();
    let mut given = Vec::new();
    for id in queued {
        let job = world.jobs[&id].clone();
        let owner = job.repository.split('/').nth(1).unwrap_or_default().to_owned();
        let places = [job.repository.clone(), format!("orgs/{owner}")];
        let fits =
            |labels: &[String]| job.labels.iter().all(|want| labels.iter().any(|l| l.eq_ignore_ascii_case(want)));
        let idle: Vec<u64> = places
            .iter()
            .filter_map(|place| world.places.get(place))
            .flat_map(|entity| entity.runners.values())
            .filter(|r| r.online && r.job.is_none() && fits(&r.labels))
            .map(|r| r.id)
            .collect();
        if idle.is_empty() {
            continue;
        }
        let chosen = idle[world.draw(idle.len())];
        let (now, lease) = (world.now(), SignedDuration::from_secs(world.knobs.lease_seconds));
        let Some((_, runner)) = world.runner_of(chosen) else { continue };
        (runner.job, runner.busy_since) = (Some(id), Some(now));
        let took = (runner.id, runner.name.clone(), runner.group);
        let job = world.jobs.get_mut(&id).expect("it was there a moment ago");
        job.status = "in_progress".to_owned();
        (job.runner, job.started_at, job.lease_until) = (Some(took), Some(now), Some(now + lease));
        tell(world, id, "in_progress");
        given.push(json!({"job": id, "runner": chosen}));
    }
    Reply::ok(json!({"given": given}))
}

/// What the runner program says, proven by its configuration.
pub fn runner_says(world: &mut World, what: &str, told: &Value) -> Reply {
    let known = told["jit"].as_str().and_then(jit::decode);
    let Some((id, secret)) = known else {
        return Reply::refuse(400, "Not configured. Run config.(sh/cmd) to configure the runner.");
    };
    let (now, lease) = (world.now(), SignedDuration::from_secs(world.knobs.lease_seconds));
    let Some((_, runner)) = world.runner_of(id).filter(|(_, r)| r.secret == secret) else {
        return Reply::refuse(404, "Failed to create a session. The runner registration has been deleted");
    };
    runner.seen = Some(now);
    if what == "poll" {
        // Whoever asks for work is there.
        runner.online = true;
    }
    let job = runner.job;
    match what {
        "connect" if runner.connected => Reply::refuse(409, "A session for this runner already exists."),
        "connect" => {
            (runner.connected, runner.online) = (true, true);
            Reply::ok(json!({"id": id, "name": runner.name}))
        }
        "poll" => {
            let job = job.map(|job| world.show_job(&world.jobs[&job]));
            Reply::ok(json!({"job": job}))
        }
        "disconnect" => {
            runner.online = false;
            Reply::ok(json!({}))
        }
        "renew" | "log" | "completejob" => {
            let Some(job) = job else { return Reply::refuse(409, "the runner has no job") };
            let entry = world.jobs.get_mut(&job).expect("jobs stay");
            entry.lease_until = Some(now + lease);
            if what == "log" {
                entry.log.push_str(told["text"].as_str().unwrap_or_default());
            }
            if what == "completejob" {
                let outputs = told["outputs"].as_object().into_iter().flatten();
                entry.outputs = outputs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect();
                end(world, job, told["conclusion"].as_str().unwrap_or("success"));
            }
            Reply::ok(json!({}))
        }
        _ => Reply::not_found(),
    }
}

/// The result is there: the runner goes, and then everybody is told.
fn end(world: &mut World, id: u64, conclusion: &str) {
    let now = world.now();
    let job = world.jobs.get_mut(&id).expect("jobs stay");
    (job.status, job.conclusion) = ("completed".to_owned(), Some(conclusion.to_owned()));
    (job.completed_at, job.lease_until) = (Some(now), None);
    if let Some((runner, ..)) = job.runner {
        for entity in world.places.values_mut() {
            entity.runners.remove(&runner);
        }
    }
    tell(world, id, "completed");
}

/// What time does: idle runners that fell silent are offline, and jobs whose runner did are lost.
pub fn sweep(world: &mut World) {
    let now = world.now();
    let lost: Vec<u64> =
        world.jobs.values().filter(|j| j.lease_until.is_some_and(|until| until <= now)).map(|j| j.id).collect();
    let silent = SignedDuration::from_secs(world.knobs.session_seconds);
    if world.knobs.session_seconds > 0 {
        for runner in world.places.values_mut().flat_map(|entity| entity.runners.values_mut()) {
            let heard = runner.seen.is_some_and(|seen| now.duration_since(seen) < silent);
            runner.online &= heard || runner.job.is_some();
        }
    }
    for job in lost {
        world.jobs.get_mut(&job).expect("jobs stay").lost = true;
        end(world, job, "failure");
    }
}
