//! Request permits per sender: the requests of one sender cannot block those of another.
//!
//! Each sender has its share of the listener's permits. A vm additionally has permits for its reports (its events, the
//! end of its job), which need none of the listener's: so a report is served whatever other guests do. Requests without
//! credentials are limited per address and also in total, because one client can use many addresses.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::Method;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::sender::Sender;
use crate::{domain::VmId, platform::clock};

/// Concurrent reports of one vm. Its wrapper and its hooks need two or three.
const REPORTS: usize = 8;
/// Concurrent other requests of one vm.
const OTHERS: usize = 8;
/// On the guest API: concurrent requests without a valid token, of one address and of all.
const GUEST_UNAUTHENTICATED: (usize, usize) = (16, 64);
/// Above this number of senders, those without a request are removed.
const REMEMBERED: usize = 256;
/// Interval at which the log may repeat that a vm has reached its limit.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How many requests senders may have at once.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// Of one token. The same number may wait in long polls and streams.
    per_token: usize,
    /// Without credentials, of one address.
    per_address: usize,
    /// Without credentials, of all addresses.
    unauthenticated: usize,
}

impl Shares {
    /// Of the admin API: a token may use half of it, one address without a token a quarter, all of those half.
    pub fn of_admin(max_concurrent: usize) -> Self {
        let part = |of: usize| (max_concurrent / of).max(1);
        Self { per_token: part(2), per_address: part(4), unauthenticated: part(2) }
    }

    pub fn of_guests() -> Self {
        Self { per_token: OTHERS, per_address: GUEST_UNAUTHENTICATED.0, unauthenticated: GUEST_UNAUTHENTICATED.1 }
    }

    fn of(self, sender: Sender) -> usize {
        match sender {
            Sender::Vm(_) | Sender::Credentials(_) => self.per_token,
            Sender::Peer(_) => self.per_address,
        }
    }
}

#[derive(Clone)]
pub struct Lanes {
    shares: Shares,
    senders: Arc<Mutex<HashMap<Sender, Lane>>>,
    unauthenticated: Arc<Semaphore>,
    noted: Arc<Mutex<HashMap<VmId, Instant>>>,
}

#[derive(Clone)]
struct Lane {
    reports: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Lane {
    fn new(share: usize) -> Self {
        Self {
            reports: Arc::new(Semaphore::new(REPORTS)),
            requests: Arc::new(Semaphore::new(share)),
            waiting: Arc::new(Semaphore::new(share)),
        }
    }

    fn is_unused(&self) -> bool {
        // Each permit that is in use, and each request, holds one more reference.
        [&self.reports, &self.requests, &self.waiting].iter().all(|all| Arc::strong_count(all) == 1)
    }
}

/// The permits of an admitted request, until they are dropped.
pub struct RequestPermits {
    /// It has its vm's own permit, and needs none of the listener's.
    pub is_report: bool,
    _own: OwnedSemaphorePermit,
    _unauthenticated: Option<OwnedSemaphorePermit>,
}

/// Permits of one sender for requests that only wait.
#[derive(Clone)]
pub struct WaitingLane {
    sender: Sender,
    waiting: Arc<Semaphore>,
}

impl WaitingLane {
    /// `None`: all of them are in use.
    pub fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.waiting.clone().try_acquire_owned().ok();
        if permit.is_none() {
            count_refusal(self.sender, "waiting");
        }
        permit
    }
}

fn count_refusal(sender: Sender, limit: &'static str) {
    metrics::counter!("mayfly_over_limit_total", "sender" => sender.kind(), "limit" => limit).increment(1);
}

impl Lanes {
    pub fn new(shares: Shares) -> Self {
        let unauthenticated = Arc::new(Semaphore::new(shares.unauthenticated));
        Self { shares, senders: Arc::default(), unauthenticated, noted: Arc::default() }
    }

    /// The permits for a request of this sender, and those that it may exchange them for. `None`: all are in use.
    pub fn enter(&self, sender: Sender, method: &Method) -> Option<(RequestPermits, WaitingLane)> {
        let entered = self.try_enter(sender, method);
        if entered.is_none() {
            count_refusal(sender, "requests");
        }
        entered
    }

