//! Which accelerator runs guests: what the service says of it, and what it remembers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{WITHIN, stand_in, temp};
use crate::support::Serve;

/// A service whose QEMU is a stand-in in this directory.
async fn serve(bin: &std::path::Path, accelerator: &str) -> Serve {
    let program = bin.join("qemu");
    stand_in(&program, "echo QEMU emulator version 9.9.9");
    Serve::start(&[
        ("MAYFLY_DRIVERS__QEMU__BINARY", program.to_str().unwrap()),
        ("MAYFLY_DRIVERS__QEMU__QEMU_IMG", "/bin/true"),
        ("MAYFLY_DRIVERS__QEMU__ACCELERATOR", accelerator),
    ])
    .await
}

/// The driver as `GET /host` shows it once it was probed.
async fn driver(serve: &Serve) -> Value {
    let end = Instant::now() + WITHIN;
    loop {
        let host = serve.get("/host").await;
        if let Some(driver) = host["drivers"].as_array().and_then(|drivers| drivers.first()) {
            return driver.clone();
        }
        assert!(Instant::now() < end, "{}", serve.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_log_say_which_accelerator_runs_guests_and_why_not_a_better_one() {
    let bin = temp();
    let mut serve = serve(bin.path(), "tcg").await;
    let driver = driver(&serve).await;
    let note = "emulation, ten to thirty times slower than hardware, because drivers.qemu.accelerator is set to tcg; for \
                speed, set it to auto";
    assert_eq!((&driver["accelerator"], &driver["note"]), (&json!("tcg"), &json!(note)), "{driver:#}");
    let sentence = format!("guests run under tcg: {note}");
    assert_eq!(serve.log().matches(&sentence).count(), 1, "{}", serve.log());
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_probe_remembered_is_not_believed() {
    let bin = temp();
    let mut serve = serve(bin.path(), "auto").await;
    let proven = driver(&serve).await;
    let file = serve.dir.join("qemu-probe.json");
    let mut remembered: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut restarted_with = async |remembered: &Value| {
        assert_eq!(serve.stop(), Some(0));
        std::fs::write(&file, remembered.to_string()).unwrap();
        serve.spawn().await;
        driver(&serve).await
    };

    remembered["note"] = json!("as it was remembered");
    let driver = restarted_with(&remembered).await;
    assert_eq!(driver["note"], "as it was remembered", "{driver:#}");

    // As it was written before the probe had a version.
    remembered["basis"].as_object_mut().unwrap().remove("probe").unwrap();
    let mut driver = restarted_with(&remembered).await;
    driver["listed_at"] = proven["listed_at"].clone();
    assert_eq!(driver, proven);
    assert_eq!(serve.stop(), Some(0));
}
