//! What becomes of promises when the database's disk or files fail while the service runs. A write is acknowledged only when it
//! will be there after the next start, and what failed for a while goes on by itself.

use std::{
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, Executor, sqlite::SqliteConnectOptions};

use crate::support::{
    Serve,
    proxy::{Fault, Proxy, Rule},
    registry::Registry,
    small_disk::{empty, small_disk},
    tart_image::{Content, Encoding, TartImage},
};

const WITHIN: Duration = Duration::from_secs(20);

/// Guests that exist in memory only: what is tried here is the service.
const FAKE: &[(&str, &str)] = &[
    ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
    ("MAYFLY_DRIVERS__FAKE__ENABLED", "true"),
    ("MAYFLY_TEMPLATES__MIN_FREE_BYTES", "0"),
    ("MAYFLY_DATABASE__RESERVE_BYTES", "0"),
];

/// The same, and disk space is kept for the database.
const WITH_RESERVE: &[(&str, &str)] = &[
    ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
    ("MAYFLY_DRIVERS__FAKE__ENABLED", "true"),
    ("MAYFLY_TEMPLATES__MIN_FREE_BYTES", "0"),
    ("MAYFLY_DATABASE__RESERVE_BYTES", "16777216"),
];

async fn template(serve: &Serve) {
    let (status, body) = serve.post("/templates", named_template(serve, "t", 1)).await;
    assert_eq!(status, 201, "{body}");
}

fn named_template(serve: &Serve, name: &str, content: u8) -> Value {
    let disk = serve.dir.join(format!("{name}.raw"));
    std::fs::write(&disk, vec![content; 64 * 1024]).unwrap();
    json!({
        "name": name, "os": "linux", "disk": disk, "driver": "fake", "cpus": 1, "memory_mib": 64, "handover": "seed",
    })
}

fn job() -> Value {
    json!({"template": "t", "runner": {"kind": "command", "command": "true"}})
}

