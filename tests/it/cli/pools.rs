//! Pools and GitHub's runners on the command line.

use axum::http::Method;
use serde_json::{Value, json};

use super::{
    Mayfly,
    double::{Double, ID, vm},
    run,
};

fn pool(more: Value) -> Value {
    let mut pool = json!({
        "name": "macos", "source": "api", "template": "macos-tahoe", "scope": "acme",
        "labels": ["self-hosted", "macos"], "group": null, "repositories": [], "max_vms": 2, "warm": 0,
        "cpus": null, "memory_mib": null, "network": null, "budgets": {"idle_seconds": null, "lifetime_seconds": null},
        "enabled": true, "vms": {"queued": 1, "live": 2}, "jobs_waiting": 5, "last_error": null,
        "created_at": "2026-11-20T10:00:00Z", "updated_at": "2026-11-20T10:00:00Z",
    });
    for (key, value) in more.as_object().expect("an object") {
        pool[key] = value.clone();
    }
    pool
}

async fn both() -> (Double, Mayfly) {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    (double, mayfly)
}

#[tokio::test]
async fn a_pool_is_set_with_what_was_given_and_nothing_else() {
    let (double, mayfly) = both().await;
    double.on("PUT /pools/macos", 201, pool(json!({})));
    let least = ["pool", "set", "macos", "-t", "macos-tahoe", "--scope", "acme", "--runner-label", "macos"];
    let ran = mayfly.run(&least).await.ends(0);
    assert_eq!(ran.out, "macos  takes jobs of acme that ask for self-hosted, macos\n");
    assert_eq!(double.last().method, Method::PUT);
    assert_eq!(double.last().body, json!({"template": "macos-tahoe", "scope": "acme", "labels": ["macos"]}));

    let mut all = least.to_vec();
    all.extend(["--runner-label", "self-hosted", "--group", "builders", "--repository", "acme/app"]);
    all.extend([
        "--repository",
        "acme/lib",
        "--max-vms",
        "2",
        "--cpus",
        "4",
        "--memory-mib",
        "8192",
        "--network",
        "host",
    ]);
    all.extend(["--budget", "lifetime_seconds=2h", "--disabled", "--json"]);
    let ran = mayfly.run(&all).await.ends(0);
    assert_eq!(ran.json()["name"], "macos");
    let body = json!({
        "template": "macos-tahoe", "scope": "acme", "labels": ["macos", "self-hosted"], "group": "builders",
        "repositories": ["acme/app", "acme/lib"], "max_vms": 2, "cpus": 4, "memory_mib": 8192, "network": "host",
        "budgets": {"lifetime_seconds": 7200}, "enabled": false,
    });
    assert_eq!(double.last().body, body);

    let asked = double.asked().len();
    for wrong in [
        &["pool", "set", "macos", "-t", "x", "--scope", "acme"][..],
        &["pool", "set", "macos", "--scope", "acme", "--runner-label", "x"],
        &["pool", "set", "macos", "-t", "x", "--scope", "a/b/c", "--runner-label", "x"],
        &["pool", "set", "macos", "-t", "x", "--scope", "acme", "--runner-label", "x", "--max-vms", "0"],
        &["pool", "set", "macos", "-t", "x", "--scope", "acme", "--runner-label", "x", "--budget", "luck=1"],
        &["pool", "set", "macos", "-t", "x", "--scope", "acme", "--runner-label", "x", "--network", "lan"],
    ] {
        mayfly.run(wrong).await.ends(2);
    }
    assert_eq!(double.asked().len(), asked);
}

#[tokio::test]
async fn a_pool_is_disabled_and_enabled_with_its_other_settings_kept() {
    let (double, mayfly) = both().await;
    // `later` is a setting that this command line does not know.
    let there = pool(json!({"cpus": 4, "repositories": ["acme/app"], "later": {"a": 1}}));
    double.on("GET /pools/macos", 200, there);
    for (verb, enabled, said) in [
        ("disable", false, "macos  is disabled, and would take jobs of acme that ask for self-hosted, macos\n"),
        ("enable", true, "macos  takes jobs of acme that ask for self-hosted, macos\n"),
    ] {
        double.on("PUT /pools/macos", 200, pool(json!({"enabled": enabled})));
        assert_eq!(mayfly.run(&["pool", verb, "macos"]).await.ends(0).out, said);
        let body = json!({
            "template": "macos-tahoe", "scope": "acme", "labels": ["self-hosted", "macos"], "group": null,
            "repositories": ["acme/app"], "max_vms": 2, "warm": 0, "cpus": 4, "memory_mib": null, "network": null,
            "budgets": {"idle_seconds": null, "lifetime_seconds": null}, "enabled": enabled, "later": {"a": 1},
        });
        assert_eq!((double.last().method, double.last().body), (Method::PUT, body));
    }
    double.problem("GET /pools/linux", 404, "pool.not_found", "there is no pool linux");
    assert!(mayfly.run(&["pool", "disable", "linux"]).await.ends(1).err.contains("there is no pool linux"));
}

