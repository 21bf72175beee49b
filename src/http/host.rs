//! The host, and differences between rows and instances.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Allowed, Read},
    fault::FaultView,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::{
    domain::{
        Arch, Code, GuestOs, NetworkMode, NetworkSupport, State, VmId,
        capacity::{Capacity, Usage},
        difference::Difference,
        host::{DriverView, HostView, Instance},
        runner::RunnerKind,
    },
    service::hosts::HostStatus,
};

/// The host. Its instances are listed for this request, unless that was done within the last second; leases and
/// queue are read afterwards.
#[derive(Serialize, ToSchema)]
pub struct Host {
    /// `false` until the first inspection of the host is complete; no vm is started before.
    observed: bool,
    /// When the instances were listed; of several drivers, the oldest list.
    observed_at: Time,
    /// Age of that, in seconds.
    observed_age_seconds: u64,
    /// The limits; all apply together.
    capacity: Capacity,
    /// What the vms of this service use.
    leased: Usage,
    /// What instances use that this service did not start. They count against the limits.
    foreign: Usage,
    slots: Slots,
    /// Number of queued vms.
    queued: i64,
    /// Failed vms that are kept for debugging (`keep_on_failure`). Each holds its slot until then, or until it is deleted.
    kept: Vec<KeptVm>,
    drivers: Vec<HostDriver>,
    /// Faults of the host itself, oldest first. Empty if none is known.
    faults: Vec<HostFault>,
    /// All instances that the hypervisors report.
    instances: Vec<Instance>,
}

#[derive(Serialize, ToSchema)]
pub struct Slots {
    macos: SlotCount,
    linux: SlotCount,
}

/// Why the host keeps vms waiting. Either the system runs fewer guests of a kind than there are slots: then Mayfly starts no
/// more than that, except one vm from time to time as a test. Or a driver's steps are refused, for example because the disk
/// is full. When a guest runs, or a step succeeds, the fault disappears.
#[derive(Serialize, ToSchema)]
pub struct HostFault {
    code: Code,
    /// The hypervisor's message.
    detail: String,
    /// The kind of guest of which the system runs too few; null if it is about a driver.
    os: Option<GuestOs>,
    /// Number of guests of this kind that the system runs.
    admits: Option<u32>,
    /// Number of slots for guests of this kind.
    slots: Option<u32>,
    /// The driver whose vms are refused; null if it is about a kind of guest.
    driver: Option<String>,
    /// The state in which these vms are refused: `cloning` or `booting`.
    step: Option<State>,
    /// How often it occurred.
    refusals: u32,
    since: Time,
    /// Age of that, in seconds.
    age_seconds: u64,
    /// When it last occurred.
    last_seen: Time,
    /// When one more guest is tried, if a vm waits; null: each vm that waits tries again within a minute.
    retry_at: Option<Time>,
    remedy: &'static str,
}

/// A failed vm that is kept for debugging.
#[derive(Serialize, ToSchema)]
pub struct KeptVm {
    #[schema(value_type = String, format = "uuid")]
    id: VmId,
    name: String,
    /// When its guest is destroyed.
    until: Option<Time>,
}

/// Slots for one kind of guest.
#[derive(Serialize, ToSchema)]
pub struct SlotCount {
    total: u32,
    ours: u32,
    foreign: u32,
    free: u32,
}

impl SlotCount {
    fn new(total: u32, ours: u32, foreign: u32) -> Self {
        Self { total, ours, foreign, free: total.saturating_sub(ours.saturating_add(foreign)) }
    }
}

/// A driver on this host.
#[derive(Serialize, ToSchema)]
#[schema(as = Driver)]
pub struct HostDriver {
    name: String,
    /// Whether it can run guests here.
    usable: bool,
    version: Option<String>,
    arch: Option<Arch>,
    /// `kvm`, `hvf`, `tcg`, …
    accelerator: Option<String>,
    /// Why a better accelerator is not used, what that means for speed, and what to do about it.
    note: Option<String>,
    /// Why it cannot run guests; this is checked again periodically.
    fault: Option<FaultView>,
    /// What to do about the fault.
    remedy: Option<&'static str>,
    /// When its instances were last listed; while listing fails, the last list is shown.
    listed_at: Option<Time>,
    /// Every network mode, from the strictest to the most open one.
    networks: Vec<DriverNetwork>,
}

/// A network mode of a driver.
#[derive(Serialize, ToSchema)]
pub struct DriverNetwork {
    mode: NetworkMode,
    /// Whether the driver can enforce it with its settings.
    enforceable: bool,
    /// What to do so that the driver can enforce it; null if it can.
    remedy: Option<String>,
    /// The kinds of runner whose vms get this mode if nothing else is set.
    default_for: Vec<RunnerKind>,
}

