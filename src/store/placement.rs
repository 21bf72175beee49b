//! The queue and the usage of capacity, read in the writer's transaction, so that the sum is exact.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::{
    Reader, Result,
    rows::{parse_id, unreadable},
};
use crate::domain::{
    Code, GuestOs, QueueReason, State, VmId,
    capacity::{Capacity, Usage},
    host::HostView,
};

/// A vm that holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotLease {
    pub vm: VmId,
    pub state: State,
    pub os: GuestOs,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// The queue and the leases, read before the host is inspected. A decision that is based on that inspection considers
/// only these vms.
#[derive(Clone, Debug, Default)]
pub struct QueueSnapshot {
    pub queued: HashSet<VmId>,
    pub leases: Vec<SlotLease>,
}

impl Reader {
    pub async fn queue_snapshot(&self) -> Result<QueueSnapshot> {
        let queued = sqlx::query!("SELECT id FROM vms WHERE state = 'queued'")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| parse_id(&row.id))
            .collect::<Result<_>>()?;
        Ok(QueueSnapshot { queued, leases: self.lease_holders().await? })
    }

    /// All vms that hold a slot, and their usage.
    pub async fn lease_holders(&self) -> Result<Vec<SlotLease>> {
        sqlx::query!(
            "SELECT vm_id, state, leases.os, leases.cpus, leases.memory_mib FROM leases JOIN vms ON vms.id = vm_id"
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            Ok(SlotLease {
                vm: parse_id(&row.vm_id)?,
                state: State::parse(&row.state).ok_or_else(|| unreadable(format!("state {:?}", row.state)))?,
                os: os_of(&row.os)?,
                cpus: size(row.cpus)?,
                memory_mib: size(row.memory_mib)?,
            })
        })
        .collect()
    }
}

/// What the host offers, according to an inspection that began after the demand was read.
#[derive(Clone, Debug)]
pub struct HostOffer {
    pub capacity: Capacity,
    /// Limits of guests below the number of slots, while the system refuses more.
    pub ceilings: Vec<(GuestOs, u32)>,
    /// The drivers that can start guests now.
    pub drivers: BTreeSet<String>,
    /// Kinds of guest whose number is not known: none is started.
    pub uncounted: Vec<GuestOs>,
    /// Usage of instances without a lease of ours.
    pub foreign: Usage,
    /// Running instances with our prefix, and the leases before the inspection. An instance without a lease is either
    /// a stray, which counts until the sweep has removed it, or its vm released the slot during the inspection:
    /// whether that slot is free is known after the next inspection.
    pub ours: Vec<(VmId, GuestOs, u32, u32)>,
    /// The vms that were queued before the inspection; later ones are placed with a later inspection. `None`: all
    /// queued vms.
    pub queued: Option<HashSet<VmId>>,
}

impl HostOffer {
    /// `before` was read before the host was inspected.
    pub fn new(view: &HostView, before: QueueSnapshot, now: Timestamp) -> HostOffer {
        let able = view.drivers.iter().filter(|d| view.observed && view.can_start(&d.name));
        let running = view.instances.iter().filter(|i| i.running);
        let running = running.filter_map(|i| Some((i.vm_id?, i.os, i.cpus, i.memory_mib)));
        let mut ours: Vec<_> = running.collect();
        // While an instance starts, a hypervisor may list it twice; and if it has a lease, only the lease counts.
        ours.retain(|(id, ..)| !before.leases.iter().any(|lease| lease.vm == *id));
        ours.extend(before.leases.into_iter().map(|lease| (lease.vm, lease.os, lease.cpus, lease.memory_mib)));
        HostOffer {
            capacity: view.capacity,
            ceilings: view.ceilings.iter().map(|c| (c.os, c.now(now))).collect(),
            uncounted: view.uncounted(),
            drivers: able.map(|d| d.name.clone()).collect(),
            foreign: view.foreign(),
            ours,
            queued: Some(before.queued),
        }
    }

