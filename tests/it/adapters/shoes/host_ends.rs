//! A host that ends without a word leaves no process, and no vm that waits for it.

use std::{sync::atomic::Ordering, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{super::gate::Gate, Plugin, Shoes, request};
use crate::api::api;

/// A call that is under way when its host ends.
async fn cut_off(shoes: &Shoes, plugin: Plugin, until: impl Future) {
    tokio::select! {
        answer = plugin.add(request("myshoes-a", "one"), None) => panic!("{answer:?}"),
        _ = until => {}
    }
    let (status, rest) = plugin.left_alone().await;
    assert!(status.success() && rest.is_empty(), "{status}: {rest}\n{}", shoes.logs());
}

#[tokio::test]
async fn the_process_ends_with_its_connection_and_what_waits_leaves_the_queue() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    cut_off(&shoes, plugin, shoes.until_vms(1, "queued")).await;
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
    // Without a call, too.
    let (status, _) = shoes.plugin().await.left_alone().await;
    assert!(status.success(), "{status}");
}

/// Its successor finds the vm that boots, with another script.
#[tokio::test]
async fn a_vm_that_boots_when_the_host_ends_is_found_by_the_next_one() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    let boots = async {
        let vms = shoes.until_vms(1, "queued").await;
        shoes.booting(&vms[0]).await;
    };
    cut_off(&shoes, plugin, boots).await;
    let vms = shoes.until_vms(1, "booting").await;
    let next = shoes.plugin().await;
    let (answer, ()) = tokio::join!(next.add(request("myshoes-a", "two"), None), async {
        use mayfly::domain::{Event, event::ReadyVia};
        for event in [Event::GuestReady { via: ReadyVia::GuestCall }, Event::GuestConfigured] {
            shoes.api.apply(super::id(&vms[0]), event).await;
        }
    });
    assert_eq!(vms[0]["id"], answer.unwrap().cloud_id.as_str());
    next.shut_down().await;
    assert_eq!(shoes.vms().await.len(), 1);
}

/// The host ends while the request for the vm is on its way to a service that is slow.
#[tokio::test]
async fn a_creation_that_is_served_late_is_taken_back() {
    let api = api().await;
    let gate = Gate::before(&api.url).await;
    let url = gate.url.clone();
    let shoes = Shoes::asking(api, &url);
    let plugin = shoes.plugin().await;
    let arrived = async { gate.arrived.acquire().await.unwrap().forget() };
    tokio::select! {
        answer = plugin.add(request("myshoes-a", "one"), None) => panic!("{answer:?}"),
        () = arrived => {}
    }
    let ending = tokio::spawn(plugin.left_alone());
    // The plugin has noticed, and the service is asked only now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.release.add_permits(1);
    assert!(ending.await.unwrap().0.success());
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
    let records = shoes.api.get("/vms?state=deleted", &shoes.api.admin).await.ok(200);
    assert_eq!(records["items"].as_array().unwrap().len(), 1, "the creation was served: {records:#}");
}

/// The plugin of a host that has ended takes back what its successor has found: the successor makes a new vm.
#[tokio::test]
async fn a_vm_that_is_taken_back_under_the_next_call_is_made_again() {
    let shoes = Shoes::new().await;
    let (first, next) = (shoes.plugin().await, shoes.plugin().await);
    let first_call = first.add(request("myshoes-a", "one"), None);
    tokio::select! {
        answer = first_call => panic!("{answer:?}"),
        _ = shoes.until_vms(1, "queued") => {}
    }
    let old = shoes.vms().await[0]["id"].clone();
    let asked = request("myshoes-a", "two");
    let (answer, ()) = tokio::join!(next.add(asked, None), async {
        let (status, _) = first.left_alone().await;
        assert!(status.success(), "{status}");
        let vm = loop {
            let vms = shoes.vms().await;
            if let Some(vm) = vms.into_iter().find(|vm| vm["state"] == "queued" && vm["id"] != old) {
                break vm;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        shoes.up(&vm).await;
    });
    assert_ne!(old, answer.unwrap().cloud_id.as_str());
    next.shut_down().await;
    assert_eq!(shoes.vms().await.len(), 1);
}

/// A plugin that is killed leaves a vm that waits; the next call finds it.
#[tokio::test]
async fn the_vm_of_a_plugin_that_was_killed_is_found_again() {
    let api = api().await;
    let gate = Gate::before(&api.url).await;
    gate.release.add_permits(10);
    let url = gate.url.clone();
    let shoes = Shoes::asking(api, &url);
    let plugin = shoes.plugin().await;
    tokio::select! {
        answer = plugin.add(request("myshoes-a", "one"), None) => panic!("{answer:?}"),
        _ = shoes.until_vms(1, "queued") => {}
    }
    kill_process(Pid::from_raw(plugin.pid()).unwrap(), Signal::KILL).unwrap();
    assert!(!plugin.left_alone().await.0.success());
    assert_eq!(gate.outage.load(Ordering::SeqCst), 0);
    let id = shoes.vms().await[0]["id"].clone();
    assert_eq!(id, shoes.added(request("myshoes-a", "one")).await.cloud_id.as_str());
}
