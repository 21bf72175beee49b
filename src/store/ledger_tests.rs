use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    domain::{
        Announcer, Budgets, GuestOs, Handover, QueueReason, TemplateOverrides, TemplateSource,
        capacity::{Capacity, Usage},
        runner::RunnerKind,
    },
    store::{self, StoreError},
};

fn spec(os: GuestOs) -> ResolvedSpec {
    ResolvedSpec {
        template_digest: "sha256:0".into(),
        driver: "fake".into(),
        os,
        handover: Handover::Seed,
        cpus: 1,
        memory_mib: 100,
        network: None,
        ready: None,
    }
}

fn vm_spec(name: &str, os: GuestOs, queue_seconds: u32) -> VmSpec {
    VmSpec {
        id: VmId::mint(),
        name: name.into(),
        template: "t".into(),
        source: TemplateSource::Resolved(spec(os)),
        runner: RunnerKind::None,
        source_runner: None,
        pool: None,
        created_by: None,
        labels: BTreeMap::from([("team.x/y".into(), "a b".into())]),
        budgets: Budgets { queue_seconds, ..Budgets::default() },
        instance_per_attempt: true,
    }
}

fn room(macos: u32, foreign: u32) -> HostOffer {
    HostOffer {
        capacity: Capacity {
            macos_slots: macos,
            linux_slots: 3,
            cpus: 100,
            memory_mib: 10_000,
            max_kept_seconds: 3600,
        },
        ceilings: Vec::new(),
        drivers: BTreeSet::from(["fake".to_owned()]),
        uncounted: vec![],
        foreign: Usage { macos: foreign, ..Usage::default() },
        ours: vec![],
        queued: None,
    }
}

fn new(spec: VmSpec, room: HostOffer) -> NewVm {
    let admission = match spec.budgets.queue_seconds {
        0 => Admission::Slot(Ok(Box::new(room))),
        _ => Admission::Queue { max_queued: 5 },
    };
    NewVm { spec, request_hash: [1; 32].into(), idempotency_key: None, quota: None, sealed: Some(vec![1]), admission }
}

