//! What there is at this Gitea.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    accounts::{Organization, Repository, Token, User},
    faults::Fault,
    jobs::{Job, Task},
    runners::Runner,
    webhooks::Hook,
};

/// At most this many requests are remembered between two questions for them.
const REQUESTS: usize = 20_000;

/// What a runner, a registration token or a webhook belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    System,
    Organization(String),
    User(String),
    /// `owner/name`
    Repository(String),
}

impl Scope {
    /// As tests write it: `system`, `orgs/acme`, `users/dev`, `repos/acme/app`.
    pub fn parse(text: &str) -> Option<Scope> {
        let (kind, name) = text.split_once('/').unwrap_or((text, ""));
        match (kind, name) {
            ("system", "") => Some(Scope::System),
            ("orgs", name) => Some(Scope::Organization(name.to_owned())),
            ("users", name) => Some(Scope::User(name.to_owned())),
            ("repos", name) => Some(Scope::Repository(name.to_owned())),
            _ => None,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Scope::System => "system".to_owned(),
            Scope::Organization(name) => format!("orgs/{name}"),
            Scope::User(name) => format!("users/{name}"),
            Scope::Repository(name) => format!("repos/{name}"),
        }
    }

    /// Whether this repository is in it.
    pub fn covers(&self, repository: &Repository) -> bool {
        match self {
            Scope::System => true,
            Scope::Organization(name) | Scope::User(name) => *name == repository.owner,
            Scope::Repository(name) => *name == repository.full_name(),
        }
    }
}

/// Each table of the real database counts on its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    User,
    Repository,
    Runner,
    Run,
    Job,
    Task,
    Hook,
}

pub struct World {
    pub started: Timestamp,
    /// What tests added to the system's time.
    pub ahead: SignedDuration,
    /// What links begin with: the real one's `ROOT_URL`, without the slash at its end.
    pub root: String,
    pub last_ids: BTreeMap<Table, u64>,
    pub users: BTreeMap<String, User>,
    pub organizations: BTreeMap<String, Organization>,
    pub repositories: BTreeMap<String, Repository>,
    pub tokens: BTreeMap<String, Token>,
    pub registration_tokens: BTreeMap<Scope, String>,
    /// Also those that were deleted: the real one marks rows as deleted, and jobs go on naming their runners.
    pub runners: BTreeMap<u64, Runner>,
    pub jobs: BTreeMap<u64, Job>,
    pub tasks: BTreeMap<u64, Task>,
    /// Goes up whenever a job begins to wait for a runner.
    pub tasks_version: u64,
    pub hooks: Vec<Hook>,
    pub deliveries: Vec<Value>,
    pub knobs: Knobs,
    pub faults: Vec<Fault>,
    pub requests: VecDeque<Value>,
    /// Requests by method and kind of path, since the beginning.
    pub counts: BTreeMap<String, u64>,
    /// Runners that were deleted by request.
    pub deletions: Vec<Value>,
    draws: u64,
}

/// What tests may change; the values are those of a real server as it is installed.
#[derive(Clone)]
pub struct Knobs {
    /// `[api] MAX_RESPONSE_ITEMS`
    pub max_page: usize,
    /// `[api] DEFAULT_PAGING_NUM`
    pub usual_page: usize,
    /// `[actions] ZOMBIE_TASK_TIMEOUT`
    pub zombie_seconds: i64,
    /// How often tasks are looked through (`cron.stop_zombie_tasks`). 0: all the time.
    pub cron_seconds: i64,
    /// `[actions] ABANDONED_JOB_TIMEOUT`
    pub abandoned_seconds: i64,
    /// A runner that was silent for longer is `offline`.
    pub offline_seconds: i64,
    /// A runner that did not report for longer is not `busy`, even if it has a job.
    pub idle_seconds: i64,
    /// `[webhook] DELIVER_TIMEOUT`
    pub deliver_seconds: u64,
    pub version: String,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            max_page: 50,
            usual_page: 30,
            zombie_seconds: 600,
            cron_seconds: 300,
            abandoned_seconds: 24 * 3600,
            offline_seconds: 60,
            idle_seconds: 10,
            deliver_seconds: 5,
            version: "1.26.3".to_owned(),
        }
    }
}

impl World {
    pub fn new(root: &str) -> World {
        World {
            started: Timestamp::now(),
            ahead: SignedDuration::ZERO,
            root: root.to_owned(),
            last_ids: BTreeMap::new(),
            users: BTreeMap::new(),
            organizations: BTreeMap::new(),
            repositories: BTreeMap::new(),
            tokens: BTreeMap::new(),
            registration_tokens: BTreeMap::new(),
            runners: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            tasks_version: 1,
            hooks: Vec::new(),
            deliveries: Vec::new(),
            knobs: Knobs::default(),
            faults: Vec::new(),
            requests: VecDeque::new(),
            counts: BTreeMap::new(),
            deletions: Vec::new(),
            draws: 0,
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now() + self.ahead
    }

    pub fn id(&mut self, table: Table) -> u64 {
        let last = self.last_ids.entry(table).or_default();
        *last += 1;
        *last
    }

    /// A draw of luck that is the same in every run.
    pub fn draw(&mut self, of: usize) -> usize {
        self.draws = self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.draws >> 33) % of.max(1) as u64).unwrap_or(0)
    }

    pub fn remember(&mut self, kind: String, request: Value) {
        *self.counts.entry(kind).or_default() += 1;
        if self.requests.len() == REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }
}
