//! Vms whose runner is Buildkite's agent: a double of Buildkite in a process of its own, and guests that are simulated by the
//! test.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use mayfly::{
    domain::{
        Announcer, BudgetsPatch, InstanceName, Pool, RunnerStatus, Scope, SourceName, Vm, VmId, job::Job,
        job_record::JobStatus,
    },
    service::guests::GuestEvent,
    sources::{
        CiClient, CiServer, Source,
        buildkite::{BuildkiteClient, BuildkiteOptions, BuildkiteQueue},
    },
    store::{Vault, jobs::JobFilter, vm_queries::Filter},
};
use serde_json::{Value, json};

use super::{Host, Report, attempt_of, given::registration, prelude::*, tell};
use crate::support::{
    buildkite::{Buildkite, QUEUE},
    github::private_file,
};

mod jobs;
mod lost;
mod restarts;

const STACK: &str = "host-1";
const POLL: Duration = Duration::from_millis(200);

fn kite() -> SourceName {
    SourceName::new("kite").unwrap()
}

/// What becomes of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its agent runs the job to its end.
    Works,
    /// Its agent begins the job, and the test ends it.
    Begins,
    /// It boots, and its agent is never started.
    Idles,
    /// It powers off before its agent is started.
    DiesEarly,
    /// It dies with the job.
    DiesAtWork,
}

struct Rig {
    host: Host,
    buildkite: Arc<Buildkite>,
    /// The agent token of the cluster.
    token: String,
    /// What becomes of the next guests; when there is nothing left, they work.
    fates: Arc<Mutex<VecDeque<Fate>>>,
}

/// The source `kite`: with the client of a service, without its patience.
fn source(buildkite: &Buildkite) -> Source {
    let queue = BuildkiteQueue::new(Some(&buildkite.root), "acme", QUEUE, STACK).unwrap();
    let mut options = BuildkiteOptions::new(queue.clone(), buildkite.dir().join("token"));
    options.clock = buildkite.clock();
    options.retry.first_pause = Duration::from_millis(10);
    let server = CiServer::new(kite(), CiClient::Buildkite(Arc::new(BuildkiteClient::new(options).unwrap())));
    Source { poll_every: Some(POLL), ..Source::new(server, queue.web()) }
}

fn pool(max_vms: u32) -> Pool {
    Pool {
        name: "macs".into(),
        template: "linux".into(),
        job_source: kite(),
        scope: Scope::organization("acme").unwrap(),
        labels: vec![format!("queue={QUEUE}"), "os=macos".into()],
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
    async fn new(linux: u32) -> Rig {
        let buildkite = Arc::new(Buildkite::start().await);
        // The polls of a test are faster than those of a service.
        buildkite.tell("knobs", json!({"requests_per_second": 1000})).await;
        let token = buildkite.token().await;
        private_file(&buildkite.dir().join("token"), &token);
        let mut host = Host::with_clock(linux, 0, buildkite.clock()).await;
        host.settings.pools = vec![pool(10)];
        host.jobs.first_pause = Duration::from_millis(10);
        host.jobs.longest_pause = Duration::from_millis(10);
        host.pace.soon = Duration::from_millis(100);
        host.pace.calm = Duration::from_millis(100);
        let mut rig = Rig { host, buildkite, token, fates: Arc::default() };
        rig.play();
        rig.restart().await;
        rig
    }

    async fn restart(&mut self) {
        self.host.crash().await;
        self.start().await;
    }

    /// As a new process.
    async fn start(&mut self) {
        self.host.sources = [(kite(), source(&self.buildkite))].into_iter().collect();
        self.host.start().await;
    }

    fn fate(&self, fates: &[Fate]) {
        self.fates.lock().unwrap().extend(fates);
    }

    /// Plays each guest that boots from now on.
    fn play(&self) {
        let (serving, key) = (self.host.serving.clone(), self.host.at("secret.key"));
        let (buildkite, fates) = (self.buildkite.clone(), self.fates.clone());
        self.host.world.on_boot(move |guest| {
            let fate = fates.lock().unwrap().pop_front().unwrap_or(Fate::Works);
            let (serving, key, buildkite) = (serving.clone(), key.clone(), buildkite.clone());
            tokio::spawn(async move {
                if fate == Fate::DiesEarly {
                    return guest.power_off();
                }
                let id = InstanceName::parse(guest.spec.name.as_str()).unwrap();
                let event = |event| tell(&serving, id, Report::Event(event));
                let life = async {
                    let Some(given) = registration(&serving, id, &Vault::open(&key).unwrap()).await else { return };
                    let attempt = attempt_of(&guest);
                    let configured = GuestEvent::GuestConfigured { attempt, separate_users: None };
                    if fate == Fate::Idles || !event(GuestEvent::GuestReady {}).await || !event(configured).await {
                        return;
                    }
                    // A job that was cancelled meanwhile is not given to its agent.
                    let Ok(agent) = buildkite.agent(&given).await else { return };
                    if agent.act("acquire").await != 200 {
                        event(GuestEvent::RunnerFinished { exit_code: 27 }).await;
                        return;
                    }
                    assert_eq!(agent.act("start").await, 200);
                    event(GuestEvent::JobStarted {}).await;
                    match fate {
                        Fate::DiesAtWork => guest.power_off(),
                        Fate::Begins => {}
                        _ => {
                            tell(&serving, id, Report::Delete).await;
                            agent.finish().await;
                            event(GuestEvent::RunnerFinished { exit_code: 0 }).await;
                        }
                    }
                };
                tokio::select! {
                    () = life => guest.ended().await,
                    () = guest.ended() => {}
                }
            });
        });
    }

    async fn jobs(&self) -> Vec<Job> {
        let all = JobFilter { limit: 100, ..JobFilter::default() };
        self.host.reader().jobs(&all).await.unwrap().into_iter().map(|row| row.job).collect()
    }

    async fn known(&self, id: &str) -> Option<Job> {
        self.jobs().await.into_iter().find(|job| job.record.id.to_string() == id)
    }

    async fn vms(&self) -> Vec<Vm> {
        let all = Filter { states: State::ALL.to_vec(), limit: 200, ..Filter::default() };
        self.host.reader().vms(&all).await.unwrap()
    }

    /// The vm that was made for this job.
    async fn created_vm(&self, job: &str) -> VmId {
        self.buildkite
            .until("a vm for the job", async || self.known(job).await.is_some_and(|job| job.created_vm.is_some()))
            .await;
        self.known(job).await.unwrap().created_vm.unwrap()
    }

    /// Waits until the job is in this state at Buildkite.
    async fn until_job(&self, job: &str, state: &str) -> Value {
        let what = format!("the job is {state}");
        self.buildkite.until(&what, async || self.buildkite.job_state(job).await["state"] == state).await;
        self.buildkite.job_state(job).await
    }

    /// Waits until the service knows that the job is over.
    async fn until_over(&self, job: &str) -> Job {
        let over = async || self.known(job).await.is_some_and(|job| job.is_over());
        self.buildkite.until("the job's end is heard of", over).await;
        self.known(job).await.unwrap()
    }

    /// Nothing is left, of vms, instances, and rows of runners.
    async fn assert_clean(&self) {
        let none = async || self.host.reader().live_vms().await.unwrap().is_empty();
        self.buildkite.until("all vms end", none).await;
        let none = async || self.host.reader().runners().await.unwrap().is_empty();
        self.buildkite.until("rows of runners go", none).await;
        let ids: Vec<VmId> = self.vms().await.iter().map(Vm::id).collect();
        self.host.assert_clean(&ids).await;
    }
}