async fn open_store(dir: &tempfile::TempDir) -> store::Store {
    store::open(&dir.path().join("mayfly.db")).await.unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn code(result: Result<VmCreation>) -> Code {
    match result {
        Err(StoreError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn equal_requests_find_the_same_vm_and_different_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let keyed = |name: &str, key: &str, hash: u8| {
        let mut n = new(vm_spec(name, GuestOs::Linux, 60), room(2, 0));
        n.idempotency_key = Some(IdempotencyKey { owner: KeyOwner::Tokens, key: key.into() });
        n.request_hash = [hash; 32].into();
        n
    };
    let first = store.ledger.create_vm(keyed("a", "k", 1), now()).await.unwrap();
    let again = store.ledger.create_vm(keyed("a", "k", 1), now()).await.unwrap();
    assert!(matches!(again, VmCreation::Existing(_)));
    assert_eq!(first.vm().id(), again.vm().id());
    assert_eq!(code(store.ledger.create_vm(keyed("a", "k", 2), now()).await), Code::IdempotencyMismatch);
    assert_eq!(code(store.ledger.create_vm(keyed("a", "other", 2), now()).await), Code::VmNameInUse);
    assert_eq!(store.reader.vms(&store::vm_queries::Filter { limit: 9, ..Default::default() }).await.unwrap().len(), 1);

    // The key outlives the vm: a late retry must not create a second one. The name does not.
    let id = first.vm().id();
    store.ledger.apply(id, Expect::Anything, Event::EndForced { by: Announcer::Admin }, now()).await.unwrap();
    let late = store.ledger.create_vm(keyed("a", "k", 1), now()).await.unwrap();
    assert_eq!((late.vm().id(), late.vm().state), (id, State::Deleted));
    let fresh = store.ledger.create_vm(keyed("a", "new key", 2), now()).await.unwrap();
    assert!(matches!(fresh, VmCreation::Created(_)));
    assert_eq!(store.reader.sealed(id).await.unwrap(), None, "secrets go with the vm");
}

#[tokio::test]
async fn a_vm_that_cannot_wait_takes_a_slot_at_once_and_overtakes_no_queued_vm() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let first = store.ledger.create_vm(new(vm_spec("a", GuestOs::Macos, 0), room(2, 0)), now()).await.unwrap();
    assert_eq!(first.vm().state, State::Cloning);
    store.ledger.create_vm(new(vm_spec("b", GuestOs::Macos, 60), room(2, 0)), now()).await.unwrap();
    let refused = store.ledger.create_vm(new(vm_spec("c", GuestOs::Macos, 0), room(2, 0)), now()).await;
    assert_eq!(code(refused), Code::SlotUnavailable, "the second slot is b's");
    let linux = store.ledger.create_vm(new(vm_spec("d", GuestOs::Linux, 0), room(2, 0)), now()).await.unwrap();
    assert_eq!(linux.vm().state, State::Cloning, "Linux guests do not count against the macOS slots");
}

#[tokio::test]
async fn a_vm_that_waits_for_an_image_takes_no_slot_and_blocks_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    let awaits = TemplateSource::Awaited {
        awaits: TemplateOverrides { cpus: Some(2), queue_seconds: 60, ..TemplateOverrides::default() },
    };
    let first = VmSpec { source: awaits, ..vm_spec("first", GuestOs::Linux, 60) };
    let id = store.ledger.create_vm(new(first, room(1, 0)), now()).await.unwrap().vm().id();
    let held = store.ledger.place(room(1, 0), now()).await.unwrap().held;
    assert_eq!(held, Usage::default());
    let vm = store.reader.vm(id).await.unwrap().unwrap();
    assert_eq!((vm.state, vm.queue.as_ref().unwrap().reason), (State::Queued, QueueReason::Template));
    assert_eq!(store.reader.drivers_waited_for().await.unwrap(), Vec::<String>::new());

    // A younger vm with its template does not wait for one without, not even if it cannot wait at all.
    let second = store.ledger.create_vm(new(vm_spec("second", GuestOs::Macos, 0), room(1, 0)), now()).await.unwrap();
    assert_eq!(second.vm().state, State::Cloning);

    let ready = Event::TemplateReady { spec: spec(GuestOs::Macos), budgets: Budgets::default() };
    let expect = Expect::Attempt { state: State::Queued, attempt: 0 };
    let vm = store.ledger.apply(id, expect, ready.clone(), now()).await.unwrap().vm;
    assert_eq!(
        (vm.spec.resolved(), vm.queue.as_ref().unwrap().reason),
        (Some(&spec(GuestOs::Macos)), QueueReason::Slot)
    );
    let again = store.ledger.apply(id, expect, ready, now()).await.unwrap();
    assert!(!again.changed(), "it is here once");
    assert_eq!(store.reader.template_in_use("sha256:0").await.unwrap(), Some(id));
    assert_eq!(store.ledger.place(room(1, 0), now()).await.unwrap().held.macos, 1, "the second has the slot");
    assert_eq!(store.ledger.place(room(2, 0), now()).await.unwrap().held.macos, 2);
    let row = store.reader.vm(id).await.unwrap().unwrap();
    let log = store.reader.events(Some(id), 0, 100).await.unwrap();
    assert_eq!(Vm::replay(log.iter().map(|r| (&r.event, r.at))), Some(row));
}

/// A row of the version before images.
#[tokio::test]
async fn vms_of_an_older_version_keep_what_they_are_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mayfly.db");
    let mut db = store::schema::of_version(&path, 2).await;
    let vm = Vm::created(vm_spec("old", GuestOs::Macos, 60), now());
    let id = vm.id().to_string();
    sqlx::query(
        "INSERT INTO vms (id, name, state, generation, template, template_digest, os, cpus, memory_mib, request_hash,
         created_at, record, driver) VALUES (?, 'old', 'queued', 1, 't', 'sha256:0', 'macos', 1, 100, x'00', 0, ?, 'fake')",
    )
    .bind(&id)
    .bind(serde_json::to_string(&vm).unwrap())
    .execute(&mut db)
    .await
    .unwrap();
    sqlx::Connection::close(db).await.unwrap();

    let store = open_store(&dir).await;
    assert_eq!(store.reader.vm(vm.id()).await.unwrap(), Some(vm.clone()));
    assert_eq!(store.reader.template_in_use("sha256:0").await.unwrap(), Some(vm.id()));
    assert_eq!(store.reader.drivers_waited_for().await.unwrap(), ["fake"]);
    assert_eq!(store.ledger.place(room(1, 0), now()).await.unwrap().held.macos, 1);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    for n in 0..5 {
        store.ledger.create_vm(new(vm_spec(&format!("v{n}"), GuestOs::Macos, 60), room(0, 0)), now()).await.unwrap();
    }
    assert_eq!(
        code(store.ledger.create_vm(new(vm_spec("x", GuestOs::Macos, 60), room(0, 0)), now()).await),
        Code::QueueFull
    );
    let filter = store::vm_queries::Filter {
        labels: vec![("team.x/y".into(), "a b".into())],
        states: vec![State::Queued],
        limit: 3,
        ..Default::default()
    };
    let page = store.reader.vms(&filter).await.unwrap();
    assert_eq!(page.iter().map(|v| v.spec.name.as_str()).collect::<Vec<_>>(), ["v4", "v3", "v2"]);
    let rest = store.reader.vms(&store::vm_queries::Filter { before: Some(page[2].id()), ..filter }).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert_eq!(store.reader.queue_place(rest[1].id()).await.unwrap().position, 1);
}

