//! The driver for Cloud Hypervisor over its double, whose guests are real. `MAYFLY_TEST_CLOUD_HYPERVISOR` names a real program, for
//! the tests that are ignored otherwise; see docs/contributing.md.
//!
//! Needs user namespaces and /dev/net/tun, as the driver does. Nothing here is skipped.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use mayfly::{
    domain::{Code, VmId, event::GoneCause},
    drivers::{Driver as _, ErrorKind, Observation},
};
use rustix::process::{Signal, kill_process};
use serde_json::json;

use self::rig::{DEAF, POWER_OFF, RESET, VmmRig};
use super::conformance;

mod compared;
mod interrupted;
mod real;
mod rig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_hypervisor_conforms() {
    assert_eq!(conformance::all(&VmmRig::new()).await, 17);
}

#[tokio::test]
async fn what_keeps_guests_from_running_is_found_before_a_vm_is() {
    let rig = VmmRig::new();
    rig.order(json!({"version": "v33.0.0"}));
    let error = rig.driver.probe(true).await.unwrap_err();
    assert!(error.summary.contains("v33.0.0 is too old: install v34 or later"), "{error}");
    rig.order(json!({"no_hypervisor": true}));
    let error = rig.driver.probe(true).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostUnavailable));
    assert!(error.summary.contains("runs no guest: 0: Failed to open hypervisor interface"), "{error}");
    let spec = rig.bare(VmId::mint(), DEAF);
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused), "{error}");
    rig.order(json!({}));
    assert_eq!(rig.driver.probe(true).await.unwrap().version, "cloud-hypervisor v54.0.0");
    // What the host lacked was not the vm's fault: the same clone starts.
    rig.driver.start(&spec).await.unwrap();
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn refusals_are_laid_at_the_right_door() {
    let rig = VmmRig::new();
    let good = rig.bare(VmId::mint(), DEAF);

    let mut wrong = good.clone();
    wrong.files.kernel = None;
    let error = rig.driver.create(&wrong).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid));
    assert!(error.summary.contains("needs a kernel"), "{error}");

    let text = rig.dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    wrong.files.kernel = Some(text);
    let error = rig.refused(&wrong).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid), "{error}");
    assert!(error.summary.contains("The VM could not boot: "), "{error}");

    // Each generation of the program answers in its own form.
    for (body, shown) in [
        (
            r#"["Error from API","The VM could not boot","something new"]"#,
            "(500): Error from API: The VM could not boot: something new",
        ),
        ("The VM could not boot: something old", "(500): The VM could not boot: something old"),
        ("", "(500): it gave no reason"),
    ] {
        rig.order(json!({"answers": {"vm.boot": {"status": 500, "body": body}}}));
        let error = rig.refused(&good).await;
        assert_eq!((error.kind, error.code), (ErrorKind::Retry, Code::BootFailed), "{error}");
        assert!(error.summary.ends_with(shown), "{error}");
    }
    rig.order(json!({}));
    rig.driver.start(&good).await.unwrap();
    rig.driver.destroy(&good.name).await.unwrap();
}

#[tokio::test]
async fn causes_of_a_guests_end_are_distinguished() {
    causes(&VmmRig::new()).await;
}

async fn causes(rig: &VmmRig) {
    // A guest that resets itself is not booted again, although the hypervisor would do that.
    let spec = rig.started(RESET).await;
    assert_eq!(rig.ended(&spec.name).await, GoneCause::GuestReset);
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    rig.driver.destroy(&spec.name).await.unwrap();

    let spec = rig.started(POWER_OFF).await;
    assert_eq!(rig.ended(&spec.name).await, GoneCause::GuestPowerOff);
    rig.driver.destroy(&spec.name).await.unwrap();

    let spec = rig.started(DEAF).await;
    kill_process(rig.hypervisor(&spec.name), Signal::KILL).unwrap();
    assert_eq!(rig.ended(&spec.name).await, GoneCause::Unknown);
    rig.driver.destroy(&spec.name).await.unwrap();

    // The hypervisor does not outlive its supervisor, and neither does the namespace with its tap.
    let spec = rig.started(DEAF).await;
    let hypervisor = rig.hypervisor(&spec.name);
    kill_process(rig.supervisor(&spec.name), Signal::KILL).unwrap();
    assert_eq!(rig.ended(&spec.name).await, GoneCause::Unknown);
    // The process that reaps it may be slow.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", hypervisor.as_raw_nonzero())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the hypervisor runs without its supervisor: {stat}");
    rig.driver.destroy(&spec.name).await.unwrap();

    // Another program pauses it, or shuts its guest down.
    for (request, cause) in [("vm.pause", GoneCause::HostPause), ("vm.shutdown", GoneCause::HostStop)] {
        let spec = rig.started(DEAF).await;
        let socket = rig.instance(&spec.name).join("api.sock");
        let ran = tokio::process::Command::new("curl")
            .args(["--silent", "--fail", "--request", "PUT", "--unix-socket"])
            .arg(socket)
            .arg(format!("http://localhost/api/v1/{request}"))
            .status();
        // The supervisor may end the hypervisor before it has answered: then the request fails, and the cause shows that it was done.
        let ran = ran.await.unwrap();
        assert_eq!(rig.ended(&spec.name).await, cause, "{request}: {ran}");
        rig.driver.start(&spec).await.unwrap();
        assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped, "it is not started again");
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_hypervisor_that_hangs_is_killed() {
    let rig = VmmRig::new();
    let spec = rig.started(DEAF).await;
    rig.order(json!({"hangs": ["vmm.shutdown", "vm.power-button"]}));
    let began = Instant::now();
    rig.driver.stop(&spec.name, Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(rig.ended(&spec.name).await, GoneCause::HostStop);
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn the_host_sees_nothing_of_a_guests_network() {
    network(&VmmRig::new()).await;
}

/// The interface is in the guest's namespace only, and the hypervisor has no rights there.
async fn network(rig: &VmmRig) {
    let spec = rig.started(DEAF).await;
    let here = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    assert!(!here.contains("tap0"), "{here}");
    let proc = PathBuf::from(format!("/proc/{}", rig.hypervisor(&spec.name).as_raw_nonzero()));
    let there = std::fs::read_to_string(proc.join("net/dev")).unwrap();
    let interfaces: Vec<&str> =
        there.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(interfaces.len(), 2, "{there}");
    assert!(interfaces.contains(&"lo") && interfaces.contains(&"tap0"), "{there}");
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    rig.driver.destroy(&spec.name).await.unwrap();
}
