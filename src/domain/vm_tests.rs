use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::{
    SourceName,
    budgets::Budgets,
    error::Code,
    event::ReadyVia,
    guest::GuestRole,
    network::NetworkMode,
    source_runner::{Registration, SourceRunner},
    template::{GuestOs, Handover},
    vm_end::RUNNER_TOO_OLD,
    vm_spec::{ResolvedSpec, TemplateOverrides},
};

fn spec() -> ResolvedSpec {
    ResolvedSpec {
        template_digest: "sha256:0".into(),
        driver: "fake".into(),
        os: GuestOs::Linux,
        handover: Handover::Seed,
        cpus: 1,
        memory_mib: 256,
        network: Some(NetworkMode::Isolated),
        ready: None,
    }
}

pub fn vm_spec() -> VmSpec {
    VmSpec {
        id: VmId::mint(),
        name: "a".into(),
        template: "micro".into(),
        source: TemplateSource::Resolved(spec()),
        runner: RunnerKind::Command,
        source_runner: None,
        pool: None,
        created_by: None,
        labels: BTreeMap::new(),
        budgets: Budgets::default(),
        instance_per_attempt: true,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn fault() -> Fault {
    Fault { code: Code::BootFailed, detail: "no".into(), at: at(0) }
}

fn live(events: &[Event]) -> Vm {
    let mut vm = Vm::created(vm_spec(), at(0));
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
            Event::JobFinished { exit_code: 3, by: GuestRole::Wrapper },
            Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) },
            Event::InstanceStopped,
            Event::InstanceAbsent,
        ],
    ));
    let states: Vec<_> = vm.timeline.iter().map(|t| t.state).collect();
    // Only the guest of a failed vm is kept.
    let all: Vec<_> = State::ALL.iter().copied().filter(|state| *state != State::Kept).collect();
    assert_eq!(states, all);
    assert_eq!(vm.announced_by, Some(Announcer::Hook));
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerFinished));
    assert_eq!(vm.outcome.as_ref().unwrap().result, OutcomeResult::Completed);
    assert_eq!(vm.job_exit_code, Some(3), "the runner's own exit code is another one");
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
        Event::EndpointFound { ssh: Endpoint::address("127.0.0.1", 1), host_key: Some("k".into()) },
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
fn each_attempt_has_an_instance_of_its_own_unless_the_vm_is_older_than_that() {
    let mut vm = live(&[
        Event::SlotTaken,
        Event::AttemptFailed { fault: fault() },
        Event::InstanceStopped,
        Event::AttemptCleared { reason: QueueReason::Backoff, not_before: at(20) },
    ]);
    let first = vm.instance();
    assert_eq!(first, vm.id().instance());
    vm.apply(&Event::SlotTaken, at(30));
    assert_ne!(vm.instance(), first);
    assert_eq!(vm.instance(), vm.id().instance_of(2));

    // As it was stored before instances were named after their attempts.
    let mut record = serde_json::to_value(&vm).unwrap();
    record["draft"].as_object_mut().unwrap().remove("instance_per_attempt").unwrap();
    let old: Vm = serde_json::from_value(record).unwrap();
    assert_eq!((old.attempt, old.instance()), (2, first));
}

#[test]
fn an_end_requested_during_cleanup_of_an_attempt_is_final() {
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
    // The hook runs before the runner has uploaded its result.
    let cut = live(&with(running(), [Event::EndAnnounced { by: Announcer::Hook }, gone.clone()]));
    let outcome = cut.outcome.unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Lost, Some(Code::InstanceLost)));
    assert!(outcome.detail.unwrap().ends_with("before its runner had ended"));
    assert_eq!(cut.end_signal, Some(EndSignal::InstanceGone));
    let off = live(&with(running(), [Event::InstanceGone { cause: GoneCause::GuestPowerOff }]));
    assert_eq!(off.end_signal, Some(EndSignal::GuestPowerOff));
}

#[test]
fn a_lost_vm_says_what_happened_to_its_guest() {
    for cause in GoneCause::ALL.iter().copied().filter(|cause| *cause != GoneCause::GuestPowerOff) {
        let lost = live(&with(running(), [Event::InstanceGone { cause }]));
        let outcome = lost.outcome.unwrap();
        assert_eq!((outcome.result, outcome.code), (OutcomeResult::Lost, Some(cause.code())), "{cause:?}");
        assert_eq!(outcome.detail.as_deref(), Some(cause.describe()), "{cause:?}");
    }
}

