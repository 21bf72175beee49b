//! How guests end and how starts fail. The exit status is 0 in most cases.

use super::*;

#[tokio::test]
async fn the_end_is_read_from_the_messages_and_not_from_the_status() {
    let rig = MacosvmRig::new();
    for (then, cause) in [
        (json!({"power_off_after_ms": 200}), GoneCause::GuestPowerOff),
        (json!({"crash_after_ms": 200}), GoneCause::HypervisorError),
    ] {
        let spec = rig.created().await;
        rig.bend(&spec.name, then);
        rig.driver.start(&spec).await.unwrap();
        assert_eq!(rig.ended(&spec.name).await, cause);
        // After a restart, too.
        assert_eq!(rig.restarted().ended(&spec.name).await.unwrap(), cause);
        // Written by the task that waits for the process, maybe a moment later.
        let exit = rig.instance(&spec.name).join("exit.json");
        let began = Instant::now();
        while !exit.exists() {
            assert!(began.elapsed() < SOON);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let exit: Value = serde_json::from_slice(&std::fs::read(exit).unwrap()).unwrap();
        assert_eq!(exit, json!({"code": 0, "signal": null}));
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

/// macosvm writes nothing when a signal ends it: the records show who ended it.
#[tokio::test]
async fn an_end_without_a_message_has_its_cause_from_the_records() {
    let rig = MacosvmRig::new();
    // Others may be ignored, which a program inherits.
    for (signal, cause) in [(Signal::TERM, GoneCause::HostStop), (Signal::KILL, GoneCause::Unknown)] {
        let spec = rig.started().await;
        kill_process(rig.pid(&spec.name).await, signal).unwrap();
        assert_eq!(rig.ended(&spec.name).await, cause, "{signal:?}");
        assert_eq!(rig.restarted().ended(&spec.name).await.unwrap(), cause, "{signal:?}");
        rig.driver.destroy(&spec.name).await.unwrap();
    }
    let spec = rig.started().await;
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    std::fs::remove_file(rig.instance(&spec.name).join("exit.json")).ok();
    assert_eq!(rig.restarted().ended(&spec.name).await.unwrap(), GoneCause::HostStop, "by Mayfly");
}

#[tokio::test]
async fn a_framework_that_hangs_is_killed() {
    let rig = MacosvmRig::new();
    let spec = rig.created().await;
    rig.bend(&spec.name, json!({"ignores_term": true}));
    rig.driver.start(&spec).await.unwrap();
    tokio::time::timeout(SOON, rig.driver.destroy(&spec.name)).await.unwrap().unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
}

#[tokio::test]
async fn a_refused_start_has_its_kind_and_code() {
    let rig = MacosvmRig::new();
    let failed = |code: i32| format!("Error Domain=VZErrorDomain Code={code} \"It failed.\" UserInfo={{}}");
    for (then, kind, code, says) in [
        (json!({"limit": true}), ErrorKind::Host, Code::HostLimit, "none of them in macosvm"),
        (json!({"start_error": failed(-9)}), ErrorKind::Host, Code::HostRefused, "login keychain"),
        (json!({"start_error": failed(5)}), ErrorKind::Permanent, Code::TemplateInvalid, "this template"),
        (json!({"start_error": failed(77)}), ErrorKind::Retry, Code::BootFailed, "Code=77"),
        (json!({"exception": "Number of CPUs not specified"}), ErrorKind::Retry, Code::BootFailed, "Number of CPUs"),
    ] {
        let spec = rig.created().await;
        rig.bend(&spec.name, then);
        let error = rig.refused(&spec).await;
        assert_eq!((error.kind, error.code), (kind, code), "{error}");
        assert!(error.summary.contains(says), "{error}");
        assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
        // No guest has run, so the same clone may be started.
        rig.driver.start(&spec).await.unwrap();
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

/// As when the service is killed between the start of the process and its refusal.
#[tokio::test]
async fn a_refusal_during_an_interrupted_start_is_not_the_vms_end() {
    let rig = MacosvmRig::new();
    let spec = rig.created().await;
    rig.bend(&spec.name, json!({"limit": true, "start_after_ms": 1000}));
    rig.interrupted(&spec).await;
    let error = rig.restarted().ended(&spec.name).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit), "{error}");
    // A guest that was reached ran: that message is not about its end.
    rig.driver.reached(&spec.name).await;
    assert_eq!(rig.ended(&spec.name).await, GoneCause::Unknown);
}

/// The framework lets a VM's files be used once at a time.
#[tokio::test]
async fn two_starts_at_once_give_one_guest() {
    let rig = MacosvmRig::new();
    let spec = rig.created().await;
    let again = || {
        let (driver, spec) = (rig.restarted(), spec.clone());
        tokio::spawn(async move { driver.start(&spec).await })
    };
    let (one, two) = (again(), again());
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    rig.driver.start(&spec).await.unwrap();
    rig.pid(&spec.name).await;
}
