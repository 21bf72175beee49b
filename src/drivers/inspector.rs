//! Looks at what the hypervisors of this host run.
//!
//! A decision about a slot needs a look that began after the slot was asked for, or given back: an older one does not show
//! what others did meanwhile. So whoever decides says how old the look may be, and waits for it. One list of a driver is
//! under way at a time and serves everyone who asked before it began.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{
        Code, Fault, InstanceName,
        capacity::Capacity,
        host::{HostView, Instance, Listing},
    },
    drivers::{Driver, DriverError, ErrorKind, Listed, registry::Registry},
    platform::clock::{self, Clock},
};

/// A hypervisor that does not list its instances within this does not answer.
const LIST_WITHIN: Duration = Duration::from_secs(15);
/// Long enough for a list that is under way and one that begins after it.
pub const PATIENT: Duration = Duration::from_secs(2 * LIST_WITHIN.as_secs() + 1);
/// How long a list is waited for whose predecessor did not come within its time: guests of other drivers wait meanwhile.
const AFTER_A_HANG: Duration = Duration::from_secs(1);

/// The host as last looked at, and new looks at it. Cheap to clone.
#[derive(Clone)]
pub struct HostInspector {
    inner: Arc<Inner>,
}

struct Inner {
    drivers: Arc<Registry>,
    count_foreign: bool,
    clock: Clock,
    board: watch::Sender<HostView>,
    lists: Mutex<BTreeMap<&'static str, Progress>>,
    /// How many lists have ended.
    ended: watch::Sender<u64>,
}

/// The lists of one driver.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// When the one that is under way began.
    running: Option<Instant>,
    /// When the newest one that has ended began.
    ended: Option<Instant>,
    /// That one did not come within its time.
    hung: bool,
}

impl HostInspector {
    /// Nothing is looked at yet. `count_foreign`: whether instances that Mayfly did not start count.
    pub fn new(drivers: Arc<Registry>, capacity: Capacity, count_foreign: bool, clock: Clock) -> Self {
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
            observed_at: clock.now(),
            observed: false,
        };
        let (board, lists, ended) = (watch::Sender::new(view), Mutex::default(), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { drivers, count_foreign, clock, board, lists, ended }) }
    }

    /// The host as last looked at, however long ago.
    pub fn last(&self) -> HostView {
        self.inner.board.borrow().clone()
    }

    pub fn capacity(&self) -> Capacity {
        self.inner.board.borrow().capacity
    }

    pub fn subscribe(&self) -> watch::Receiver<HostView> {
        self.inner.board.subscribe()
    }

    /// Changes what is shown besides instances.
    pub fn update<T>(&self, change: impl FnOnce(&mut HostView) -> T) -> T {
        let mut result = None;
        self.inner.board.send_modify(|view| result = Some(change(view)));
        result.expect("the change was made")
    }

    /// The host as a look shows it that began at `since` or later. What a driver runs that does not answer `within` that time
    /// is what it ran when it answered last, and its listing in the answer has a fault.
    pub async fn look(&self, since: Instant, within: Duration) -> HostView {
        let deadline = clock::monotonic() + within;
        let mut ended = self.inner.ended.subscribe();
        while let Some(until) = self.inner.begin(since, deadline) {
            if tokio::time::timeout_at(until, ended.changed()).await.is_err() {
                break;
            }
        }
        self.inner.seen(since)
    }

    /// As `look`, with one that is not older than this.
    pub async fn look_at_most(&self, age: Duration, within: Duration) -> HostView {
        let now = clock::monotonic();
        self.look(now.checked_sub(age).unwrap_or(now), within).await
    }
}

impl Inner {
    fn lists(&self) -> MutexGuard<'_, BTreeMap<&'static str, Progress>> {
        self.lists.lock()
    }

    /// Begins the lists that are missing where none is under way. Until when it makes sense to wait for those that are; `None`:
    /// nothing is missing that could still come.
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
        // A runtime that shuts down drops at once what is spawned, and that needs the lock.
        drop(lists);
        for (name, driver) in missing {
            tokio::spawn(List::begin(self, name, now).run(driver));
        }
        until
    }

    /// The board, with a fault for each driver whose list is older than `since`.
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
                // In the order of the drivers, whichever answered first.
                view.instances.sort_by(|a, b| a.driver.cmp(&b.driver));
            }
            // What it ran stays: forgetting foreign instances would overbook the host.
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

/// One list of one driver. Dropped before its end, it counts as one that failed: those who wait for it go on.
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
