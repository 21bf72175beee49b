//! Jobs get vms: by webhooks as they come, and by asking for what they lost.

use std::{collections::BTreeMap, time::Duration};

use mayfly::{
    domain::{Announcer, Pool, RunnerStatus, SourceName, Vm, VmId, job::Job, job_record::JobStatus},
    service::webhooks::Webhook,
    store::{jobs::JobFilter, vm_queries::Filter},
};
use serde_json::{Value, json};

use super::{super::prelude::*, LABEL, Rig, acme, patient};
use crate::{
    lifecycle::webhooks::receiver,
    support::{
        github::signature,
        sources::{followed, github},
    },
};

const SECRET: &str = "It's a Secret to Everybody";
/// Far more than any test takes: the poll has no part in it.
pub const NEVER: Duration = Duration::from_secs(3600);

fn pool(max_vms: u32) -> Pool {
    Pool {
        name: "linux".into(),
        template: "linux".into(),
        job_source: SourceName::github(),
        scope: acme(),
        labels: vec!["self-hosted".into(), LABEL.into()],
        group: None,
        repositories: Vec::new(),
        max_vms,
        warm: 0,
        cpus: None,
        memory_mib: None,
        network: None,
        budgets: patient(),
        enabled: true,
    }
}

impl Rig {
    /// With one pool, webhooks, and a poll this often.
    pub async fn with_pool(linux: u32, max_vms: u32, poll: Duration) -> Rig {
        let mut rig = Rig::new(linux).await;
        rig.host.settings.pools = vec![pool(max_vms)];
        rig.host.settings.webhook_secrets =
            BTreeMap::from([(SourceName::github(), vec!["the next one".into(), SECRET.into()])]);
        let source = followed(github(rig.client.clone()), poll);
        rig.host.sources = [(SourceName::github(), source)].into_iter().collect();
        rig.host.jobs.first_pause = Duration::from_millis(50);
        rig.host.jobs.report_late = Duration::from_millis(200);
        rig.host.restart().await;
        let url = receiver(&SourceName::github(), rig.host.serving.clone()).await;
        rig.github.tell("hooks", json!({"url": url, "secret": SECRET})).await;
        rig
    }

    async fn queue(&self, labels: &[&str]) -> u64 {
        let job = self.github.tell("jobs", json!({"repository": "acme/app", "labels": labels})).await;
        job["id"].as_u64().unwrap()
    }

    async fn jobs(&self) -> Vec<Job> {
        let all = JobFilter { limit: 100, ..JobFilter::default() };
        self.host.reader().jobs(&all).await.unwrap().into_iter().map(|row| row.job).collect()
    }

    async fn known(&self, id: u64) -> Option<Job> {
        self.jobs().await.into_iter().find(|job| job.record.id == id)
    }

    async fn vms(&self) -> Vec<Vm> {
        let all = Filter { states: State::ALL.to_vec(), limit: 100, ..Filter::default() };
        self.host.reader().vms(&all).await.unwrap()
    }

    /// The vm that was made for this job.
    async fn created_vm(&self, job: u64) -> VmId {
        self.until("a vm for the job", async || self.known(job).await.is_some_and(|job| job.created_vm.is_some()))
            .await;
        self.known(job).await.unwrap().created_vm.unwrap()
    }