impl DriverNetwork {
    fn all(can: &NetworkSupport) -> Vec<Self> {
        let of = |mode| Self {
            mode,
            enforceable: can.remedy(mode).is_none(),
            remedy: can.remedy(mode).map(str::to_owned),
            default_for: RunnerKind::ALL.into_iter().filter(|kind| can.default_for(*kind) == mode).collect(),
        };
        NetworkMode::ALL.map(of).into()
    }
}

impl HostDriver {
    fn new(view: &HostView, d: &DriverView) -> Self {
        let listing = view.listing(&d.name);
        let fault = d.fault.as_ref().or_else(|| listing?.fault.as_ref());
        let d = d.clone();
        Self {
            remedy: fault.map(|fault| fault.code.remedy()),
            fault: fault.map(FaultView::from),
            listed_at: listing.and_then(|l| l.at).map(Time::from),
            usable: view.can_start(&d.name),
            networks: DriverNetwork::all(&d.network),
            name: d.name,
            version: d.version,
            arch: d.arch,
            accelerator: d.accelerator,
            note: d.note,
        }
    }
}

pub(super) fn age_seconds(at: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)
}

impl From<HostStatus> for Host {
    fn from(status: HostStatus) -> Self {
        let HostStatus { view, leased, foreign, queued, kept, now } = status;
        let kept = kept.iter().map(|vm| KeptVm {
            id: vm.id(),
            name: vm.spec.name.clone(),
            until: vm.deadline().map(|(_, at)| at.into()),
        });
        let c = view.capacity;
        let (macos, linux) = (view.slots(GuestOs::Macos), view.slots(GuestOs::Linux));
        let drivers = view.drivers.iter().map(|d| HostDriver::new(&view, d)).collect();
        let refusals: Vec<HostFault> = view
            .current_refusals(now)
            .map(|r| HostFault {
                code: r.fault.code,
                detail: r.fault.detail.clone(),
                os: None,
                admits: None,
                slots: None,
                driver: Some(r.driver.clone()),
                step: Some(r.step),
                refusals: r.refusals,
                since: r.fault.at.into(),
                age_seconds: age_seconds(r.fault.at, now),
                last_seen: r.last_at.into(),
                retry_at: None,
                remedy: r.fault.code.remedy(),
            })
            .collect();
        let mut faults: Vec<HostFault> = view
            .ceilings
            .into_iter()
            .map(|f| HostFault {
                code: f.fault.code,
                detail: f.fault.detail,
                os: Some(f.os),
                admits: Some(f.admits),
                slots: Some(c.slots(f.os)),
                driver: None,
                step: None,
                refusals: f.refusals,
                since: f.fault.at.into(),
                age_seconds: age_seconds(f.fault.at, now),
                last_seen: f.last_at.into(),
                retry_at: Some(f.retry_at.into()),
                remedy: f.fault.code.remedy(),
            })
            .chain(refusals)
            .collect();
        faults.sort_by_key(|f| std::cmp::Reverse(f.age_seconds));
        Self {
            observed: view.observed,
            observed_at: view.observed_at.into(),
            observed_age_seconds: age_seconds(view.observed_at, now),
            capacity: c,
            slots: Slots {
                macos: SlotCount::new(macos, leased.macos, foreign.macos),
                linux: SlotCount::new(linux, leased.linux, foreign.linux),
            },
            leased,
            foreign,
            queued,
            kept: kept.collect(),
            drivers,
            faults,
            instances: view.instances,
        }
    }
}

/// Read the host
///
/// Its limits, how much of them is used and by what, and which drivers work.
#[utoipa::path(
    get, path = "/host", tag = "host",
    responses((status = 200, description = "The host", body = Host, example = json!(examples::host()))),
    security(("token" = ["read"])),
)]
pub async fn get_host(FromState(http): FromState<Arc<Http>>, _: Allowed<Read>) -> Result<Answer<Host>, Problem> {
    Ok(Answer(http.services.hosts.status().await?.into()))
}

/// Compare the database with the hypervisor, and with the sources of jobs
///
/// Shows what the next sweep will act on. The instances are listed for this request. Nothing is changed.
#[utoipa::path(
    get, path = "/reconcile", tag = "host",
    responses((status = 200, description = "Agreements and differences", body = Difference,
        example = json!({"observed_at": "2026-11-20T09:00:00.000Z", "unlisted": [], "known": [], "strays": [], "missing": [], "foreign": [], "runners": []}))),
    security(("token" = ["read"])),
)]
pub async fn get_difference(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
) -> Result<Answer<Difference>, Problem> {
    Ok(Answer(http.services.hosts.difference().await?))
}