#[test]
fn every_spent_budget_is_named() {
    for budget in [Budget::Lifetime, Budget::Idle, Budget::Registration] {
        let vm = live(&with(running(), [Event::BudgetSpent { budget }]));
        assert_eq!(vm.end_signal, budget.end().map(|(signal, _)| signal));
        assert_eq!(vm.outcome.unwrap().code, budget.end().map(|(_, code)| code));
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
    let cause = prop::sample::select(GoneCause::ALL.to_vec());
    let by = prop_oneof![Just(Announcer::Hook), Just(Announcer::Admin)];
    prop_oneof![
        Just(Event::QueueReasonChanged { reason: QueueReason::Host }),
        Just(Event::TemplateReady { spec: spec(), budgets: Budgets { boot_seconds: 7, ..Budgets::default() } }),
        Just(Event::SlotTaken),
        Just(Event::Cloned),
        Just(Event::EndpointFound { ssh: Endpoint::address("h", 2), host_key: Some("k".into()) }),
        Just(Event::GuestReady { via: ReadyVia::GuestCall }),
        Just(Event::GuestConfigured),
        prop_oneof![
            Just(RunnerFact::ProgramStarted),
            Just(RunnerFact::JobStarted),
            Just(RunnerFact::Online),
            Just(RunnerFact::ProgramEnded)
        ]
        .prop_map(|fact| Event::RunnerChanged { fact }),
        (0..3i32, prop_oneof![Just(GuestRole::Wrapper), Just(GuestRole::Job)])
            .prop_map(|(exit_code, by)| Event::JobFinished { exit_code, by }),
        any::<bool>().prop_map(|separate_users| Event::GuestDescribed { separate_users }),
        (0..3u32).prop_map(|state| Event::GuestChecked { version: Some("1".into()), state: Some(state) }),
        by.clone().prop_map(|by| Event::EndAnnounced { by }),
        Just(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }),
        Just(Event::EndForced { by: Announcer::Admin }),
        (0..90_000i64).prop_map(|milliseconds| Event::ServiceAway { milliseconds }),
        (1000..90_000i64).prop_map(|milliseconds| Event::ClockStepped { milliseconds }),
        (1000..90_000i64).prop_map(|milliseconds| Event::ClockStepped { milliseconds: -milliseconds }),
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
    /// For any events in any order: the invariants hold, and the log alone gives the row.
    #[test]
    fn any_sequence_of_events_keeps_the_laws(awaits: bool, keeps: bool, events in prop::collection::vec(any_event(), 0..80)) {
        let source = if awaits { TemplateSource::Awaited { awaits: TemplateOverrides::default() } } else { TemplateSource::Resolved(spec()) };
        let budgets = Budgets { keep_on_failure_seconds: if keeps { 60 } else { 0 }, ..Budgets::default() };
        let first = Event::Created { spec: Box::new(VmSpec { source, budgets, ..vm_spec() }) };
        let Event::Created { spec } = &first else { unreachable!() };
        let mut vm = Vm::created((**spec).clone(), at(0));
        let mut log = vec![(first.clone(), at(0))];
        for (n, event) in events.into_iter().enumerate() {
            let before = vm.clone();
            let now = at(1 + n as i64);
            match vm.apply(&event, now) {
                Verdict::Ignore | Verdict::Refuse(_) => prop_assert_eq!(&vm, &before),
                Verdict::Move(to) => {
                    prop_assert_eq!(vm.state, to);
                    prop_assert_eq!(vm.generation, before.generation + 1);
                    log.push((event, now));
                }
                Verdict::End => prop_assert!(false, "not resolved"),
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
                // The step decides by `retries()`; a deletion without an outcome is an error of the step, and only
                // reachable here.
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
    let spec = vm_spec();
    let known = serde_json::to_value(&spec).unwrap();
    assert_eq!(
        (&known["os"], &known["cpus"], &known["template_digest"]),
        (&"linux".into(), &1.into(), &"sha256:0".into())
    );
    assert_eq!(serde_json::from_value::<VmSpec>(known.clone()).unwrap(), spec);

    // A record of a version without network modes.
    let mut earlier = known.clone();
    earlier.as_object_mut().unwrap().remove("network").unwrap();
    let read: VmSpec = serde_json::from_value(earlier.clone()).unwrap();
    assert_eq!(read.resolved().unwrap().network, None);
    assert_eq!(serde_json::to_value(&read).unwrap(), earlier);

    let asked = TemplateOverrides { cpus: Some(2), queue_seconds: 9, ..TemplateOverrides::default() };
    let awaited = VmSpec { source: TemplateSource::Awaited { awaits: asked }, ..spec };
    let written = serde_json::to_value(&awaited).unwrap();
    assert!(written.get("os").is_none(), "{written}");
    assert_eq!(serde_json::from_value::<VmSpec>(written).unwrap(), awaited);

    // Neither variant: it must not be taken for a vm that waits.
    for lost in ["os", "cpus", "template_digest"] {
        let mut damaged = known.clone();
        damaged.as_object_mut().unwrap().remove(lost);
        assert!(serde_json::from_value::<VmSpec>(damaged).is_err(), "{lost}");
    }
}

fn github(registration: Registration) -> Vm {
    let runner = SourceRunner {
        source: SourceName::github(),
        scope: "acme/app".parse().unwrap(),
        labels: vec!["macos".into()],
        group: None,
        registration,
        job: None,
    };
    Vm::created(VmSpec { runner: RunnerKind::GitHub, source_runner: Some(runner), ..vm_spec() }, at(0))
}

fn job(status: JobStatus) -> JobRecord {
    JobRecord {
        source: SourceName::github(),
        id: 9001.into(),
        repository: "acme/app".into(),
        run_id: 7001,
        run_attempt: 1,
        name: "build".into(),
        workflow: Some("ci".into()),
        status,
        conclusion: (status == JobStatus::Completed).then(|| "success".into()),
        url: None,
        started_at: None,
        completed_at: None,
    }
}

fn go(vm: &mut Vm, events: impl IntoIterator<Item = (Event, i64)>) {
    for (event, second) in events {
        let verdict = vm.apply(&event, at(second));
        assert!(matches!(verdict, Verdict::Move(_) | Verdict::Note), "{event:?} in {}: {verdict:?}", vm.state);
    }
}

fn github_running() -> Vm {
    let mut vm = github(Registration::Managed);
    go(&mut vm, running().into_iter().zip(1..));
    vm
}

/// The runner's end may be known before the job's result: the guest is kept until GitHub tells it.
#[test]
fn a_guest_is_kept_for_a_job_of_github_that_failed_or_may_have_failed() {
    let completed = |conclusion: &str| {
        let job = JobRecord { conclusion: Some(conclusion.into()), ..job(JobStatus::Completed) };
        Event::JobChanged { job }
    };
    let ended = || {
        let mut vm = github_running();
        vm.spec.budgets.keep_on_failure_seconds = 60;
        go(&mut vm, [(Event::JobChanged { job: job(JobStatus::InProgress) }, 10)]);
        go(&mut vm, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }, 20)]);
        assert_eq!((vm.state, vm.deadline()), (State::Kept, Some((Budget::KeepOnFailure, at(80)))));
        vm
    };
    for (conclusion, state) in [
        ("success", State::Stopping),
        ("cancelled", State::Stopping),
        ("failure", State::Kept),
        ("timed_out", State::Kept),
    ] {
        let mut vm = ended();
        go(&mut vm, [(completed(conclusion), 30)]);
        assert_eq!(vm.state, state, "{conclusion}");
    }
    // A runner that was given no job has nothing to show, and one whose vm was to end was not kept.
    let mut idle = github_running();
    idle.spec.budgets.keep_on_failure_seconds = 60;
    let mut unwanted = idle.clone();
    go(&mut idle, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }, 20)]);
    go(&mut unwanted, [(Event::JobChanged { job: job(JobStatus::InProgress) }, 10)]);
    go(&mut unwanted, [(Event::EndAnnounced { by: Announcer::Admin }, 15)]);
    go(&mut unwanted, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }, 20)]);
    assert_eq!((idle.state, unwanted.state), (State::Stopping, State::Stopping));
}