#[tokio::test]
async fn keys_that_an_earlier_version_stored_are_found_by_whoever_used_them() {
    use sqlx::Connection;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mayfly.db");
    let mut db = store::schema::of_version(&path, 9).await;
    let canary = BTreeMap::from([("mayfly.canary".to_owned(), "1".to_owned())]);
    let of_caller = VmSpec { labels: canary.clone(), ..vm_spec("caller", GuestOs::Linux, 60) };
    let of_pool = VmSpec { pool: Some("p".into()), ..vm_spec("pool", GuestOs::Linux, 60) };
    let of_test = VmSpec { labels: canary, ..vm_spec("canary", GuestOs::Linux, 60) };
    let (tokens, service) = (KeyOwner::Tokens, KeyOwner::Service);
    let known = [("k", of_caller, tokens), ("github-job-1-1", of_pool, service), ("mayfly-canary-1", of_test, service)];
    for (key, spec, _) in &known {
        let vm = Vm::created(spec.clone(), now());
        let (id, record) = (spec.id.to_string(), serde_json::to_string(&vm).unwrap());
        let row = "INSERT INTO vms (id, name, state, generation, template, request_hash, created_at, record)
                   VALUES (?, ?, 'queued', 1, 't', ?, 0, ?)";
        let row = sqlx::query(row).bind(&id).bind(&spec.name).bind([1u8; 32].as_slice()).bind(record);
        row.execute(&mut db).await.unwrap();
        let row = "INSERT INTO idempotency_keys (key, request_hash, vm_id, created_at) VALUES (?, ?, ?, 0)";
        let row = sqlx::query(row).bind(*key).bind([1u8; 32].as_slice()).bind(&id);
        row.execute(&mut db).await.unwrap();
    }
    db.close().await.unwrap();
    let store = open_store(&dir).await;
    for (key, spec, owner) in known {
        let mut again = new(vm_spec("other", GuestOs::Linux, 60), room(0, 0));
        again.idempotency_key = Some(IdempotencyKey { owner, key: key.into() });
        let opened = store.ledger.create_vm(again, now()).await.unwrap();
        assert_eq!(opened.vm().id(), spec.id, "{key}");
    }
}

#[tokio::test]
async fn a_write_that_fails_leaves_nothing_and_its_neighbours_stand() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&dir).await;
    // Many concurrent writes share a commit; every other one repeats a name with another body and is refused.
    let all = futures_util::future::join_all((0..40u8).map(|n| {
        let mut new = new(vm_spec(&format!("v{}", n / 2), GuestOs::Macos, 60), room(0, 0));
        new.request_hash = [n; 32].into();
        new.admission = Admission::Queue { max_queued: 100 };
        store.ledger.create_vm(new, now())
    }))
    .await;
    assert_eq!(all.iter().filter(|r| r.is_ok()).count(), 20);
    assert_eq!(store.reader.queue_length().await.unwrap(), 20);
    assert_eq!(store.reader.events(None, 0, 100).await.unwrap().len(), 20);
}

#[derive(Clone, Debug)]
enum Act {
    Create {
        macos: bool,
        now_or_never: bool,
    },
    /// Foreign guests run, the system admits fewer guests than there are slots, the driver works or not.
    Place {
        foreign: u32,
        ceiling: Option<u32>,
        works: bool,
    },
    Advance(usize),
    Delete(usize),
    Fail(usize),
    Crash,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (any::<bool>(), any::<bool>()).prop_map(|(macos, now_or_never)| Act::Create { macos, now_or_never }),
        3 => (0..3u32, prop::option::weighted(0.3, 0..2u32), prop::bool::weighted(0.8))
            .prop_map(|(foreign, ceiling, works)| Act::Place { foreign, ceiling, works }),
        6 => (0..20usize).prop_map(Act::Advance),
        2 => (0..20usize).prop_map(Act::Delete),
        2 => (0..20usize).prop_map(Act::Fail),
        1 => Just(Act::Crash),
    ]
}

