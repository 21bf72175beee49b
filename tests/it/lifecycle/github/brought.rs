//! Runners that the caller registers: GitHub is asked nothing about them, and what its webhooks say of them counts.

use mayfly::{
    domain::{RunnerStatus, Scope},
    drivers::Observation,
    service::guests::GuestEvent,
    sources::github::NewRunner,
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    jobs::{NEVER, delivered},
    *,
};

async fn running(
    rig: &Rig,
    scope: Scope,
    jit_config: Option<SecretString>,
    registration_token: Option<SecretString>,
) -> Vm {
    let secret = jit_config.clone().or(registration_token.clone()).unwrap();
    let runner = RunnerRequest::GitHub {
        source: Default::default(),
        scope,
        labels: vec![LABEL.to_owned()],
        group: None,
        jit_config,
        registration_token,
        env: Default::default(),
    };
    let id = rig.host.create(VmRequest { budgets: patient(), ..request("linux", runner) }).await;
    let runs = || {
        let snapshot = rig.host.world.snapshot();
        snapshot.instances.get(id.instance().as_str()).is_some_and(|seen| matches!(seen, Observation::Running { .. }))
    };
    rig.until("the guest boots", async || runs()).await;
    // The seed stays where the job can read it, so the guest asks for the secret, and in time.
    let services = rig.host.services();
    let seed = rig.host.world.spec(&id.instance()).unwrap().seed.unwrap().volume;
    let in_seed = |text: &str| seed.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(in_seed("MAYFLY_GITHUB_REGISTRATION") && !in_seed(secret.expose_secret()));
    let given = services.guests.runner_registration(id).await.unwrap();
    assert_eq!(given.expose_secret(), secret.expose_secret());
    services.guests.report(id, GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None }).await.unwrap();
    let refused = services.guests.runner_registration(id).await.unwrap_err();
    assert_eq!(refused.code, mayfly::domain::Code::RegistrationClosed);
    rig.host.until_state(id, State::Running).await
}

async fn configuration_of(rig: &Rig, name: &str) -> (u64, SecretString) {
    let new = NewRunner { name: name.into(), group: 1, labels: vec![LABEL.into()], work_folder: None };
    let made = rig.client.generate_jit_config(&acme(), &new).await.unwrap();
    (made.runner.id, made.encoded_jit_config.expose_secret().to_owned().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn their_jobs_are_known_and_a_jobs_end_is_the_vms() {
    let rig = Rig::with_pool(3, 1, NEVER).await;
    let (number, jit) = configuration_of(&rig, "mine").await;
    let by_jit = running(&rig, acme(), Some(jit.clone()), None).await;
    let registered = by_jit.registered.clone().unwrap();
    assert_eq!((registered.runner_id, registered.name.as_str()), (Some(number.into()), "mine"));
    let by_token = running(&rig, acme(), None, Some("AAATOKEN".into())).await;
    let registered = by_token.registered.clone().unwrap();
    assert_eq!((registered.runner_id, &registered.name), (None, &runner_name(&by_token.spec.name, by_token.id(), 1)));

    // Somewhere else there is a runner of that name, too, and a newer one.
    let elsewhere = running(&rig, Scope::organization("other").unwrap(), Some(jit), None).await;
    rig.github.requests().await;
    for (job, vm) in [(2, &by_jit), (3, &by_token), (4, &elsewhere)] {
        let repository = format!("{}/app", vm.spec.source_runner.as_ref().unwrap().scope.slug());
        let name = vm.registered.as_ref().unwrap().name.clone();
        delivered(&rig, &repository, "in_progress", job, &name).await;
        let busy = rig.host.until(vm.id(), |vm| !vm.jobs.is_empty()).await;
        assert_eq!((busy.runner_status, busy.jobs[0].id.clone()), (RunnerStatus::Busy, job.into()));
        delivered(&rig, &repository, "completed", job, &name).await;
        let end = rig.host.until_state(vm.id(), State::Deleted).await;
        assert_eq!(end.end_signal, Some(EndSignal::JobCompleted), "{end:#?}");
        assert_eq!(end.jobs[0].conclusion.as_deref(), Some("success"));
        assert_eq!(rig.rows().await, []);
    }
    // Whoever brought it takes it away.
    assert_eq!(rig.runners().await, ["mine"]);
    let asked = rig.github.requests().await;
    assert!(asked.iter().all(|r| r["method"] == "GET" && r["path"] == "/orgs/acme/actions/runners"), "{asked:#?}");
}

/// The format is between GitHub and its runner: what cannot be read is handed over all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_does_not_say_whose_it_is_is_handed_over() {
    let rig = Rig::new(1).await;
    let vm = running(&rig, acme(), Some("c29tZXRoaW5nIG5ldw==".into()), None).await;
    assert_eq!(vm.registered, None);
    rig.host.delete(vm.id(), true).await;
    rig.host.until_state(vm.id(), State::Deleted).await;
    rig.assert_clean(&[vm.id()]).await;
}