    /// Whether a vm of this shape may be started beside this usage; if not, why it has to wait.
    pub fn admits(
        &self,
        held: &Usage,
        driver: &str,
        os: GuestOs,
        cpus: u32,
        memory_mib: u32,
    ) -> std::result::Result<(), QueueReason> {
        let known = self.drivers.contains(driver) && !self.uncounted.contains(&os);
        let under = self.ceilings.iter().all(|(kind, most)| *kind != os || held.guests(os) < *most);
        if !known {
            Err(QueueReason::Host)
        } else if !self.capacity.fits(held, os, cpus, memory_mib) {
            Err(QueueReason::Slot)
        } else if !under {
            Err(QueueReason::Host)
        } else {
            Ok(())
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct QueuedVm {
    pub id: VmId,
    pub driver: String,
    /// The queue reason in its row.
    pub reason: Option<String>,
    pub os: GuestOs,
    pub cpus: u32,
    pub memory_mib: u32,
    /// It pauses until then.
    pub not_before: Option<Timestamp>,
    /// The code of its most recent fault.
    pub fault: Option<String>,
}

impl QueuedVm {
    pub fn pauses(&self, at: Timestamp) -> bool {
        self.not_before.is_some_and(|not_before| not_before > at)
    }

    /// Whether no younger vm may take its slot while it pauses: otherwise each pause would cost it its place in the
    /// queue. What one vm waits for on a full disk, a smaller one may not need.
    pub fn keeps_place(&self) -> bool {
        self.fault.as_deref() != Some(Code::HostFull.slug())
    }
}

fn os_of(column: &str) -> Result<GuestOs> {
    match column {
        "linux" => Ok(GuestOs::Linux),
        "macos" => Ok(GuestOs::Macos),
        other => Err(unreadable(format!("guest system {other:?}"))),
    }
}

fn size(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| unreadable(format!("size {value}")))
}

/// Everything that counts against the capacity: leases, foreign instances, strays.
pub(super) async fn usage(db: &mut SqliteConnection, room: &HostOffer) -> Result<Usage> {
    let mut held = room.foreign;
    let mut leased = HashSet::new();
    for lease in sqlx::query!("SELECT vm_id, os, cpus, memory_mib FROM leases").fetch_all(&mut *db).await? {
        held.add(os_of(&lease.os)?, size(lease.cpus)?, size(lease.memory_mib)?);
        leased.insert(parse_id(&lease.vm_id)?);
    }
    for (id, os, cpus, memory_mib) in &room.ours {
        if !leased.contains(id) {
            held.add(*os, *cpus, *memory_mib);
        }
    }
    Ok(held)
}

/// The queue, oldest first: ids sort by age, and a vm whose attempt failed keeps its place. With vms that pause;
/// without vms whose template is not present yet, because their shape is not known.
pub(super) async fn waiting(db: &mut SqliteConnection) -> Result<Vec<QueuedVm>> {
    sqlx::query!(
        r#"SELECT id, driver AS "driver!: String", os AS "os!: String", cpus AS "cpus!: i64",
                  memory_mib AS "memory_mib!: i64", not_before, json_extract(record, '$.queue.reason') AS "reason: String",
                  json_extract(record, '$.last_fault.code') AS "fault: String"
           FROM vms WHERE state = 'queued' AND template_digest IS NOT NULL
           ORDER BY id"#
    )
    .fetch_all(&mut *db)
    .await?
    .into_iter()
    .map(|row| {
        Ok(QueuedVm {
            id: parse_id(&row.id)?,
            driver: row.driver,
            reason: row.reason,
            os: os_of(&row.os)?,
            cpus: size(row.cpus)?,
            memory_mib: size(row.memory_mib)?,
            not_before: row.not_before.and_then(|at| Timestamp::from_millisecond(at).ok()),
            fault: row.fault,
        })
    })
    .collect()
}