    fn try_enter(&self, sender: Sender, method: &Method) -> Option<(RequestPermits, WaitingLane)> {
        let lane = {
            let mut senders = self.senders.lock();
            if senders.len() >= REMEMBERED {
                senders.retain(|_, lane| !lane.is_unused());
            }
            senders.entry(sender).or_insert_with(|| Lane::new(self.shares.of(sender))).clone()
        };
        let is_report = matches!(sender, Sender::Vm(_)) && matches!(*method, Method::POST | Method::DELETE);
        let unauthenticated = match sender {
            Sender::Peer(_) => Some(self.unauthenticated.clone().try_acquire_owned().ok()?),
            Sender::Vm(_) | Sender::Credentials(_) => None,
        };
        let own = if is_report { &lane.reports } else { &lane.requests };
        let own = own.clone().try_acquire_owned().ok()?;
        let permits = RequestPermits { is_report, _own: own, _unauthenticated: unauthenticated };
        Some((permits, WaitingLane { sender, waiting: lane.waiting }))
    }

    /// Whether the vm's log should say now that it is at its limit.
    pub fn is_note_due(&self, vm: VmId) -> bool {
        let now = clock::monotonic();
        let mut noted = self.noted.lock();
        noted.retain(|_, at| now.saturating_duration_since(*at) < NOTE_EVERY);
        if noted.contains_key(&vm) {
            return false;
        }
        noted.insert(vm, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{super::sender::Peer, *};

    fn address(last: u8) -> Sender {
        Sender::Peer(Peer::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))))
    }

    #[test]
    fn a_vm_fills_its_own_lane_only_and_is_forgotten_afterwards() {
        let lanes = Lanes::new(Shares::of_guests());
        let (loud, calm) = (Sender::Vm(VmId::mint()), Sender::Vm(VmId::mint()));
        let held: Vec<_> = (0..REPORTS).map(|_| lanes.enter(loud, &Method::POST).unwrap()).collect();
        assert!(lanes.enter(loud, &Method::DELETE).is_none());
        assert!(!lanes.enter(loud, &Method::GET).unwrap().0.is_report);
        assert!(lanes.enter(calm, &Method::DELETE).unwrap().0.is_report);
        drop(held);
        assert!(lanes.enter(loud, &Method::POST).is_some());
        for _ in 0..3 * REMEMBERED {
            lanes.enter(Sender::Vm(VmId::mint()), &Method::POST).unwrap();
        }
        assert!(lanes.senders.lock().len() <= REMEMBERED);
    }

    #[test]
    fn a_token_has_half_of_the_permits_and_requests_without_one_share_the_same() {
        let lanes = Lanes::new(Shares::of_admin(16));
        let enter = |sender| lanes.enter(sender, &Method::POST);
        let held: Vec<_> = (0..8).map(|_| enter(Sender::Credentials(1)).unwrap()).collect();
        assert!(enter(Sender::Credentials(1)).is_none());
        assert!(enter(Sender::Credentials(2)).is_some_and(|(place, _)| !place.is_report));
        // A request that waits gives its permit back.
        let (places, waiting): (Vec<_>, Vec<_>) = held.into_iter().unzip();
        let waits: Vec<_> = waiting.iter().map(|lane| lane.enter().unwrap()).collect();
        assert!(waiting[0].enter().is_none());
        drop(places);
        let again = enter(Sender::Credentials(1)).unwrap();
        assert!(again.1.enter().is_none());
        drop(waits);
        assert!(again.1.enter().is_some());
        let mut unauthenticated: Vec<_> = (0..4).map(|_| enter(address(1)).unwrap()).collect();
        assert!(enter(address(1)).is_none());
        unauthenticated.extend((0..4).map(|_| enter(address(2)).unwrap()));
        assert!(enter(address(3)).is_none());
        drop(unauthenticated);
        assert!(enter(address(3)).is_some());
    }

    #[test]
    fn a_limit_of_one_still_serves_everyone_in_turn() {
        let lanes = Lanes::new(Shares::of_admin(1));
        for sender in [Sender::Credentials(1), address(1)] {
            assert!(lanes.enter(sender, &Method::GET).is_some());
        }
    }

    #[test]
    fn the_log_of_a_vm_gets_one_note_at_a_time() {
        let lanes = Lanes::new(Shares::of_guests());
        let (one, other) = (VmId::mint(), VmId::mint());
        assert!(lanes.is_note_due(one));
        assert!(!lanes.is_note_due(one));
        assert!(lanes.is_note_due(other));
    }
}
