//! What there is at this GitHub.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{auth::Token, faults::Fault, keys::AppKey, limits::Bucket, webhooks::Hook};

/// `orgs/acme`, `repos/acme/app`, `enterprises/acme-corp`.
pub type Place = String;

#[derive(Default)]
pub struct World {
    /// What tests added to the system's time.
    pub ahead: SignedDuration,
    pub last_id: u64,
    pub places: BTreeMap<Place, Entity>,
    /// Old place → new place.
    pub renamed: BTreeMap<Place, Place>,
    pub apps: Vec<App>,
    pub installations: BTreeMap<u64, Installation>,
    /// By their text: personal tokens, and those of installations.
    pub tokens: BTreeMap<String, Token>,
    pub buckets: BTreeMap<String, Bucket>,
    pub knobs: Knobs,
    pub faults: Vec<Fault>,
    pub requests: Vec<Value>,
    pub jobs: BTreeMap<u64, Job>,
    pub hooks: Vec<Hook>,
    pub deliveries: Vec<Value>,
    /// Payloads by delivery id: what was sent.
    pub payloads: BTreeMap<u64, Value>,
    pub draws: u64,
}

#[derive(Default)]
pub struct Entity {
    pub id: u64,
    pub groups: Vec<Value>,
    pub runners: BTreeMap<u64, Runner>,
}

pub struct App {
    pub id: u64,
    pub client_id: String,
    pub slug: String,
    pub key: AppKey,
    pub permissions: BTreeMap<String, String>,
    pub events: Vec<String>,
}

pub struct Installation {
    pub app: u64,
    /// Login of the account, or slug of the enterprise.
    pub account: String,
    pub target_type: String,
    pub permissions: BTreeMap<String, String>,
    /// Names of repositories; `None` is all of them.
    pub repositories: Option<BTreeSet<String>>,
    pub suspended_at: Option<Timestamp>,
}

#[derive(Clone)]
pub struct Runner {
    pub id: u64,
    pub name: String,
    pub labels: Vec<String>,
    pub group: u64,
    pub online: bool,
    /// The job it has.
    pub job: Option<u64>,
    pub busy_since: Option<Timestamp>,
    /// What its configuration holds, and proves it.
    pub secret: String,
    pub connected: bool,
    /// When its program last said something.
    pub seen: Option<Timestamp>,
}

#[derive(Clone)]
pub struct Job {
    pub id: u64,
    pub run: u64,
    pub attempt: u32,
    pub repository: Place,
    pub name: String,
    pub labels: Vec<String>,
    pub status: String,
    pub conclusion: Option<String>,
    pub runner: Option<(u64, String, u64)>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    /// Until then its runner counts as alive.
    pub lease_until: Option<Timestamp>,
    /// What of the log arrived.
    pub log: String,
    /// What its runner said of it with the result.
    pub outputs: BTreeMap<String, String>,
    /// Its runner fell silent before it said the result.
    pub lost: bool,
}

/// What is otherwise than usual, for everybody.
#[derive(Clone)]
pub struct Knobs {
    /// The real thing has five thousand.
    pub rate_limit: Option<u64>,
    /// Registrations are counted apart.
    pub registration_limit: Option<u64>,
    pub busy_lag_seconds: i64,
    pub lower_case_labels: bool,
    pub unknown_keys: bool,
    pub omit_optional: bool,
    pub lease_seconds: i64,
    pub token_seconds: i64,
    /// Time goes on by itself: jobs are given out, and leases end, without anybody asking.
    pub live: bool,
    /// An idle runner whose program says nothing for so long is offline. 0: never.
    pub session_seconds: i64,
    /// Where runner programs find this server, if not where everybody does.
    pub server_url: Option<String>,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            rate_limit: Some(5000),
            registration_limit: None,
            busy_lag_seconds: 0,
            lower_case_labels: false,
            unknown_keys: false,
            omit_optional: false,
            lease_seconds: 600,
            token_seconds: 3600,
            live: false,
            session_seconds: 0,
            server_url: None,
        }
    }
}

