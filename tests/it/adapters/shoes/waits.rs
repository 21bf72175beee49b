//! What waits for capacity, and is no longer waited for, is taken back.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::Value;
use tonic::Code;

use super::{super::gate::Gate, Shoes, request};
use crate::api::api;

#[tokio::test]
async fn without_a_slot_in_time_there_is_no_vm() {
    let shoes = Shoes::new().await;
    let status = shoes.add(request("myshoes-a", "one"), Some(Duration::from_secs(5))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    shoes.until_vms(0, "").await;
}

/// The time is over while the vm boots: it has its slot, and the host ends it if no runner appears.
#[tokio::test]
async fn a_vm_that_boots_when_the_time_is_over_is_given_to_the_host() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    let (answer, vm) = tokio::join!(plugin.add(request("myshoes-a", "one"), Some(Duration::from_secs(5))), async {
        let vms = shoes.until_vms(1, "queued").await;
        shoes.booting(&vms[0]).await;
        vms[0]["id"].clone()
    });
    assert_eq!(vm, answer.unwrap().cloud_id.as_str());
    plugin.shut_down().await;
    assert_eq!(shoes.vms().await[0]["state"], "booting");
}

#[tokio::test]
async fn a_call_that_is_cancelled_takes_its_vm_back_before_the_process_ends() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    tokio::select! {
        answer = plugin.add(request("myshoes-a", "one"), None) => panic!("{answer:?}"),
        _ = shoes.until_vms(1, "queued") => {}
    }
    let (took, status) = plugin.shut_down().await;
    assert!(status.success() && took < Duration::from_secs(2), "{status} {took:?}");
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
}

/// A service that is away for a moment costs the call nothing.
#[tokio::test]
async fn an_outage_is_waited_for_and_a_longer_one_is_an_error() {
    let api = api().await;
    let gate = Gate::before(&api.url).await;
    gate.release.add_permits(10);
    let url = gate.url.clone();
    let shoes = Shoes::asking(api, &url);
    gate.outage.store(2, Ordering::SeqCst);
    let id = shoes.added(request("myshoes-a", "one")).await.cloud_id;
    gate.outage.store(2, Ordering::SeqCst);
    shoes.delete(&id).await.unwrap();
    gate.outage.store(u32::MAX, Ordering::SeqCst);
    let status = shoes.add(request("myshoes-b", "one"), Some(Duration::from_secs(5))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}
