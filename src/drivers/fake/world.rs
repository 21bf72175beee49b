//! The world of the fake driver: instances, foreign guests, and the faults that tests inject.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::refused;
use crate::{
    domain::{Code, GuestOs, InstanceName, NetworkSupport, endpoint::Endpoint, event::GoneCause},
    drivers::{DriverError, ErrorKind, InstanceSpec, Listed, Observation, Result},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Probe,
    Create,
    Start,
    Stop,
    Destroy,
    Inspect,
    Ended,
    List,
}

/// Where Mayfly "crashes" in a verb: the call never returns, and the test drops it with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Before any effect.
    Before,
    /// `create` leaves a part of an instance, and so does `destroy`. Other verbs have no middle: as `After`.
    Halfway,
    /// After the whole effect, whose result the caller never learns.
    After,
}

/// Behaviour of guests that start from now on.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub ssh: Option<Endpoint>,
    /// Powers down when requested.
    pub obeys_power_down: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { ssh: None, obeys_power_down: true }
    }
}

/// A guest that has just booted, for a program that simulates the inside of the guest.
#[derive(Clone)]
pub struct Guest {
    pub spec: InstanceSpec,
    world: Arc<FakeWorld>,
    run: u64,
}

type FakeProgram = Arc<dyn Fn(Guest) + Send + Sync>;
type Hook = Box<dyn FnOnce(&FakeWorld) + Send>;

impl Guest {
    pub fn power_off(&self) {
        self.world.end_run(self.spec.name.as_str(), self.run, GoneCause::GuestPowerOff);
    }

    /// Resolves when this guest no longer runs, so that the program that simulates it stops.
    pub async fn ended(&self) {
        self.world.run_ended(self.run).await;
    }
}

#[derive(Default)]
pub struct FakeWorld {
    state: Mutex<FakeState>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct FakeState {
    instances: BTreeMap<String, FakeInstance>,
    foreign: BTreeMap<String, Listed>,
    scripts: HashMap<Verb, Script>,
    behaviour: Behaviour,
    program: Option<FakeProgram>,
    limits: HashMap<GuestOs, u32>,
    peaks: HashMap<GuestOs, u32>,
    peak_ours: u32,
    calls: HashMap<Verb, usize>,
    crashes: usize,
    starts: usize,
    violations: Vec<String>,
    caps: HashMap<GuestOs, u32>,
    overbooked: Vec<String>,
    /// Foreign guests that have not been listed yet.
    unlisted: BTreeSet<String>,
    /// Guests that were paused because of a full disk cannot be resumed.
    disk_full: bool,
    network: NetworkSupport,
    last_run: u64,
    /// Ended runs and their causes. Kept longer than their instances, because a caller may ask late.
    over: HashMap<u64, GoneCause>,
}

#[derive(Default)]
struct Script {
    delay: Duration,
    failures: VecDeque<(ErrorKind, Code, String)>,
    hangs: bool,
    /// Calls that have had their effect do not return.
    answers_late: bool,
    crashes: VecDeque<Crash>,
    /// Further effects, right after those of the next calls.
    hooks: VecDeque<Hook>,
}

struct FakeInstance {
    spec: InstanceSpec,
    /// The instance is incomplete.
    half: bool,
    running: Option<FakeRun>,
    /// Its only run, once it was started.
    started: Option<u64>,
}

struct FakeRun {
    id: u64,
    ssh: Option<Endpoint>,
    obeys_power_down: bool,
    halted: Option<GoneCause>,
}

/// A snapshot of the world.
#[derive(Clone, Debug, Default)]
pub struct FakeSnapshot {
    pub instances: BTreeMap<String, Observation>,
    pub calls: HashMap<Verb, usize>,
    /// Calls that reached the point at which they "crash".
    pub crashes: usize,
    /// Guests that were really started.
    pub starts: usize,
}

impl FakeSnapshot {
    pub fn running(&self) -> usize {
        self.instances
            .values()
            .filter(|o| matches!(o, Observation::Running { .. } | Observation::Halted { .. }))
            .count()
    }

    pub fn calls(&self, verb: Verb) -> usize {
        self.calls.get(&verb).copied().unwrap_or(0)
    }
}

/// Fault injection, and observations for tests.
impl FakeWorld {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What the driver can enforce from now on; at first, every mode.
    pub fn enforces(&self, network: NetworkSupport) {
        self.change(|s| s.network = network);
    }

    pub(super) fn network(&self) -> NetworkSupport {
        self.lock().network.clone()
    }

    /// Every call of this verb takes this long.
    pub fn delay(&self, verb: Verb, delay: Duration) {
        self.change(|s| s.scripts.entry(verb).or_default().delay = delay);
    }

