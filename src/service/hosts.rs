//! The host as the API shows it, and whether the service can take vms.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    domain::{
        Code, Error, Result, State, Vm,
        capacity::Usage,
        difference::{Difference, difference},
        host::HostView,
    },
    drivers::inspector::HostInspector,
    parts::Parts,
    platform::{Clock, clock},
    store::{Ledger, Reader},
};

/// How long a request waits for hypervisors to list their instances.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Answers may use an inspection of this age, so that frequent requests do not cause one each.
const SHOWN_AGE: Duration = Duration::from_secs(1);
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

/// The host and its usage.
#[derive(Clone, Debug)]
pub struct HostStatus {
    pub view: HostView,
    /// Usage of Mayfly's own vms.
    pub leased: Usage,
    /// Usage of foreign instances.
    pub foreign: Usage,
    pub queued: i64,
    /// The failed vms that are kept, and hold slots.
    pub kept: Vec<Vm>,
    /// When this status was taken.
    pub now: Timestamp,
}

#[derive(Clone)]
pub struct Hosts {
    ledger: Ledger,
    reader: Reader,
    host: HostInspector,
    clock: Clock,
}

impl Hosts {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, host, clock, .. } = parts.clone();
        Self { ledger, reader, host, clock }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub async fn status(&self) -> Result<HostStatus> {
        let view = self.host.inspect_if_older_than(SHOWN_AGE, SHOWN_WITHIN).await;
        let count = self.reader.count_by_state().await?;
        let queued = count.get(&State::Queued).copied().unwrap_or_default();
        let kept = match count.get(&State::Kept) {
            Some(_) => self.reader.live_vms().await?.into_iter().filter(|vm| vm.state == State::Kept).collect(),
            None => Vec::new(),
        };
        let leased = self.reader.leased().await?;
        Ok(HostStatus { leased, foreign: view.foreign(), view, queued, kept, now: self.clock.now() })
    }

    /// Compares rows with instances, without acting on the differences.
    pub async fn difference(&self) -> Result<Difference> {
        let before = self.reader.live_vms().await?;
        let view = self.host.inspect_since(clock::monotonic(), ANSWER_WITHIN).await;
        let after = self.reader.live_vms().await?;
        let runners = self.reader.orphaned_runners().await?.iter().map(|(row, _)| row.orphaned_runner()).collect();
        Ok(Difference { runners, ..difference(&before, &view, &after) })
    }

    /// When the instances on the host were last listed.
    pub fn observed_at(&self) -> Timestamp {
        self.host.last().observed_at
    }

    /// Whether new vms can be served: a write reached the disk, the database answers and the host was inspected.
    pub async fn ready(&self) -> Result<()> {
        self.ledger.prove_write().await?;
        self.reader.ping().await?;
        if self.host.last().observed {
            return Ok(());
        }
        Err(Error::new(Code::HostUnavailable, "the host's drivers are still being probed").retry_after(2))
    }
}
