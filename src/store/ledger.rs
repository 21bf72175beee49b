//! The only writer of vms: their row, event and lease in one transaction.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sqlx::{Row as _, SqliteConnection};

pub use super::idempotency::{IdempotencyKey, KeyOwner, TokenQuota};
use super::{
    Change, Changes, Result,
    clock_scale::ClockScale,
    idempotency::{self, RequestHash},
    placement::{self, HostOffer},
    ready_metrics::CheckEnd,
    rows::{parse_vm, unreadable},
};
use crate::{
    domain::{
        Code, Error, Event, QueueReason, ResolvedSpec, State, Verdict, Vm, VmId, capacity::Usage, event::Recorded,
        job_record::JobKey, vm_spec::VmSpec,
    },
    platform::database::{DatabaseHealth, Writer},
};

/// Precondition on the row for an event to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// None: the lifecycle table decides. For facts from outside.
    Anything,
    /// It is still in this state and attempt. For results of steps: the result of a step that the vm has left must
    /// not count.
    Attempt { state: State, attempt: u32 },
    /// No event at all since then. For decisions that depend on the whole row.
    Generation(i64),
}

#[derive(Clone, Debug)]
pub struct Applied {
    pub vm: Arc<Vm>,
    pub verdict: Verdict,
    /// `false`: the precondition failed and nothing was written; `vm` is the current row.
    pub as_expected: bool,
}

impl Applied {
    pub fn changed(&self) -> bool {
        self.as_expected && matches!(self.verdict, Verdict::Move(_) | Verdict::Note)
    }
}

/// A vm to be stored.
pub struct NewVm {
    pub spec: VmSpec,
    pub request_hash: RequestHash,
    pub idempotency_key: Option<IdempotencyKey>,
    pub quota: Option<TokenQuota>,
    /// Secrets for the guest, encrypted.
    pub sealed: Option<Vec<u8>>,
    pub admission: Admission,
}

/// The condition for accepting a new vm.
pub enum Admission {
    /// A place in the queue, which has this limit.
    Queue { max_queued: u32 },
    /// A slot, immediately. `Err`: the inspection failed, so it is not known whether a slot is free. It is returned only
    /// if the request is new.
    Slot(std::result::Result<Box<HostOffer>, Error>),
}

/// The result of placement.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// The usage of capacity afterwards.
    pub held: Usage,
    /// Capacity was reserved for a vm that was queued after the host was inspected.
    pub look_again: bool,
}

#[derive(Clone, Debug)]
pub enum VmCreation {
    Created(Arc<Vm>),
    /// An equal request created it before.
    Existing(Arc<Vm>),
}

impl VmCreation {
    pub fn vm(&self) -> &Arc<Vm> {
        match self {
            VmCreation::Created(vm) | VmCreation::Existing(vm) => vm,
        }
    }
}

#[derive(Clone)]
pub struct Ledger {
    pub(super) writer: Writer,
    changes: Changes,
    pub(super) scale: ClockScale,
}

