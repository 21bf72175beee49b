//! Vms whose runner is GitHub's: a double of GitHub in a process of its own, and guests that are simulated by the test.

use std::{sync::Arc, time::Duration};

use mayfly::{
    domain::{BudgetsPatch, Vm, VmId, VmRequest, source_runner::runner_name},
    platform::Clock,
    sources::github::GitHubClient,
    store::runners::RunnerRow,
};
use serde_json::{Value, json};

use super::{Host, PATIENCE, Stops, given::Given, known, may_speak, prelude::*};
use crate::support::{
    github::{GitHub, acme},
    sources::only_github,
};

mod away;
mod brought;
mod ends;
mod jobs;
mod orphaned_runners;
mod road;

const LABEL: &str = "mayfly";

pub struct Rig {
    pub host: Host,
    pub github: Arc<GitHub>,
    pub client: Arc<GitHubClient>,
    given: Given,
}

pub fn runner() -> RunnerRequest {
    RunnerRequest::GitHub {
        source: Default::default(),
        scope: acme(),
        labels: vec![LABEL.to_owned()],
        group: None,
        jit_config: None,
        registration_token: None,
        env: Default::default(),
    }
}

/// Budgets that no test waits for, but that of settling.
pub fn patient() -> BudgetsPatch {
    BudgetsPatch { settle_seconds: Some(1), ..BudgetsPatch::default() }
}

pub fn wanted(budgets: BudgetsPatch) -> VmRequest {
    VmRequest { budgets, ..request("linux", runner()) }
}

impl Rig {
    pub async fn new(linux: u32) -> Rig {
        Self::with_clock(linux, Clock::system()).await
    }

    pub async fn with_clock(linux: u32, clock: Clock) -> Rig {
        let github = Arc::new(GitHub::start().await);
        let client = Arc::new(github.client(&github.app().await));
        let mut host = Host::with_clock(linux, 0, clock).await;
        host.sources = only_github(client.clone());
        host.restart().await;
        let given = Given::to_guests_of(&host);
        Rig { host, github, client, given }
    }

    /// The configuration that the vm's guest was given, once it has booted.
    pub async fn given(&self, id: VmId) -> String {
        self.given.to(id).await
    }

    /// What the runner program says to GitHub.
    pub async fn says(&self, jit: &str, what: &str) -> (u16, Value) {
        self.github.told(&format!("session/{what}"), json!({"jit": jit, "text": "line\n"})).await
    }

    /// The guest boots, its runner connects, and Mayfly hears of it from GitHub alone.
    pub async fn idle(&self, id: VmId) -> (Vm, String) {
        let jit = self.given(id).await;
        assert_eq!(self.says(&jit, "connect").await.0, 200);
        let vm = self.host.until(id, |vm| vm.runner_status == mayfly::domain::RunnerStatus::Idle).await;
        assert_eq!(vm.state, State::Running, "a runner that is online has a guest that is configured");
        (vm, jit)
    }

    /// A job, given to the runner that waits.
    pub async fn job(&self) -> u64 {
        let job = self.github.tell("jobs", json!({"repository": "acme/app", "labels": [LABEL]})).await;
        let given = self.github.tell("dispatch", json!({})).await;
        assert_eq!(given["given"].as_array().unwrap().len(), 1, "{given}");
        job["id"].as_u64().unwrap()
    }

    pub async fn busy(&self, id: VmId) -> (Vm, String, u64) {
        let (_, jit) = self.idle(id).await;
        let job = self.job().await;
        let vm = self.host.until(id, |vm| vm.runner_status == mayfly::domain::RunnerStatus::Busy).await;
        (vm, jit, job)
    }

    pub async fn rows(&self) -> Vec<RunnerRow> {
        self.host.reader().runners().await.unwrap()
    }

    /// Names of the runners that GitHub has.
    pub async fn runners(&self) -> Vec<String> {
        let runners = self.client.list_runners(&acme()).await.unwrap();
        runners.into_iter().map(|r| r.name).collect()
    }

    pub async fn conclusion(&self, job: u64) -> Value {
        let state = self.github.tell("state", json!({})).await;
        let jobs = state["jobs"].as_array().unwrap();
        jobs.iter().find(|j| j["id"] == job).unwrap()["conclusion"].clone()
    }

    /// Follows what GitHub and the database hold until it is so.
    pub async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(tokio::time::Instant::now() < end, "it does not come about: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Nothing of ours is left anywhere: no vm, no instance, no runner, no row.
    pub async fn assert_clean(&self, ids: &[VmId]) {
        self.until("rows of runners go", async || self.rows().await.is_empty()).await;
        assert_eq!(self.runners().await, Vec::<String>::new());
        self.host.assert_clean(ids).await;
    }
}
