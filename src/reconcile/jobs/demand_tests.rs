use std::collections::BTreeMap;

use super::*;
use crate::domain::{
    Budgets, BudgetsPatch, SizeRequest, SourceName, TemplateSource,
    job::{JobUpdate, UpdateSource},
    job_record::{JobRecord, JobStatus},
    runner::{RunnerFact, RunnerKind},
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
        id,
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
    Job { pool: Some("macs".into()), made: made.map(Vm::id), ..Job::new(update, at(0)) }
}

fn vm(pool: Option<&str>) -> Vm {
    let spec = VmSpec {
        id: VmId::mint(),
        name: "a".into(),
        template: "macos".into(),
        source: TemplateSource::Awaited { awaits: SizeRequest::default() },
        runner: RunnerKind::GitHub,
        source_runner: None,
        pool: pool.map(str::to_owned),
        created_by: None,
        labels: BTreeMap::new(),
        budgets: Budgets::default(),
        instance_per_attempt: true,
    };
    Vm::created(spec, at(0))
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