impl Ledger {
    pub(super) fn new(writer: Writer, changes: Changes) -> Self {
        Self { writer, changes, scale: ClockScale::default() }
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Whether the database accepts writes, as far as is known.
    pub fn health(&self) -> &DatabaseHealth {
        self.writer.health()
    }

    /// Whether a write reaches the disk now, tested by writing. A result is cached for a second.
    pub async fn prove_write(&self) -> Result<()> {
        Ok(self.writer.prove().await?)
    }

    /// Stores a new vm, or finds the one of an equal earlier request.
    pub async fn create_vm(&self, new: NewVm, at: Timestamp) -> Result<VmCreation> {
        let (changes, health, scale) = (self.changes.clone(), self.health().clone(), self.scale.clone());
        self.writer
            .write_and_tell(
                move |db| Box::pin(async move { create_vm(db, new, scale.settled(at), &health).await }),
                move |(_, made): &(VmCreation, Vec<Change>)| changes.publish(made),
            )
            .await
            .map(|(opened, _)| opened)
    }

    /// Applies one event to one vm, through the lifecycle table.
    pub async fn apply(&self, id: VmId, expect: Expect, event: Event, at: Timestamp) -> Result<Applied> {
        let (changes, scale) = (self.changes.clone(), self.scale.clone());
        let check_end = CheckEnd::of(&event);
        let (applied, _) = self
            .writer
            .write_and_tell(
                move |db| Box::pin(async move { apply(db, id, expect, event, scale.settled(at)).await }),
                move |(_, made): &(Applied, Vec<Change>)| changes.publish(made),
            )
            .await?;
        if let Some(end) = check_end.filter(|_| applied.changed()) {
            end.count(&applied.vm);
        }
        Ok(applied)
    }

    /// Gives free slots to queued vms, oldest first, keeps slots for older ones that pause, and updates the queue
    /// reasons of the others. One transaction.
    pub async fn place(&self, room: HostOffer, at: Timestamp) -> Result<Placed> {
        let (changes, scale) = (self.changes.clone(), self.scale.clone());
        self.writer
            .write_and_tell(
                move |db| Box::pin(async move { place(db, &room, scale.settled(at)).await }),
                move |(_, made): &(Placed, Vec<Change>)| changes.publish(made),
            )
            .await
            .map(|(placed, _)| placed)
    }
}

fn vm_not_found(id: VmId) -> Error {
    Error::new(Code::VmNotFound, format!("no vm has the id {id}"))
}

async fn apply(
    db: &mut SqliteConnection,
    id: VmId,
    expect: Expect,
    event: Event,
    at: Timestamp,
) -> Result<(Applied, Vec<Change>)> {
    let mut vm = load(db, id).await?.ok_or_else(|| vm_not_found(id))?;
    let as_expected = match expect {
        Expect::Anything => true,
        Expect::Attempt { state, attempt } => vm.state == state && vm.attempt == attempt,
        Expect::Generation(generation) => vm.generation == generation,
    };
    if !as_expected {
        return Ok((Applied { vm: Arc::new(vm), verdict: Verdict::Ignore, as_expected }, Vec::new()));
    }
    let (verdict, change) = apply_event(db, &mut vm, event, at).await?;
    Ok((Applied { vm: Arc::new(vm), verdict, as_expected }, change.into_iter().collect()))
}

async fn place(db: &mut SqliteConnection, room: &HostOffer, at: Timestamp) -> Result<(Placed, Vec<Change>)> {
    let mut made = Vec::new();
    let mut held = placement::usage(db, room).await?;
    let mut reserved = Usage::default();
    let mut look_again = false;
    for w in placement::waiting(db).await? {
        let admitted = room.admits(&held.plus(reserved), &w.driver, w.os, w.cpus, w.memory_mib);
        if w.pauses(at) {
            if admitted.is_ok() && w.keeps_place() {
                reserved.add(w.os, w.cpus, w.memory_mib);
            }
            continue;
        }
        if admitted.is_ok() && room.queued.as_ref().is_some_and(|queued| !queued.contains(&w.id)) {
            reserved.add(w.os, w.cpus, w.memory_mib);
            look_again = true;
            continue;
        }
        if admitted.is_err_and(|reason| w.reason.as_deref() == Some(reason.as_str())) {
            continue;
        }
        let Some(mut vm) = load(db, w.id).await? else { continue };
        match admitted {
            Ok(()) => {
                held.add(w.os, w.cpus, w.memory_mib);
                made.extend(take_slot(db, &mut vm, at).await?);
            }
            Err(reason) => made.extend(apply_event(db, &mut vm, Event::QueueReasonChanged { reason }, at).await?.1),
        }
    }
    Ok((Placed { held, look_again }, made))
}

async fn create_vm(
    db: &mut SqliteConnection,
    new: NewVm,
    at: Timestamp,
    health: &DatabaseHealth,
) -> Result<(VmCreation, Vec<Change>)> {
    if let Some(key) = &new.idempotency_key
        && let Some(known) = idempotency::with_key(&mut *db, key).await?
    {
        known.check_key(&new.request_hash)?;
        let vm = load(db, known.vm).await?.ok_or_else(|| unreadable("a key without its vm"))?;
        return Ok((VmCreation::Existing(Arc::new(vm)), Vec::new()));
    }
    if let Some(named) = idempotency::with_name(&mut *db, &new.spec.name).await? {
        named.check_name(&new.request_hash)?;
        let vm = load(db, named.vm).await?.ok_or_else(|| unreadable("a name without its vm"))?;
        idempotency::check_token(&vm, new.quota)?;
        return Ok((VmCreation::Existing(Arc::new(vm)), Vec::new()));
    }
    if let Some(fault) = health.space_fault() {
        return Err(fault.into());
    }
    if let Some(quota) = new.quota {
        check_live_vms(db, quota).await?;
    }

    let now_or_never = match new.admission {
        Admission::Slot(room) => {
            let room = room?;
            let mut held = placement::usage(db, &room).await?;
            for w in placement::waiting(db).await? {
                if room.admits(&held, &w.driver, w.os, w.cpus, w.memory_mib).is_ok() {
                    held.add(w.os, w.cpus, w.memory_mib);
                }
            }
            let admitted = |s: &ResolvedSpec| room.admits(&held, &s.driver, s.os, s.cpus, s.memory_mib);
            let detail = match new.spec.resolved().map(admitted) {
                Some(Ok(())) => None,
                Some(Err(QueueReason::Host)) => Some(
                    "the system refuses more guests of this kind now and queue_timeout_seconds is 0; see GET /host",
                ),
                Some(Err(_)) | None => Some("no slot is free now and queue_timeout_seconds is 0"),
            };
            if let Some(detail) = detail {
                return Err(Error::new(Code::SlotUnavailable, detail).retry_after(5).into());
            }
            true
        }
        Admission::Queue { max_queued } => {
            let waiting = queue_length(db).await?;
            if waiting >= i64::from(max_queued) {
                return Err(Error::new(Code::QueueFull, format!("{waiting} vms are waiting already"))
                    .retry_after(30)
                    .into());
            }
            false
        }
    };

    let mut vm = Vm::created(new.spec.clone(), at);
    insert(db, &vm, &new.request_hash.current).await?;
    let mut made = vec![record(db, &vm, Event::Created { spec: Box::new(new.spec) }, at).await?];
    let id = vm.id().to_string();
    if let Some(sealed) = &new.sealed {
        sqlx::query!("INSERT INTO vm_secrets (vm_id, sealed) VALUES (?, ?)", id, sealed).execute(&mut *db).await?;
    }
    if let Some(IdempotencyKey { owner, key }) = &new.idempotency_key {
        let owner = owner.column();
        let hash = new.request_hash.current.as_slice();
        let at = at.as_millisecond();
        sqlx::query!(
            "INSERT INTO idempotency_keys (owner, key, request_hash, vm_id, created_at) VALUES (?, ?, ?, ?, ?)",
            owner,
            key,
            hash,
            id,
            at
        )
        .execute(&mut *db)
        .await?;
    }
    if now_or_never {
        made.extend(take_slot(db, &mut vm, at).await?);
    }
    Ok((VmCreation::Created(Arc::new(vm)), made))
}

async fn take_slot(db: &mut SqliteConnection, vm: &mut Vm, at: Timestamp) -> Result<Option<Change>> {
    let Some(ResolvedSpec { os, cpus, memory_mib, .. }) = vm.spec.resolved().cloned() else { return Ok(None) };
    let (_, change) = apply_event(db, vm, Event::SlotTaken, at).await?;
    if change.is_some() {
        let id = vm.id().to_string();
        let os = os.as_str();
        let taken = at.as_millisecond();
        sqlx::query!(
            "INSERT INTO leases (vm_id, os, cpus, memory_mib, taken_at) VALUES (?, ?, ?, ?, ?)",
            id,
            os,
            cpus,
            memory_mib,
            taken
        )
        .execute(&mut *db)
        .await?;
    }
    Ok(change)
}

/// Applies one event through the lifecycle table, with everything else in the same transaction.
async fn apply_event(
    db: &mut SqliteConnection,
    vm: &mut Vm,
    event: Event,
    at: Timestamp,
) -> Result<(Verdict, Option<Change>)> {
    let before = vm.state;
    // Two events may have the same millisecond, but the times in a vm's log never go backwards, unless the clock was
    // set back.
    let at = if matches!(event, Event::ClockStepped { .. }) { at } else { at.max(vm.updated_at) };
    let verdict = vm.apply(&event, at);
    match verdict {
        Verdict::Ignore => return Ok((verdict, None)),
        Verdict::Refuse(reason) => {
            return Err(Error::new(
                Code::VmTransitionRefused,
                format!("{} cannot happen to a vm that is {before}: {}", event.kind().as_str(), reason.describe()),
            )
            .into());
        }
        Verdict::Move(_) | Verdict::Note | Verdict::End => {}
    }
    let id = vm.id().to_string();
    let state = vm.state.as_str();
    let json = serde_json::to_string(&*vm).map_err(|e| unreadable(e.to_string()))?;
    let not_before = vm.queue.as_ref().and_then(|q| q.not_before).map(|t| t.as_millisecond());
    let deleted_at = vm.deleted_at().map(|t| t.as_millisecond());
    sqlx::query!(
        "UPDATE vms SET state = ?, generation = ?, not_before = ?, deleted_at = ?, record = ? WHERE id = ?",
        state,
        vm.generation,
        not_before,
        deleted_at,
        json,
        id
    )
    .execute(&mut *db)
    .await?;
    if matches!(event, Event::TemplateReady { .. }) {
        let TemplateShape { digest, driver, os, cpus, memory_mib } = TemplateShape::of(vm);
        sqlx::query!(
            "UPDATE vms SET template_digest = ?, driver = ?, os = ?, cpus = ?, memory_mib = ? WHERE id = ?",
            digest,
            driver,
            os,
            cpus,
            memory_mib,
            id
        )
        .execute(&mut *db)
        .await?;
    }
    if let Event::JobChanged { job } = &event {
        let JobKey { source, id: job, attempt } = job.key();
        let (source, job) = (String::from(source), job.to_string());
        sqlx::query!(
            "INSERT OR IGNORE INTO vm_jobs (job_id, source, attempt, vm_id) VALUES (?, ?, ?, ?)",
            job,
            source,
            attempt,
            id
        )
        .execute(&mut *db)
        .await?;
    }
    if before.holds_slot() && !vm.state.holds_slot() {
        sqlx::query!("DELETE FROM leases WHERE vm_id = ?", id).execute(&mut *db).await?;
    }
    if vm.state != before && vm.spec.managed().is_some() {
        drop_runner_configuration(db, &id, vm.state).await?;
    }
    if vm.state == State::Deleted {
        sqlx::query!("DELETE FROM vm_secrets WHERE vm_id = ?", id).execute(&mut *db).await?;
    }
    let change = record(db, vm, event, at).await?;
    Ok((verdict, Some(change)))
}

/// Searchable columns of a vm's template; they are empty while its image is awaited.
struct TemplateShape<'a> {
    digest: Option<&'a str>,
    driver: Option<&'a str>,
    os: Option<&'static str>,
    cpus: Option<u32>,
    memory_mib: Option<u32>,
}

