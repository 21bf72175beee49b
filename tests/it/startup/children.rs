//! What the service started and what outlives it: guests, and nothing else.

use std::{path::Path, time::Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::WITHIN;
use crate::support::{Serve, tart::double};

/// The commands of Tart, the supervisor's process beside each included, that were started for this home.
fn commands(home: &Path) -> Vec<i32> {
    let needle = format!("TART_HOME={}", home.display()).into_bytes();
    let of_this_home = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == needle)
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(of_this_home).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_goes_on_when_the_service_was_killed() {
    let mut serve = Serve::prepared(|dir| {
        let home = dir.join("home");
        std::fs::create_dir(&home).unwrap();
        let hangs = json!({ "rules": [{ "command": "list", "then": { "hang_ms": 600_000 } }] });
        std::fs::write(home.join("double.json"), hangs.to_string()).unwrap();
        [
            ("MAYFLY_DRIVERS__TART__ENABLED", "true".to_owned()),
            ("MAYFLY_DRIVERS__QEMU__ENABLED", "false".to_owned()),
            ("MAYFLY_DRIVERS__TART__BINARY", double().display().to_string()),
            ("MAYFLY_DRIVERS__TART__HOME", home.display().to_string()),
            ("MAYFLY_SLOTS__COUNT_FOREIGN", "true".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    })
    .await;
    let home = serve.dir.join("home");
    let lists = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(double().to_str().unwrap().as_bytes()) && line.windows(4).any(|word| word == b"list")
    };
    let began = Instant::now();
    while !commands(&home).iter().any(lists) {
        assert!(began.elapsed() < WITHIN, "nothing was listed\n{}", serve.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    serve.kill();
    let killed = Instant::now();
    let mut left = commands(&home);
    while !left.is_empty() && killed.elapsed() < WITHIN {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        left = commands(&home);
    }
    for pid in &left {
        let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
    }
    assert_eq!(left, [0; 0], "they outlive the service");
}
