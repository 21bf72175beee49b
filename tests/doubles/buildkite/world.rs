//! What there is at this Buildkite: one organisation, one cluster.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{faults::Fault, limits::Limits};

/// At most this many requests are remembered between two questions for them.
const REQUESTS: usize = 20_000;

pub struct World {
    pub root: String,
    /// What tests added to the system's time.
    pub ahead: SignedDuration,
    pub tokens: BTreeSet<String>,
    pub queues: BTreeMap<String, Queue>,
    pub stacks: BTreeMap<String, Stack>,
    /// In the order in which they were scheduled.
    pub jobs: Vec<Job>,
    pub acquisition_tokens: BTreeMap<String, AcquisitionToken>,
    pub agents: Vec<Agent>,
    pub knobs: Knobs,
    pub limits: Limits,
    pub faults: Vec<Fault>,
    pub requests: VecDeque<Value>,
}

pub struct Queue {
    pub id: String,
    pub paused: bool,
}

pub struct Stack {
    pub id: String,
    pub queue: String,
    pub kind: String,
    pub metadata: Value,
}

/// What tests may change.
pub struct Knobs {
    /// A connected agent that was silent for longer is lost, and its job with it.
    pub lost_seconds: i64,
    pub most_stacks: usize,
    /// The name of the field for a pause: the documents and the vendor's client differ.
    pub pause_field: String,
    /// Where agents go on after they have registered.
    pub endpoint: String,
}

pub struct Job {
    pub id: String,
    pub queue: String,
    pub state: &'static str,
    pub rules: Vec<String>,
    pub pipeline: String,
    pub build: u64,
    pub step: Option<String>,
    pub scheduled_at: Timestamp,
    pub command: String,
    /// Of the pipeline.
    pub env: BTreeMap<String, String>,
    /// With which its agent uses it, from the moment in which it is acquired until it is over.
    pub token: Option<String>,
    pub log: Log,
    /// What stacks wrote on its page.
    pub notifications: Vec<String>,
    /// The stack that reserved it, and until when.
    pub reserved: Option<(String, Timestamp)>,
    /// How often an agent has begun it.
    pub starts: u32,
    pub end: Option<Value>,
}

/// Parts of a log, by the number that the agent gave them: they may arrive in another order, and more than once.
#[derive(Default)]
pub struct Log {
    pub parts: BTreeMap<u64, Vec<u8>>,
}

pub struct AcquisitionToken {
    pub job: String,
    pub expires_at: Timestamp,
    /// It registers one agent.
    pub used: bool,
}

pub struct Agent {
    pub id: String,
    pub name: String,
    pub version: String,
    pub tags: Value,
    pub access_token: String,
    /// The only job that it may take.
    pub only: String,
    pub works: bool,
    pub gone: bool,
    pub heard_at: Timestamp,
}

impl World {
    pub fn new(root: &str) -> World {
        World {
            root: root.to_owned(),
            ahead: SignedDuration::ZERO,
            tokens: BTreeSet::new(),
            queues: BTreeMap::new(),
            stacks: BTreeMap::new(),
            jobs: Vec::new(),
            acquisition_tokens: BTreeMap::new(),
            agents: Vec::new(),
            knobs: Knobs {
                lost_seconds: 180,
                most_stacks: 10,
                pause_field: "dispatch_paused".to_owned(),
                endpoint: root.to_owned(),
            },
            limits: Limits::default(),
            faults: Vec::new(),
            requests: VecDeque::new(),
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now() + self.ahead
    }

    pub fn job(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// Does what time does: reservations expire, and silent agents are lost with their jobs.
    pub fn sweep(&mut self) {
        let now = self.now();
        for job in &mut self.jobs {
            if job.state == "reserved" && job.reserved.as_ref().is_none_or(|(_, until)| *until <= now) {
                (job.state, job.reserved) = ("scheduled", None);
            }
        }
        let silence = SignedDuration::from_secs(self.knobs.lost_seconds);
        let mut lost = Vec::new();
        for agent in self.agents.iter_mut().filter(|agent| !agent.gone && now.duration_since(agent.heard_at) > silence)
        {
            agent.gone = true;
            if std::mem::take(&mut agent.works) {
                lost.push(agent.only.clone());
            }
        }
        for id in lost {
            if let Some(job) = self.job(&id) {
                job.finish(json!({"by": "buildkite", "exit_status": -1, "signal_reason": "agent_stop"}));
            }
        }
    }

    pub fn remember(&mut self, request: Value) {
        if self.requests.len() == REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    /// Everything but tokens.
    pub fn state(&self) -> Value {
        let job = |job: &Job| {
            json!({
                "id": job.id, "queue": job.queue, "state": job.state, "starts": job.starts, "end": job.end,
                "notifications": job.notifications,
                "reserved_by": job.reserved.as_ref().map(|(stack, _)| stack),
                "reserved_until": job.reserved.as_ref().map(|(_, until)| until.to_string()),
            })
        };
        let agent = |agent: &Agent| json!({"id": agent.id, "name": agent.name, "version": agent.version, "tags": agent.tags, "job": agent.only, "works": agent.works, "gone": agent.gone});
        let stack = |(key, stack): (&String, &Stack)| json!({"key": key, "queue": stack.queue, "type": stack.kind, "metadata": stack.metadata});
        json!({
            "now": self.now().to_string(),
            "jobs": self.jobs.iter().map(job).collect::<Vec<_>>(),
            "agents": self.agents.iter().map(agent).collect::<Vec<_>>(),
            "stacks": self.stacks.iter().map(stack).collect::<Vec<_>>(),
            "tokens_issued": self.acquisition_tokens.len(),
        })
    }
}

impl Job {
    pub fn finish(&mut self, end: Value) {
        (self.state, self.reserved, self.end, self.token) = ("finished", None, Some(end), None);
    }

    /// The parts of the log up to the first that is missing.
    pub fn shown_log(&self) -> String {
        let parts = (1..).map_while(|n| self.log.parts.get(&n)).flatten().copied().collect::<Vec<u8>>();
        String::from_utf8_lossy(&parts).into_owned()
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, "finished" | "canceled" | "expired" | "timed_out")
    }
}
