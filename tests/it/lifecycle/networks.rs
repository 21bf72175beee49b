//! The network mode of a vm, as its driver gets it.

use mayfly::domain::{NetworkMode, NetworkSupport, VmRequest};

use super::prelude::*;

async fn policy(host: &Host, runner: RunnerRequest, network: Option<NetworkMode>) -> (NetworkMode, usize) {
    let id = host.create(VmRequest { network, ..request("linux", runner) }).await;
    let vm = host.until_state(id, State::Booting).await;
    let policy = host.world.spec(&vm.instance()).unwrap().network.policy;
    assert_eq!(vm.spec.resolved().unwrap().network, Some(policy.mode));
    host.delete(id, true).await;
    host.until_state(id, State::Deleted).await;
    host.assert_clean(&[id]).await;
    (policy.mode, policy.allow.len())
}

fn script() -> RunnerRequest {
    RunnerRequest::Script { script: "true".into(), env: Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_gets_the_mode_and_for_the_internet_the_list() {
    let host = Host::new(1, 0).await;
    assert_eq!(policy(&host, RunnerRequest::None, None).await, (NetworkMode::Isolated, 0));
    assert_eq!(policy(&host, script(), None).await, (NetworkMode::Internet, 1));
    assert_eq!(policy(&host, script(), Some(NetworkMode::Host)).await, (NetworkMode::Host, 0));
    host.world.enforces(NetworkSupport::default().without(NetworkMode::Isolated, "x"));
    assert_eq!(policy(&host, RunnerRequest::None, None).await, (NetworkMode::Internet, 1));
}

/// Nobody wished for the mode of this vm, and still its guest does not get a more open one.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_mode_can_no_longer_be_enforced_is_given_up() {
    let mut host = Host::new(1, 0).await;
    let first = host.create(request("linux", RunnerRequest::None)).await;
    host.until_state(first, State::Booting).await;
    let waiting = host.create(request("linux", RunnerRequest::None)).await;
    host.crash().await;
    host.world.enforces(NetworkSupport::default().without(NetworkMode::Isolated, "close the door"));
    host.start().await;
    host.delete(first, true).await;
    let vm = host.until_state(waiting, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::GivenUp));
    let outcome = vm.outcome.unwrap();
    assert_eq!(outcome.code, Some(Code::NetworkNotEnforceable));
    assert!(outcome.detail.unwrap().ends_with("`network: isolated`: close the door"));
    host.until_state(first, State::Deleted).await;
    host.assert_clean(&[first, waiting]).await;
}
