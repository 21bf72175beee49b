//! The whole service but HTTP, on the fake driver: a real database file, the real loop, a hypervisor whose misfortunes are
//! scripted, and guests that are simulated.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mayfly::{
    app::{Built, Setup, build},
    domain::{
        Arch, BudgetsPatch, Code, Event, EventKind, GuestOs, Handover, InstanceName, RunnerRequest, State, TokenId, Vm,
        VmId, VmRequest,
        capacity::Capacity,
        event::ReadyVia,
        host::HostView,
        token::{Caller, CallerToken, TokenScope},
    },
    drivers::{
        fake::{Fake, FakeWorld, Guest},
        registry::DriverRegistry,
    },
    parts::Parts,
    platform::{clock::Clock, data_dir::DataDir},
    reconcile::{self, Pace, jobs},
    service::{self, Services, guests::GuestEvent},
    sources::Sources,
    store::{Expect, Reader},
    templates::{NewTemplate, SpaceLimits},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

mod away;
mod buildkite;
mod chaos;
mod clock;
mod crashes;
mod gitea;
mod github;
mod given;
mod kept;
mod networks;
mod retention;
mod road;
mod silent;
mod slots;
mod space;
mod stopped;
mod webhooks;

/// How long any one thing may take before the test says what is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the record of a deleted vm is kept.
const KEEP_DELETED: Duration = Duration::from_secs(3600);

/// Who serves at the moment, if anybody does.
pub type Serving = watch::Sender<Option<Served>>;

#[derive(Clone)]
pub struct Served {
    pub services: Services,
    pub reader: Reader,
}

pub struct Running {
    pub services: Services,
    /// For what comes from elsewhere in the real service.
    pub parts: Parts,
    board: watch::Receiver<HostView>,
    shutdown: CancellationToken,
    reconciling: JoinHandle<()>,
    jobs: JoinHandle<()>,
    closed: JoinHandle<()>,
}

/// A host: its disk and its hypervisor stay when Mayfly dies.
pub struct Host {
    dir: tempfile::TempDir,
    pub world: Arc<FakeWorld>,
    pub capacity: Capacity,
    pub clock: Clock,
    /// Of the space that templates take, from the next start on.
    pub limits: SpaceLimits,
    /// Of jobs, from the next start on.
    pub sources: Sources,
    /// Of the verbs, from the next start on.
    pub settings: service::Settings,
    /// About jobs, from the next start on.
    pub jobs: jobs::Settings,
    /// How often it is asked, from the next start on.
    pub pace: Pace,
    /// How long a guest stays paused for a full disk, from the next start on.
    pub disk_full: Duration,
    /// The first pause after a failed or refused attempt, from the next start on.
    pub retry_backoff: Duration,
    /// Guests speak to whoever serves at the moment.
    pub serving: Serving,
    /// Guests say nothing more once their vm has so many commits.
    pub hush: watch::Sender<i64>,
    pub running: Option<Running>,
}

impl Host {
    pub async fn new(linux: u32, macos: u32) -> Host {
        Self::with_clock(linux, macos, Clock::system()).await
    }

