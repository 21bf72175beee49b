//! The program itself, on this machine.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cli::{Mayfly, Ran},
    support::Serve,
};

/// A home with nothing in it.
fn fresh() -> Mayfly {
    let mayfly = Mayfly::new();
    std::fs::remove_dir_all(mayfly.path(".mayfly")).expect("it was made for others");
    mayfly
}

fn finding(report: &Value, id: &str) -> Value {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|f| f["id"] == id).unwrap_or_else(|| panic!("no {id}: {report:#}")).clone()
}

fn severity(report: &Value, id: &str) -> String {
    finding(report, id)["severity"].as_str().expect("a severity").to_owned()
}

async fn doctor(mayfly: &Mayfly, env: &[(&str, &str)]) -> Ran {
    let mut command = mayfly.command(&["doctor", "--json"]);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // Whoever uses the usual port on this machine is none of a test's business.
    command.env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0").envs(env.iter().copied());
    crate::cli::run(&mut command).await
}

/// Path → size and content of everything below.
fn tree(dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            into.insert(path.clone(), Vec::new());
            tree(&path, into);
        } else {
            into.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn it_changes_nothing() {
    let mayfly = fresh();
    let ran = doctor(&mayfly, &[]).await;
    assert!([0, 1, 7].contains(&ran.code), "{}{}", ran.out, ran.err);
    let report = ran.json();
    assert_eq!(severity(&report, "data.directory"), "ok");
    assert_eq!(severity(&report, "config.usable"), "ok");
    assert!(report["findings"].as_array().expect("findings").len() > 15);
    let mut after = BTreeMap::new();
    tree(&mayfly.path("."), &mut after);
    assert!(after.is_empty(), "{after:?}");
}

#[tokio::test]
async fn the_exit_code_is_what_the_findings_say() {
    let mayfly = fresh();
    for env in [&[][..], &[("MAYFLY_SLOTS__LINUX", "many")]] {
        let ran = doctor(&mayfly, env).await;
        let report = ran.json();
        let code = match (report["counts"]["fail"].as_u64().expect("a count"), report["complete"].as_bool()) {
            (1.., _) => 1,
            (0, Some(false)) => 7,
            _ => 0,
        };
        assert_eq!(ran.code, code);
    }
    let report = doctor(&mayfly, &[("MAYFLY_SLOTS__LINUX", "many")]).await.ends(1).json();
    assert_eq!(severity(&report, "config.usable"), "fail");
    assert!(finding(&report, "config.usable")["found"].as_str().expect("text").contains("MAYFLY_SLOTS__LINUX"));
}

#[tokio::test]
async fn a_program_that_hangs_is_a_finding() {
    let mayfly = fresh();
    let program = mayfly.write("hangs", "#!/bin/sh\nexec sleep 600\n");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a program");
    let began = Instant::now();
    let report =
        doctor(&mayfly, &[("MAYFLY_DRIVERS__QEMU__QEMU_IMG", program.to_str().expect("a path"))]).await.ends(1).json();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let img = finding(&report, "qemu.img");
    assert_eq!(img["severity"], "fail");
    assert!(img["found"].as_str().expect("text").contains("no answer within 5 s"), "{img}");
}

#[tokio::test]
async fn an_address_in_use_is_found() {
    let mayfly = fresh();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    // It takes connections and says nothing.
    let report = doctor(&mayfly, &[("MAYFLY_SERVER__LISTEN", &address)]).await.ends(1).json();
    let listen = finding(&report, "service.listen");
    assert_eq!(listen["severity"], "fail");
    assert!(listen["remedy"].as_str().expect("a remedy").contains("server.listen"), "{listen}");
    drop(listener);
    let report = doctor(&mayfly, &[("MAYFLY_SERVER__LISTEN", &address)]).await.json();
    assert_eq!(severity(&report, "service.listen"), "ok");
}

#[tokio::test]
async fn a_running_service_is_recognised_and_left_as_it_is() {
    let serve = Serve::start(&[]).await;
    let address = serve.url.strip_prefix("http://").expect("a URL");
    let secret = serve.token().to_owned();
    let before = std::fs::metadata(serve.dir.join("mayfly.db")).expect("a database").modified().expect("a time");
    let mayfly = fresh();
    let dir = serve.dir.to_str().expect("a path");
    let ran = doctor(&mayfly, &[("MAYFLY_SERVER__LISTEN", address), ("MAYFLY_DATA_DIR", dir)]).await;
    assert!(!ran.out.contains(&secret) && !ran.err.contains(&secret), "the admin token is shown");
    let report = ran.json();
    for id in ["service.listen", "service.version", "data.directory", "data.database", "data.key", "data.admin_token"] {
        assert_eq!(severity(&report, id), "ok", "{report:#}");
    }
    assert_eq!(std::fs::metadata(serve.dir.join("mayfly.db")).expect("a database").modified().expect("a time"), before);
    assert_eq!(serve.get("/healthz").await["status"], "ok");
}

#[tokio::test]
async fn a_service_is_found_by_its_data_directory_and_not_by_a_port() {
    let serve = Serve::start(&[]).await;
    let address = serve.url.strip_prefix("http://").expect("a URL").to_owned();
    let mayfly = fresh();
    let dir = serve.dir.to_str().expect("a path");
    // It was started with another address than doctor knows of, which is free.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    for listen in [free.as_str(), "127.0.0.1:0"] {
        let report = doctor(&mayfly, &[("MAYFLY_SERVER__LISTEN", listen), ("MAYFLY_DATA_DIR", dir)]).await.json();
        let found = finding(&report, "service.listen")["found"].as_str().expect("text").to_owned();
        assert!(found.starts_with("Mayfly runs"), "{found}");
        assert_eq!(severity(&report, "service.listen"), "ok");
        let version = finding(&report, "service.version");
        assert!(version["found"].as_str().expect("text").starts_with("service and program are"), "{version}");
    }
    // That of another directory is not this one.
    let report = doctor(&mayfly, &[("MAYFLY_SERVER__LISTEN", &address)]).await.ends(1).json();
    let listen = finding(&report, "service.listen");
    assert_eq!(listen["severity"], "fail");
    assert!(listen["found"].as_str().expect("text").contains("another data directory"), "{listen}");
}

#[tokio::test]
async fn people_get_lines_that_fit() {
    let mayfly = fresh();
    let mut command = mayfly.command(&["doctor"]);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0");
    let ran = crate::cli::run(&mut command).await;
    assert!(ran.out.lines().count() > 15 && ran.err.is_empty(), "{}{}", ran.out, ran.err);
    assert!(!ran.out.contains('\u{1b}'), "colours without a terminal: {}", ran.out);
}