#[test]
fn githubs_word_that_a_job_is_completed_ends_its_guest_a_moment_later() {
    let mut vm = github_running();
    assert_eq!(vm.settle_deadline(), None);
    go(&mut vm, [(Event::JobChanged { job: job(JobStatus::InProgress) }, 10)]);
    assert_eq!((vm.runner_status, vm.settle_deadline()), (RunnerStatus::Busy, None));
    go(&mut vm, [(Event::JobChanged { job: job(JobStatus::Completed) }, 20)]);
    assert_eq!(vm.settle_deadline(), Some((EndProof::JobCompleted, at(30))));
    assert_eq!(vm.apply(&Event::JobChanged { job: job(JobStatus::InProgress) }, at(21)), Verdict::Ignore);
    // The first proof counts; later ones stay in the record.
    go(&mut vm, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }, 22)]);
    assert_eq!((vm.end_signal, vm.settle_deadline(), vm.job_exit_code), (Some(EndSignal::RunnerFinished), None, None));
}

#[test]
fn a_job_that_github_completes_late_is_still_in_the_record() {
    let mut vm = github_running();
    go(
        &mut vm,
        [
            (Event::JobChanged { job: job(JobStatus::InProgress) }, 10),
            (Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(0) }, 11),
            (Event::InstanceStopped, 12),
            (Event::InstanceAbsent, 13),
            (Event::JobChanged { job: job(JobStatus::Completed) }, 40),
        ],
    );
    assert_eq!(vm.state, State::Deleted);
    assert_eq!(vm.jobs, [job(JobStatus::Completed)]);
    assert_eq!(vm.deleted_at(), Some(at(13)));
}

