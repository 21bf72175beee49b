//! Starts that were interrupted, as by a kill of the service: another start continues them, and in the end nothing is left.

use std::time::Duration;

use mayfly::{
    domain::VmId,
    drivers::{Driver as _, InstanceSpec, Observation},
};
use serde_json::{Value, json};

use super::{
    super::conformance::Rig as _,
    rig::{DEAF, VmmRig},
};
use crate::support::cloud_hypervisor::Traces;

/// Longer than everything before the request takes.
const REACHED: Duration = Duration::from_secs(10);

/// Starts an instance as far as this request.
async fn interrupt(rig: &VmmRig, spec: &InstanceSpec, request: &str, control: Value) {
    rig.forget_unanswered();
    rig.order(control);
    let start = tokio::spawn({
        let (driver, spec) = (rig.driver.clone(), spec.clone());
        async move { driver.start(&spec).await }
    });
    let reached = async {
        while !rig.unanswered().contains(request) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(REACHED, reached).await.unwrap_or_else(|_| panic!("{request} was not sent"));
    start.abort();
    assert!(start.await.is_err(), "the start was interrupted at {request}");
    rig.order(json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_interrupted_is_continued() {
    // In the order in which they are sent.
    for request in ["vmm.ping", "vm.info", "vm.create", "vm.boot"] {
        for control in ["hangs", "silent"] {
            let rig = VmmRig::new();
            let spec = rig.bare(VmId::mint(), DEAF);
            let traces = Traces::watch(&rig.dir.path().join("instances"));
            rig.driver.create(&spec).await.unwrap();
            interrupt(&rig, &spec, request, json!({(control): [request]})).await;

            let driver = rig.restarted();
            driver.start(&spec).await.unwrap_or_else(|error| panic!("{request} {control}: {error}"));
            let seen = driver.inspect(&spec.name).await.unwrap();
            assert!(matches!(seen, Observation::Running { .. }), "{request} {control}: {seen:?}");
            let events = rig.events_until(&spec.name, "\"booted\"").await;
            assert_eq!(events.matches("\"booted\"").count(), 1, "{request} {control}: {events}");
            driver.destroy(&spec.name).await.unwrap();
            traces.assert_gone();
        }
    }
}

/// The hypervisor remembers a part of a guest that it could not boot: it says that the guest is there already, or boots it without its
/// disks. So it is not asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_that_refused_is_replaced() {
    let rig = VmmRig::new();
    let spec = rig.bare(VmId::mint(), DEAF);
    let kernel = spec.files.kernel.clone().unwrap();
    for (file, wrong) in [(&kernel, "no kernel"), (&spec.files.disk, "")] {
        let good = std::fs::read(file).unwrap();
        rig.driver.create(&spec).await.unwrap();
        let changed = if wrong.is_empty() { std::fs::remove_file(file) } else { std::fs::write(file, wrong) };
        changed.unwrap();
        interrupt(&rig, &spec, "vm.boot", json!({"silent": ["vm.boot"]})).await;
        let before = rig.hypervisor(&spec.name);

        std::fs::write(file, good).unwrap();
        rig.restarted().start(&spec).await.unwrap();
        let seen = rig.driver.inspect(&spec.name).await.unwrap();
        assert!(matches!(seen, Observation::Running { .. }), "{}: {seen:?}", file.display());
        assert_ne!(rig.hypervisor(&spec.name), before, "{}: it was asked again", file.display());
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}