impl TemplateShape<'_> {
    fn of(vm: &Vm) -> TemplateShape<'_> {
        let spec = vm.spec.resolved();
        TemplateShape {
            digest: spec.map(|s| s.template_digest.as_str()),
            driver: spec.map(|s| s.driver.as_str()),
            os: spec.map(|s| s.os.as_str()),
            cpus: spec.map(|s| s.cpus),
            memory_mib: spec.map(|s| s.memory_mib),
        }
    }
}

async fn insert(db: &mut SqliteConnection, vm: &Vm, request_hash: &[u8; 32]) -> Result<()> {
    let id = vm.id().to_string();
    let state = vm.state.as_str();
    let TemplateShape { digest, driver, os, cpus, memory_mib } = TemplateShape::of(vm);
    let hash = request_hash.as_slice();
    let created_at = vm.created_at.as_millisecond();
    let json = serde_json::to_string(vm).map_err(|e| unreadable(e.to_string()))?;
    sqlx::query!(
        "INSERT INTO vms (id, name, state, generation, template, template_digest, driver, os, cpus, memory_mib, request_hash, created_at, record)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        id,
        vm.spec.name,
        state,
        vm.generation,
        vm.spec.template,
        digest,
        driver,
        os,
        cpus,
        memory_mib,
        hash,
        created_at,
        json
    )
    .execute(&mut *db)
    .await?;
    for (key, value) in &vm.spec.labels {
        sqlx::query!("INSERT INTO vm_labels (vm_id, key, value) VALUES (?, ?, ?)", id, key, value)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn record(db: &mut SqliteConnection, vm: &Vm, event: Event, at: Timestamp) -> Result<Change> {
    let id = vm.id().to_string();
    let state = vm.state.as_str();
    let millis = at.as_millisecond();
    let json = serde_json::to_string(&event).map_err(|e| unreadable(e.to_string()))?;
    let seq = sqlx::query!(
        "INSERT INTO events (vm_id, generation, at, state, event) VALUES (?, ?, ?, ?, ?)",
        id,
        vm.generation,
        millis,
        state,
        json
    )
    .execute(&mut *db)
    .await?
    .last_insert_rowid();
    let recorded = Recorded { seq, vm_id: vm.id(), generation: vm.generation, at, state: vm.state, event };
    Ok(Change { vm: Arc::new(vm.clone()), recorded: Arc::new(recorded) })
}

/// Applies a step of the clock to all live vms.
pub(super) async fn step_clock(db: &mut SqliteConnection, by: SignedDuration, at: Timestamp) -> Result<Vec<Change>> {
    let milliseconds = i64::try_from(by.as_millis()).unwrap_or_default();
    let rows = sqlx::query("SELECT record FROM vms WHERE deleted_at IS NULL ORDER BY id").fetch_all(&mut *db).await?;
    let mut made = Vec::new();
    for row in rows {
        let mut vm = parse_vm(&row.try_get::<String, _>(0)?)?;
        made.extend(apply_event(db, &mut vm, Event::ClockStepped { milliseconds }, at).await?.1);
    }
    Ok(made)
}

async fn load(db: &mut SqliteConnection, id: VmId) -> Result<Option<Vm>> {
    let id = id.to_string();
    let row = sqlx::query!("SELECT record FROM vms WHERE id = ?", id).fetch_optional(&mut *db).await?;
    row.map(|row| parse_vm(&row.record)).transpose()
}

/// Removes the sealed runner configuration in the transaction that changes the state: no guest may fetch it after that.
async fn drop_runner_configuration(db: &mut SqliteConnection, vm: &str, state: State) -> Result<()> {
    if !matches!(state, State::Cloning | State::Booting | State::Configuring) {
        sqlx::query!("UPDATE runners SET sealed = NULL WHERE vm_id = ? AND sealed IS NOT NULL", vm)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// In the transaction that stores the vm, so two requests cannot both be the last one.
async fn check_live_vms(db: &mut SqliteConnection, quota: TokenQuota) -> Result<()> {
    let Some(most) = quota.max_live_vms else { return Ok(()) };
    let token = quota.token.to_string();
    let row =
        sqlx::query!(r#"SELECT COUNT(*) AS "n!: i64" FROM vms WHERE created_by = ? AND deleted_at IS NULL"#, token)
            .fetch_one(db)
            .await?;
    if row.n < i64::from(most) {
        return Ok(());
    }
    let detail = format!(
        "the limit `max_live_vms` of the token allows {most}; {} of its vms are live, and this one would be the next",
        row.n
    );
    Err(Error::new(Code::AuthLiveVms, detail).retry_after(30).into())
}

async fn queue_length(db: &mut SqliteConnection) -> Result<i64> {
    let row = sqlx::query!(r#"SELECT COUNT(*) AS "n!: i64" FROM vms WHERE state = 'queued'"#).fetch_one(db).await?;
    Ok(row.n)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
