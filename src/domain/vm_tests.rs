use proptest::prelude::*;

use super::*;
use crate::domain::{
    basis::Asked,
    error::Code,
    event::ReadyVia,
    template::{GuestOs, Handover},
};

fn spec() -> Spec {
    Spec {
        template_digest: "sha256:0".into(),
        driver: "fake".into(),
        os: GuestOs::Linux,
        handover: Handover::Seed,
        cpus: 1,
        memory_mib: 256,
    }
}

pub fn draft() -> Draft {
    Draft {
        id: VmId::mint(),
        name: "a".into(),
        template: "micro".into(),
        basis: Basis::Known(spec()),
        runner: RunnerKind::Command,
        labels: BTreeMap::new(),
        budgets: Budgets::default(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn fault() -> Fault {
    Fault { code: Code::BootFailed, detail: "no".into(), at: at(0) }
}

fn live(events: &[Event]) -> Vm {
    let mut vm = Vm::created(draft(), at(0));
    for (n, event) in events.iter().enumerate() {
        assert!(
            matches!(vm.apply(event, at(1 + n as i64)), Verdict::Move(_) | Verdict::Note),
            "{event:?} in {}",
            vm.state
        );
    }
    vm
}

fn running() -> Vec<Event> {
    vec![Event::SlotTaken, Event::Cloned, Event::GuestReady { via: ReadyVia::GuestCall }, Event::GuestConfigured]
}

fn with(mut events: Vec<Event>, more: impl IntoIterator<Item = Event>) -> Vec<Event> {
    events.extend(more);
    events
}

#[test]
fn the_main_road() {
    let vm = live(&with(
        running(),
        [
            Event::RunnerChanged { fact: RunnerFact::JobStarted },
            Event::EndAnnounced { by: Announcer::Hook },
            Event::JobFinished { exit_code: 3 },
            Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) },
            Event::InstanceStopped,
            Event::InstanceAbsent,
        ],
    ));
    let states: Vec<_> = vm.timeline.iter().map(|t| t.state).collect();
    assert_eq!(states, State::ALL);
    assert_eq!(vm.announced_by, Some(Announcer::Hook));
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerFinished));
    assert_eq!(vm.outcome.as_ref().unwrap().result, OutcomeResult::Completed);
    assert_eq!(vm.job_exit_code, Some(3), "the first word about the job is the job's own");
    assert_eq!(vm.generation, 11);
}

#[test]
fn the_hook_does_not_kill_and_repeating_it_changes_nothing() {
    let mut vm = live(&with(running(), [Event::EndAnnounced { by: Announcer::Hook }]));
    assert_eq!(vm.state, State::Draining);
    assert!(vm.outcome.is_none());
    let before = vm.clone();
    assert_eq!(vm.apply(&Event::EndAnnounced { by: Announcer::Hook }, at(99)), Verdict::Ignore);
    assert_eq!(vm, before);
    assert_eq!(vm.deadline(), Some((Budget::Drain, vm.entered_at + seconds(300))));
}

#[test]
fn a_failed_attempt_goes_back_to_the_queue_with_a_clean_slate() {
    let vm = live(&[
        Event::SlotTaken,
        Event::Cloned,
        Event::EndpointFound { ssh: Endpoint { host: "127.0.0.1".into(), port: 1 }, host_key: Some("k".into()) },
        Event::AttemptFailed { fault: fault() },
        Event::InstanceStopped,
        Event::AttemptCleared { reason: QueueReason::Backoff, not_before: at(20) },
    ]);
    assert_eq!(vm.state, State::Queued);
    assert_eq!((vm.attempt, vm.failed_attempts), (1, 1));
    assert_eq!((vm.ssh.clone(), vm.host_key.clone()), (None, None));
    assert_eq!(vm.queue.as_ref().unwrap().not_before, Some(at(20)));
    assert!(vm.retries());
}