    /// The runner works, and GitHub has its result.
    async fn completes(&self, jit: &str) {
        let (status, answer) =
            self.github.told("session/completejob", json!({"jit": jit, "conclusion": "success"})).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn dispatch(&self) -> Value {
        self.github.tell("dispatch", json!({})).await
    }
}

async fn one_life(rig: &Rig, job: u64) -> VmId {
    let id = rig.created_vm(job).await;
    let (_, jit) = rig.idle(id).await;
    rig.dispatch().await;
    let vm = rig.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
    assert_eq!(vm.spec.pool.as_deref(), Some("linux"));
    rig.completes(&jit).await;
    let end = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(end.outcome.as_ref().unwrap().result, OutcomeResult::Completed, "{end:#?}");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_a_vm_and_the_vm_knows_its_job() {
    let rig = Rig::with_pool(2, 10, NEVER).await;
    let job = rig.queue(&[LABEL]).await;
    let id = one_life(&rig, job).await;
    let vm = rig.host.vm(id).await;
    let signal = vm.end_signal.unwrap();
    assert!(matches!(signal, EndSignal::JobCompleted | EndSignal::RunnerGone), "{signal:?}");
    let known = rig.known(job).await.unwrap();
    assert_eq!((known.vm, known.tries, known.record.status), (Some(id), 1, JobStatus::Completed));
    // Its record says all that GitHub said.
    assert_eq!(vm.jobs, std::slice::from_ref(&known.record));
    assert_eq!((known.record.conclusion.as_deref(), known.record.repository.as_str()), (Some("success"), "acme/app"));
    let of_job = rig.host.reader();
    let found = of_job
        .vms(&Filter { job: Some(job.to_string()), states: State::ALL.to_vec(), limit: 10, ..Filter::default() })
        .await;
    assert_eq!(found.unwrap().iter().map(Vm::id).collect::<Vec<_>>(), [id]);
    assert_eq!(rig.vms().await.len(), 1, "one vm for one job");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_poll_finds_what_webhooks_missed() {
    let rig = Rig::with_pool(2, 10, Duration::from_millis(100)).await;
    rig.github.tell("hook", json!({"drop": 1000})).await;
    // Nothing was heard of this repository yet: the pool names it.
    rig.host
        .services()
        .pools
        .set(Pool { name: "zz".into(), repositories: vec!["acme/app".into()], ..pool(10) })
        .await
        .unwrap();
    let job = rig.queue(&[LABEL]).await;
    let id = one_life(&rig, job).await;
    rig.until("the job's end is heard of", async || rig.known(job).await.unwrap().is_over()).await;
    rig.until("the vm's record has it", async || {
        rig.host.vm(id).await.jobs.first().is_some_and(|job| job.conclusion.as_deref() == Some("success"))
    })
    .await;
    assert_eq!(rig.vms().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_webhook_is_sent_again_because_we_ask_for_it() {
    let rig = Rig::with_pool(2, 10, Duration::from_millis(100)).await;
    rig.host
        .services()
        .pools
        .set(Pool { name: "not-there".into(), repositories: vec!["acme/other".into()], ..pool(1) })
        .await
        .unwrap();
    let first = rig.queue(&["somebody-elses"]).await;
    rig.until("the first delivery", async || rig.known(first).await.is_some()).await;
    rig.github.tell("hook", json!({"drop": 1})).await;
    let lost = rig.queue(&["somebody-elses", "too"]).await;
    rig.until("it is sent again", async || {
        let deliveries = rig.host.services().webhooks.list_deliveries(&SourceName::github(), 50).await.unwrap();
        deliveries.len() == 2 && rig.known(lost).await.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_that_come_twice_and_in_any_order_make_no_difference() {
    let rig = Rig::with_pool(3, 10, NEVER).await;
    rig.github.tell("hook", json!({"duplicate": 1000})).await;
    let jobs = [rig.queue(&[LABEL]).await, rig.queue(&[LABEL, "SELF-HOSTED"]).await, rig.queue(&[LABEL]).await];
    let mut vms = Vec::new();
    for job in jobs {
        vms.push(rig.created_vm(job).await);
    }
    // From here on everything is told late and in any order: begun, completed, both of three jobs.
    let mut jits = Vec::new();
    for id in &vms {
        jits.push(rig.idle(*id).await.1);
    }
    rig.github.tell("hook", json!({"hold": true})).await;
    assert_eq!(rig.dispatch().await["given"].as_array().unwrap().len(), 3);
    for jit in &jits {
        rig.completes(jit).await;
    }
    rig.github.tell("hook", json!({"hold": false, "shuffle": 6})).await;
    rig.github.tell("hook", json!({"shuffle": 0})).await;
    for id in &vms {
        rig.host.until_state(*id, State::Deleted).await;
    }
    for job in jobs {
        rig.until("the job's end is heard of", async || rig.known(job).await.unwrap().is_over()).await;
    }
    for id in &vms {
        rig.until("each vm has the job that its runner had", async || {
            let vm = rig.host.vm(*id).await;
            vm.jobs.len() == 1 && vm.jobs[0].conclusion.as_deref() == Some("success")
        })
        .await;
    }
    assert_eq!(rig.vms().await.len(), 3);
    rig.assert_clean(&vms).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_its_vm_waits_frees_it() {
    let rig = Rig::with_pool(1, 10, NEVER).await;
    let first = rig.queue(&[LABEL]).await;
    let busy = rig.created_vm(first).await;
    rig.idle(busy).await;
    let second = rig.queue(&[LABEL]).await;
    let queued = rig.created_vm(second).await;
    assert_eq!(rig.host.vm(queued).await.state, State::Queued);
    rig.github.tell("cancel", json!({"job": second})).await;
    let vm = rig.host.until_state(queued, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.announced_by, vm.attempt), (Some(EndSignal::Pool), Some(Announcer::Pool), 0));
    // An idle one goes as well, and GitHub lets go of its runner first.
    rig.github.tell("cancel", json!({"job": first})).await;
    let vm = rig.host.until_state(busy, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.runner_status), (Some(EndSignal::Pool), RunnerStatus::Gone));
    rig.assert_clean(&[busy, queued]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_pool_wants_is_remembered_and_left_alone() {
    let rig = Rig::with_pool(1, 10, NEVER).await;
    let other = rig.queue(&[LABEL, "gpu"]).await;
    let mine = rig.queue(&[LABEL]).await;
    rig.created_vm(mine).await;
    rig.until("the other is heard of", async || rig.known(other).await.is_some()).await;
    let other = rig.known(other).await.unwrap();
    assert_eq!((other.pool, other.created_vm), (None, None));
    assert_eq!(rig.vms().await.len(), 1);
    // Until there is a pool for it.
    let wider = Pool { name: "gpus".into(), labels: vec![LABEL.into(), "gpu".into()], ..pool(1) };
    rig.host.services().pools.set(wider).await.unwrap();
    let id = rig.created_vm(other.record.id.number().unwrap()).await;
    assert_eq!(rig.host.vm(id).await.spec.pool.as_deref(), Some("gpus"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_takes_another_job_is_replaced_and_the_pool_keeps_its_limit() {
    let rig = Rig::with_pool(5, 2, NEVER).await;
    let mut jobs = Vec::new();
    for n in ["first", "second", "third"] {
        // One after the other: webhooks overtake each other, and the pool's limit is for whoever comes third.
        let job = rig.queue(&[LABEL]).await;
        rig.until(&format!("the {n} is heard of"), async || rig.known(job).await.is_some()).await;
        jobs.push(job);
    }
    let (first, second) = (rig.created_vm(jobs[0]).await, rig.created_vm(jobs[1]).await);
    assert_eq!(rig.known(jobs[2]).await.unwrap().created_vm, None, "two at once");
    let (_, jit) = rig.idle(second).await;
    rig.dispatch().await;
    rig.host.until(second, |vm| !vm.jobs.is_empty()).await;
    rig.completes(&jit).await;
    rig.host.until_state(second, State::Deleted).await;
    // Whichever job it was given: two are left, and there is room for the second one.
    rig.until("the others have a vm each", async || {
        let live = rig.vms().await.iter().filter(|vm| vm.state != State::Deleted).count();
        live == 2
    })
    .await;
    assert_ne!(rig.host.vm(first).await.state, State::Deleted);
    let left: Vec<Job> = rig.jobs().await.into_iter().filter(Job::waits).collect();
    assert_eq!(left.len(), 2);
}

/// Its runner was given a job of a repository that sends no webhooks, and the job that it was made for waits on.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_runner_was_given_an_unknown_job_is_not_there_for_the_waiting_one() {
    let rig = Rig::with_pool(2, 10, NEVER).await;
    let job = rig.queue(&[LABEL]).await;
    let taken = rig.created_vm(job).await;
    let (vm, _) = rig.idle(taken).await;
    let runner = vm.registered.unwrap().runner_id.unwrap().number().unwrap();
    rig.github.tell(&format!("runner/{runner}"), json!({"busy": true})).await;
    rig.until("another vm for the job", async || {
        rig.known(job).await.is_some_and(|job| job.created_vm.is_some_and(|made| made != taken))
    })
    .await;
    let known = rig.known(job).await.unwrap();
    assert_eq!((known.tries, known.waits()), (2, true));
    assert_eq!((rig.vms().await.len(), rig.host.vm(taken).await.state), (2, State::Running));
}

/// Its runner was given the very job that waits, and no webhook said so: GitHub is asked before another vm is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_job_was_not_reported_gets_no_second_vm() {
    let rig = Rig::with_pool(2, 10, NEVER).await;
    let job = rig.queue(&[LABEL]).await;
    let id = rig.created_vm(job).await;
    let (_, jit) = rig.idle(id).await;
    rig.github.tell("hook", json!({"drop": 1000})).await;
    rig.dispatch().await;
    rig.until("GitHub is asked", async || rig.known(job).await.is_some_and(|job| job.vm == Some(id))).await;
    assert_eq!(rig.vms().await.len(), 1);
    rig.completes(&jit).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}

impl Rig {
    /// GitHub answers so many times that it has no such job and no unfinished run.
    async fn deny(&self, job: u64, times: u32) {
        let none = json!({"answer": {"status": 200, "body": {"total_count": 0, "workflow_runs": []}}});
        let missing = json!({"answer": {"status": 404, "body": {"message": "Not Found"}}});
        let faults = json!([
            {"method": "GET", "path": "actions/runs", "times": 1000, "then": none},
            {"method": "GET", "path": format!("actions/jobs/{job}"), "times": times, "then": missing},
        ]);
        self.github.tell("faults", faults).await;
    }

    /// Follows what GitHub is asked until there were so many requests of this path.
    async fn asked(&self, path: &str, times: usize) {
        let mut seen = 0;
        let end = tokio::time::Instant::now() + super::super::PATIENCE;
        while seen < times {
            assert!(tokio::time::Instant::now() < end, "{path} was requested {seen} times");
            let requests = self.github.requests().await;
            seen += requests.iter().filter(|request| request.to_string().contains(path)).count();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_that_there_is_no_such_job_is_not_believed_and_later_news_count_more() {
    let rig = Rig::with_pool(1, 10, Duration::from_millis(300)).await;
    let job = rig.queue(&[LABEL]).await;
    let id = rig.created_vm(job).await;
    rig.idle(id).await;
    rig.deny(job, 1).await;
    rig.asked(&format!("actions/jobs/{job}"), 2).await;
    rig.github.tell("calm", json!({})).await;
    rig.until("it is known to be there", async || rig.known(job).await.unwrap().absent_answers == 0).await;
    let vm = rig.host.vm(id).await;
    assert_eq!((vm.state, vm.announced_by, rig.known(job).await.unwrap().waits()), (State::Running, None, true));

    // Two answers are.
    rig.deny(job, 1000).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::Pool));
    let gone = rig.known(job).await.unwrap();
    assert_eq!((gone.status(), gone.record.conclusion), (JobStatus::Completed, None));
    let of = |statuses: &[JobStatus]| JobFilter { limit: 10, statuses: statuses.to_vec(), ..JobFilter::default() };
    let listed = async |status| rig.host.reader().jobs(&of(&[status])).await.unwrap().len();
    assert_eq!((listed(JobStatus::Queued).await, listed(JobStatus::Completed).await), (0, 1));
    // It is there after all.
    rig.github.tell("calm", json!({})).await;
    rig.until("another vm for the job", async || {
        rig.known(job).await.is_some_and(|job| job.waits() && job.created_vm.is_some_and(|made| made != id))
    })
    .await;
    assert_eq!((listed(JobStatus::Queued).await, listed(JobStatus::Completed).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_that_there_is_no_such_runner_is_not_believed() {
    let rig = Rig::new(1).await;
    let id = rig.host.create(super::wanted(patient())).await;
    let (vm, _) = rig.idle(id).await;
    let path = format!("actions/runners/{}", vm.registered.unwrap().runner_id.unwrap());
    let missing = json!({"answer": {"status": 404, "body": {"message": "Not Found"}}});
    rig.github.requests().await;
    rig.github.tell("faults", json!([{"method": "GET", "path": path, "times": 1, "then": missing}])).await;
    rig.asked(&path, 4).await;
    let vm = rig.host.vm(id).await;
    assert_eq!((vm.state, vm.end_proof, vm.runner_status), (State::Running, None, RunnerStatus::Idle));
    rig.github.tell("faults", json!([{"method": "GET", "path": path, "times": 2, "then": missing}])).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerGone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_polled_once_however_its_name_is_written() {
    let rig = Rig::with_pool(1, 10, Duration::from_millis(100)).await;
    for (name, repository) in [("upper", "ACME/App"), ("mixed", "Acme/app")] {
        let pool = Pool { name: name.into(), repositories: vec![repository.into()], ..pool(1) };
        rig.host.services().pools.set(pool).await.unwrap();
    }
    let job = rig.queue(&["somebody-elses"]).await;
    rig.until("the job is heard of", async || rig.known(job).await.is_some()).await;
    rig.github.requests().await;
    rig.asked("/repos/acme/app/actions/runs", 8).await;
    rig.github.requests().await;
    // A poll that began before has ended.
    let mut polls: Vec<String> = Vec::new();
    while polls.len() < 8 {
        let requests = rig.github.requests().await;
        let paths = requests.iter().filter_map(|request| request["path"].as_str());
        polls.extend(paths.filter(|path| path.ends_with("/actions/runs")).map(str::to_owned));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(polls.iter().all(|path| path == "/repos/acme/app/actions/runs"), "{polls:?}");
}

/// Told right before the end, worked after the start: at every point of the road.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_at_any_point_changes_nothing() {
    let mut rig = Rig::with_pool(1, 10, Duration::from_millis(200)).await;
    let job = rig.queue(&[LABEL]).await;
    rig.host.restart().await;
    let id = rig.created_vm(job).await;
    rig.host.restart().await;
    let (_, jit) = rig.idle(id).await;
    rig.host.crash().await;
    // Nobody hears that it begins.
    rig.dispatch().await;
    rig.host.start().await;
    rig.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
    rig.host.crash().await;
    // Nor that it ends.
    rig.completes(&jit).await;
    rig.host.start().await;
    let end = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(end.outcome.as_ref().unwrap().result, OutcomeResult::Completed, "{end:#?}");
    rig.until("the vm's record has its job's result", async || {
        rig.host.vm(id).await.jobs.first().is_some_and(|job| job.conclusion.as_deref() == Some("success"))
    })
    .await;
    assert_eq!(rig.vms().await.len(), 1);
    rig.assert_clean(&[id]).await;
}

/// A delivery that GitHub might send, made by hand.
pub async fn delivered(rig: &Rig, repository: &str, action: &str, job: u64, runner: &str) {
    let body = serde_json::to_vec(&json!({
        "action": action,
        "workflow_job": {
            "id": job, "run_id": 1, "run_attempt": 1, "name": "build", "status": action, "labels": [LABEL],
            "runner_id": 1, "runner_name": runner, "conclusion": (action == "completed").then_some("success"),
        },
        "repository": {"full_name": repository},
    }))
    .unwrap();
    let (guid, signature) = (format!("{job}-{action}-{runner}"), signature(SECRET, &body));
    let webhooks = &rig.host.services().webhooks;
    let webhook = Webhook {
        event: Some("workflow_job"),
        guid: Some(&guid),
        signature: webhooks.check_signature_header("github", Some(&signature)).unwrap(),
        form: false,
        body: &body,
    };
    webhooks.receive(webhook).await.unwrap();
}

/// GitHub takes a job back that its runner does not begin with. What becomes of the job then is nothing of that runner's.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_another_runner_finishes_ends_that_runners_vm_alone() {
    let rig = Rig::with_pool(2, 10, NEVER).await;
    let mut vms = Vec::new();
    for job in [rig.queue(&[LABEL]).await, rig.queue(&[LABEL]).await] {
        let id = rig.created_vm(job).await;
        vms.push((id, rig.idle(id).await.0.registered.unwrap().name));
    }
    let [(first, its_runner), (second, other_runner)] = vms.try_into().unwrap();
    delivered(&rig, "acme/app", "in_progress", 1, &its_runner).await;
    rig.host.until(first, |vm| vm.jobs.len() == 1).await;
    delivered(&rig, "acme/app", "in_progress", 1, &other_runner).await;
    delivered(&rig, "acme/app", "completed", 1, &other_runner).await;
    let done = rig.host.until(second, |vm| vm.end_proof.is_some()).await;
    assert_eq!(done.jobs[0].conclusion.as_deref(), Some("success"));
    // Told late, and of nobody here.
    delivered(&rig, "acme/app", "in_progress", 1, &its_runner).await;
    delivered(&rig, "acme/app", "completed", 2, "somebody-elses-1").await;
    rig.until("all of it is worked", async || rig.known(2).await.is_some()).await;
    let vm = rig.host.vm(first).await;
    assert_eq!((vm.end_proof, vm.state), (None, State::Running));
    assert_eq!(rig.known(1).await.unwrap().vm, Some(second));
}
