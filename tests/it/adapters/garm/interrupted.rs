//! Providers that are killed, providers whose GARM is killed, and a service that is away or slow.

use std::{process::Stdio, sync::atomic::Ordering};

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{super::gate::Gate, Call, Garm, POOL, token};
use crate::{
    api::api,
    cli::{has_ended, program},
};

async fn behind_a_gate() -> (Garm, Gate) {
    let api = api().await;
    let gate = Gate::before(&api.url).await;
    let url = gate.url.clone();
    (Garm::asking(api, &url), gate)
}

/// Starts the provider by a process that simulates GARM: the one that can be killed, and the pid of the provider.
async fn started_by_garm(garm: &Garm, call: &Call) -> (tokio::process::Child, i32) {
    let input = garm.path("input.json");
    std::fs::write(&input, call.input()).unwrap();
    let provider = call.command();
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", "\"$1\" <\"$2\" >\"$3\" 2>&1 & echo $!; wait", "sh"]).arg(program()).arg(&input);
    command.arg(garm.path("output"));
    command.env_clear().envs(provider.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut parent = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut line = String::new();
    let mut out = tokio::io::BufReader::new(parent.stdout.take().unwrap());
    tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await.unwrap();
    (parent, line.trim().parse().unwrap())
}

/// GARM's deadline: the provider is killed, and the name is deleted at once. The service has the request, and is slow.
#[tokio::test]
async fn a_provider_that_is_killed_leaves_nothing_after_the_deletion() {
    let (garm, gate) = behind_a_gate().await;
    let call = garm.create("garm-a1", &token("one", 0));
    let mut child = call.command().spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(call.input()).await.unwrap();
    drop(stdin);
    gate.arrived.acquire().await.unwrap().forget();
    child.kill().await.unwrap();

    let delete = garm.delete("garm-a1");
    let deletion = tokio::spawn(async move { delete.ran().await });
    // The vm is stored while the deletion looks for it.
    tokio::time::sleep(std::time::Duration::from_millis(1000)).await;
    gate.release.add_permits(1);
    let ran = deletion.await.unwrap();
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(garm.vms().await, Vec::<Value>::new());
}

/// GARM is killed, is back, deletes what it was creating and is told that there is nothing. Only then is the creation served.
#[tokio::test]
async fn a_creation_whose_garm_was_killed_leaves_nothing() {
    let (garm, gate) = behind_a_gate().await;
    let (mut parent, provider) = started_by_garm(&garm, &garm.create("garm-a1", &token("one", 0))).await;
    gate.arrived.acquire().await.unwrap().forget();
    parent.kill().await.unwrap();
    garm.delete("garm-a1").ran().await.ends(30);
    gate.release.add_permits(1);
    has_ended(provider).await;
    assert_eq!(garm.vms().await, Vec::<Value>::new());
    let records = garm.api.get("/vms?state=deleted", &garm.api.admin).await.ok(200);
    assert_eq!(records["items"].as_array().unwrap().len(), 1, "the creation was served: {records:#}");
    let said = std::fs::read_to_string(garm.path("output")).unwrap();
    assert!(said.contains("the GARM that asked for it has ended"), "{said}");
}

/// The same while the provider waits for a service that is away: it does not ask for a vm any more.
#[tokio::test]
async fn a_provider_whose_garm_has_ended_asks_for_nothing() {
    let (garm, gate) = behind_a_gate().await;
    gate.outage.store(1000, Ordering::SeqCst);
    gate.release.add_permits(1);
    let (mut parent, provider) = started_by_garm(&garm, &garm.create("garm-a1", &token("one", 0))).await;
    crate::cli::within(|| gate.outage.load(Ordering::SeqCst) < 1000).await;
    parent.kill().await.unwrap();
    gate.outage.store(0, Ordering::SeqCst);
    has_ended(provider).await;
    let records = garm.api.get("/vms?state=deleted&state=queued", &garm.api.admin).await.ok(200);
    assert_eq!(records["items"], serde_json::json!([]));
    let said = std::fs::read_to_string(garm.path("output")).unwrap();
    assert!(said.contains("the GARM that asked for it has ended"), "{said}");
}

#[tokio::test]
async fn a_service_that_is_away_for_a_moment_costs_nothing() {
    let (garm, gate) = behind_a_gate().await;
    gate.release.add_permits(10);
    for call in [garm.create("garm-a1", &token("one", 0)), garm.list(POOL), garm.delete("garm-a1")] {
        gate.outage.store(2, Ordering::SeqCst);
        call.ran().await.ends(0);
    }
    assert_eq!(garm.vms().await, Vec::<Value>::new());
    gate.outage.store(u32::MAX, Ordering::SeqCst);
    let config = std::fs::read_to_string(garm.path("mayfly.toml")).unwrap().replace("= 20", "= 1");
    let config = garm.write("impatient.toml", &config);
    let ran = garm.list(POOL).config(&config).ran().await.ends(1);
    assert!(ran.out.is_empty() && ran.err.contains("503"), "{}{}", ran.out, ran.err);
}
