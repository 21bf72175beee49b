//! Docker's configuration with helper programs: small scripts, good and bad.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use mayfly::registry::credentials::{CredentialSource, DockerConfig, Helpers};
use rustix::process::{Pid, test_kill_process};
use secrecy::ExposeSecret;

const DEADLINE: Duration = Duration::from_secs(20);

struct Docker {
    dir: tempfile::TempDir,
    deadline: Duration,
}

impl Docker {
    /// A configuration that names one helper for everything, and that helper.
    fn with_helper(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"credsStore": "test"}"#).unwrap();
        let path = dir.path().join("docker-credential-test");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, deadline: DEADLINE }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// User and secret, nothing, or the error.
    async fn get(&self, registry: &str) -> Result<Option<(String, String)>, String> {
        let helpers = Helpers::at(vec![self.dir.path().to_owned()], self.deadline);
        let source = DockerConfig::at(self.file("config.json"), helpers);
        let given = source.get(registry, false).await.map_err(|e| e.to_string())?;
        Ok(given.map(|c| (c.username, c.secret.expose_secret().to_owned())))
    }
}

#[tokio::test]
async fn a_helper_gets_the_server_and_only_its_standard_output_counts() {
    let docker = Docker::with_helper(
        r#"[ "$*" = get ] || exit 9
        server=$(cat)
        echo "debug: secret is hunter2" >&2
        printf '{"ServerURL":"%s","Username":"for %s","Secret":"pw"}\n' "$server" "$server"
        echo "done" >&2"#,
    );
    for (registry, server) in [
        ("ghcr.io", "ghcr.io"),
        ("Registry.example:5000", "registry.example:5000"),
        ("docker.io", "https://index.docker.io/v1/"),
        ("index.docker.io", "https://index.docker.io/v1/"),
    ] {
        assert_eq!(docker.get(registry).await, Ok(Some((format!("for {server}"), "pw".into()))), "{registry}");
    }
}

#[tokio::test]
async fn a_helper_may_know_nothing() {
    let docker = Docker::with_helper("echo 'credentials not found in native keychain'; exit 1");
    assert_eq!(docker.get("ghcr.io").await, Ok(None));
    let docker = Docker::with_helper(r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#);
    assert_eq!(docker.get("ghcr.io").await, Ok(None));
}

#[tokio::test]
async fn a_helper_that_fails_is_named_with_its_reason_and_without_secrets() {
    for (script, expected) in [
        ("echo 'hunter2' >&2; echo 'no agent is running'; exit 1", r#"status 1, saying "no agent is running""#),
        ("echo 'hunter2' >&2; exit 3", "status 3, without a reason"),
        (r#"echo '{"Username":"a","Secret":"hunter2"}'; exit 1"#, "status 1, without a reason"),
        ("kill -9 $$", "killed by a signal"),
        ("echo 'hunter2'", "found something else (8 bytes, not shown)"),
        (r#"echo 'warning: hunter2'; echo '{"Username":"a","Secret":"hunter2"}'"#, "found something else"),
        (r#"echo '{"Username":"a"}'"#, "JSON of another shape"),
        ("exit 0", "found nothing"),
        (r#"echo '{"Username":"<token>","Secret":"hunter2"}'"#, "identity token"),
        ("while :; do echo hunter2hunter2hunter2hunter2hunter2hunter2; done", "wrote more than 64 KiB"),
    ] {
        let error = Docker::with_helper(script).get("ghcr.io").await.unwrap_err();
        assert!(error.contains("docker-credential-test") && error.contains(expected), "{script}: {error}");
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_helper_that_is_missing_or_no_program_is_named() {
    let docker = Docker::with_helper("");
    let path = docker.file("docker-credential-test");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(docker.get("ghcr.io").await.unwrap_err().contains("docker-credential-test is not installed here"));
    fs::write(&path, "\x7fELF of another kind of machine").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(docker.get("ghcr.io").await.unwrap_err().contains("docker-credential-test could not be run"));
}

async fn is_gone(pid: &str) -> bool {
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let began = Instant::now();
    // Who reaps a killed grandchild is up to the system; there is nothing to wait on.
    while began.elapsed() < Duration::from_secs(10) {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
        if test_kill_process(pid).is_err() || state.contains(") Z ") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended_with_all_that_it_started() {
    let mut docker = Docker::with_helper(
        r#"sleep 600 & echo $! >"${0%/*}/child"; echo $$ >"${0%/*}/self"; echo '{"Username":"a","Secret":"b"}'; wait"#,
    );
    docker.deadline = Duration::from_secs(2);
    let began = Instant::now();
    let error = docker.get("ghcr.io").await.unwrap_err();
    assert!(error.contains("docker-credential-test did not finish within 2 s"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for name in ["self", "child"] {
        assert!(is_gone(&fs::read_to_string(docker.file(name)).unwrap()).await, "{name}");
    }
}

#[tokio::test]
async fn a_helper_whose_caller_goes_away_is_ended() {
    let docker = Docker::with_helper(r#"echo $$ >"${0%/*}/self.new"; mv "${0%/*}/self.new" "${0%/*}/self"; sleep 600"#);
    let (this, began) = (docker.file("self"), Instant::now());
    tokio::select! {
        answer = docker.get("ghcr.io") => panic!("{answer:?}"),
        () = async { while !this.exists() { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
    }
    assert!(began.elapsed() < DEADLINE);
    assert!(is_gone(&fs::read_to_string(this).unwrap()).await);
}

#[tokio::test]
async fn a_helper_sees_little_of_our_environment() {
    let name = "CARGO_MANIFEST_DIR";
    assert!(std::env::var_os(name).is_some(), "else this proves nothing");
    let docker = Docker::with_helper(&format!(
        r#"printf '{{"Username":"%s","Secret":"%s"}}' "${{{name}-unset}}" "${{PATH:+set}} ${{HOME:+set}}""#
    ));
    assert_eq!(docker.get("ghcr.io").await, Ok(Some(("unset".into(), "set set".into()))));
}
