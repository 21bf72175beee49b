//! Objects as the API and the webhooks show them. What is null elsewhere is the year 1970 here, or no key at all.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    accounts::{Organization, Repository, User},
    jobs::{Job, Status, StepState},
    runners::Runner,
    world::World,
};

const NEVER: &str = "0001-01-01T00:00:00Z";

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time that has not come is the beginning of time.
fn maybe(at: Option<Timestamp>) -> String {
    time(at.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// 32 hexadecimal digits that depend on the text.
fn avatar(world: &World, of: &str) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, of.as_bytes());
    format!("{}/avatars/{}", world.root, hex::encode(&sum.as_ref()[..16]))
}

pub fn job(world: &World, job: &Job) -> Value {
    let (status, conclusion) = job.status.words();
    let name = &job.repository;
    let run = format!("{}/api/v1/repos/{name}/actions/runs/{}", world.root, job.run);
    let mut shown = json!({
        "id": job.id,
        "url": format!("{}/api/v1/repos/{name}/actions/jobs/{}", world.root, job.id),
        "html_url": format!("{}/{name}/actions/runs/{}/jobs/{}", world.root, job.run, job.id),
        "run_id": job.run, "run_url": run, "name": job.name, "labels": job.labels, "run_attempt": job.attempt,
        "head_sha": "b5e05de2e683541cbe3978c08787bdd8c0122b9e", "head_branch": "main", "status": status, "steps": [],
        "created_at": time(job.created_at), "started_at": maybe(job.started_at), "completed_at": maybe(job.completed_at),
    });
    if let Some(conclusion) = conclusion {
        shown["conclusion"] = json!(conclusion);
    }
    if let Some(task) = job.task.and_then(|task| world.tasks.get(&task)) {
        shown["runner_id"] = json!(task.runner);
        // Also of a row that is gone.
        shown["runner_name"] = json!(world.runners[&task.runner].name);
        let steps = job.steps.iter().zip(&task.steps).enumerate();
        shown["steps"] = steps.map(|(number, (plan, state))| step(&plan.name, number, state)).collect();
    }
    shown
}

fn step(name: &str, number: usize, state: &StepState) -> Value {
    let (status, conclusion) = state.status.words();
    let mut shown = json!({
        "name": name, "number": number, "status": status, "started_at": maybe(state.started_at),
        "completed_at": maybe(state.stopped_at),
    });
    if let Some(conclusion) = conclusion {
        shown["conclusion"] = json!(conclusion);
    }
    shown
}

/// The event `workflow_job`.
pub fn payload(world: &World, of: &Job) -> Value {
    let repository = &world.repositories[&of.repository];
    let mut payload = json!({
        "action": of.status.words().0, "workflow_job": job(world, of),
        "repository": self::repository(world, repository, (true, true, true)), "sender": sender(world),
    });
    if let Some(organization) = world.organizations.get(&repository.owner) {
        payload["organization"] = self::organization(world, organization);
    }
    payload
}

/// The first user: the one whose push is simulated.
fn sender(world: &World) -> Value {
    world.users.values().min_by_key(|user| user.id).map_or(Value::Null, |found| user(world, found))
}

pub fn runner(world: &World, runner: &Runner) -> Value {
    let label = |(id, name): (usize, &String)| json!({"id": id, "name": name, "type": "custom"});
    json!({
        "id": runner.id, "name": runner.name, "status": if world.is_online(runner) { "online" } else { "offline" },
        "busy": world.is_busy(runner), "ephemeral": runner.ephemeral, "disabled": runner.disabled,
        "labels": runner.labels.iter().enumerate().map(label).collect::<Vec<_>>(),
    })
}

/// Users, and owners of repositories, organisations too.
fn account(world: &World, id: u64, login: &str, email: &str, created_at: Timestamp) -> Value {
    json!({
        "id": id, "login": login, "login_name": "", "source_id": 0, "full_name": "", "email": email,
        "avatar_url": avatar(world, login), "html_url": format!("{}/{login}", world.root), "language": "",
        "is_admin": false, "last_login": NEVER, "created": time(created_at), "restricted": false, "active": false,
        "prohibit_login": false, "location": "", "website": "", "description": "", "visibility": "public",
        "followers_count": 0, "following_count": 0, "starred_repos_count": 0, "username": login,
    })
}

pub fn user(world: &World, user: &User) -> Value {
    let email = format!("{}+{}@noreply.localhost", user.id, user.login);
    account(world, user.id, &user.login, &email, user.created_at)
}

pub fn organization(world: &World, organization: &Organization) -> Value {
    let name = &organization.name;
    json!({
        "id": organization.id, "name": name, "full_name": "", "email": "", "avatar_url": avatar(world, name),
        "description": "", "website": "", "location": "", "visibility": "public", "repo_admin_change_team_access": false,
        "username": name,
    })
}

pub fn repository(world: &World, repository: &Repository, (admin, push, pull): (bool, bool, bool)) -> Value {
    let full_name = repository.full_name();
    let html_url = format!("{}/{full_name}", world.root);
    let url = format!("{}/api/v1/repos/{full_name}", world.root);
    let owner = match (world.organizations.get(&repository.owner), world.users.get(&repository.owner)) {
        (Some(found), _) => account(world, found.id, &found.name, "", found.created_at),
        (None, Some(found)) => user(world, found),
        (None, None) => Value::Null,
    };
    let mut shown = json!({
        "id": repository.id, "owner": owner, "name": repository.name, "full_name": full_name, "description": "",
        "empty": false, "private": repository.private, "fork": false, "template": false, "mirror": false, "size": 26,
        "language": "", "languages_url": format!("{url}/languages"), "html_url": html_url, "url": url, "link": "",
        "ssh_url": format!("root@localhost:{full_name}.git"), "clone_url": format!("{html_url}.git"), "original_url": "",
        "website": "", "stars_count": 0, "forks_count": 0, "watchers_count": 1, "branch_count": 1, "open_issues_count": 0,
        "open_pr_counter": 0, "release_counter": 0, "default_branch": "main", "archived": false,
        "created_at": time(repository.created_at), "updated_at": time(repository.created_at),
        "archived_at": maybe(None), "permissions": {"admin": admin, "push": push, "pull": pull},
    });
    let units = json!({
        "has_code": true, "has_issues": true,
        "internal_tracker": {
            "enable_time_tracker": true, "allow_only_contributors_to_track_time": true, "enable_issue_dependencies": true,
        },
        "has_wiki": true, "has_pull_requests": true, "has_projects": true, "projects_mode": "all", "has_releases": true,
        "has_packages": true, "has_actions": true, "ignore_whitespace_conflicts": false, "allow_merge_commits": true,
        "allow_rebase": true, "allow_rebase_explicit": true, "allow_squash_merge": true, "allow_fast_forward_only_merge": true,
        "allow_rebase_update": true, "allow_manual_merge": false, "autodetect_manual_merge": false,
        "default_delete_branch_after_merge": false, "default_merge_style": "merge", "default_allow_maintainer_edit": true,
        "avatar_url": "", "internal": false, "mirror_interval": "", "object_format_name": "sha1", "mirror_updated": NEVER,
        "topics": [], "licenses": [],
    });
    if let (Value::Object(shown), Value::Object(units)) = (&mut shown, units) {
        shown.extend(units);
    }
    shown
}

/// What a test is told of a task beside what the API shows.
pub fn result(status: Option<Status>) -> Option<&'static str> {
    status.and_then(|status| status.words().1)
}