#[tokio::test]
async fn pools_are_listed_shown_and_removed() {
    let (double, mayfly) = both().await;
    double.on("GET /pools", 200, json!({"items": []}));
    let ran = mayfly.run(&["pool", "list"]).await.ends(0);
    assert!(ran.out.is_empty() && ran.err.contains("mayfly pool set"), "{}", ran.err);
    let error = json!({"code": "template.unknown", "detail": "no template is called x", "at": "2026-11-20T10:00:00Z"});
    let full = pool(json!({
        "name": "linux", "source": "config", "cpus": 4, "network": "internet", "group": "builders", "repositories": ["acme/app"],
        "budgets": {"lifetime_seconds": 7200, "idle_seconds": null}, "last_error": error,
    }));
    let off = pool(json!({"name": "old", "enabled": false}));
    double.on("GET /pools", 200, json!({"items": [full, off, pool(json!({}))]}));
    let ran = mayfly.run(&["pool", "ls"]).await.ends(0);
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "TEMPLATE", "SCOPE", "VMS", "WAITING", "REMARK"]);
    assert_eq!(rows[1], ["linux", "macos-tahoe", "acme", "2/2", "5", "template.unknown"]);
    assert_eq!(rows[2].last(), Some(&"disabled"));
    assert_eq!(rows[3], ["macos", "macos-tahoe", "acme", "2/2", "5"]);
    assert_eq!(mayfly.run(&["pool", "list", "--json"]).await.ends(0).json()["items"][1]["name"], "old");

    double.on("GET /pools/linux", 200, full);
    let ran = mayfly.run(&["pool", "show", "linux"]).await.ends(0);
    for line in [
        "set by        mayfly.toml; it is changed there",
        "size          4 cores",
        "network       internet",
        "group         builders",
        "vms           2 live, 1 of them queued; at most 2",
        "jobs waiting  5",
        "budgets       lifetime_seconds=7200",
        "last error    template.unknown: no template is called x",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {}", ran.out);
    }
    double.on("DELETE /pools/linux", 204, json!(null));
    assert_eq!(mayfly.run(&["pool", "rm", "linux"]).await.ends(0).out, "linux  removed\n");
    double.problem("DELETE /pools/linux", 409, "pool.read_only", "the pool linux is set in mayfly.toml");
    let ran = mayfly.run(&["pool", "remove", "linux"]).await.ends(1);
    assert!(ran.err.contains("pool.read_only") && ran.err.contains("restart the service"), "{}", ran.err);
}

#[tokio::test]
async fn a_github_runner_is_requested_and_its_secret_is_in_no_argument() {
    let (double, mayfly) = both().await;
    double.on("POST /vms", 201, vm(1, &[("queued", "2026-11-20T10:00:00Z")], json!({})));
    let least = ["vm", "create", "-t", "macos", "--github-scope", "acme/app", "--runner-label", "macos"];
    mayfly.run(&least).await.ends(0);
    let runner = json!({"kind": "github", "scope": "acme/app", "labels": ["macos"], "env": {}});
    assert_eq!(double.last().body["runner"], runner);

    mayfly.write("jit", "aGVsbG8=\n");
    let mut with = least.to_vec();
    with.extend(["--runner-label", "arm64", "--group", "builders", "--jit-config-file", "jit"]);
    mayfly.run(&with).await.ends(0);
    let runner = json!({"kind": "github", "scope": "acme/app", "labels": ["macos", "arm64"], "env": {},
                        "group": "builders", "jit_config": "aGVsbG8="});
    assert_eq!(double.last().body["runner"], runner);

    let mut piped = least.to_vec();
    piped.extend(["--registration-token-file", "-"]);
    let file = std::fs::File::open(mayfly.write("token", "AAATOKEN\n")).unwrap();
    run(mayfly.command(&piped).stdin(file)).await.ends(0);
    assert_eq!(double.last().body["runner"]["registration_token"], "AAATOKEN");

    let asked = double.asked().len();
    mayfly.write("empty", "\n");
    for more in [
        &["--jit-config-file", "empty"][..],
        &["--jit-config-file", "missing"],
        &["--jit-config-file", "jit", "--registration-token-file", "token"],
        &["--none"],
        &["--url", "http://192.0.2.1:8470", "--jit-config-file", "jit"],
    ] {
        let args = [&least[..], more].concat();
        let ran = mayfly.run(&args).await.ends(2);
        assert!(!ran.err.contains("aGVsbG8"), "{}", ran.err);
    }
    for args in [
        &["vm", "create", "-t", "macos", "--github-scope", "acme/app"][..],
        &["vm", "create", "-t", "macos", "--none", "--runner-label", "x"],
        &["vm", "create", "-t", "macos", "--command", "x", "--jit-config-file", "jit"],
        &["vm", "create", "-t", "macos", "--github-scope", "a/b/c", "--runner-label", "x"],
    ] {
        mayfly.run(args).await.ends(2);
    }
    assert_eq!(double.asked().len(), asked);
}