    /// The next `times` calls of this verb fail before they have any effect.
    pub fn fail_next(&self, verb: Verb, times: usize, kind: ErrorKind, code: Code, summary: &str) {
        self.change(|s| {
            let failures = &mut s.scripts.entry(verb).or_default().failures;
            failures.extend(std::iter::repeat_n((kind, code, summary.to_owned()), times));
        });
    }

    /// Calls of this verb do not return until it is unhung.
    pub fn hang(&self, verb: Verb, hangs: bool) {
        self.change(|s| s.scripts.entry(verb).or_default().hangs = hangs);
    }

    /// Calls of this verb have their effect, or have observed, and do not return until this is revoked.
    pub fn answer_late(&self, verb: Verb, late: bool) {
        self.change(|s| s.scripts.entry(verb).or_default().answers_late = late);
    }

    /// Called once, right after the next call of this verb had its effect or has observed, and before its caller
    /// knows.
    pub fn after_next(&self, verb: Verb, then: impl FnOnce(&FakeWorld) + Send + 'static) {
        self.change(|s| s.scripts.entry(verb).or_default().hooks.push_back(Box::new(then)));
    }

    /// From now on, records starts that exceed this number of guests of the system, counting the foreign guests of
    /// the latest list. See [`FakeWorld::overbooked`].
    pub fn note_above(&self, os: GuestOs, cap: u32) {
        self.change(|s| {
            s.caps.insert(os, cap);
        });
    }

    /// Starts of Mayfly's guests that an inspection of the host would have prevented.
    pub fn overbooked(&self) -> Vec<String> {
        self.lock().overbooked.clone()
    }

    /// The next call of this verb never returns, and leaves its effect up to this point. See
    /// [`FakeSnapshot::crashes`].
    pub fn crash_next(&self, verb: Verb, crash: Crash) {
        self.change(|s| s.scripts.entry(verb).or_default().crashes.push_back(crash));
    }

    /// The hypervisor refuses to run more guests of this system than this, foreign ones included. `None`: no limit.
    pub fn limit(&self, os: GuestOs, limit: Option<u32>) {
        self.change(|s| match limit {
            Some(limit) => drop(s.limits.insert(os, limit)),
            None => drop(s.limits.remove(&os)),
        });
    }

    /// Guests that start from now on have this behaviour.
    pub fn behave(&self, behaviour: Behaviour) {
        self.change(|s| s.behaviour = behaviour);
    }

    /// Called for every guest that starts from now on. It must not block: longer work has to be spawned.
    pub fn on_boot(&self, program: impl Fn(Guest) + Send + Sync + 'static) {
        self.change(|s| s.program = Some(Arc::new(program)));
    }

    /// A running instance ends by itself. Returns whether it was running.
    pub fn end(&self, name: &InstanceName, cause: GoneCause) -> bool {
        self.change(|s| s.end(name.as_str(), cause))
    }

    /// The hypervisor of a running instance stops its guest and stays alive. Returns whether it was running.
    pub fn halt(&self, name: &InstanceName, cause: GoneCause) -> bool {
        self.change(|s| match s.instances.get_mut(name.as_str()).and_then(|i| i.running.as_mut()) {
            Some(run) => {
                run.halted = Some(cause);
                true
            }
            None => false,
        })
    }

    /// Whether guests that were paused because of a full disk can be resumed.
    pub fn disk_full(&self, full: bool) {
        self.change(|s| s.disk_full = full);
    }

    /// Removes an instance behind Mayfly's back.
    pub fn vanish(&self, name: &InstanceName) {
        self.change(|s| {
            s.end(name.as_str(), GoneCause::Unknown);
            s.instances.remove(name.as_str());
        });
    }

    pub fn set_ssh(&self, name: &InstanceName, ssh: Option<Endpoint>) {
        self.change(|s| {
            if let Some(run) = s.instances.get_mut(name.as_str()).and_then(|i| i.running.as_mut()) {
                run.ssh = ssh;
            }
        });
    }

    pub fn add_foreign(&self, name: &str, os: GuestOs, cpus: u32, memory_mib: u32) {
        let listed = Listed { name: name.to_owned(), ours: false, running: true, os, cpus, memory_mib };
        self.change(|s| {
            if s.foreign.insert(name.to_owned(), listed).is_none() {
                s.unlisted.insert(name.to_owned());
            }
            s.count();
        });
    }

    pub fn remove_foreign(&self, name: &str) {
        self.change(|s| {
            s.foreign.remove(name);
            s.unlisted.remove(name);
        });
    }

    pub fn snapshot(&self) -> FakeSnapshot {
        self.lock().snapshot()
    }

    /// Waits until the world meets the condition, and returns its snapshot.
    pub async fn until(&self, is_so: impl Fn(&FakeSnapshot) -> bool) -> FakeSnapshot {
        self.wait(|s| Some(s.snapshot()).filter(|snapshot| is_so(snapshot))).await
    }

