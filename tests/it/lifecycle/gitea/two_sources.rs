//! A GitHub and a Gitea at once, whose jobs have the same ids.

use super::*;
use crate::support::{
    github::{self, GitHub},
    sources,
};

#[tokio::test(flavor = "multi_thread")]
async fn equal_ids_of_two_sources_are_different_jobs() {
    let mut rig = Rig::new(2, NEVER).await;
    let github = Arc::new(GitHub::start().await);
    let client = Arc::new(github.client(&github.app().await));
    let on_github = Pool { name: "github".into(), job_source: SourceName::github(), ..pool(10) };
    rig.host.settings.pools.push(on_github);
    rig.host.settings.webhook_secrets.insert(SourceName::github(), vec![SECRET.into()]);
    let both =
        [(forge(), source(&rig.gitea, NEVER).await), (SourceName::github(), followed(sources::github(client), NEVER))];
    rig.host.sources = both.into_iter().collect();
    rig.host.restart().await;
    rig.hook("orgs/acme").await;
    let url = receiver(&SourceName::github(), rig.host.serving.clone()).await;
    github.tell("hooks", json!({"url": url, "secret": SECRET})).await;

    let queued = github.tell("jobs", json!({"repository": "acme/app", "labels": [LABEL]})).await;
    let id = queued["id"].as_u64().unwrap();
    rig.gitea.tell("knobs", json!({"next_job": id})).await;
    assert_eq!(rig.gitea.job(&[LABEL]).await.job, id);

    let of = async |source: SourceName| rig.all_jobs().await.into_iter().find(|job| job.record.source == source);
    let made = async |source: SourceName| of(source).await.and_then(|job| job.created_vm);
    let two = async || made(forge()).await.is_some() && made(SourceName::github()).await.is_some();
    rig.gitea.until("two vms", two).await;
    let (at_gitea, at_github) = (made(forge()).await.unwrap(), made(SourceName::github()).await.unwrap());

    // Gitea's job is done while GitHub's still waits for its runner.
    let program = rig.idle(at_gitea).await;
    let task = rig.busy(at_gitea, &program).await;
    program.finish(task, "FAILURE").await.unwrap();
    let vm = rig.host.until_state(at_gitea, State::Deleted).await;
    assert_eq!(vm.jobs.iter().map(|job| &job.source).collect::<Vec<_>>(), [&forge()]);
    rig.gitea.until("its end is heard of", async || of(forge()).await.unwrap().is_over()).await;
    let waits = of(SourceName::github()).await.unwrap();
    assert_eq!((waits.record.id.clone(), waits.status(), waits.vm), (id.into(), JobStatus::Queued, None));

    let jit = rig.given.to(at_github).await;
    github.told("session/connect", json!({"jit": jit})).await;
    rig.host.until(at_github, |vm| vm.runner_status == RunnerStatus::Idle).await;
    github.tell("dispatch", json!({})).await;
    rig.host.until(at_github, |vm| vm.runner_status == RunnerStatus::Busy).await;
    github.told("session/completejob", json!({"jit": jit, "conclusion": "success"})).await;
    let vm = rig.host.until_state(at_github, State::Deleted).await;
    assert_eq!(vm.jobs.iter().map(|job| &job.source).collect::<Vec<_>>(), [&SourceName::github()]);
    rig.gitea.until("its end is heard of", async || of(SourceName::github()).await.unwrap().is_over()).await;
    let ends = [of(forge()).await.unwrap(), of(SourceName::github()).await.unwrap()];
    assert_eq!(ends.map(|job| job.record.conclusion.unwrap()), ["failure", "success"]);
    assert_eq!(rig.vms().await.len(), 2);
    assert!(github::acme().slug() == "acme");
    rig.assert_clean(&[at_gitea, at_github]).await;
}