    pub async fn with_clock(linux: u32, macos: u32, clock: Clock) -> Host {
        let mut host = Host {
            dir: tempfile::tempdir().unwrap(),
            world: FakeWorld::new(),
            capacity: Capacity {
                linux_slots: linux,
                macos_slots: macos,
                cpus: 64,
                memory_mib: 65536,
                max_kept_seconds: 3600,
            },
            clock,
            limits: SpaceLimits::default(),
            sources: Sources::default(),
            settings: service::Settings::default(),
            jobs: jobs::Settings::default(),
            pace: Pace {
                soon: Duration::from_millis(20),
                calm: Duration::from_millis(50),
                first_retry: Duration::from_millis(10),
                longest_retry: Duration::from_millis(200),
            },
            disk_full: Duration::from_millis(50),
            retry_backoff: Duration::from_millis(1),
            serving: watch::Sender::new(None),
            hush: watch::Sender::new(i64::MAX),
            running: None,
        };
        std::fs::write(host.at("disk.img"), vec![7u8; 4096]).unwrap();
        host.start().await;
        for (name, os, handover) in
            [("linux", GuestOs::Linux, Handover::Seed), ("macos", GuestOs::Macos, Handover::Ssh)]
        {
            host.register(name, os, handover).await;
        }
        host
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn register(&self, name: &str, os: GuestOs, handover: Handover) {
        let new = NewTemplate {
            driver: Some(Fake::NAME.into()),
            os: Some(os),
            arch: Some(Arch::X86_64),
            cpus: Some(1),
            memory_mib: Some(64),
            handover: Some(handover),
            ..NewTemplate::of_disk(name, self.at("disk.img"))
        };
        self.services().templates.register(new).await.unwrap();
    }

    pub async fn start(&mut self) {
        assert!(self.running.is_none());
        let data = DataDir::new(self.dir.path());
        let drivers = DriverRegistry::default().with(Arc::new(Fake::new(self.world.clone())));
        let usual = Setup::new(data, drivers, self.capacity);
        let setup = Setup {
            clock: self.clock.clone(),
            template_limits: self.limits,
            sources: self.sources.clone(),
            service: self.settings.clone(),
            reconcile: reconcile::Settings {
                guest_urls: [(Fake::NAME.to_owned(), "http://10.0.2.100".to_owned())].into(),
                retry_backoff: self.retry_backoff,
                disk_full: self.disk_full,
                allow: vec!["10.1.0.0/16".parse().unwrap()],
                beat_every: Duration::from_millis(20),
                keep_deleted: KEEP_DELETED,
                runners: self.pace,
                jobs: self.jobs.clone(),
                ..usual.reconcile
            },
            ..usual
        };
        let Built { parts, services, reconciler, jobs, store_closed: closed, .. } = build(setup).await.unwrap();
        let shutdown = CancellationToken::new();
        let served = Served { services: services.clone(), reader: parts.reader.clone() };
        self.serving.send_replace(Some(served));
        let reconciling = tokio::spawn(reconciler.run(shutdown.clone()));
        let jobs = tokio::spawn(jobs.run(shutdown.clone()));
        let board = parts.host.subscribe();
        self.running = Some(Running { services, parts, board, reconciling, jobs, shutdown, closed });
    }

    /// Everything that Mayfly was doing stops where it stands; nothing is put in order.
    pub async fn crash(&mut self) {
        self.serving.send_replace(None);
        let Running { services, parts, shutdown, reconciling, jobs, closed, .. } = self.running.take().unwrap();
        shutdown.cancel();
        reconciling.await.unwrap();
        jobs.await.unwrap();
        drop((services, parts));
        // A write that was on its way is on disk or is not; it must not come after the next start.
        tokio::time::timeout(PATIENCE, closed).await.expect("somebody holds on to the dead service").unwrap();
    }

    pub async fn restart(&mut self) {
        self.crash().await;
        self.start().await;
    }

    pub fn services(&self) -> &Services {
        &self.running.as_ref().unwrap().services
    }

    pub fn reader(&self) -> &Reader {
        &self.running.as_ref().unwrap().parts.reader
    }

    /// The guest of this vm says that it is ready.
    pub async fn say_ready(&self, id: VmId) {
        let (ledger, ready) =
            (&self.running.as_ref().unwrap().parts.ledger, Event::GuestReady { via: ReadyVia::GuestCall });
        let applied = ledger.apply(id, Expect::Anything, ready, self.clock.now()).await.unwrap();
        assert!(applied.changed(), "it was not booting");
    }

    /// From now on, guests that boot are simulated: they report, run their job, call their hook, upload and finish.
    pub fn play_guests(&self) {
        let (serving, hush) = (self.serving.clone(), self.hush.clone());
        self.world.on_boot(move |guest| {
            tokio::spawn(play(serving.clone(), hush.clone(), guest));
        });
    }

    pub async fn create(&self, request: VmRequest) -> VmId {
        self.services().admission.create(request, None, &token()).await.unwrap().vm.id()
    }

    pub async fn vm(&self, id: VmId) -> Vm {
        self.reader().vm(id).await.unwrap().unwrap()
    }

    /// Follows the vm until `done`; the panic says where it is stuck.
    pub async fn until(&self, id: VmId, done: impl Fn(&Vm) -> bool) -> Vm {
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut vm = self.vm(id).await;
        while !done(&vm) {
            assert!(tokio::time::Instant::now() < end, "stuck: {vm:#?}");
            assert_ne!(vm.state, State::Deleted, "ended otherwise: {vm:#?}");
            vm = self.services().vms.wait(id, vm.generation, Duration::from_secs(5)).await.unwrap();
        }
        vm
    }

    /// Follows the host as Mayfly sees it until `done`.
    pub async fn until_host(&self, done: impl Fn(&HostView) -> bool) -> HostView {
        let mut board = self.running.as_ref().unwrap().board.clone();
        match tokio::time::timeout(PATIENCE, board.wait_for(done)).await {
            Ok(view) => view.unwrap().clone(),
            Err(_) => panic!("stuck: {:#?}", *self.running.as_ref().unwrap().board.borrow()),
        }
    }

    /// The vm when it has made so many commits, or when it has ended with fewer: how many a life has depends on what was seen
    /// of it, and when.
    pub async fn until_commit(&self, id: VmId, commits: i64) -> Vm {
        self.until(id, |vm| vm.generation >= commits || vm.state == State::Deleted).await
    }

    /// What the vm's newest commit was, and the state after it.
    pub async fn last_commit(&self, vm: &Vm) -> (State, EventKind) {
        let log = self.reader().events(Some(vm.id()), 0, 10_000).await.unwrap();
        let last = log.iter().rfind(|recorded| recorded.generation <= vm.generation).unwrap();
        (last.state, last.event.kind())
    }

    pub async fn until_state(&self, id: VmId, state: State) -> Vm {
        self.until(id, |vm| vm.state == state).await
    }

    pub async fn delete(&self, id: VmId, force: bool) {
        self.services().vms.end(id, &admin(), force).await.unwrap();
    }

    /// No instance, no lease, no live row, no secret; and every log replays to its row.
    pub async fn assert_clean(&self, ids: &[VmId]) {
        let reader = self.reader();
        assert_eq!(reader.live_vms().await.unwrap(), vec![]);
        assert_eq!(reader.leases().await.unwrap(), vec![]);
        let snapshot = self.world.snapshot();
        assert!(snapshot.instances.is_empty(), "{:?}", snapshot.instances);
        assert_eq!(self.world.violations(), Vec::<String>::new());
        for id in ids {
            let log = reader.events(Some(*id), 0, 10_000).await.unwrap();
            let row = reader.vm(*id).await.unwrap();
            assert_eq!(Vm::replay(log.iter().map(|r| (&r.event, r.at))), row);
            assert_eq!(reader.sealed(*id).await.unwrap(), None);
        }
    }
}

/// A token without limits.
pub fn token() -> CallerToken {
    CallerToken { id: TokenId(uuid::Uuid::nil()), scope: TokenScope::Admin, limits: None }
}

pub fn admin() -> Caller {
    Caller::Token(token())
}

pub fn request(template: &str, runner: RunnerRequest) -> VmRequest {
    VmRequest {
        template: template.into(),
        name: None,
        runner,
        cpus: None,
        memory_mib: None,
        network: None,
        labels: BTreeMap::new(),
        queue_timeout_seconds: None,
        budgets: BudgetsPatch::default(),
        keep_on_failure: None,
    }
}

pub fn job() -> RunnerRequest {
    RunnerRequest::Command { command: "true".into(), env: BTreeMap::new() }
}

/// Which attempt a guest was made for, as its seed says.
pub fn attempt_of(guest: &Guest) -> Option<u32> {
    let seed = String::from_utf8_lossy(&guest.spec.seed.as_ref()?.volume).into_owned();
    // The kit's files are arguments of `printf` in it.
    let digits = seed.split("MAYFLY_ATTEMPT=\\047").nth(1)?;
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// One guest with the kit's wrapper in it: every report is repeated until it is taken, and without the word that it may start
/// its job it powers off.
async fn play(serving: Serving, hush: watch::Sender<i64>, guest: Guest) {
    let id = InstanceName::parse(guest.spec.name.as_str()).unwrap();
    let life = async {
        let attempt = attempt_of(&guest);
        for report in [GuestEvent::GuestReady {}, GuestEvent::GuestConfigured { attempt, separate_users: None }] {
            may_speak(&serving, &hush, id).await;
            if !tell(&serving, id, Report::Event(report)).await {
                guest.power_off();
                return;
            }
        }
        may_speak(&serving, &hush, id).await;
        tell(&serving, id, Report::Event(GuestEvent::JobStarted {})).await;
        may_speak(&serving, &hush, id).await;
        tell(&serving, id, Report::Delete).await;
        may_speak(&serving, &hush, id).await;
        tell(&serving, id, Report::Event(GuestEvent::JobResult { exit_code: 0 })).await;
        may_speak(&serving, &hush, id).await;
        tell(&serving, id, Report::Event(GuestEvent::RunnerFinished { exit_code: 0 })).await;
    };
    tokio::select! {
        () = life => {}
        () = guest.ended() => {}
    }
}

#[derive(Clone)]
enum Report {
    Event(GuestEvent),
    Delete,
}

/// Whether it was taken; `false`: it was refused for good.
async fn tell(serving: &Serving, id: VmId, report: Report) -> bool {
    let mut serving = serving.subscribe();
    loop {
        let Served { services, .. } = serving.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let call = async {
            match report.clone() {
                Report::Event(event) => services.guests.report(id, event).await.map(drop),
                Report::Delete => {
                    services.vms.end(id, &Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false).await.map(drop)
                }
            }
        };
        tokio::select! {
            told = call => match told {
                Ok(()) => return true,
                Err(error) if error.code == Code::AttemptOver => return false,
                Err(_) => tokio::task::yield_now().await,
            },
            // The connection breaks: nobody knows whether it was heard.
            _ = serving.changed() => {}
        }
    }
}

/// Waits until what the guest says next may lead to another commit.
async fn may_speak(serving: &Serving, hush: &watch::Sender<i64>, id: VmId) {
    let mut generation = 0;
    known(serving, id, |vm| {
        generation = vm.generation;
        true
    })
    .await;
    hush.subscribe().wait_for(|most| generation < *most).await.unwrap();
}

/// Waits until the service knows the vm as it is to be known, across restarts.
async fn known(serving: &Serving, id: VmId, mut is_so: impl FnMut(&Vm) -> bool) {
    let mut serving = serving.subscribe();
    let mut generation = 0;
    loop {
        let Served { services, .. } = serving.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        tokio::select! {
            vm = services.vms.wait(id, generation, Duration::from_secs(5)) => if let Ok(vm) = vm {
                if is_so(&vm) {
                    return;
                }
                generation = vm.generation;
            },
            _ = serving.changed() => {}
        }
    }
}

/// Every state, and the event that led to it or happened in it, after which a life was stopped and started again.
#[derive(Debug, Default)]
struct Stops(BTreeSet<(&'static str, &'static str)>);

impl Stops {
    fn add(&mut self, (state, event): (State, EventKind)) {
        self.0.insert((state.as_str(), event.as_str()));
    }

    #[track_caller]
    fn assert_covers(&self, wanted: &[(State, EventKind)]) {
        for (state, event) in wanted {
            let stop = (state.as_str(), event.as_str());
            assert!(self.0.contains(&stop), "no life was stopped after {stop:?}: {:#?}", self.0);
        }
    }
}

/// Names used by the submodules.
mod prelude {
    pub use super::{Host, job, request};
    pub use mayfly::{
        domain::RunnerRequest,
        domain::{Code, EndSignal, EventKind, GuestOs, OutcomeResult, QueueReason, State, event::GoneCause},
        drivers::{
            ErrorKind,
            fake::{Crash, Verb},
        },
    };
}