#[test]
fn waiting_for_github_costs_no_budget_but_the_lifetime() {
    let mut vm = github_running();
    let registration = |vm: &Vm| vm.deadline().unwrap();
    assert_eq!(registration(&vm), (Budget::Registration, at(4 + 300)));
    go(&mut vm, [(Event::BudgetsPaused, 100)]);
    assert_eq!(vm.deadline(), Some((Budget::Lifetime, at(4 + 6 * 3600))));
    assert_eq!(vm.apply(&Event::BudgetsPaused, at(110)), Verdict::Ignore);
    go(&mut vm, [(Event::BudgetsResumed, 3700)]);
    assert_eq!(registration(&vm), (Budget::Registration, at(4 + 300 + 3600)));
    // The next wait starts from zero.
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::Online }, 3800)]);
    assert_eq!(vm.deadline(), Some((Budget::Idle, at(3800 + 3600))));
}

#[test]
fn an_unobserved_runner_has_the_idle_budget() {
    for registration in [Registration::JitConfig, Registration::Token] {
        let mut vm = github(registration);
        go(&mut vm, running().into_iter().zip(1..));
        assert_eq!(vm.deadline(), Some((Budget::Idle, at(4 + 3600))));
    }
}

#[test]
fn a_pools_vm_that_was_given_a_job_after_all_has_time_for_it() {
    let mut vm = github_running();
    go(&mut vm, [(Event::EndAnnounced { by: Announcer::Pool }, 10), (Event::DrainExtended { until: at(5000) }, 300)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(5000))));
    go(&mut vm, [(Event::DrainExtended { until: at(90_000) }, 4900)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(10 + 6 * 3600))));
}

#[test]
fn a_runner_that_is_still_at_work_is_waited_for_up_to_the_cap() {
    let mut vm = github_running();
    go(&mut vm, [(Event::EndAnnounced { by: Announcer::Hook }, 10)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(310))));
    go(&mut vm, [(Event::DrainExtended { until: at(350) }, 300)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(350))));
    go(&mut vm, [(Event::DrainExtended { until: at(5000) }, 340)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(910))));
}

#[test]
fn the_record_names_who_requested_the_end_of_an_idle_runner() {
    for (by, signal) in [(Announcer::Admin, EndSignal::Admin), (Announcer::Pool, EndSignal::Pool)] {
        let mut vm = github_running();
        go(
            &mut vm,
            [
                (Event::EndAnnounced { by }, 10),
                (Event::EndProven { proof: EndProof::Deregistered, exit_code: None }, 11),
            ],
        );
        assert_eq!((vm.state, vm.end_signal, vm.runner_status), (State::Stopping, Some(signal), RunnerStatus::Gone));
        assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Cancelled);
    }
}

#[test]
fn a_runner_that_github_finds_too_old_is_a_failure() {
    let mut vm = github_running();
    go(&mut vm, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(RUNNER_TOO_OLD) }, 11)]);
    assert_eq!(vm.outcome.unwrap().code, Some(Code::RunnerTooOld));
}

#[test]
fn another_attempt_is_another_runner() {
    let mut vm = github(Registration::Managed);
    let runner = Registered { runner_id: Some(7.into()), name: "a-1".into() };
    go(
        &mut vm,
        [
            (Event::SlotTaken, 1),
            (Event::RunnerRegistered { runner: runner.clone() }, 2),
            (Event::AttemptFailed { fault: fault() }, 3),
        ],
    );
    assert_eq!(vm.registered, Some(runner));
    let cleared = Event::AttemptCleared { reason: QueueReason::Backoff, not_before: at(9) };
    go(&mut vm, [(Event::InstanceStopped, 4), (cleared, 5)]);
    assert_eq!(vm.registered, None);
}

