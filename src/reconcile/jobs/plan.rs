//! Decides which vms a pool lacks, and which it has too many of.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;

use crate::domain::{Pool, RunnerStatus, State, Vm, VmId, job::Job, job_record::JobKey};

/// What a pool lacks, or has too many of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Jobs for which a vm is created now.
    pub make: Vec<JobKey>,
    /// Vms that are not needed, in the order in which they end.
    pub end: Vec<VmId>,
    /// When the first job that has to wait for its next vm may get it.
    pub look_again: Option<Timestamp>,
}

/// What a pool needs, from its jobs and vms.
pub(super) fn plan(pool: &Pool, jobs: &[Job], vms: &[Vm], now: Timestamp, report_late: Duration) -> Plan {
    // A disabled pool takes no more jobs; its vms keep the jobs that they were created for.
    if !pool.enabled {
        return Plan::default();
    }
    let mine: Vec<&Vm> = vms.iter().filter(|vm| vm.spec.pool.as_deref() == Some(pool.name.as_str())).collect();
    // Vms that will take a job, or have just been given one of the waiting jobs.
    let free: Vec<&&Vm> = mine.iter().filter(|vm| is_free(vm, now, report_late)).collect();
    let waiting: Vec<&Job> = jobs.iter().filter(|job| job.waits() && job.pool.as_deref() == Some(&pool.name)).collect();
    let mut plan = Plan::default();
    if free.len() > waiting.len() {
        let wanted: HashSet<VmId> = waiting.iter().filter_map(|job| job.created_vm).collect();
        let mut spare: Vec<&&&Vm> = free.iter().filter(|vm| vm.runner_status != RunnerStatus::Busy).collect();
        // Vms whose own job is not queued end first; among them those without a slot; among them the newest.
        spare.sort_by_key(|vm| (wanted.contains(&vm.id()), vm.state != State::Queued, std::cmp::Reverse(vm.id())));
        plan.end = spare.iter().take(free.len() - waiting.len()).map(|vm| vm.id()).collect();
        return plan;
    }
    let room = usize::try_from(pool.max_vms).unwrap_or(usize::MAX).saturating_sub(mine.len());
    let missing = (waiting.len() - free.len()).min(room);
    let here: HashSet<VmId> = free.iter().map(|vm| vm.id()).collect();
    let may_get_one = |job: &&&Job| !job.is_given_up() && job.created_vm.is_none_or(|vm| !here.contains(&vm));
    for job in waiting.iter().filter(may_get_one) {
        if plan.make.len() == missing {
            break;
        }
        match job.not_before {
            Some(at) if at > now => plan.look_again = [plan.look_again, Some(at)].into_iter().flatten().min(),
            _ => plan.make.push(job.record.key()),
        }
    }
    if !waiting.is_empty() {
        let reported = free.iter().filter(|vm| vm.runner_status == RunnerStatus::Busy);
        let late = reported.filter_map(|vm| vm.runner_changed_at?.checked_add(report_late).ok());
        plan.look_again = late.chain(plan.look_again).min();
    }
    plan
}

/// What a pool needs whose vms are each for one particular job.
pub(super) fn bound_plan(pool: &Pool, jobs: &[Job], vms: &[Vm], now: Timestamp) -> Plan {
    if !pool.enabled {
        return Plan::default();
    }
    let mine: Vec<&Vm> = vms.iter().filter(|vm| vm.spec.pool.as_deref() == Some(pool.name.as_str())).collect();
    let waiting: Vec<&Job> = jobs.iter().filter(|job| job.waits() && job.pool.as_deref() == Some(&pool.name)).collect();
    let mut plan = Plan::default();
    let unneeded = |vm: &&&Vm| {
        has_no_known_job(vm) && vm.runner_status != RunnerStatus::Busy && !waiting.iter().any(|job| is_for(vm, job))
    };
    plan.end = mine.iter().filter(unneeded).map(|vm| vm.id()).collect();
    let mut room = usize::try_from(pool.max_vms).unwrap_or(usize::MAX).saturating_sub(mine.len());
    for job in waiting.iter().filter(|job| !job.is_given_up()) {
        match mine.iter().find(|vm| has_no_known_job(vm) && is_for(vm, job)) {
            Some(vm) if job.created_vm == Some(vm.id()) => {}
            // It was created right before a crash. Creating it again returns it, and records it.
            Some(_) => plan.make.push(job.record.key()),
            None => match job.not_before {
                Some(at) if at > now => plan.look_again = [plan.look_again, Some(at)].into_iter().flatten().min(),
                _ if room > 0 => {
                    room -= 1;
                    plan.make.push(job.record.key());
                }
                _ => {}
            },
        }
    }
    plan
}

/// Whether the vm was made for this job, and takes no other.
fn is_for(vm: &Vm, job: &Job) -> bool {
    let runner = vm.spec.source_runner.as_ref();
    runner.is_some_and(|runner| runner.source == job.record.source && runner.job.as_ref() == Some(&job.record.id))
}

/// Whether the vm is there for one of the waiting jobs. If its runner is busy and no report says with which job, it has
/// a job that is not reported here, for example of a repository that sends no webhooks. Before another vm is made for a
/// waiting job, the CI server is asked whether that job still waits.
fn is_free(vm: &Vm, now: Timestamp, report_late: Duration) -> bool {
    let has_another_job = vm.runner_status == RunnerStatus::Busy
        // An error: the clock was set back meanwhile.
        && vm.runner_changed_at.is_none_or(|since| {
            Duration::try_from(now.duration_since(since)).map_or(true, |busy_for| busy_for >= report_late)
        });
    has_no_known_job(vm) && !has_another_job
}

pub(super) fn has_no_known_job(vm: &Vm) -> bool {
    vm.outcome.is_none() && vm.announced_by.is_none() && vm.end_proof.is_none() && vm.jobs.is_empty()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
