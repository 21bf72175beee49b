//! Vms whose runner is Gitea's: a double of Gitea in a process of its own, and guests that are simulated by the test.

use std::{sync::Arc, time::Duration};

use mayfly::{
    domain::{
        Announcer, BudgetsPatch, Pool, RunnerStatus, Scope, SourceName, Vm, VmId, job::Job, job_record::JobStatus,
        source_runner::Registered,
    },
    platform::Clock,
    sources::{
        CiClient, CiServer, Source,
        gitea::{GiteaClient, GiteaOptions, GiteaServer},
    },
    store::{jobs::JobFilter, runners::RunnerRow, vm_queries::Filter},
};
use serde_json::{Value, json};

use super::{Host, given::Given, prelude::*, webhooks::receiver};
use crate::support::{
    gitea::{Gitea, Program, SECRET},
    github::private_file,
    sources::followed,
};

mod ends;
mod jobs;
mod registration;
mod two_sources;

const LABEL: &str = "mac";
/// Far more than any test takes: the poll has no part in it.
const NEVER: Duration = Duration::from_secs(3600);

fn forge() -> SourceName {
    SourceName::new("forge").unwrap()
}

fn acme() -> Scope {
    Scope::organization("acme").unwrap()
}

pub struct Rig {
    host: Host,
    gitea: Gitea,
    given: Given,
}

/// The source `forge`: with the client of a service, without its patience.
async fn source(gitea: &Gitea, poll: Duration) -> Source {
    let token_file = gitea.dir().join("token");
    private_file(&token_file, &gitea.owner_token().await);
    let server = GiteaServer::new(&gitea.root).unwrap();
    let mut options = GiteaOptions::new(server.clone(), token_file);
    options.clock = gitea.clock();
    options.retry.first_pause = Duration::from_millis(10);
    options.settle = Duration::from_millis(20);
    let client = GiteaClient::new(options).unwrap();
    let server_of = CiServer::new(forge(), CiClient::Gitea(Arc::new(client)));
    followed(Source::new(server_of, server.web().clone()), poll)
}

fn pool(max_vms: u32) -> Pool {
    Pool {
        name: "macs".into(),
        template: "linux".into(),
        job_source: forge(),
        scope: acme(),
        labels: vec![LABEL.into(), "arm64".into()],
        group: None,
        repositories: Vec::new(),
        max_vms,
        warm: 0,
        cpus: None,
        memory_mib: None,
        network: None,
        budgets: BudgetsPatch { settle_seconds: Some(1), ..BudgetsPatch::default() },
        enabled: true,
    }
}

impl Rig {
    /// With one pool, a webhook, and a poll this often.
    async fn new(linux: u32, poll: Duration) -> Rig {
        let gitea = Gitea::start().await;
        let mut host = Host::with_clock(linux, 0, Clock::system()).await;
        host.settings.pools = vec![pool(10)];
        host.settings.webhook_secrets = [(forge(), vec![SECRET.into()])].into();
        host.sources = [(forge(), source(&gitea, poll).await)].into_iter().collect();
        host.jobs.first_pause = Duration::from_millis(10);
        host.jobs.longest_pause = Duration::from_millis(10);
        host.jobs.report_late = Duration::from_millis(200);
        host.restart().await;
        let given = Given::to_guests_of(&host);
        Rig { host, gitea, given }
    }

    async fn with_webhook(linux: u32) -> Rig {
        let rig = Rig::new(linux, NEVER).await;
        rig.hook("orgs/acme").await;
        rig
    }

    async fn hook(&self, scope: &str) -> u64 {
        let url = receiver(&forge(), self.host.serving.clone()).await;
        self.gitea.hook(scope, &url).await
    }

    async fn all_jobs(&self) -> Vec<Job> {
        let all = JobFilter { limit: 100, ..JobFilter::default() };
        self.host.reader().jobs(&all).await.unwrap().into_iter().map(|row| row.job).collect()
    }

    async fn attempt(&self, id: u64, attempt: u32) -> Option<Job> {
        self.all_jobs().await.into_iter().find(|job| job.record.id == id && job.record.run_attempt == attempt)
    }

    async fn vms(&self) -> Vec<Vm> {
        let all = Filter { states: State::ALL.to_vec(), limit: 100, ..Filter::default() };
        self.host.reader().vms(&all).await.unwrap()
    }

    async fn rows(&self) -> Vec<RunnerRow> {
        self.host.reader().runners().await.unwrap()
    }

    /// The vm that was made for this attempt of a job.
    async fn created_vm(&self, job: u64, attempt: u32) -> VmId {
        let made = async || self.attempt(job, attempt).await.is_some_and(|job| job.created_vm.is_some());
        self.gitea.until("a vm for the job", made).await;
        self.attempt(job, attempt).await.unwrap().created_vm.unwrap()
    }

    /// The guest boots, its runner connects, and Mayfly hears of it from Gitea alone.
    async fn idle(&self, id: VmId) -> Program<'_> {
        let program = self.gitea.program(&self.given.to(id).await);
        program.declare(&[LABEL, "arm64"]).await.unwrap();
        let vm = self.host.until(id, |vm| vm.runner_status == RunnerStatus::Idle).await;
        assert_eq!(vm.state, State::Running, "a runner that is online has a guest that is configured");
        program
    }

    /// The runner takes a job.
    async fn busy(&self, id: VmId, program: &Program<'_>) -> u64 {
        let task = program.fetch().await.unwrap().expect("there is a job for it");
        program.report(task).await.unwrap();
        self.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
        task
    }

    /// Nothing of ours is left anywhere: no vm, no instance, no row here or there; and no job was cut off by a removal.
    async fn assert_clean(&self, ids: &[VmId]) {
        self.gitea.until("rows of runners go", async || self.rows().await.is_empty()).await;
        assert_eq!(self.gitea.runners().await, Vec::<Value>::new());
        assert_eq!(self.gitea.busy_deletions().await, 0);
        self.host.assert_clean(ids).await;
    }
}