fn running_of(runner: RunnerKind) -> Vm {
    let mut vm = Vm::created(VmSpec { runner, ..vm_spec() }, at(0));
    go(&mut vm, running().into_iter().zip(1..));
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::ProgramStarted }, 5)]);
    vm
}

#[test]
fn a_runner_that_failed_is_not_completed() {
    let ended = |runner, exit_code| {
        let mut vm = running_of(runner);
        go(&mut vm, [(Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(exit_code) }, 9)]);
        let outcome = vm.outcome.unwrap();
        (outcome.result, outcome.code, outcome.detail.unwrap_or_default())
    };
    for (code, words) in [(127, "a program was not found"), (126, "executed"), (1, "exit code 1"), (143, "signal 15")] {
        let (result, failed, detail) = ended(RunnerKind::Script, code);
        assert_eq!((result, failed), (OutcomeResult::Failed, Some(Code::RunnerFailed)), "{code}");
        assert!(detail.contains(words), "{detail}");
        // A command's result is the job's, and the vm did what it was made for.
        let (result, failed, detail) = ended(RunnerKind::Command, code);
        assert_eq!((result, failed), (OutcomeResult::Completed, Some(Code::JobFailed)), "{code}");
        assert!(detail.contains(words), "{detail}");
    }
    for runner in [RunnerKind::Script, RunnerKind::Command] {
        assert_eq!(ended(runner, 0), (OutcomeResult::Completed, None, String::new()));
    }
}

#[test]
fn a_runner_of_github_that_failed_before_it_had_a_job_is_not_completed() {
    let end = Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(1) };
    let mut vm = github_running();
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::Online }, 10), (end.clone(), 20)]);
    assert_eq!(vm.outcome.unwrap().code, Some(Code::RunnerFailed));
    let mut vm = github_running();
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::JobStarted }, 10), (end, 20)]);
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
}

#[test]
fn a_guest_that_powers_off_before_its_result_is_known_is_lost() {
    let off = Event::InstanceGone { cause: GoneCause::GuestPowerOff };
    for runner in [RunnerKind::Command, RunnerKind::Script] {
        let mut vm = running_of(runner);
        go(&mut vm, [(off.clone(), 9)]);
        let outcome = vm.outcome.unwrap();
        assert_eq!((outcome.result, outcome.code), (OutcomeResult::Lost, Some(Code::InstanceLost)), "{runner:?}");
        for known in
            [Event::JobFinished { exit_code: 0, by: GuestRole::Wrapper }, Event::EndAnnounced { by: Announcer::Hook }]
        {
            let mut vm = running_of(runner);
            go(&mut vm, [(known, 8), (off.clone(), 9)]);
            assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed, "{runner:?}");
        }
    }
    let mut vm = Vm::created(VmSpec { runner: RunnerKind::None, ..vm_spec() }, at(0));
    go(&mut vm, with(running(), [off]).into_iter().zip(1..));
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
}

#[test]
fn a_script_says_whether_it_has_a_job_or_has_a_budget_of_its_own() {
    let budgets = Budgets { unobserved_seconds: 600, ..Budgets::default() };
    let mut vm = Vm::created(VmSpec { runner: RunnerKind::Script, budgets, ..vm_spec() }, at(0));
    go(&mut vm, running().into_iter().zip(1..));
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::ProgramStarted }, 5)]);
    assert_eq!((vm.runner_status, vm.started()), (RunnerStatus::Unknown, RunnerStarted::Yes));
    assert_eq!(vm.deadline(), Some((Budget::Unobserved, at(4 + 600))));

    let mut drained = vm.clone();
    go(&mut drained, [(Event::EndAnnounced { by: Announcer::Admin }, 10)]);
    assert_eq!(drained.deadline(), Some((Budget::Drain, at(10 + 30))), "nothing can end it");
    let mut drained = vm.clone();
    go(&mut drained, [(Event::EndAnnounced { by: Announcer::Hook }, 10)]);
    assert_eq!(drained.deadline(), Some((Budget::Drain, at(10 + 300))), "its hook said that the job is over");

    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::Online }, 20)]);
    assert_eq!(vm.deadline(), Some((Budget::Idle, at(20 + 3600))));
    assert!(!vm.runner_status.may_hold_a_job());
    go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::JobStarted }, 30)]);
    assert_eq!(vm.deadline(), Some((Budget::Lifetime, at(4 + 6 * 3600))));
    go(&mut vm, [(Event::EndAnnounced { by: Announcer::Admin }, 40)]);
    assert_eq!(vm.deadline(), Some((Budget::Drain, at(40 + 300))));
}