impl World {
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + self.ahead
    }

    pub fn id(&mut self) -> u64 {
        self.last_id += 1;
        8000 + self.last_id
    }

    /// A repository, organisation or enterprise; one that is not there yet is made.
    pub fn place(&mut self, place: &str) -> &mut Entity {
        if !self.places.contains_key(place) {
            let id = self.id();
            let group = json!({
                "id": 1, "name": "Default", "visibility": "all", "default": true, "allows_public_repositories": true,
                "restricted_to_workflows": false, "selected_workflows": [], "runners_url": "", "inherited": false,
            });
            self.places.insert(place.to_owned(), Entity { id, groups: vec![group], ..Entity::default() });
        }
        self.places.get_mut(place).expect("it was made")
    }

    pub fn runner_of(&mut self, id: u64) -> Option<(&Place, &mut Runner)> {
        self.places.iter_mut().find_map(|(place, entity)| entity.runners.get_mut(&id).map(|runner| (place, runner)))
    }

    /// A draw of luck that is the same in every run.
    pub fn draw(&mut self, of: usize) -> usize {
        self.draws = self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.draws >> 33) % of.max(1) as u64).unwrap_or(0)
    }

    pub fn show_runner(&self, runner: &Runner) -> Value {
        let lag = SignedDuration::from_secs(self.knobs.busy_lag_seconds);
        let busy = runner.busy_since.is_some_and(|since| self.now().duration_since(since) >= lag);
        let label = |name: &String| {
            let name = if self.knobs.lower_case_labels { name.to_lowercase() } else { name.clone() };
            json!({"id": 0, "name": name, "type": "read-only"})
        };
        let mut shown = json!({
            "id": runner.id, "runner_group_id": runner.group, "name": runner.name,
            "os": if runner.connected { "macOS" } else { "unknown" },
            "status": if runner.online { "online" } else { "offline" }, "busy": busy, "ephemeral": true, "version": "2.336.0",
            "labels": runner.labels.iter().map(label).collect::<Vec<_>>(),
        });
        if self.knobs.omit_optional {
            for key in ["ephemeral", "version", "runner_group_id"] {
                shown.as_object_mut().expect("it is one").remove(key);
            }
        }
        if self.knobs.unknown_keys {
            shown["what_comes_next"] = json!({"deep": [1, null]});
        }
        shown
    }

    pub fn show_job(&self, job: &Job) -> Value {
        let url =
            format!("https://github.example/{}/actions/runs/{}", job.repository.trim_start_matches("repos/"), job.run);
        let (runner_id, runner_name, group) = match &job.runner {
            Some((id, name, group)) => (json!(id), json!(name), json!(group)),
            None => (Value::Null, Value::Null, Value::Null),
        };
        let steps = if job.runner.is_none() {
            json!([])
        } else {
            json!([{"name": "Set up job", "status": "completed", "conclusion": "success", "number": 1}])
        };
        let group_name = if job.runner.is_some() { json!("Default") } else { Value::Null };
        json!({
            "id": job.id, "run_id": job.run, "run_attempt": job.attempt, "node_id": format!("J_{}", job.id), "name": job.name,
            "workflow_name": "ci", "head_branch": "main", "head_sha": "0000000000000000000000000000000000000001",
            "status": job.status, "conclusion": job.conclusion, "created_at": job.created_at,
            "started_at": job.started_at.unwrap_or(job.created_at), "completed_at": job.completed_at, "steps": steps,
            "labels": job.labels, "runner_id": runner_id, "runner_name": runner_name, "runner_group_id": group,
            "runner_group_name": group_name, "run_url": url, "html_url": format!("{url}/job/{}", job.id), "url": url,
            "check_run_url": url,
        })
    }
}
