//! The edges of a service's life: what keeps it from starting, and how it ends.
//!
//! A start that is refused says one sentence that names the thing and what to do, ends within seconds with exit code 2
//! (the configuration or the data directory is not usable) or 1 (everything else), and leaves the data directory as it was.

use std::{
    collections::BTreeMap,
    io::{BufRead, Read},
    net::TcpListener,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::json;
use sqlx::{ConnectOptions, Connection, Executor, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::Serve;

mod accelerator;
#[cfg(target_os = "linux")]
mod children;
mod tls;

/// Long for a machine that does something else as well; short for whoever waits for a prompt.
const WITHIN: Duration = Duration::from_secs(15);
const FAILURE: i32 = 1;
const USAGE: i32 = 2;

/// A directory in /tmp, because the paths of sockets are short.
fn temp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("mf").permissions(mode(0o700)).tempdir_in("/tmp").expect("a directory in /tmp")
}

fn mode(mode: u32) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(mode)
}

/// A data directory that a service has used and left.
async fn used() -> Serve {
    let mut serve = Serve::start(&[]).await;
    assert_eq!(serve.stop(), Some(0));
    serve
}

/// Everything below a directory: kind, mode, owner and content. Without the heartbeat, which a service that runs there makes
/// and writes at any time.
fn listing(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        if path == dir.join("heartbeat") {
            continue;
        }
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let content = match () {
            () if meta.is_dir() => {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                "directory".to_owned()
            }
            () if meta.is_file() => {
                use sha2::Digest;
                format!("{:x?}", sha2::Sha256::digest(std::fs::read(&path).unwrap()).as_slice())
            }
            () => format!("{:?}", meta.file_type()),
        };
        found.insert(path, format!("{:o} {} {content}", meta.mode(), meta.uid()));
    }
    found
}