#[test]
fn an_end_that_is_asked_for_while_an_attempt_is_cleared_away_is_the_end() {
    let vm = live(&[
        Event::SlotTaken,
        Event::Cloned,
        Event::AttemptFailed { fault: fault() },
        Event::EndForced { by: Announcer::Admin },
    ]);
    assert!(!vm.retries());
    assert_eq!(vm.end_signal, Some(EndSignal::Admin));
    assert_eq!(vm.state, State::Stopping);
}

#[test]
fn the_host_is_not_the_vms_fault() {
    let vm = live(&[
        Event::SlotTaken,
        Event::Cloned,
        Event::HostRefused { fault: fault() },
        Event::InstanceStopped,
        Event::AttemptCleared { reason: QueueReason::Host, not_before: at(9) },
    ]);
    assert_eq!((vm.state, vm.failed_attempts, vm.host_refused), (State::Queued, 0, false));
    assert_eq!(vm.queue.unwrap().reason, QueueReason::Host);
}

#[test]
fn a_vanished_instance_is_a_loss_only_while_there_was_something_to_lose() {
    let gone = Event::InstanceGone { cause: GoneCause::Unknown };
    let lost = live(&with(running(), [gone.clone()]));
    assert_eq!(lost.outcome.unwrap().result, OutcomeResult::Lost);
    let done = live(&with(running(), [Event::EndAnnounced { by: Announcer::Hook }, gone]));
    assert_eq!(done.outcome.unwrap().result, OutcomeResult::Completed);
    assert_eq!(done.end_signal, Some(EndSignal::InstanceGone));
    let off = live(&with(running(), [Event::InstanceGone { cause: GoneCause::GuestPowerOff }]));
    assert_eq!(off.end_signal, Some(EndSignal::GuestPowerOff));
}

#[test]
fn every_spent_budget_is_named() {
    for budget in [Budget::Lifetime, Budget::Idle, Budget::Registration] {
        let vm = live(&with(running(), [Event::BudgetSpent { budget }]));
        assert_eq!(vm.end_signal, Some(budget.into()));
        assert_eq!(vm.outcome.unwrap().code, Some(budget.code()));
    }
    let vm = live(&[Event::BudgetSpent { budget: Budget::Queue }]);
    assert_eq!((vm.state, vm.end_signal), (State::Deleted, Some(EndSignal::QueueBudget)));
}