#[tokio::test]
async fn a_vm_tells_of_its_runner_and_its_jobs() {
    let (double, mayfly) = both().await;
    let github = json!({"scope": "acme/app", "labels": ["self-hosted", "macos"], "group": null,
                        "registration": "managed", "name": "mayfly-019aa6d2-1", "id": 8123});
    let job = json!({"id": 9001, "repository": "acme/app", "run_id": 7001, "run_attempt": 2, "name": "build",
                     "workflow": "ci", "status": "in_progress", "url": "https://github.com/acme/app/actions/runs/7001"});
    let mut record = vm(
        3,
        &[("queued", "2026-11-20T10:00:00Z"), ("running", "2026-11-20T10:00:09Z")],
        json!({"pool": "macos", "runner": {"kind": "github", "status": "busy", "github": github},
               "jobs": [job], "paused_since": "2026-11-20T10:01:00Z"}),
    );
    double.on(&format!("GET /vms/{ID}"), 200, record.clone());
    let ran = mayfly.run(&["vm", "show", ID]).await.ends(0);
    for line in [
        "runner         github, busy",
        "registers at   acme/app",
        "runner labels  self-hosted, macos",
        "runner name    mayfly-019aa6d2-1 (number 8123)",
        "pool           macos",
        "job            ci / build: in progress",
        "               acme/app, run 7001 attempt 2, job 9001",
        "               https://github.com/acme/app/actions/runs/7001",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {}", ran.out);
    }
    assert!(ran.out.contains("server away    since 2026-11-20 10:01:00Z"), "{}", ran.out);
    record["runner"]["github"]["registration"] = json!("jit_config");
    double.on(&format!("GET /vms/{ID}"), 200, record);
    let ran = mayfly.run(&["vm", "show", ID]).await.ends(0);
    assert!(ran.out.contains("acme/app, with a just-in-time configuration of the caller's"), "{}", ran.out);

    double.on("GET /vms", 200, json!({"items": [], "next_cursor": null}));
    mayfly.run(&["vm", "list", "--job", "9001", "--pool", "macos"]).await.ends(0);
    assert_eq!(double.last().query, "pool=macos&job_id=9001&limit=200");
    mayfly.run(&["vm", "list", "--job", "0193a6d2-0000-4000-8000-000000000001"]).await.ends(0);
    assert_eq!(double.last().query, "job_id=0193a6d2-0000-4000-8000-000000000001&limit=200");
}

#[tokio::test]
async fn events_of_github_are_shown_in_words() {
    let (double, mayfly) = both().await;
    let event = |seq: u32, kind: &str, more: Value| {
        let mut event = json!({"seq": seq, "vm_id": ID, "vm_name": "build-7", "generation": seq,
                               "at": "2026-11-20T10:00:00Z", "state": "configuring", "type": kind});
        for (key, value) in more.as_object().expect("an object") {
            event[key] = value.clone();
        }
        event
    };
    let job = |status: &str, conclusion: Value| json!({"job": {"id": 29679449526_u64, "status": status, "conclusion": conclusion}});
    let items = [
        event(1, "runner_registered", json!({"runner": {"runner_id": 8123, "name": "mayfly-019aa6d2a1-1"}})),
        event(2, "job_changed", job("in_progress", json!(null))),
        event(3, "job_changed", job("completed", json!("cancelled"))),
        event(4, "budgets_paused", json!({})),
        event(5, "budgets_resumed", json!({})),
        event(6, "drain_extended", json!({"until": "2026-11-20T10:05:00Z"})),
    ];
    double.on(&format!("GET /vms/{ID}/events"), 200, json!({"items": items, "next_after": null}));
    let ran = mayfly.run(&["vm", "events", ID]).await.ends(0);
    let told: Vec<&str> = ran.out.lines().collect();
    for (line, words) in told.iter().zip([
        "runner_registered  as mayfly-019aa6d2a1-1",
        "job_changed  29679449526 in progress",
        "job_changed  29679449526 completed, cancelled",
        "budgets_paused  GitHub does not answer",
        "budgets_resumed  GitHub answers again",
        "drain_extended  at work, until 10:05:00Z",
    ]) {
        assert!(line.ends_with(words), "{line}");
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert_eq!(told.len(), 6);
}