/// `serve` that must not start: what it said.
#[track_caller]
fn refused(dir: &Path, settings: &[(&str, &str)], code: i32) -> String {
    let before = listing(dir);
    let said = refused_somehow(dir, settings, code);
    assert_eq!(listing(dir), before, "the refused start changed something; it said: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    said
}

#[track_caller]
fn refused_somehow(dir: &Path, settings: &[(&str, &str)], code: i32) -> String {
    let mut child = Serve::command(dir)
        .env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0")
        .env("MAYFLY_DRIVERS__QEMU__ACCELERATOR", "tcg")
        .envs(settings.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + WITHIN;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > end => break None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = status.unwrap_or_else(|| panic!("neither started nor refused within {WITHIN:?}: {said}"));
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(said.starts_with("error: "), "{said}");
    said
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
}

async fn database(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

#[tokio::test]
async fn a_port_in_use_names_the_port_and_the_setting() {
    let serve = used().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&serve.dir, &[("MAYFLY_SERVER__LISTEN", &address)], FAILURE);
    says(&said, &[&address, "in use", "server.listen"]);
    let said = refused(&serve.dir, &[("MAYFLY_GUEST__LISTEN", &address)], FAILURE);
    says(&said, &[&address, "in use", "guest.listen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_on_a_data_directory_leaves_the_first_alone() {
    let mut serve = Serve::start(&[]).await;
    serve.get("/host").await;
    let dir = serve.dir.display().to_string();
    let said = refused(&serve.dir, &[], FAILURE);
    says(&said, &["another mayfly serves", &dir, "--data-dir"]);
    // On the first one's own port as well: the cause is not the port.
    let listen = serve.url.trim_start_matches("http://").to_owned();
    says(&refused(&serve.dir, &[("MAYFLY_SERVER__LISTEN", &listen)], FAILURE), &["another mayfly serves"]);
    serve.get("/vms").await;
    assert!(Path::new(&format!("/proc/{}", serve.pid())).exists());
    std::os::unix::net::UnixStream::connect(serve.dir.join("guest.sock")).expect("guests still reach the first one");
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test]
async fn a_broken_database_is_named_and_left_as_it_is() {
    let serve = used().await;
    let path = serve.dir.join("mayfly.db");
    let shown = path.display().to_string();
    // Enough rows for a page in the middle that holds some.
    {
        let mut db = database(&path).await;
        for n in 0..2000 {
            db.execute(
                sqlx::query(
                    "INSERT INTO tokens (id, name, scope, hash, created_at, revoked_at)
                     VALUES (?, ?, 'read', CAST(? AS BLOB), 0, 0)",
                )
                .bind(n.to_string())
                .bind(format!("token {n}"))
                .bind(format!("{n:064}")),
            )
            .await
            .unwrap();
        }
        db.close().await.unwrap();
    }
    let good = std::fs::read(&path).unwrap();
    assert!(good.len() > 100_000);
    let overwritten = |at: usize| {
        let mut bytes = good.clone();
        bytes[at..at + 4096].fill(0xa5);
        bytes
    };
    for (what, bytes) in [
        ("garbage", b"this was never a database. ".repeat(1000)),
        ("cut in the middle of a page", good[..good.len() / 2 + 100].to_vec()),
        ("cut at a page", good[..good.len() / 4096 / 2 * 4096].to_vec()),
        ("a page overwritten", overwritten(good.len() / 4096 / 2 * 4096)),
        ("the first page overwritten", overwritten(0)),
        ("the schema overwritten", {
            let mut bytes = good.clone();
            bytes[100..4096].fill(0xa5);
            bytes
        }),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let said = refused(&serve.dir, &[], USAGE);
        eprintln!("{what}: {said}");
        says(&said, &[&shown, "not a usable database", "move it away", "backup"]);
    }
    std::fs::write(&path, &good).unwrap();
    starts_again(serve).await;
}

/// A refusal is not for ever: once the cause is gone, the same directory serves.
async fn starts_again(mut serve: Serve) {
    serve.spawn().await;
    serve.get("/vms").await;
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test]
async fn a_database_that_another_program_holds_is_not_waited_for() {
    let serve = used().await;
    let path = serve.dir.join("mayfly.db");
    let before = listing(&serve.dir);
    // With the second one, readers are kept out as well.
    for locking in ["NORMAL", "EXCLUSIVE"] {
        let mut other =
            SqliteConnectOptions::new().filename(&path).pragma("locking_mode", locking).connect().await.unwrap();
        other.execute("BEGIN EXCLUSIVE").await.unwrap();
        // Nobody may look into the files meanwhile: a file's locks go when their process closes it, whoever in it that is.
        let said = refused_somehow(&serve.dir, &[], FAILURE);
        says(&said, &["mayfly.db", "locked by another program", "stop that program"]);
        other.execute("ROLLBACK").await.unwrap();
        other.close().await.unwrap();
        assert_eq!(listing(&serve.dir), before, "{said}");
    }
    starts_again(serve).await;
}

#[tokio::test]
async fn the_database_of_a_newer_version_is_not_touched() {
    let serve = used().await;
    let mut db = database(&serve.dir.join("mayfly.db")).await;
    db.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'from the future', 1, x'00', 1)",
    )
    .await
    .unwrap();
    db.close().await.unwrap();
    let before = listing(&serve.dir);
    let check = Serve::command(&serve.dir).arg("--check").output().unwrap();
    assert_eq!(check.status.code(), Some(USAGE));
    says(std::str::from_utf8(&check.stderr).unwrap(), &["mayfly.db", "newer Mayfly", "9999", "start that version"]);
    assert_eq!(listing(&serve.dir), before);
    says(&refused(&serve.dir, &[], USAGE), &["mayfly.db", "newer Mayfly", "9999", "start that version", "backup"]);
}

#[tokio::test]
async fn a_key_that_is_open_or_broken_is_not_used() {
    let serve = used().await;
    let path = serve.dir.join("secret.key");
    std::fs::set_permissions(&path, mode(0o644)).unwrap();
    let chmod = format!("chmod 600 {}", path.display());
    says(&refused(&serve.dir, &[], USAGE), &["secret.key", "readable by others", &chmod]);
    std::fs::set_permissions(&path, mode(0o600)).unwrap();
    let key = std::fs::read(&path).unwrap();
    for bad in [&b""[..], &key[..31], &[&key[..], b"\n"].concat()] {
        std::fs::write(&path, bad).unwrap();
        says(&refused(&serve.dir, &[], USAGE), &["secret.key", "32 bytes", "restore it from a backup"]);
    }
    std::fs::remove_file(&path).unwrap();
    // Not made anew: the records were written with the one that is lost.
    says(&refused(&serve.dir, &[], USAGE), &["secret.key", "is missing", "restore the key from a backup"]);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, mode(0o700)).unwrap();
    says(&refused(&serve.dir, &[], USAGE), &["secret.key", "cannot be read", "restore it from a backup"]);
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, &key).unwrap();
    std::fs::set_permissions(&path, mode(0o600)).unwrap();
    starts_again(serve).await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_ours_is_refused() {
    let serve = used().await;
    std::fs::set_permissions(&serve.dir, mode(0o755)).unwrap();
    says(&refused(&serve.dir, &[], USAGE), &["open to other users", &format!("chmod 700 {}", serve.dir.display())]);
    std::fs::set_permissions(&serve.dir, mode(0o700)).unwrap();

    let file = serve.dir.join("admin.token");
    says(&refused(&file, &[], USAGE), &["admin.token", "is not a directory", "--data-dir"]);
    says(&refused(&file.join("below"), &[], USAGE), &["admin.token/below", "--data-dir"]);
    let link = serve.dir.join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    says(&refused(&link, &[], USAGE), &["link", "--data-dir"]);
    std::fs::remove_file(&link).unwrap();

    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&serve.dir, Some(12345), None).unwrap();
        says(&refused(&serve.dir, &[], USAGE), &["belongs to user 12345", "--data-dir"]);
        std::os::unix::fs::chown(&serve.dir, Some(0), None).unwrap();
    } else {
        eprintln!("not root: a directory of another user was not tried");
    }
    starts_again(serve).await;
}

