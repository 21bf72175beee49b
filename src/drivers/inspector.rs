//! Inspects the host: lists the instances of its hypervisors.
//!
//! A decision about a slot needs an inspection that began after the slot was requested or released: an older one
//! misses foreign changes since then. So callers state the oldest acceptable start, and wait for such an inspection.
//! There is one list call per driver at a time; it serves all callers that asked before it began.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{
        Code, Fault, InstanceName,
        capacity::Capacity,
        host::{HostView, Instance, Listing},
    },
    drivers::{Driver, DriverError, ErrorKind, Listed, registry::DriverRegistry},
    platform::clock::{self, Clock},
};

/// A hypervisor that does not list its instances within this time counts as not answering.
const LIST_WITHIN: Duration = Duration::from_secs(15);
/// Long enough for a list call that is under way, and one after it.
pub const TWO_LISTS_TIMEOUT: Duration = Duration::from_secs(2 * LIST_WITHIN.as_secs() + 1);
/// How long to wait for a list call after one that timed out: guests of other drivers are waiting meanwhile.
const AFTER_A_HANG: Duration = Duration::from_secs(1);

/// The latest inspection of the host, and new inspections. Cheap to clone.
#[derive(Clone)]
pub struct HostInspector {
    inner: Arc<Inner>,
}

struct Inner {
    drivers: Arc<DriverRegistry>,
    count_foreign: bool,
    clock: Clock,
    board: watch::Sender<HostView>,
    lists: Mutex<BTreeMap<&'static str, Progress>>,
    /// Number of list calls that have ended.
    ended: watch::Sender<u64>,
}

/// The list calls of one driver.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Start of the call that is under way.
    running: Option<Instant>,
    /// Start of the newest call that has ended.
    ended: Option<Instant>,
    /// The newest call timed out.
    hung: bool,
}

impl HostInspector {
    /// Starts without an inspection. `count_foreign`: whether foreign instances count.
    pub fn new(drivers: Arc<DriverRegistry>, capacity: Capacity, count_foreign: bool, clock: Clock) -> Self {
        let listings = drivers
            .iter()
            .map(|(name, driver)| Listing {
                driver: name.to_owned(),
                guests: driver.capabilities().guests,
                at: None,
                fault: None,
            })
            .collect();
        let view = HostView {
            capacity,
            drivers: Vec::new(),
            listings,
            instances: Vec::new(),
            ceilings: Vec::new(),
            refusals: Vec::new(),
            observed_at: clock.now(),
            observed: false,
        };
        let (board, lists, ended) = (watch::Sender::new(view), Mutex::default(), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { drivers, count_foreign, clock, board, lists, ended }) }
    }

    /// The latest inspection, however old.
    pub fn last(&self) -> HostView {
        self.inner.board.borrow().clone()
    }

    pub fn capacity(&self) -> Capacity {
        self.inner.board.borrow().capacity
    }

    pub fn subscribe(&self) -> watch::Receiver<HostView> {
        self.inner.board.subscribe()
    }

    /// Changes the parts of the view other than instances.
    pub fn update<T>(&self, change: impl FnOnce(&mut HostView) -> T) -> T {
        let mut result = None;
        self.inner.board.send_modify(|view| result = Some(change(view)));
        result.expect("the change was made")
    }

    /// An inspection that began at `since` or later. If a driver does not answer `within` that time, its instances
    /// are those of its last answer, and its listing has a fault.
    pub async fn inspect_since(&self, since: Instant, within: Duration) -> HostView {
        let deadline = clock::monotonic() + within;
        let mut ended = self.inner.ended.subscribe();
        while let Some(until) = self.inner.begin(since, deadline) {
            if tokio::time::timeout_at(until, ended.changed()).await.is_err() {
                break;
            }
        }
        self.inner.seen(since)
    }

    /// The latest inspection, or a new one if that is older than `age`.
    pub async fn inspect_if_older_than(&self, age: Duration, within: Duration) -> HostView {
        let now = clock::monotonic();
        self.inspect_since(now.checked_sub(age).unwrap_or(now), within).await
    }
}

impl Inner {
    fn lists(&self) -> MutexGuard<'_, BTreeMap<&'static str, Progress>> {
        self.lists.lock()
    }