fn any_event() -> impl Strategy<Value = Event> {
    let budget = prop_oneof![
        Just(Budget::Queue),
        Just(Budget::Boot),
        Just(Budget::Lifetime),
        Just(Budget::Drain),
        Just(Budget::Idle)
    ];
    let cause = prop_oneof![
        Just(GoneCause::GuestPowerOff),
        Just(GoneCause::GuestReset),
        Just(GoneCause::HostStop),
        Just(GoneCause::Unknown)
    ];
    let by = prop_oneof![Just(Announcer::Hook), Just(Announcer::Admin)];
    prop_oneof![
        Just(Event::QueueReasonChanged { reason: QueueReason::Host }),
        Just(Event::TemplateReady { spec: spec(), budgets: Budgets { boot_seconds: 7, ..Budgets::default() } }),
        Just(Event::SlotTaken),
        Just(Event::Cloned),
        Just(Event::EndpointFound { ssh: Endpoint { host: "h".into(), port: 2 }, host_key: Some("k".into()) }),
        Just(Event::GuestReady { via: ReadyVia::GuestCall }),
        Just(Event::GuestConfigured),
        prop_oneof![Just(RunnerFact::JobStarted), Just(RunnerFact::Online), Just(RunnerFact::ProgramEnded)]
            .prop_map(|fact| Event::RunnerChanged { fact }),
        (0..3i32).prop_map(|exit_code| Event::JobFinished { exit_code }),
        by.clone().prop_map(|by| Event::EndAnnounced { by }),
        Just(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }),
        Just(Event::EndForced { by: Announcer::Admin }),
        cause.prop_map(|cause| Event::InstanceGone { cause }),
        budget.prop_map(|budget| Event::BudgetSpent { budget }),
        Just(Event::StepFailed { fault: fault() }),
        Just(Event::AttemptFailed { fault: fault() }),
        Just(Event::HostRefused { fault: fault() }),
        Just(Event::GivenUp { fault: fault() }),
        Just(Event::InstanceStopped),
        Just(Event::InstanceAbsent),
        Just(Event::AttemptCleared { reason: QueueReason::Backoff, not_before: at(5) }),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the laws hold, and the log alone gives the row.
    #[test]
    fn any_sequence_of_events_keeps_the_laws(awaits: bool, events in prop::collection::vec(any_event(), 0..80)) {
        let basis = if awaits { Basis::Awaited { awaits: Asked::default() } } else { Basis::Known(spec()) };
        let first = Event::Created { draft: Box::new(Draft { basis, ..draft() }) };
        let Event::Created { draft } = &first else { unreachable!() };
        let mut vm = Vm::created((**draft).clone(), at(0));
        let mut log = vec![(first.clone(), at(0))];
        for (n, event) in events.into_iter().enumerate() {
            let before = vm.clone();
            let now = at(1 + n as i64);
            match vm.apply(&event, now) {
                Verdict::Ignore | Verdict::Refuse => prop_assert_eq!(&vm, &before),
                Verdict::Move(to) => {
                    prop_assert_eq!(vm.state, to);
                    prop_assert_eq!(vm.generation, before.generation + 1);
                    log.push((event, now));
                }
                Verdict::Note => {
                    prop_assert_eq!(vm.state, before.state);
                    prop_assert_eq!(vm.generation, before.generation + 1);
                    log.push((event, now));
                }
            }
            if before.outcome.is_some() {
                prop_assert_eq!(&vm.outcome, &before.outcome, "an outcome is set once");
            }
            prop_assert_eq!(vm.queue.is_some(), vm.state == State::Queued);
            prop_assert_eq!(vm.outcome.is_some(), vm.end_signal.is_some());
            if vm.state == State::Deleted && before.state != State::Deleted {
                // The step decides by `retries()`; a deletion without an outcome is the step's fault, and only reachable here.
                prop_assert!(vm.outcome.is_some() || matches!(before.state, State::Deleting));
            }
            if !matches!(vm.state, State::Stopping | State::Deleting | State::Deleted) {
                prop_assert!(vm.deadline().is_some(), "{} could last for ever", vm.state);
            }
        }
        let replayed = Vm::replay(log.iter().map(|(e, t)| (e, *t)));
        prop_assert_eq!(replayed.as_ref(), Some(&vm));
        let stored: Vm = serde_json::from_str(&serde_json::to_string(&vm).unwrap()).unwrap();
        prop_assert_eq!(stored, vm);
    }
}

#[test]
fn a_draft_is_read_as_it_was_always_written() {
    let draft = draft();
    let known = serde_json::to_value(&draft).unwrap();
    assert_eq!(
        (&known["os"], &known["cpus"], &known["template_digest"]),
        (&"linux".into(), &1.into(), &"sha256:0".into())
    );
    assert_eq!(serde_json::from_value::<Draft>(known.clone()).unwrap(), draft);

    let asked = Asked { cpus: Some(2), queue_seconds: 9, ..Asked::default() };
    let awaited = Draft { basis: Basis::Awaited { awaits: asked }, ..draft };
    let written = serde_json::to_value(&awaited).unwrap();
    assert!(written.get("os").is_none(), "{written}");
    assert_eq!(serde_json::from_value::<Draft>(written).unwrap(), awaited);

    // Neither the one nor the other: not to be taken for a vm that waits.
    for lost in ["os", "cpus", "template_digest"] {
        let mut damaged = known.clone();
        damaged.as_object_mut().unwrap().remove(lost);
        assert!(serde_json::from_value::<Draft>(damaged).is_err(), "{lost}");
    }
}