/// Leaves nothing free, whoever else writes meanwhile.
fn fill_up(disk: &Path) {
    fill(&disk.join("filler"));
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let error = loop {
            if let Err(error) = file.write_all(&vec![1; size]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
}

/// A vm whose guest is simulated by the test.
struct Guest {
    id: String,
    token: String,
}

impl Guest {
    async fn boots(serve: &Serve) -> Guest {
        Self::made(serve, job()).await
    }

    async fn made(serve: &Serve, asked: Value) -> Guest {
        let vm = serve.create(asked).await;
        let text = |key: &str| vm[key].as_str().unwrap().to_owned();
        let guest = Guest { id: text("id"), token: text("callback_token") };
        serve.wait_state(&guest.id, "booting").await;
        guest
    }

    async fn tells(&self, serve: &Serve, event: Value) -> (u16, Value) {
        let path = format!("/vms/{}/events", self.id);
        serve.send_as(&self.token, Method::POST, &path, Some(event)).await
    }
}

/// The service's answer to a probe, once it is this one.
async fn readiness(serve: &Serve, wanted: u16) -> Value {
    let end = Instant::now() + WITHIN;
    loop {
        let (status, body) = serve.send(Method::GET, "/readyz", None).await;
        if status == wanted {
            return body;
        }
        assert!(Instant::now() < end, "still {status}: {body}\n{}", serve.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[track_caller]
fn refused(answer: &(u16, Value), code: &str, words: &[&str]) {
    let (status, body) = answer;
    assert_eq!((*status, &body["code"], &body["retryable"]), (503, &json!(code), &json!(true)), "{body}");
    for word in words {
        assert!(body["detail"].as_str().unwrap().contains(word), "{word:?} is missing: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_disk_was_full_everything_goes_on_without_a_restart() {
    let Some(disk) = small_disk(module_path!(), "after_the_disk_was_full_everything_goes_on_without_a_restart", 48)
    else {
        return;
    };
    let mut serve = Serve::start_in(&disk, FAKE).await;
    template(&serve).await;
    let (reports, ended) = (Guest::boots(&serve).await, Guest::boots(&serve).await);
    readiness(&serve, 200).await;

    fill_up(&disk);
    let answer = until_full(&serve).await;
    refused(&answer, "store.unavailable", &["mayfly.db", "full", "free disk space"]);
    refused(&serve.post("/vms", job()).await, "store.unavailable", &["full"]);
    refused(&reports.tells(&serve, json!({"type": "guest_ready"})).await, "store.unavailable", &["full"]);
    let path = format!("/vms/{}?force=true", ended.id);
    refused(&serve.delete(&path).await, "store.unavailable", &["full"]);
    assert_eq!(readiness(&serve, 503).await["code"], "store.unavailable");
    // Reading goes on.
    assert_eq!(serve.get(&format!("/vms/{}", reports.id)).await["state"], "booting");

    empty(&disk);
    let (status, body) = serve.post("/vms", job()).await;
    assert_eq!(status, 201, "the first request after there was room: {body}\n{}", serve.log());
    let id = body["id"].as_str().unwrap().to_owned();
    assert_eq!(reports.tells(&serve, json!({"type": "guest_ready"})).await.0, 202);
    assert_eq!(reports.tells(&serve, json!({"type": "guest_configured"})).await.0, 202);
    serve.wait_state(&reports.id, "running").await;
    assert_eq!(serve.delete(&path).await.0, 202);
    serve.wait_state(&ended.id, "deleted").await;
    assert_eq!(reports.tells(&serve, json!({"type": "runner_finished", "exit_code": 0})).await.0, 202);
    serve.wait_state(&reports.id, "deleted").await;
    readiness(&serve, 200).await;

    // Every vm that was promised goes through its life: none is stuck in the state that it was in.
    let mut live: Vec<_> = serve.get("/vms?limit=200").await["items"].as_array().unwrap().clone();
    assert!(live.iter().any(|vm| vm["id"] == id.as_str()));
    live.reverse();
    for vm in live {
        let id = vm["id"].as_str().unwrap();
        assert_eq!(serve.delete(&format!("/vms/{id}?force=true")).await.0, 202);
        serve.wait_state(id, "deleted").await;
    }
    assert_eq!(serve.stop(), Some(0));
}

/// Nobody asks for anything meanwhile, neither a caller nor a guest nor a probe.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_disk_was_full_the_service_finds_by_itself_that_it_can_write() {
    let test = "after_the_disk_was_full_the_service_finds_by_itself_that_it_can_write";
    let Some(disk) = small_disk(module_path!(), test, 48) else { return };
    let mut serve = Serve::start_in(&disk, FAKE).await;
    template(&serve).await;
    fill_up(&disk);
    until_full(&serve).await;
    let again = "the database is writable again";
    assert!(!serve.log().contains(again), "{}", serve.log());
    empty(&disk);
    let end = Instant::now() + WITHIN;
    while !serve.log().contains(again) {
        assert!(Instant::now() < end, "{}", serve.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(serve.stop(), Some(0));
}

/// Writes until nothing more fits on the disk, small things last: what was once allocated to the log is written to again. The
/// refusal of the first vm.
async fn until_full(serve: &Serve) -> (u16, Value) {
    let mut refusals = Vec::new();
    for path in ["/vms", "/tokens"] {
        for n in 0.. {
            let body = if path == "/vms" { job() } else { json!({"name": format!("t{n}"), "scope": "read"}) };
            let answer = serve.post(path, body).await;
            if answer.0 != 201 {
                refusals.push(answer);
                break;
            }
            assert!(n < 300, "the disk did not fill\n{}", serve.log());
        }
    }
    refusals.swap_remove(0)
}

/// The guest did all that it had to do, and could not say so: that is no reason to give it up.
#[tokio::test(flavor = "multi_thread")]
async fn no_budget_is_spent_while_nothing_can_be_written() {
    let Some(disk) = small_disk(module_path!(), "no_budget_is_spent_while_nothing_can_be_written", 48) else { return };
    let mut serve = Serve::start_in(&disk, FAKE).await;
    template(&serve).await;
    let mut asked = job();
    asked["budgets"] = json!({"boot_seconds": 12});
    let guest = Guest::made(&serve, asked).await;
    let booting = Instant::now();
    fill_up(&disk);
    until_full(&serve).await;
    assert!(booting.elapsed() < Duration::from_secs(10), "this machine is too slow for this test");
    while booting.elapsed() < Duration::from_secs(14) {
        refused(&guest.tells(&serve, json!({"type": "guest_ready"})).await, "store.unavailable", &["full"]);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    empty(&disk);
    readiness(&serve, 200).await;
    assert_eq!(guest.tells(&serve, json!({"type": "guest_ready"})).await.0, 202);
    let vm = serve.wait(&guest.id, "its guest is heard", |vm| vm["state"] != "booting").await;
    assert_eq!((&vm["state"], &vm["attempt"]), (&json!("configuring"), &json!(1)), "{vm:#}");
    assert_eq!(serve.stop(), Some(0));
}

/// What frees space, and what ends, does not need space that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_vms_end_and_pulls_and_templates_are_removed() {
    let test = "on_a_full_disk_vms_end_and_pulls_and_templates_are_removed";
    let Some(disk) = small_disk(module_path!(), test, 160) else { return };
    let registry = Registry::open().await;
    let image = TartImage::new(&[Content::Noise(1, 1 << 18), Content::Noise(2, 1 << 20)], Encoding::Linked);
    image.push(&registry, "ci/base", "v1").await;
    let proxy = Proxy::before(&registry).start().await;
    proxy.on(Rule::get(&format!("*{}", image.chunk(1).digest()), Fault::Hold { after: 300_000 }).first());
    let ca_file = registry.authority.file().display().to_string();
    let settings = [WITH_RESERVE, &[("MAYFLY_REGISTRY__CA_FILE", &*ca_file)]].concat();
    let mut serve = Serve::start_in(&disk, &settings).await;
    template(&serve).await;
    let kept = disk.join("database.reserve");
    let reserve = || kept.metadata().unwrap().len();
    assert_eq!(reserve(), 16 << 20);
    let guests = [Guest::boots(&serve).await, Guest::boots(&serve).await];
    let body = json!({"name": "base", "image": format!("{}/ci/base:v1", proxy.address())});
    let (status, pull) = serve.post("/templates", body.clone()).await;
    assert_eq!(status, 202, "{pull}");
    proxy.until("the chunk is held", |all| all.iter().any(|seen| seen.sent == 300_000)).await;
    let (status, unused) = serve.post("/templates", named_template(&serve, "unused", 2)).await;
    assert_eq!(status, 201, "{unused}");

    fill_up(&disk);
    refused(&serve.post("/vms", job()).await, "store.unavailable", &["mayfly.db", "full", "free disk space"]);
    fill_up_more(&disk);
    assert!(reserve() < 16 << 20, "nothing was given up");
    let (status, problem) = serve.post("/templates", json!({"name": "x", "image": body["image"]})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("store.unavailable")), "{problem}");

    // Each at the first try.
    let path = format!("/vms/{}?force=true", guests[0].id);
    let (status, vm) = serve.delete(&path).await;
    assert_eq!(status, 202, "{vm}");
    serve.wait_state(&guests[0].id, "deleted").await;
    assert_eq!(guests[1].tells(&serve, json!({"type": "guest_ready"})).await.0, 202);
    assert_eq!(guests[1].tells(&serve, json!({"type": "guest_configured"})).await.0, 202);
    assert_eq!(guests[1].tells(&serve, json!({"type": "runner_finished", "exit_code": 0})).await.0, 202);
    serve.wait_state(&guests[1].id, "deleted").await;
    let staging = disk.join("templates/staging");
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 1);
    let (status, cancelled) = serve.delete(&format!("/pulls/{}?discard=true", pull["id"].as_str().unwrap())).await;
    assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")), "{cancelled}");
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);
    assert_eq!(serve.delete("/templates/unused").await.0, 204);
    let (status, pruned) = serve.post("/templates/prune", json!({"older_than_seconds": 0})).await;
    assert_eq!(status, 200, "{pruned}");
    // Reading goes on; new work is refused, and readiness says so.
    assert_eq!(serve.get(&format!("/vms/{}", guests[0].id)).await["state"], "deleted");
    refused(&serve.post("/vms", job()).await, "store.unavailable", &["full"]);
    assert_eq!(readiness(&serve, 503).await["code"], "store.unavailable");

    // By itself, once there is space.
    empty(&disk);
    std::fs::remove_file(disk.join("filler-2")).unwrap();
    readiness(&serve, 200).await;
    assert_eq!(reserve(), 16 << 20);
    let made = serve.create(job()).await;
    serve.wait_state(made["id"].as_str().unwrap(), "booting").await;
    assert_eq!(serve.stop(), Some(0));
}

/// The disk is full when the service starts: it starts, with what the last one kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_starts_on_a_full_disk_ends_its_vms() {
    let test = "a_service_that_starts_on_a_full_disk_ends_its_vms";
    let Some(disk) = small_disk(module_path!(), test, 64) else { return };
    let mut serve = Serve::start_in(&disk, WITH_RESERVE).await;
    template(&serve).await;
    let guest = Guest::boots(&serve).await;
    serve.kill();
    fill_up(&disk);
    serve.spawn().await;
    let (status, vm) = serve.delete(&format!("/vms/{}?force=true", guest.id)).await;
    // 200: the service has found by itself that the guest is gone, because guests of this driver end with the process.
    assert!(matches!(status, 200 | 202), "{status} {vm}");
    serve.wait_state(&guest.id, "deleted").await;
    refused(&serve.post("/vms", job()).await, "store.unavailable", &["full"]);
    empty(&disk);
    readiness(&serve, 200).await;
    serve.create(job()).await;
    assert_eq!(serve.stop(), Some(0));
}

/// Takes what was given up since.
fn fill_up_more(disk: &Path) {
    fill(&disk.join("filler-2"));
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_at_its_place_any_more_takes_no_promises() {
    type Case = (&'static str, fn(&Path));
    let cases: [Case; 5] = [
        ("removed", |db| std::fs::remove_file(db).unwrap()),
        ("removed with all that belongs to it", |db| {
            for suffix in ["", "-wal", "-shm"] {
                std::fs::remove_file(beside(db, suffix)).unwrap();
            }
        }),
        ("its log removed", |db| std::fs::remove_file(beside(db, "-wal")).unwrap()),
        ("replaced by a copy", |db| {
            let copy = beside(db, ".copy");
            std::fs::copy(db, &copy).unwrap();
            std::fs::rename(copy, db).unwrap();
        }),
        ("replaced by another database", |db| {
            std::fs::remove_file(db).unwrap();
            std::fs::write(db, b"").unwrap();
        }),
    ];
    for (what, change) in cases {
        let mut serve = Serve::start(FAKE).await;
        template(&serve).await;
        let guest = Guest::boots(&serve).await;
        readiness(&serve, 200).await;

        change(&serve.dir.join("mayfly.db"));
        let answer = serve.post("/vms", job()).await;
        refused(&answer, "store.damaged", &["mayfly.db", "while the service was running", "start it again"]);
        assert!(!answer.1["detail"].as_str().unwrap().contains(serve.dir.to_str().unwrap()), "{what}: {}", answer.1);
        refused(&guest.tells(&serve, json!({"type": "guest_ready"})).await, "store.damaged", &[]);
        refused(&serve.delete(&format!("/vms/{}", guest.id)).await, "store.damaged", &[]);
        assert_eq!(readiness(&serve, 503).await["code"], "store.damaged", "{what}");
        assert_eq!(serve.send(Method::GET, "/healthz", None).await.0, 200);
        // What is known can still be read, and the guest is left alone.
        assert_eq!(serve.get(&format!("/vms/{}", guest.id)).await["state"], "booting", "{what}");
        let log = serve.log();
        let said = log.lines().filter(|line| line.contains("ERROR") && line.contains("accepts no requests that write"));
        assert_eq!(said.count(), 1, "{what}: {log}");
        assert!(log.contains(serve.dir.join("mayfly.db").to_str().unwrap()), "{what}: the log names the whole path");
        assert_eq!(serve.stop(), Some(0), "{what}");
    }
}

/// The log alone is lost: what was promised is brought into the database while it still can be.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_promised_before_the_log_was_removed_is_there_after_a_kill() {
    let mut serve = Serve::start(FAKE).await;
    template(&serve).await;
    let guest = Guest::boots(&serve).await;
    let queued = serve.create(job()).await["id"].as_str().unwrap().to_owned();
    std::fs::remove_file(serve.dir.join("mayfly.db-wal")).unwrap();
    readiness(&serve, 503).await;
    serve.kill();
    serve.spawn().await;
    for id in [&guest.id, &queued] {
        assert_eq!(serve.get(&format!("/vms/{id}")).await["id"], id.as_str());
    }
    readiness(&serve, 200).await;
    serve.create(job()).await;
    assert_eq!(serve.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_overwritten_while_it_is_used_takes_no_promises() {
    for (what, from_page) in [("from its first page", 0), ("but for its first page", 1)] {
        let mut serve = Serve::start(FAKE).await;
        template(&serve).await;
        Guest::boots(&serve).await;
        // In the log are the newer versions of some pages. Once they are in the file, nothing hides what lies there.
        assert_eq!(serve.stop(), Some(0));
        serve.spawn().await;
        readiness(&serve, 200).await;

        let path = serve.dir.join("mayfly.db");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let pages = file.metadata().unwrap().len() / 4096;
        assert!(pages > 20, "{pages}");
        file.write_all_at(&vec![0xa5; usize::try_from((pages - from_page) * 4096).unwrap()], from_page * 4096).unwrap();
        drop(file);
        refused(&serve.post("/vms", job()).await, "store.damaged", &["mayfly.db", "damaged", "restore a backup"]);
        // It stays so, whatever pages a request happens to need.
        for _ in 0..5 {
            refused(&serve.post("/vms", job()).await, "store.damaged", &["damaged"]);
        }
        assert_eq!(readiness(&serve, 503).await["code"], "store.damaged", "{what}");
        let damaged = std::fs::read(&path).unwrap();
        assert_eq!(serve.stop(), Some(0));
        assert!(std::fs::read(&path).unwrap() == damaged, "{what}: the end of the service wrote into the damaged file");
        let said = not_started(&serve.dir);
        assert!(said.contains("mayfly.db") && said.contains("restore a backup"), "{what}: {said}");
    }
}

/// Without a request that could meet it, a probe finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_that_the_database_was_cut_short() {
    let mut serve = Serve::start(FAKE).await;
    readiness(&serve, 200).await;
    let file = std::fs::OpenOptions::new().write(true).open(serve.dir.join("mayfly.db")).unwrap();
    file.set_len(3 * 4096).unwrap();
    drop(file);
    assert_eq!(readiness(&serve, 503).await["code"], "store.damaged");
    refused(&serve.post("/tokens", json!({"name": "x", "scope": "read"})).await, "store.damaged", &["mayfly.db"]);
    assert_eq!(serve.stop(), Some(0));
}

/// RunnerArchives that write to the database as SQLite does are no damage.
#[tokio::test(flavor = "multi_thread")]
async fn another_program_may_write_to_the_database_as_long_as_it_is_sound() {
    let mut serve = Serve::start(FAKE).await;
    template(&serve).await;
    let first = serve.create(job()).await;
    let mut other = SqliteConnectOptions::new().filename(serve.dir.join("mayfly.db")).connect().await.unwrap();
    other.execute("CREATE TABLE notes (n INTEGER)").await.unwrap();
    other.execute("INSERT INTO notes VALUES (1)").await.unwrap();
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    let second = serve.create(job()).await;
    readiness(&serve, 200).await;
    other.close().await.unwrap();
    assert!(serve.log().contains("another program has written to the database"), "{}", serve.log());
    serve.kill();
    serve.spawn().await;
    for vm in [first, second] {
        assert_eq!(serve.get(&format!("/vms/{}", vm["id"].as_str().unwrap())).await["id"], vm["id"]);
    }
    assert_eq!(serve.stop(), Some(0));
}

/// `serve` that must not start: what it says.
fn not_started(dir: &Path) -> String {
    let mut child = Serve::command(dir)
        .envs(FAKE.iter().copied())
        .env("MAYFLY_SERVER__LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + WITHIN;
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Does nothing to one that has ended.
    let _ = child.kill();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(2), "{said}");
    said
}

/// An index that does not agree with its table: every page can be read, so a look at the pages does not find it.
async fn forge_index(path: &Path) {
    let mut db = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let (name, sql): (String, String) = sqlx::query_as(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'vms' AND sql LIKE '%(name)%'",
    )
    .fetch_one(&mut db)
    .await
    .unwrap();
    db.execute("PRAGMA writable_schema = ON").await.unwrap();
    sqlx::query("UPDATE sqlite_schema SET sql = ? WHERE name = ?")
        .bind(sql.replace("(name)", "(template)"))
        .bind(&name)
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_end_that_was_not_orderly_all_of_the_database_is_checked() {
    let mut serve = Serve::start(FAKE).await;
    template(&serve).await;
    serve.create(job()).await;
    let path = serve.dir.join("mayfly.db");
    serve.kill();
    forge_index(&path).await;
    let said = not_started(&serve.dir);
    for word in [path.to_str().unwrap(), "missing from index", "not a usable database", "restore a backup"] {
        assert!(said.contains(word), "{word:?} is missing: {said}");
    }
    // A refusal leaves the files to whoever mends them.
    let files = ["", "-wal"].map(|suffix| std::fs::read(beside(&path, suffix)).ok());
    not_started(&serve.dir);
    assert!(["", "-wal"].map(|suffix| std::fs::read(beside(&path, suffix)).ok()) == files);
}

/// After an orderly end the pages are looked at and not every index: a start stays quick.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_orderly_end_the_pages_are_checked() {
    let mut serve = Serve::start(FAKE).await;
    template(&serve).await;
    serve.create(job()).await;
    assert_eq!(serve.stop(), Some(0));
    assert!(!serve.dir.join("mayfly.db-wal").exists());
    let before = serve.log().matches("not closed cleanly").count();
    serve.spawn().await;
    assert_eq!(serve.log().matches("not closed cleanly").count(), before, "{}", serve.log());
    serve.kill();
    serve.spawn().await;
    assert_eq!(serve.log().matches("not closed cleanly").count(), before + 1, "{}", serve.log());
    assert_eq!(serve.stop(), Some(0));
}