    /// Starts the missing list calls, unless they are under way. Returns how long it is useful to wait for them;
    /// `None`: nothing is missing that could still arrive.
    fn begin(self: &Arc<Self>, since: Instant, deadline: Instant) -> Option<Instant> {
        let now = clock::monotonic();
        let (mut missing, mut until) = (Vec::new(), None);
        let mut lists = self.lists();
        for (name, driver) in self.drivers.iter() {
            let progress = lists.entry(name).or_default();
            if progress.ended.is_some_and(|began| began >= since) {
                continue;
            }
            let began = *progress.running.get_or_insert_with(|| {
                missing.push((name, driver.clone()));
                now
            });
            let patience = if progress.hung { deadline.min(began + AFTER_A_HANG) } else { deadline };
            if patience > now {
                until = until.max(Some(patience));
            }
        }
        // During a shutdown, `tokio::spawn` drops the task at once, and dropping a `List` takes this lock.
        drop(lists);
        for (name, driver) in missing {
            tokio::spawn(List::begin(self, name, now).run(driver));
        }
        until
    }

    /// The view, with a fault for each driver whose list is older than `since`.
    fn seen(&self, since: Instant) -> HostView {
        let lists = self.lists();
        let mut view = self.board.borrow().clone();
        for listing in &mut view.listings {
            let progress = lists.get(listing.driver.as_str()).copied().unwrap_or_default();
            if progress.ended.is_some_and(|began| began >= since) || listing.fault.is_some() {
                continue;
            }
            let lasts = progress.running.map(clock::elapsed).unwrap_or_default();
            let detail = format!("{} has not listed its instances for {:.1} s", listing.driver, lasts.as_secs_f64());
            listing.fault = Some(Fault { code: Code::HostUnavailable, detail, at: self.clock.now() });
        }
        view
    }

    fn end(&self, list: &List, listed: Result<Vec<Listed>, DriverError>, hung: bool) {
        let mut lists = self.lists();
        lists.insert(list.driver, Progress { running: None, ended: Some(list.began), hung });
        self.board.send_modify(|view| self.note(view, list, listed));
        drop(lists);
        self.ended.send_modify(|n| *n += 1);
    }

    fn note(&self, view: &mut HostView, list: &List, listed: Result<Vec<Listed>, DriverError>) {
        let name = list.driver;
        let Some(listing) = view.listings.iter_mut().find(|l| l.driver == name) else { return };
        match listed {
            Ok(listed) => {
                if listing.fault.take().is_some() {
                    tracing::info!(driver = name, "the driver can list its instances again");
                }
                listing.at = Some(list.at);
                let shown = listed.into_iter().map(|l| Instance {
                    driver: name.to_owned(),
                    vm_id: if l.ours { InstanceName::parse(&l.name) } else { None },
                    name: l.name,
                    running: l.running,
                    os: l.os,
                    cpus: l.cpus,
                    memory_mib: l.memory_mib,
                });
                view.instances.retain(|i| i.driver != name);
                view.instances.extend(shown.filter(|i| i.vm_id.is_some() || self.count_foreign));
                // In the order of the drivers, not of their answers.
                view.instances.sort_by(|a, b| a.driver.cmp(&b.driver));
            }
            // The last known instances stay: without its foreign instances the host would be overcommitted.
            Err(error) => {
                let known = listing.fault.as_ref().filter(|fault| fault.detail == error.summary);
                if known.is_none() {
                    tracing::warn!(driver = name, error = %error, "cannot list the driver's instances");
                }
                let at = known.map_or_else(|| self.clock.now(), |fault| fault.at);
                listing.fault = Some(Fault { code: error.code, detail: error.summary, at });
            }
        }
        if let Some(oldest) = view.listings.iter().filter_map(|l| l.at).min() {
            view.observed_at = oldest;
        }
    }
}

/// One list call of one driver. If it is dropped before its end, it counts as failed, so that its waiters continue.
struct List {
    inner: Option<Arc<Inner>>,
    driver: &'static str,
    began: Instant,
    at: jiff::Timestamp,
}

impl List {
    fn begin(inner: &Arc<Inner>, driver: &'static str, began: Instant) -> Self {
        Self { inner: Some(inner.clone()), driver, began, at: inner.clock.now() }
    }

    async fn run(mut self, driver: Arc<dyn Driver>) {
        let listed = tokio::time::timeout(LIST_WITHIN, driver.list()).await;
        let hung = listed.is_err();
        let listed = listed.unwrap_or_else(|_| {
            let summary = format!("{} did not list its instances within {} s", self.driver, LIST_WITHIN.as_secs());
            Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary))
        });
        if let Some(inner) = self.inner.take() {
            inner.end(&self, listed, hung);
        }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            let summary = format!("the list of {}'s instances was broken off", self.driver);
            inner.end(self, Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)), false);
        }
    }
}