#[test]
fn only_wrappers_that_send_heartbeats_may_not_be_silent() {
    let limit = Some(std::time::Duration::from_secs(180));
    for (runner, described, expected) in [
        (RunnerKind::Command, Some(true), limit),
        (RunnerKind::Script, Some(false), limit),
        (RunnerKind::Command, None, None),
        (RunnerKind::None, Some(true), None),
    ] {
        let mut vm = Vm::created(VmSpec { runner, ..vm_spec() }, at(0));
        go(&mut vm, running().into_iter().zip(1..));
        if let Some(separate_users) = described {
            go(&mut vm, [(Event::GuestDescribed { separate_users }, 5)]);
        }
        assert_eq!(vm.longest_silence(), expected, "{runner:?} {described:?}");
        go(&mut vm, [(Event::EndAnnounced { by: Announcer::Hook }, 6)]);
        assert_eq!(vm.longest_silence(), expected, "{runner:?} {described:?}");
    }
}

/// What lies ahead moves with the clock, in every state and with every pause; what has happened keeps its time.
#[test]
fn a_step_of_the_clock_leaves_every_budget_as_long_as_it_was() {
    let refused = Event::AttemptCleared { reason: QueueReason::Host, not_before: at(20) };
    let lives: [Vec<Event>; 8] = [
        vec![],
        vec![Event::SlotTaken],
        vec![Event::SlotTaken, Event::Cloned],
        vec![Event::SlotTaken, Event::Cloned, Event::GuestReady { via: ReadyVia::GuestCall }],
        running(),
        with(running(), [Event::EndAnnounced { by: Announcer::Hook }, Event::DrainExtended { until: at(400) }]),
        vec![Event::SlotTaken, Event::HostRefused { fault: fault() }, Event::InstanceStopped, refused],
        with(running(), [Event::EndProven { proof: EndProof::RunnerFinished, exit_code: None }]),
    ];
    for life in lives {
        for step in [86_400, -3600] {
            let mut vm = live(&life);
            let before = vm.clone();
            assert_eq!(vm.apply(&Event::ClockStepped { milliseconds: step * 1000 }, at(30 + step)), Verdict::Note);
            let moved = |at: Timestamp| at + SignedDuration::from_secs(step);
            assert_eq!(vm.deadline(), before.deadline().map(|(budget, at)| (budget, moved(at))), "{}", vm.state);
            assert_eq!(vm.settle_deadline(), before.settle_deadline().map(|(proof, at)| (proof, moved(at))));
            assert_eq!(vm.queue.and_then(|q| q.not_before), before.queue.and_then(|q| q.not_before).map(moved));
            assert_eq!(vm.timeline, before.timeline);
        }
    }
}

/// A pause for GitHub that the step falls into ends with what was left at its beginning.
#[test]
fn a_step_of_the_clock_during_a_pause_is_no_part_of_the_pause() {
    for step in [86_400, -3600] {
        let mut vm = github_running();
        go(
            &mut vm,
            [
                (Event::BudgetsPaused, 100),
                (Event::ClockStepped { milliseconds: step * 1000 }, 110 + step),
                (Event::BudgetsResumed, 160 + step),
            ],
        );
        assert_eq!(vm.deadline(), Some((Budget::Registration, at(4 + 300 + 60 + step))));
    }
}

/// The removal of an idle runner was requested; when it was carried out, the runner had taken a job and ended it.
#[test]
fn a_runner_that_went_with_its_jobs_result_was_not_cancelled() {
    for (busy, result, signal) in
        [(true, OutcomeResult::Completed, EndSignal::RunnerGone), (false, OutcomeResult::Cancelled, EndSignal::Admin)]
    {
        let mut vm = github_running();
        go(&mut vm, [(Event::EndAnnounced { by: Announcer::Admin }, 50)]);
        if busy {
            go(&mut vm, [(Event::RunnerChanged { fact: RunnerFact::JobStarted }, 51)]);
        }
        go(&mut vm, [(Event::EndProven { proof: EndProof::Deregistered, exit_code: None }, 52)]);
        let outcome = vm.outcome.as_ref().unwrap();
        assert_eq!((outcome.result, vm.end_signal, vm.runner_status), (result, Some(signal), RunnerStatus::Gone));
    }
}