    /// The spec with which the instance was last created or started.
    pub fn spec(&self, name: &InstanceName) -> Option<InstanceSpec> {
        self.lock().instances.get(name.as_str()).map(|i| i.spec.clone())
    }

    /// The highest number of Mayfly's guests that ran at once.
    pub fn peak(&self) -> u32 {
        self.lock().peak_ours
    }

    /// The highest number of guests of one system that ran at once, foreign ones included.
    pub fn peak_of(&self, os: GuestOs) -> u32 {
        self.lock().peaks.get(&os).copied().unwrap_or(0)
    }

    /// Calls that violate the contract of the driver.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }
}

/// What the driver does to the world.
impl FakeWorld {
    fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut FakeState) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    async fn wait<T>(&self, look: impl Fn(&FakeState) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = look(&self.lock()) {
                return found;
            }
            // Cannot fail: `self` owns the sender.
            let _ = changed.changed().await;
        }
    }

    /// Runs before the effect of every verb.
    pub(super) async fn enter(&self, verb: Verb) -> Result<Option<Crash>> {
        let delay = self.change(|s| {
            *s.calls.entry(verb).or_default() += 1;
            s.scripts.get(&verb).map_or(Duration::ZERO, |script| script.delay)
        });
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.wait(|s| (!s.scripts.get(&verb).is_some_and(|script| script.hangs)).then_some(())).await;
        let mut state = self.lock();
        let Some(script) = state.scripts.get_mut(&verb) else { return Ok(None) };
        match script.failures.pop_front() {
            Some((kind, code, summary)) => Err(DriverError::new(kind, code, summary)),
            None => Ok(script.crashes.pop_front()),
        }
    }

    /// Runs after the effect of every verb.
    pub(super) async fn leave(&self, verb: Verb) {
        let hook = self.lock().scripts.get_mut(&verb).and_then(|script| script.hooks.pop_front());
        if let Some(hook) = hook {
            hook(self);
        }
        self.wait(|s| (!s.scripts.get(&verb).is_some_and(|script| script.answers_late)).then_some(())).await;
    }

    pub(super) fn note_crash(&self) {
        self.change(|s| s.crashes += 1);
    }

    pub(super) fn create(&self, spec: &InstanceSpec, half: bool) {
        self.change(|s| {
            let name = spec.name.as_str();
            if s.instances.get(name).is_some_and(|i| i.running.is_some()) {
                return;
            }
            s.instances
                .insert(name.to_owned(), FakeInstance { spec: spec.clone(), half, running: None, started: None });
        });
    }

    /// The guest and the program that simulates it, if a new guest was started and there is such a program.
    pub(super) fn start(&self, spec: &InstanceSpec, world: &Arc<FakeWorld>) -> Result<Option<(Guest, FakeProgram)>> {
        self.change(|s| {
            let name = spec.name.as_str();
            let whole = s.instances.get(name).map(|i| (!i.half, i.started.is_some()));
            let problem = match whole {
                Some((true, true)) => return Ok(None),
                Some((true, false)) => None,
                Some((false, _)) => Some("it is not wholly created"),
                None => Some("it was not created"),
            };
            if let Some(problem) = problem {
                s.violations.push(format!("start of {name}: {problem}"));
                return Err(refused(ErrorKind::Permanent, Code::BootFailed, format!("{name} cannot start: {problem}")));
            }
            let (running, limit) = (s.running_of(spec.os), s.limits.get(&spec.os).copied());
            if limit.is_some_and(|limit| running >= limit) {
                let summary = "the number of running guests has reached the hypervisor's limit";
                return Err(refused(ErrorKind::Host, Code::HostLimit, summary));
            }
            s.last_run += 1;
            s.starts += 1;
            let id = s.last_run;
            let Behaviour { ssh, obeys_power_down } = s.behaviour.clone();
            if let Some(instance) = s.instances.get_mut(name) {
                instance.spec = spec.clone();
                instance.running = Some(FakeRun { id, ssh, obeys_power_down, halted: None });
                instance.started = Some(id);
            }
            s.count();
            s.note_start(name, spec.os);
            Ok(s.program.clone().map(|program| (Guest { spec: spec.clone(), world: world.clone(), run: id }, program)))
        })
    }

    pub(super) async fn stop(&self, name: &InstanceName, grace: Duration) {
        let name = name.as_str();
        let run = self.lock().instances.get(name).and_then(|i| i.running.as_ref()).map(|r| (r.id, r.obeys_power_down));
        let Some((run, obeys)) = run else { return };
        if !grace.is_zero() {
            if obeys {
                self.end_run(name, run, GoneCause::GuestPowerOff);
            } else {
                let _ = tokio::time::timeout(grace, self.run_ended(run)).await;
            }
        }
        self.end_run(name, run, GoneCause::HostStop);
    }

    pub(super) fn destroy(&self, name: &InstanceName, half: bool) {
        self.change(|s| {
            s.end(name.as_str(), GoneCause::HostStop);
            match s.instances.get_mut(name.as_str()) {
                Some(instance) if half => instance.half = true,
                _ => drop(s.instances.remove(name.as_str())),
            }
        });
    }

    pub(super) fn observe(&self, name: &InstanceName) -> Observation {
        self.lock().instances.get(name.as_str()).map_or(Observation::Absent, FakeInstance::observe)
    }

    pub(super) async fn ended(&self, name: &InstanceName) -> GoneCause {
        let run = self.lock().instances.get(name.as_str()).and_then(|i| i.started);
        match run {
            Some(run) => self.run_stopped(name.as_str(), run).await,
            None => GoneCause::Unknown,
        }
    }

    pub(super) fn resume(&self, name: &InstanceName) -> Result<()> {
        self.change(|s| {
            if s.disk_full {
                return Err(refused(ErrorKind::Host, Code::HostFull, "the disk is full"));
            }
            if let Some(run) = s.instances.get_mut(name.as_str()).and_then(|i| i.running.as_mut()) {
                run.halted = None;
            }
            Ok(())
        })
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let mut state = self.lock();
        state.unlisted.clear();
        let ours = state.instances.iter().map(|(name, i)| Listed {
            name: name.clone(),
            ours: true,
            running: i.running.is_some(),
            os: i.spec.os,
            cpus: i.spec.cpus,
            memory_mib: i.spec.memory_mib,
        });
        ours.chain(state.foreign.values().cloned()).collect()
    }

    fn end_run(&self, name: &str, run: u64, cause: GoneCause) {
        self.change(|s| {
            if s.instances.get(name).and_then(|i| i.running.as_ref()).is_some_and(|r| r.id == run) {
                s.end(name, cause);
            }
        });
    }

    /// Why this run ended, or why its guest was stopped.
    async fn run_stopped(&self, name: &str, run: u64) -> GoneCause {
        let halted = |s: &FakeState| s.instances.get(name)?.running.as_ref().filter(|r| r.id == run)?.halted;
        self.wait(|s| s.over.get(&run).copied().or_else(|| halted(s))).await
    }

    async fn run_ended(&self, run: u64) -> GoneCause {
        self.wait(|s| s.over.get(&run).copied()).await
    }
}