/// The event that the vm's own step would report next.
fn next_fact(vm: &Vm) -> Option<Event> {
    match vm.state {
        State::Queued | State::Deleted => None,
        State::Cloning => Some(Event::Cloned),
        State::Booting => Some(Event::GuestReady { via: crate::domain::event::ReadyVia::GuestCall }),
        State::Configuring => Some(Event::GuestConfigured),
        State::Running => Some(Event::EndAnnounced { by: Announcer::Hook }),
        State::Draining => Some(Event::EndProven { proof: crate::domain::EndProof::RunnerFinished, exit_code: None }),
        State::Kept => Some(Event::BudgetSpent { budget: crate::domain::Budget::KeepOnFailure }),
        State::Stopping => Some(Event::InstanceStopped),
        State::Deleting if vm.retries() => {
            Some(Event::AttemptCleared { reason: QueueReason::Backoff, not_before: now() })
        }
        State::Deleting => Some(Event::InstanceAbsent),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Creates, deletes, failures, foreign vms that come and go, a system that refuses guests, a driver that breaks,
    /// and crashes, in any order: Mayfly never exceeds the limit, no vm waits while there is capacity, queued vms
    /// have the right reason, leases are exactly the vms that hold a slot, and every log gives its row.
    #[test]
    fn the_limit_is_exact(acts in prop::collection::vec(any_act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open_store(&dir).await;
            let mut ids = Vec::new();
            let mut n = 0;
            for act in acts {
                let live = store.reader.live_vms().await.unwrap();
                let pick = |n: usize| (!live.is_empty()).then(|| live[n % live.len()].clone());
                match act {
                    Act::Create { macos, now_or_never } => {
                        n += 1;
                        let os = if macos { GuestOs::Macos } else { GuestOs::Linux };
                        let mut new = new(vm_spec(&format!("v{n}"), os, if now_or_never { 0 } else { 60 }), room(2, 0));
                        if let Admission::Queue { max_queued } = &mut new.admission {
                            *max_queued = 1000;
                        }
                        if let Ok(opened) = store.ledger.create_vm(new, now()).await {
                            ids.push(opened.vm().id());
                        }
                    }
                    Act::Place { foreign, ceiling, works } => {
                        let count = |vms: &[Vm], os| {
                            vms.iter().filter(|v| v.state.holds_slot() && v.spec.resolved().unwrap().os == os).count() as u32
                        };
                        let before = count(&live, GuestOs::Macos);
                        let mut room = room(2, foreign);
                        room.ceilings = ceiling.map(|most| (GuestOs::Macos, most)).into_iter().collect();
                        if !works {
                            room.drivers.clear();
                        }
                        store.ledger.place(room, now()).await.unwrap();
                        let live = store.reader.live_vms().await.unwrap();
                        let waits = |os| live.iter().filter(move |v| v.state == State::Queued && v.spec.resolved().unwrap().os == os);
                        let reason = |vm: &Vm| vm.queue.as_ref().unwrap().reason;
                        let (macs, linux) = (count(&live, GuestOs::Macos), count(&live, GuestOs::Linux));
                        if works {
                            let limit = ceiling.map_or(2, |most| most.min(2));
                            assert!(macs + foreign <= limit.max(before + foreign), "placed above the limit");
                            for vm in waits(GuestOs::Macos) {
                                assert!(macs + foreign >= limit, "waiting while a slot is free");
                                let why = if macs + foreign >= 2 { QueueReason::Slot } else { QueueReason::Host };
                                assert_eq!(reason(vm), why);
                            }
                            assert!(waits(GuestOs::Linux).all(|vm| linux >= 3 && reason(vm) == QueueReason::Slot));
                        } else {
                            assert_eq!(macs, before, "placed where no driver works");
                            assert!([GuestOs::Macos, GuestOs::Linux].into_iter().flat_map(waits).all(|vm| reason(vm) == QueueReason::Host));
                        }
                    }
                    Act::Advance(n) => if let Some(vm) = pick(n) && let Some(fact) = next_fact(&vm) {
                        store.ledger.apply(vm.id(), Expect::Generation(vm.generation), fact, now()).await.unwrap();
                    },
                    Act::Delete(n) => if let Some(vm) = pick(n) {
                        let force = Event::EndForced { by: Announcer::Admin };
                        store.ledger.apply(vm.id(), Expect::Anything, force, now()).await.unwrap();
                    },
                    Act::Fail(n) => if let Some(vm) = pick(n) && matches!(vm.state, State::Cloning | State::Booting) {
                        let fault = crate::domain::Fault { code: Code::BootFailed, detail: "x".into(), at: now() };
                        store.ledger.apply(vm.id(), Expect::Anything, Event::AttemptFailed { fault }, now()).await.unwrap();
                    },
                    // The process dies: nothing is closed, and the file is opened again.
                    Act::Crash => store = open_store(&dir).await,
                }
                let live = store.reader.live_vms().await.unwrap();
                let holders: Vec<_> = live.iter().filter(|v| v.state.holds_slot()).map(Vm::id).collect();
                assert_eq!(store.reader.leases().await.unwrap(), holders);
                let held = |os| live.iter().filter(|v| v.state.holds_slot() && v.spec.resolved().unwrap().os == os).count();
                assert!(held(GuestOs::Macos) <= 2 && held(GuestOs::Linux) <= 3);
            }
            for id in ids {
                let log = store.reader.events(Some(id), 0, 10_000).await.unwrap();
                let row = store.reader.vm(id).await.unwrap();
                assert_eq!(Vm::replay(log.iter().map(|r| (&r.event, r.at))), row);
            }
        });
    }
}