#[test]
fn a_path_too_long_for_sockets_is_refused_before_anything_is_made() {
    let temp = temp();
    for (length, qemu) in [(60, "true"), (120, "true"), (121, "false")] {
        let dir = temp.path().join("d".repeat(length));
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, mode(0o700)).unwrap();
        let said = refused(&dir, &[("MAYFLY_DRIVERS__QEMU__ENABLED", qemu)], USAGE);
        says(&said, &[dir.to_str().unwrap(), "bytes and may have", "shorter"]);
    }
}

#[tokio::test]
async fn what_the_configuration_says_wrongly_is_named_with_its_place() {
    let serve = used().await;
    let file = serve.dir.join("mayfly.toml");
    for (text, env, words) in [
        (
            "[server]\nlisen = \"127.0.0.1:0\"\n",
            ("", ""),
            &["mayfly.toml:2", "server.lisen", "did you mean `server.listen`?"][..],
        ),
        ("[server]\nlisten = 127.0.0.1\n", ("", ""), &["mayfly.toml:2:", "not TOML"]),
        ("", ("MAYFLY_SLOTS__LINUX", "two"), &["MAYFLY_SLOTS__LINUX", "expected whole number", "\"two\""]),
        (
            "[server]\ntls_cert = \"mayfly.toml\"\n",
            ("", ""),
            &["mayfly.toml:2", "server.tls_cert", "needs `server.tls_key`"],
        ),
        ("", ("MAYFLY_SERVER__LISTEN", "0.0.0.0:0"), &["MAYFLY_SERVER__LISTEN", "tls_cert", "behind_proxy"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let env: &[_] = if env.0.is_empty() { &[] } else { &[env] };
        says(&refused(&serve.dir, env, USAGE), words);
    }
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    says(&refused(&serve.dir, &[], USAGE), &["mayfly.toml", "UTF-8"]);
    std::fs::remove_file(&file).unwrap();
    starts_again(serve).await;
}

/// Whatever keeps the service from starting, `--check` refuses with the same words, and `doctor` fails.
#[tokio::test]
async fn check_refuses_what_serve_refuses() {
    let serve = used().await;
    let dir = &serve.dir;
    let file = dir.join("mayfly.toml");
    let write = |name: &str, mode: u32, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("nonsense", 0o600, "nonsense\n");
    write("open", 0o644, "ghp_token\n");
    write("token", 0o600, "ghp_token\n");
    let pool = "[pools.p]\ntemplate = \"micro\"\nscope = \"acme/app\"\nlabels = [\"vm\"]\n";
    let cases: [(&str, &[(&str, &str)]); 9] = [
        ("[github]\napp_id = \"a\"\nprivate_key_file = \"nonsense\"\n", &[]),
        ("[github]\napp_id = \"a\"\nprivate_key_file = \"none.pem\"\n", &[]),
        ("[github]\napp_id = \"a\"\n", &[]),
        ("[github]\napp_id = \"a\"\n", &[("MAYFLY_GITHUB_PRIVATE_KEY", "-----BEGIN RSA PRIVATE KEY-----\\nMIIE\\n")]),
        ("[github]\ntoken_file = \"open\"\n", &[]),
        ("[github]\ntoken_file = \"token\"\nca_file = \"none.pem\"\n", &[]),
        ("[github]\ntoken_file = \"token\"\nca_file = \"nonsense\"\n", &[]),
        ("[github]\ntoken_file = \"token\"\nwebhook_secret_files = [\"none\"]\n", &[]),
        (pool, &[]),
    ];
    for (settings, env) in cases {
        std::fs::write(&file, settings).unwrap();
        let before = listing(dir);
        let run = |arguments: &[&str]| {
            let mut command = Serve::command(dir);
            command.args(arguments).envs(env.iter().copied());
            let ran = command.output().unwrap();
            (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
        };
        let (code, said) = run(&["--check"]);
        assert_eq!(code, Some(2), "{settings}: {said}");
        assert_eq!(listing(dir), before);
        let (code, served) = run(&[]);
        // A service manager does not start it again.
        assert_eq!(code, Some(USAGE), "{settings}: {served}");
        let words = said.lines().next().unwrap_or_default();
        assert!(!words.is_empty() && served.contains(words.trim_start_matches("error: ")), "{said}\n{served}");
    }
    std::fs::remove_file(&file).unwrap();
    // A key that others may read is refused as well.
    write("secret.key", 0o644, "");
    let ran = Serve::command(dir).arg("--check").output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
}

#[tokio::test]
async fn check_looks_at_the_configuration_and_changes_nothing() {
    let serve = used().await;
    let check = |settings: &[(&str, &str)]| {
        let before = listing(&serve.dir);
        let ran = Serve::command(&serve.dir).arg("--check").envs(settings.iter().copied()).output().unwrap();
        assert_eq!(listing(&serve.dir), before);
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    let (code, said) = check(&[]);
    assert_eq!(code, Some(0), "{said}");
    says(&said, &["the configuration is usable", serve.dir.to_str().unwrap()]);
    let (code, said) = check(&[("MAYFLY_QUEUE__MAX_LENGTH", "many")]);
    assert_eq!(code, Some(2), "{said}");
    let token = serve.dir.join("admin.token").display().to_string();
    let (code, said) = check(&[("MAYFLY_SERVER__TLS_CERT", &token), ("MAYFLY_SERVER__TLS_KEY", &token)]);
    assert_eq!(code, Some(2), "{said}");
    says(&said, &["certificate", &token, "server.tls_cert"]);
}

/// What the probe's guest writes when every stage passes.
const GUEST: &str = "ABCDEFGHIJKLM<><><>MAYFLY";

/// A stand-in that passes the probe. Guests that it "runs" never come up.
fn stand_in(path: &Path, says: &str) {
    let script = format!("#!/bin/sh\ncase \"$*\" in *--version*) {says} ;; *) echo '{GUEST}' ;; esac\n");
    let staged = path.with_extension("new");
    std::fs::write(&staged, script).unwrap();
    std::fs::set_permissions(&staged, mode(0o700)).unwrap();
    std::fs::rename(staged, path).unwrap();
}

/// On a host whose QEMU is to be in this directory and is not.
async fn without_qemu(bin: &Path) -> Serve {
    let (program, image) = (bin.join("qemu-system"), bin.join("qemu-img"));
    Serve::start(&[
        ("MAYFLY_DRIVERS__QEMU__BINARY", program.to_str().unwrap()),
        ("MAYFLY_DRIVERS__QEMU__QEMU_IMG", image.to_str().unwrap()),
    ])
    .await
}

async fn template(serve: &Serve, dir: &Path) {
    let disk = dir.join("disk.raw");
    std::fs::write(&disk, vec![1; 64 * 1024]).unwrap();
    let (status, body) =
        serve.post("/templates", json!({"name": "t", "os": "linux", "disk": disk, "cpus": 1, "memory_mib": 64})).await;
    assert_eq!(status, 201, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_qemu_the_service_starts_says_so_and_recovers_when_it_is_installed() {
    let bin = temp();
    let mut serve = without_qemu(bin.path()).await;
    template(&serve, bin.path()).await;
    let vm = serve.create(json!({"template": "t"})).await;
    let id = vm["id"].as_str().unwrap();
    let vm = serve.wait(id, "the reason", |vm| vm["queue"]["reason"] == "host").await;
    assert_eq!(vm["state"], "queued", "{vm:#}");
    let host = serve.get("/host").await;
    let driver = &host["drivers"][0];
    assert_eq!((&driver["name"], &driver["usable"]), (&json!("qemu"), &json!(false)), "{host:#}");
    let detail = driver["fault"]["detail"].as_str().unwrap();
    assert!(detail.contains("qemu-system") && detail.contains("apt-get install"), "{detail}");

    // Several looks at the host later it was still said once.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(serve.log().matches("the driver is not usable").count(), 1, "{}", serve.log());

    for program in ["qemu-img", "qemu-system"] {
        stand_in(&bin.path().join(program), "echo QEMU emulator version 9.9.9");
    }
    serve.wait(id, "its turn", |vm| vm["state"] != "queued" || vm["attempt"].as_i64() > Some(1)).await;
    let host = serve.get("/host").await;
    assert_eq!(host["drivers"][0]["usable"], true, "{host:#}");
    assert!(serve.log().contains("the driver is usable again"), "{}", serve.log());
    serve.delete(&format!("/vms/{id}?force=true")).await;
    serve.wait_state(id, "deleted").await;
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_yet_is_found_later_with_nothing_waiting_for_it() {
    let bin = temp();
    let program = bin.path().join("qemu-system");
    let mut serve = without_qemu(bin.path()).await;
    stand_in(&bin.path().join("qemu-img"), "true");
    let until = async |usable: bool| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let host = serve.get("/host").await;
            if host["drivers"][0]["usable"] == json!(usable) {
                return host;
            }
            assert!(Instant::now() < end, "{host:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let host = until(false).await;
    says(host["drivers"][0]["fault"]["detail"].as_str().unwrap(), &[program.to_str().unwrap(), "install"]);
    stand_in(&program, "echo QEMU emulator version 9.9.9");
    let host = until(true).await;
    assert_eq!(host["drivers"][0]["version"], "QEMU emulator version 9.9.9");
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_streams_and_long_polls_at_once_and_the_rows_stay() {
    let bin = temp();
    let mut serve = without_qemu(bin.path()).await;
    template(&serve, bin.path()).await;
    let vm = serve.create(json!({"template": "t", "name": "kept"})).await;
    let id = vm["id"].as_str().unwrap().to_owned();
    let vm = serve.wait(&id, "the reason", |vm| vm["queue"]["reason"] == "host").await;

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = |path: String| client.get(format!("{}{path}", serve.url)).bearer_auth(serve.token());
    let mut stream = get("/events".into()).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let generation = &vm["generation"];
    let poll = tokio::spawn(get(format!("/vms/{id}?wait_generation={generation}&timeout_seconds=60")).send());
    // A connection that never asked for anything, and one that was used and is kept.
    let idle = std::net::TcpStream::connect(serve.url.trim_start_matches("http://")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    assert_eq!(serve.stop(), Some(0), "{}", serve.log());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?} to end: {}", serve.log());
    drop(idle);
    // Neither client was cut off: the stream has an end, the poll an answer.
    while let Some(_more) = stream.chunk().await.expect("the stream ends in order") {}
    let answer = poll.await.unwrap().expect("the long poll is answered");
    assert_eq!(answer.status(), 200);
    assert!(!serve.dir.join("mayfly.db-wal").exists(), "a clean end leaves one file");

    serve.spawn().await;
    let again = serve.get(&format!("/vms/{id}")).await;
    for field in ["name", "state", "created_at", "template"] {
        assert_eq!(again[field], vm[field], "{again:#}");
    }
    serve.delete(&format!("/vms/{id}")).await;
    serve.wait_state(&id, "deleted").await;
    assert_eq!(serve.stop(), Some(0));
}

/// Ends with the test, however that ends.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_json_log_is_json_and_sighup_ends_nothing() {
    let temp = temp();
    let log = temp.path().join("log");
    let child = Serve::command(temp.path())
        .env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0")
        .env("MAYFLY_DRIVERS__QEMU__ENABLED", "false")
        .env("MAYFLY_LOG__FORMAT", "json")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let said = async |what: &str| {
        let end = Instant::now() + WITHIN;
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.contains(what) {
                return text;
            }
            assert!(Instant::now() < end, "it does not say {what:?}:\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let pid = rustix::process::Pid::from_child(&child.0);
    said("listening on http://").await;
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    said("SIGHUP is ignored").await;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let text = said("shutting down").await;
    let mut started = None;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["message"].is_string() && line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        if line["message"] == "started" {
            started = Some(line["version"].clone());
        }
    }
    assert_eq!(started, Some(env!("CARGO_PKG_VERSION").into()), "{text}");
    let end = Instant::now() + WITHIN;
    while child.0.try_wait().unwrap().is_none() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(child.0.try_wait().unwrap().expect("it ends when it is told to").code(), Some(0));
}

/// Whoever read the log is gone: `mayfly serve 2>&1 | head`, a terminal that was closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_a_blocked_log_serves_and_ends() {
    let temp = temp();
    let child = Serve::command(temp.path())
        .env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0")
        .env("MAYFLY_DRIVERS__QEMU__ENABLED", "false")
        .env("MAYFLY_LOG__LEVEL", "debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut lines = std::io::BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines
        .find_map(|line| Some(line.split_once("listening on http://")?.1.split_whitespace().next()?.to_owned()))
        .expect("it says where it listens");
    drop(lines);
    let client = reqwest::Client::builder().no_proxy().timeout(WITHIN).build().unwrap();
    let token = std::fs::read_to_string(temp.path().join("admin.token")).unwrap();
    for _ in 0..3 {
        let got = client.get(format!("http://{address}/vms")).bearer_auth(token.trim()).send().await;
        assert_eq!(got.expect("it answers").status(), 200);
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child.0), rustix::process::Signal::TERM).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while child.0.try_wait().unwrap().is_none() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = child.0.try_wait().unwrap();
    assert_eq!(ended.expect("it ends when it is told to").code(), Some(0));
}

/// The first look at a host may boot a guest and take a minute.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_the_first_look_at_the_host() {
    let bin = temp();
    let program = bin.path().join("qemu");
    stand_in(&program, "exec sleep 8");
    let mut serve = Serve::start(&[
        ("MAYFLY_DRIVERS__QEMU__BINARY", program.to_str().unwrap()),
        ("MAYFLY_DRIVERS__QEMU__QEMU_IMG", "/bin/true"),
    ])
    .await;
    assert_eq!(serve.get("/host").await["observed"], json!(false));
    let began = Instant::now();
    assert_eq!(serve.stop(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?} to end", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_service_makes_is_for_its_own_user() {
    let bin = temp();
    let program = bin.path().join("qemu");
    stand_in(&program, "echo QEMU emulator version 9.9.9");
    let mut serve = Serve::start(&[
        ("MAYFLY_DRIVERS__QEMU__BINARY", program.to_str().unwrap()),
        ("MAYFLY_DRIVERS__QEMU__QEMU_IMG", "/bin/true"),
        // With a probe that is remembered.
        ("MAYFLY_DRIVERS__QEMU__ACCELERATOR", "auto"),
    ])
    .await;
    template(&serve, bin.path()).await;
    let end = Instant::now() + WITHIN;
    while !serve.dir.join("qemu-probe.json").exists() {
        assert!(Instant::now() < end, "{}", serve.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = Vec::new();
    let mut todo = vec![serve.dir.clone()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let (kind, bits) = (meta.file_type(), meta.permissions().mode() & 0o777);
        let name = path.strip_prefix(&serve.dir).unwrap().to_owned();
        if name.starts_with("templates") && bits == 0o444 {
            // A template's files are nobody's to change, and those around them nobody else's to enter.
            continue;
        }
        assert_eq!(bits & 0o077, 0, "{} has mode {bits:04o}", path.display());
        if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if kind.is_socket() {
            assert_eq!(bits, 0o600, "{}", path.display());
        }
        seen.push(name.display().to_string());
    }
    for name in [
        "mayfly.db",
        "mayfly.db-wal",
        "secret.key",
        "admin.token",
        "qemu-probe.json",
        "admin.sock",
        "guest.sock",
        "serve.lock",
    ] {
        assert!(seen.iter().any(|s| s == name), "{name} is not among {seen:?}");
    }
    assert_eq!(serve.stop(), Some(0));
}
