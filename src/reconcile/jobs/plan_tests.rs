use std::collections::BTreeMap;

use super::*;
use crate::domain::{
    Announcer, Budgets, BudgetsPatch, Event, Scope, SourceName, TemplateOverrides, TemplateSource,
    job::{JobUpdate, UpdateSource},
    job_record::{JobRecord, JobStatus},
    runner::{RunnerFact, RunnerKind},
    source_runner::{Registration, SourceRunner},
    vm_spec::VmSpec,
};

fn keys<const N: usize>(ids: [u64; N]) -> Vec<JobKey> {
    ids.map(|id| record(id, JobStatus::Queued).key()).to_vec()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn plan(pool: &Pool, jobs: &[Job], vms: &[Vm], now: Timestamp) -> Plan {
    super::plan(pool, jobs, vms, now, Duration::from_secs(10))
}

fn pool(max_vms: u32) -> Pool {
    Pool {
        name: "macs".into(),
        template: "macos".into(),
        job_source: SourceName::github(),
        scope: "acme".parse().unwrap(),
        labels: vec!["macos".into()],
        group: None,
        repositories: Vec::new(),
        max_vms,
        warm: 0,
        cpus: None,
        memory_mib: None,
        network: None,
        budgets: BudgetsPatch::default(),
        enabled: true,
    }
}

fn record(id: u64, status: JobStatus) -> JobRecord {
    JobRecord {
        source: SourceName::github(),
        id: id.into(),
        repository: "acme/app".into(),
        run_id: 1,
        run_attempt: 1,
        name: "build".into(),
        workflow: None,
        status,
        conclusion: None,
        url: None,
        started_at: None,
        completed_at: None,
    }
}

fn job(id: u64, status: JobStatus, made: Option<&Vm>) -> Job {
    let update = JobUpdate {
        record: record(id, status),
        labels: vec!["macos".into()],
        runner_name: None,
        source: UpdateSource::Webhook,
        missing: false,
    };
    Job { pool: Some("macs".into()), created_vm: made.map(Vm::id), ..Job::new(update, at(0)) }
}

fn spec(pool: Option<&str>) -> VmSpec {
    VmSpec {
        id: VmId::mint(),
        name: "a".into(),
        template: "macos".into(),
        source: TemplateSource::Awaited { awaits: TemplateOverrides::default() },
        runner: RunnerKind::GitHub,
        source_runner: None,
        pool: pool.map(str::to_owned),
        created_by: None,
        labels: BTreeMap::new(),
        budgets: Budgets::default(),
        instance_per_attempt: true,
    }
}

fn vm(pool: Option<&str>) -> Vm {
    Vm::created(spec(pool), at(0))
}

fn mine() -> Vm {
    vm(Some("macs"))
}

fn up(events: &[Event]) -> Vm {
    let mut vm = mine();
    for event in [Event::SlotTaken, Event::Cloned, Event::GuestConfigured].iter().chain(events) {
        vm.apply(event, at(1));
    }
    vm
}

#[test]
fn each_waiting_job_gets_a_vm_and_not_a_second_one() {
    let jobs = [job(1, JobStatus::Queued, None), job(2, JobStatus::Queued, None), job(3, JobStatus::Waiting, None)];
    assert_eq!(plan(&pool(10), &jobs, &[], at(5)).make, keys([1, 2]));
    let first = mine();
    let jobs = [job(1, JobStatus::Queued, Some(&first)), job(2, JobStatus::Queued, None)];
    assert_eq!(plan(&pool(10), &jobs, &[first, vm(None), vm(Some("others"))], at(5)).make, keys([2]));
    // The vm was created right before a crash, and its job does not record it.
    let jobs = [job(1, JobStatus::Queued, None)];
    assert_eq!(plan(&pool(10), &jobs, &[mine()], at(5)), Plan::default());
}

#[test]
fn a_job_whose_vm_took_another_job_gets_another_vm() {
    let taken = up(&[Event::JobChanged { job: record(9, JobStatus::InProgress) }]);
    let jobs = [job(1, JobStatus::Queued, Some(&taken)), job(9, JobStatus::InProgress, None)];
    assert_eq!(plan(&pool(10), &jobs, &[taken], at(5)).make, keys([1]));
}

/// GitHub, or the hook in the guest, says that the runner is busy, and no report says with which job.
#[test]
fn a_vm_with_a_job_that_is_not_reported_is_not_there_for_a_waiting_one() {
    let busy = up(&[Event::RunnerChanged { fact: RunnerFact::JobStarted }]);
    let jobs = [job(1, JobStatus::Queued, Some(&busy))];
    let vms = [busy.clone()];
    // The report may be late.
    assert_eq!(plan(&pool(9), &jobs, &vms, at(5)), Plan { look_again: Some(at(11)), ..Plan::default() });
    assert_eq!(plan(&pool(9), &jobs, &vms, at(11)).make, keys([1]));
    // No vm is ended for it either.
    let vms = [busy, up(&[Event::RunnerChanged { fact: RunnerFact::Online }])];
    assert_eq!(plan(&pool(9), &jobs, &vms, at(11)), Plan::default());
}

#[test]
fn a_pool_has_no_more_vms_than_it_may() {
    let (busy, next) = (up(&[Event::JobChanged { job: record(9, JobStatus::InProgress) }]), mine());
    let jobs = [
        job(1, JobStatus::Queued, Some(&next)),
        job(2, JobStatus::Queued, None),
        job(3, JobStatus::Queued, None),
        job(9, JobStatus::InProgress, None),
    ];
    assert_eq!(plan(&pool(3), &jobs, &[busy.clone(), next.clone()], at(5)).make, keys([2]));
    assert_eq!(plan(&pool(2), &jobs, &[busy, next], at(5)), Plan::default());
}

#[test]
fn unneeded_vms_end_and_vms_with_a_job_never_do() {
    let (of_cancelled, of_waiting) = (mine(), mine());
    let jobs = [job(2, JobStatus::Queued, Some(&of_waiting))];
    assert_eq!(plan(&pool(9), &jobs, &[of_cancelled.clone(), of_waiting], at(5)).end, [of_cancelled.id()]);

    // No job is queued: the newest vm without a slot ends first.
    let (old, young, idle) = (mine(), mine(), up(&[Event::RunnerChanged { fact: RunnerFact::Online }]));
    let all = [old.clone(), young.clone(), idle.clone()];
    assert_eq!(plan(&pool(9), &[], &all, at(5)).end, [young.id(), old.id(), idle.id()]);

    let known = up(&[Event::JobChanged { job: record(9, JobStatus::InProgress) }]);
    // Its hook reported a job, and no other source did yet.
    let unknown = up(&[Event::RunnerChanged { fact: RunnerFact::JobStarted }]);
    let ending = up(&[Event::EndAnnounced { by: Announcer::Pool }]);
    assert_eq!(plan(&pool(9), &[], &[known, unknown, ending], at(5)), Plan::default());
}

#[test]
fn a_pool_that_is_disabled_makes_no_vm_and_ends_none() {
    let disabled = Pool { enabled: false, ..pool(9) };
    assert_eq!(plan(&disabled, &[job(1, JobStatus::Queued, None)], &[], at(5)), Plan::default());
    assert_eq!(plan(&disabled, &[], &[mine()], at(5)), Plan::default());
}

#[test]
fn a_vm_that_came_to_nothing_is_made_again_after_a_pause() {
    let mut tried = job(1, JobStatus::Queued, Some(&mine()));
    (tried.tries, tried.not_before) = (1, Some(at(15)));
    let jobs = [tried];
    assert_eq!(plan(&pool(9), &jobs, &[], at(5)), Plan { look_again: Some(at(15)), ..Plan::default() });
    assert_eq!(plan(&pool(9), &jobs, &[], at(15)).make, keys([1]));
}

/// A vm that can take this job and no other.
fn vm_for(job: u64) -> Vm {
    let runner = SourceRunner {
        source: SourceName::github(),
        scope: Scope::organization("acme").unwrap(),
        labels: vec!["macos".into()],
        group: None,
        registration: Registration::Managed,
        job: Some(job.into()),
    };
    Vm::created(VmSpec { source_runner: Some(runner), ..spec(Some("macs")) }, at(0))
}

#[test]
fn a_vm_for_one_job_ends_when_that_job_does_not_wait_although_another_does() {
    let (first, second) = (vm_for(1), vm_for(2));
    let jobs = [job(2, JobStatus::Queued, Some(&second)), job(3, JobStatus::Queued, None)];
    let plan = bound_plan(&pool(3), &jobs, &[first.clone(), second.clone()], at(5));
    assert_eq!((plan.make, plan.end), (keys([3]), vec![first.id()]));
    // Where a vm takes any job, the one that is left is enough.
    assert_eq!(super::plan(&pool(3), &jobs, &[first.clone(), second], at(5), Duration::ZERO), Plan::default());
    let mut busy = first;
    for event in
        [Event::SlotTaken, Event::Cloned, Event::GuestConfigured, Event::RunnerChanged { fact: RunnerFact::JobStarted }]
    {
        busy.apply(&event, at(1));
    }
    assert_eq!(bound_plan(&pool(3), &[], &[busy], at(5)), Plan::default(), "its job's report is late");
}

#[test]
fn a_vm_for_one_job_that_was_made_right_before_a_crash_is_recorded_also_in_a_full_pool() {
    let made = vm_for(1);
    let jobs = [job(1, JobStatus::Queued, None), job(2, JobStatus::Queued, None)];
    let found = bound_plan(&pool(1), &jobs, std::slice::from_ref(&made), at(5));
    assert_eq!(found, Plan { make: keys([1]), ..Plan::default() });
    let jobs = [job(1, JobStatus::Queued, Some(&made))];
    assert_eq!(bound_plan(&pool(1), &jobs, std::slice::from_ref(&made), at(5)), Plan::default());
    // It is ending, so the job gets another one, after its pause.
    let mut ending = made;
    ending.apply(&Event::EndAnnounced { by: Announcer::Pool }, at(1));
    let mut tried = job(1, JobStatus::Queued, Some(&ending));
    tried.not_before = Some(at(9));
    let jobs = [tried];
    assert_eq!(bound_plan(&pool(2), &jobs, std::slice::from_ref(&ending), at(5)).look_again, Some(at(9)));
    assert_eq!(bound_plan(&pool(2), &jobs, &[ending], at(9)).make, keys([1]));
    assert_eq!(bound_plan(&Pool { enabled: false, ..pool(2) }, &jobs, &[], at(9)), Plan::default());
}