impl FakeState {
    fn end(&mut self, name: &str, cause: GoneCause) -> bool {
        let Some(instance) = self.instances.get_mut(name) else { return false };
        let Some(run) = instance.running.take() else { return false };
        self.over.insert(run.id, cause);
        true
    }

    fn running_of(&self, os: GuestOs) -> u32 {
        let ours = self.instances.values().filter(|i| i.running.is_some() && i.spec.os == os).count();
        let foreign = self.foreign.values().filter(|l| l.os == os).count();
        (ours + foreign) as u32
    }

    fn count(&mut self) {
        for os in [GuestOs::Linux, GuestOs::Macos] {
            let now = self.running_of(os);
            let peak = self.peaks.entry(os).or_default();
            *peak = now.max(*peak);
        }
        let ours = self.instances.values().filter(|i| i.running.is_some()).count() as u32;
        self.peak_ours = ours.max(self.peak_ours);
    }

    fn note_start(&mut self, name: &str, os: GuestOs) {
        let Some(cap) = self.caps.get(&os).copied() else { return };
        let unseen = self.foreign.iter().filter(|(name, l)| l.os == os && self.unlisted.contains(*name)).count();
        let seen = self.running_of(os) as usize - unseen;
        if seen > cap as usize {
            let foreign: Vec<&String> = self.foreign.keys().collect();
            let note = format!("{name} is guest {seen} of {cap} {}; foreign: {foreign:?}", os.as_str());
            self.overbooked.push(note);
        }
    }

    fn snapshot(&self) -> FakeSnapshot {
        FakeSnapshot {
            instances: self.instances.iter().map(|(name, i)| (name.clone(), i.observe())).collect(),
            calls: self.calls.clone(),
            crashes: self.crashes,
            starts: self.starts,
        }
    }
}

impl FakeInstance {
    fn observe(&self) -> Observation {
        match &self.running {
            _ if self.half => Observation::Broken { detail: "only a part of it is there".to_owned() },
            Some(FakeRun { halted: Some(cause), .. }) => Observation::Halted { cause: *cause },
            Some(run) => Observation::Running { ssh: run.ssh.clone(), agent: None, ssh_unseen: None },
            None => Observation::Stopped,
        }
    }
}
