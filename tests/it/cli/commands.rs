//! Requests, answers, errors, and where secrets do not go.

use axum::http::Method;
use mayfly::domain::State;
use serde_json::{Value, json};

use super::{
    Mayfly,
    double::{Double, ID, vm},
    run,
};

async fn both() -> (Double, Mayfly) {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    (double, mayfly)
}

fn queued() -> Value {
    vm(
        1,
        &[("queued", "2026-11-20T10:00:00Z")],
        json!({ "queue": { "reason": "slot", "position": 1, "deadline": null } }),
    )
}

#[tokio::test]
async fn create_sends_the_request_and_prints_the_id() {
    let (double, mayfly) = both().await;
    let mut created = queued();
    created["callback_token"] = json!("mfv_secret");
    double.on("POST /vms", 201, created);
    mayfly.write("job.env", "# comment\n\nPASSWORD='hush hush' \nEMPTY=\n HERE\n");
    let args = [
        "vm",
        "create",
        "--template",
        "micro",
        "--name",
        "b",
        "--command",
        "make test",
        "--env-file",
        "job.env",
        "--cpus",
        "2",
        "--memory-mib",
        "512",
        "--label",
        "repo=a=b",
        "-l",
        "x=",
        "--queue-timeout",
        "5m",
        "--idempotency-key",
        "k-1",
        "--budget",
        "lifetime_seconds=10m",
        "--budget",
        "max_attempts=1",
        "--network",
        "internet",
    ];
    let ran = run(mayfly.command(&args).env("HERE", "from here")).await.ends(0);
    assert_eq!(ran.out, format!("{ID}\n"));
    let asked = double.last();
    assert_eq!((asked.method, asked.path.as_str()), (Method::POST, "/vms"));
    assert_eq!(asked.headers["idempotency-key"], "k-1");
    assert_eq!(asked.headers["authorization"], "Bearer mfa_the-admin-token");
    assert_eq!(
        asked.body,
        json!({
            "template": "micro", "name": "b", "cpus": 2, "memory_mib": 512, "network": "internet", "queue_timeout_seconds": 300,
            "runner": { "kind": "command", "command": "make test",
                        "env": { "PASSWORD": "'hush hush' ", "EMPTY": "", "HERE": "from here" } },
            "labels": { "repo": "a=b", "x": "" }, "budgets": { "lifetime_seconds": 600, "max_attempts": 1 },
        })
    );
    let ran = mayfly.run(&["vm", "create", "-t", "micro", "--none", "--json"]).await.ends(0);
    assert_eq!(ran.json()["name"], "build-7");
    assert!(!ran.out.contains("mfv_secret"));
    assert_eq!(double.last().body, json!({ "template": "micro", "runner": { "kind": "none" } }));

    mayfly.write("setup.sh", "#!/bin/sh\n./run.sh\n");
    mayfly.run(&["vm", "create", "-t", "micro", "--script-file", "setup.sh"]).await.ends(0);
    assert_eq!(double.last().body["runner"], json!({ "kind": "script", "script": "#!/bin/sh\n./run.sh\n", "env": {} }));
}

#[tokio::test]
async fn usage_errors_exit_with_2_and_repeat_no_secret() {
    let (double, mayfly) = both().await;
    mayfly.write("bad.env", "OK=1\nhush-hush secret\n");
    for args in [
        &["vm", "create", "-t", "micro"][..],
        &["vm", "create", "-t", "micro", "--none", "--command", "x"],
        &["vm", "create", "-t", "micro", "--none", "--label", "x"],
        &["vm", "create", "-t", "micro", "--none", "--queue-timeout", "soon"],
        &["vm", "create", "-t", "micro", "--none", "--budget", "luck=1"],
        &["vm", "create", "-t", "micro", "--command", "x", "--env-file", "bad.env"],
        &["vm", "create", "-t", "micro", "--command-file", "missing.sh"],
        &["vm", "list", "--state", "asleep"],
        &["vm", "list", "--url", "ftp://x"],
        &["vm", "list", "--url", "http://user:hush-hush@127.0.0.1:1"],
        &["vm", "list", "--token", "hush-hush-1"],
        &["token", "create", "ci", "--scope", "root"],
        &["template", "add", "x"],
        &["nonsense"],
    ] {
        let ran = mayfly.run(args).await.ends(2);
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{args:?}");
        assert!(!ran.err.contains("hush-hush secret") && !ran.err.contains("user:hush"), "{args:?}: {}", ran.err);
    }
    assert!(double.asked().is_empty());
}

#[tokio::test]
async fn a_problem_becomes_one_clear_error() {
    let (double, mayfly) = both().await;
    double.on(
        "POST /vms",
        400,
        json!({ "type": "/problems/request.invalid", "title": "The request is not well formed", "status": 400,
                "detail": "the name is not usable", "code": "request.invalid", "request_id": "r", "retryable": false,
                "errors": [{ "pointer": "/name", "detail": "1 to 63 letters\u{1b}[2J" }] }),
    );
    let args = ["vm", "create", "-t", "micro", "--none"];
    let ran = mayfly.run(&args).await.ends(1);
    assert_eq!(
        ran.err,
        "error: The request is not well formed: the name is not usable [request.invalid]\n  \
         --name: 1 to 63 letters\u{fffd}[2J\n"
    );
    assert!(ran.out.is_empty());
    let ran = run(mayfly.command(&args).arg("--json")).await.ends(1);
    let problem: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some("request.invalid"), Some(400)));
    assert!(ran.out.is_empty());

    double.problem("POST /vms", 500, "internal", "the cause is in the log");
    assert!(mayfly.run(&args).await.ends(1).err.contains("request id: req-1"));
    // Somebody between us and the service.
    double.on_bytes("POST /vms", 502, "text/html", b"<html>Bad gateway</html>");
    let ran = mayfly.run(&args).await.ends(1);
    assert!(ran.err.contains("answered 502 Bad Gateway") && !ran.err.contains("html"), "{}", ran.err);
    double.on_bytes("POST /vms", 200, "text/html", b"<html>router</html>");
    assert!(mayfly.run(&args).await.ends(1).err.contains("does not speak Mayfly's API"));
    double.on_bytes("POST /vms", 307, "text/html", b"");
    mayfly.run(&args).await.ends(1);
}

#[tokio::test]
async fn a_token_that_does_not_do_exits_with_5_and_says_where_it_came_from() {
    let (double, mayfly) = both().await;
    double.problem("GET /vms", 401, "auth.required", "the token is not known");
    let ran = mayfly.run(&["vm", "list"]).await.ends(5);
    assert!(ran.err.contains("admin.token is not accepted"), "{}", ran.err);
    let ran = run(mayfly.command(&["vm", "list"]).env("MAYFLY_TOKEN", "mfa_other")).await.ends(5);
    assert!(ran.err.contains("the token in MAYFLY_TOKEN") && !ran.err.contains("mfa_other"), "{}", ran.err);
    assert_eq!(double.last().headers["authorization"], "Bearer mfa_other");

    let file = mayfly.write("token", "  mfa_from-file\n");
    let args = ["vm", "list", "--token-file", file.to_str().unwrap()];
    run(mayfly.command(&args).env("MAYFLY_TOKEN", "mfa_other")).await.ends(5);
    assert_eq!(double.last().headers["authorization"], "Bearer mfa_from-file");

    std::fs::remove_file(mayfly.path(".mayfly/admin.token")).unwrap();
    let ran = mayfly.run(&["vm", "list"]).await.ends(5);
    assert!(ran.err.contains("no token: cannot read") && ran.err.contains("--token-file"), "{}", ran.err);
    assert!(double.last().headers.get("authorization").is_none());

    double.problem("GET /vms", 403, "auth.scope_missing", "needs the scope create");
    mayfly.run(&["vm", "list"]).await.ends(5);
}

#[tokio::test]
async fn this_machines_token_is_not_offered_to_others_and_proxies_are_not_asked() {
    let (double, mayfly) = both().await;
    double.on("GET /vms", 200, json!({ "items": [], "next_cursor": null }));
    // The double simulates the proxy: asked for another host's service, it sees the request.
    let args = ["vm", "list", "--url", "http://mayfly.example:8470"];
    let ran = run(mayfly.command(&args).env("http_proxy", &double.url)).await;
    ran.ends(0);
    assert!(double.last().headers.get("authorization").is_none());
    // On loopback, nobody stands in between.
    run(mayfly.command(&["vm", "list"]).env("http_proxy", "http://127.0.0.1:1")).await.ends(0);
}

#[tokio::test]
async fn a_service_that_is_away_exits_with_4() {
    let mayfly = Mayfly::new();
    let ran = mayfly.run(&["host"]).await.ends(4);
    assert!(ran.err.starts_with("error: no service runs with the data directory "), "{}", ran.err);
    assert!(ran.err.contains("mayfly serve") && ran.err.contains("--data-dir"), "{}", ran.err);
    let mut command = mayfly.command(&["host", "--url", "http://127.0.0.1:1"]);
    let ran = run(command.env("MAYFLY_TOKEN", "mfa_x")).await.ends(4);
    assert!(ran.err.starts_with("error: no answer from Mayfly at 127.0.0.1:1: "), "{}", ran.err);
    assert!(ran.err.contains("mayfly serve"));
    // Nobody listens on what a service left behind.
    let socket = mayfly.path(".mayfly/admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let ran = mayfly.run(&["host"]).await.ends(4);
    assert!(ran.err.contains("admin.sock") && ran.err.contains("mayfly serve"), "{}", ran.err);
}

#[tokio::test]
async fn listings_follow_the_cursor_and_fit_the_screen() {
    let (double, mayfly) = both().await;
    let page = |vm: Value, next: Value| json!({ "items": [vm], "next_cursor": next });
    double.on("GET /vms", 200, page(queued(), json!("c2")));
    let done = json!({ "name": "old", "outcome": { "result": "completed" }, "job": { "exit_code": 0 } });
    double.on(
        "GET /vms?limit=200&cursor=c2",
        200,
        page(vm(2, &[("stopping", "2026-11-20T10:00:00Z")], done), Value::Null),
    );
    let ran = mayfly.run(&["vm", "list"]).await.ends(0);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("NAME     STATE     AGE"), "{}", ran.out);
    assert!(lines[1].starts_with("build-7  queued") && lines[1].ends_with("  slot, position 1"), "{}", ran.out);
    assert!(lines[2].starts_with("old") && lines[2].ends_with("completed, exit code 0"), "{}", ran.out);
    assert_eq!(mayfly.run(&["vm", "list", "--json"]).await.ends(0).json()["items"].as_array().unwrap().len(), 2);
    assert_eq!(mayfly.run(&["vm", "list", "-q"]).await.ends(0).out, format!("{ID}\n{ID}\n"));
    assert!(!ran.out.contains('\u{1b}'));

    double.on("GET /vms", 200, json!({ "items": [], "next_cursor": null }));
    mayfly.run(&["vm", "list", "--state", "queued", "--state", "running", "-l", "team=core"]).await.ends(0);
    assert_eq!(double.last().query, "state=queued&state=running&label=team%3Dcore&limit=200");
    mayfly.run(&["vm", "list", "--all"]).await.ends(0);
    assert!(double.last().query.contains("state=queued&") && double.last().query.contains("state=deleted&"));
}

#[tokio::test]
async fn vms_are_found_by_name() {
    let (double, mayfly) = both().await;
    double.on("GET /vms", 200, json!({ "items": [queued()], "next_cursor": null }));
    double.on("GET /vms?name=nobody&limit=1", 200, json!({ "items": [], "next_cursor": null }));
    double.on("GET /vms?name=nobody&limit=1&state=deleted", 200, json!({ "items": [], "next_cursor": null }));
    let mut vm_with_deadline = queued();
    vm_with_deadline["deadline"] = json!({ "budget": "queue", "at": "2026-11-20T11:00:00Z" });
    double.on(&format!("GET /vms/{ID}"), 200, vm_with_deadline);
    double.on(
        &format!("DELETE /vms/{ID}"),
        202,
        vm(2, &[("queued", "2026-11-20T10:00:00Z"), ("deleting", "2026-11-20T10:00:01Z")], json!({})),
    );
    let ran = mayfly.run(&["vm", "show", "build-7"]).await.ends(0);
    assert!(ran.out.contains("queue     waits for a slot, position 1"), "{}", ran.out);
    assert!(ran.out.contains("deadline  2026-11-20 11:00:00Z (queue)"), "{}", ran.out);
    assert!(ran.out.contains("network   isolated"), "{}", ran.out);
    assert_eq!(mayfly.run(&["vm", "show", ID, "--json"]).await.ends(0).json()["id"], ID);
    assert_eq!(mayfly.run(&["vm", "delete", "build-7"]).await.ends(0).out, "build-7  deleting\n");
    assert_eq!(double.last().query, "");
    mayfly.run(&["vm", "delete", ID, "--force", "--json"]).await.ends(0).json();
    assert_eq!(double.last().query, "force=true");
    assert!(mayfly.run(&["vm", "show", "nobody"]).await.ends(1).err.contains("no vm has the name \"nobody\""));
}

#[tokio::test]
async fn several_vms_are_ended_and_ids_may_be_shortened() {
    let (double, mayfly) = both().await;
    let states: Vec<String> = State::ALL.iter().map(|state| format!("state={}", state.as_str())).collect();
    let with_prefix = |prefix: &str| format!("GET /vms?id_prefix={prefix}&limit=2&{}", states.join("&"));
    double.on("GET /vms", 200, json!({ "items": [] }));
    double.on(&with_prefix("019aa6d2-00"), 200, json!({ "items": [queued()] }));
    let mut other = queued();
    other["id"] = json!("019aa6d2-0001-7000-8000-00000000000b");
    double.on(&with_prefix("019aa6d2"), 200, json!({ "items": [queued(), other] }));
    double.on(&format!("DELETE /vms/{ID}"), 202, queued());
    assert_eq!(
        mayfly.run(&["vm", "delete", "019aa6d2-00", ID]).await.ends(0).out,
        "build-7  queued\nbuild-7  queued\n"
    );
    let ran = mayfly.run(&["vm", "delete", "019aa6d2"]).await.ends(1);
    assert!(ran.err.contains("the ids of several vms begin with \"019aa6d2\""), "{}", ran.err);
    // One that is not there does not keep the others.
    let ran = mayfly.run(&["vm", "delete", "nobody", ID, "--force"]).await.ends(1);
    assert_eq!(ran.out, "build-7  queued\n");
    assert!(ran.err.contains("\"nobody\""), "{}", ran.err);
    assert_eq!(double.last().query, "force=true");
    let ran = mayfly.run(&["vm", "delete", ID, ID, "--json"]).await.ends(0);
    assert_eq!(ran.json()["items"].as_array().unwrap().len(), 2);
    mayfly.run(&["vm", "delete"]).await.ends(2);
}

#[tokio::test]
async fn lists_are_filtered_and_printed_for_people_and_scripts() {
    let (double, mayfly) = both().await;
    double.on("GET /vms", 200, json!({ "items": [queued()], "next_cursor": null }));
    let ran = mayfly.run(&["ps", "-t", "micro", "--outcome", "failed", "--all"]).await.ends(0);
    assert!(ran.out.starts_with("NAME     STATE"), "{}", ran.out);
    let query = double.last().query;
    assert!(query.contains("template=micro&outcome=failed") && query.contains("state=deleted"), "{query}");
    assert_eq!(mayfly.run(&["vm", "list", "-o", "name"]).await.ends(0).out, "build-7\n");
    assert_eq!(mayfly.run(&["vm", "list", "-o", "id"]).await.ends(0).out, format!("{ID}\n"));
    let ran = mayfly.run(&["ps", "-o", "wide"]).await.ends(0);
    assert!(ran.out.contains(ID) && ran.out.lines().next().unwrap().contains("CREATED BY"), "{}", ran.out);
    mayfly.run(&["ps", "--outcome", "good"]).await.ends(2);
    double.on("GET /vms", 200, json!({ "items": [], "next_cursor": null }));
    let ran = mayfly.run(&["ps"]).await.ends(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", "no vms; --all shows deleted vms too\n"));
}

#[tokio::test]
async fn the_version_names_its_build() {
    let mayfly = Mayfly::new();
    let number = env!("CARGO_PKG_VERSION");
    let short = mayfly.run(&["-V"]).await.ends(0).out;
    assert!(short.starts_with(&format!("mayfly {number} (")), "{short}");
    let long = mayfly.run(&["version"]).await.ends(0).out;
    assert!(long.starts_with(&short) && long.ends_with("debug build\n"), "{long}");
    let json = mayfly.run(&["version", "--json"]).await.ends(0).json();
    assert_eq!((json["version"].as_str(), json["profile"].as_str()), (Some(number), Some("debug")));
}

#[tokio::test]
async fn logs_pass_unchanged_without_a_terminal() {
    let (double, mayfly) = both().await;
    let log = b"\x1b[1mboot\x1b[0m\r\n\xff\n";
    double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", log);
    let out = mayfly.command(&["vm", "logs", ID, "--source", "console"]).output().await.unwrap();
    assert_eq!(out.stdout, log);
    assert_eq!(double.last().query, "source=console");
    let ran = mayfly.run(&["vm", "logs", ID, "--json"]).await.ends(0);
    assert_eq!((ran.json()["source"].as_str(), ran.json()["vm_id"].as_str()), (Some("job"), Some(ID)));
    double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", b"one\ntwo\nthree\n");
    assert_eq!(mayfly.run(&["vm", "logs", ID, "--tail", "2"]).await.ends(0).out, "two\nthree\n");
    double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", b"");
    let ran = mayfly.run(&["vm", "logs", ID]).await.ends(0);
    assert!(ran.out.is_empty() && ran.err.starts_with("the log job is empty; --source"), "{}", ran.err);
}

#[tokio::test]
async fn templates_are_registered_from_what_an_image_build_wrote() {
    let (double, mayfly) = both().await;
    double.on("POST /templates", 201, json!({ "name": "micro", "digest": "sha256:abc" }));
    mayfly.write(
        "images/micro/template.json",
        r#"{ "os": "linux", "arch": "x86_64", "kernel": "vmlinuz", "initramfs": "initramfs.img", "cmdline": "quiet",
             "disk": "disk.qcow2", "disk_format": "qcow2", "memory_mib": 256, "cpus": 1, "ssh_user": "runner", "ssh_key": "id", "network": "isolated" }"#,
    );
    let ran = mayfly
        .run(&["template", "add", "micro", "--from", "images/micro", "--cpus", "4", "--handover", "ssh"])
        .await
        .ends(0);
    assert_eq!(ran.out, "micro  sha256:abc\n");
    let beside = |name: &str| mayfly.path("images/micro").canonicalize().unwrap().join(name).display().to_string();
    assert_eq!(
        double.last().body,
        json!({
            "name": "micro", "os": "linux", "arch": "x86_64", "kernel": beside("vmlinuz"),
            "initramfs": beside("initramfs.img"), "cmdline": "quiet", "disk": beside("disk.qcow2"), "disk_format": "qcow2",
            "memory_mib": 256, "cpus": 4, "user": "runner", "ssh_key": beside("id"), "handover": "ssh", "network": "isolated",
        })
    );
    mayfly.run(&["template", "add", "d", "--disk", "/srv/d.img"]).await.ends(0);
    assert_eq!(double.last().body, json!({ "name": "d", "disk": "/srv/d.img" }));
    mayfly.run(&["template", "add", "d", "--disk", "/srv/d.img", "--network", "host"]).await.ends(0);
    assert_eq!(double.last().body, json!({ "name": "d", "disk": "/srv/d.img", "network": "host" }));
    mayfly.write("bad.json", r#"{ "disc": "x" }"#);
    let ran = mayfly.run(&["template", "add", "d", "--from", "bad.json"]).await.ends(2);
    assert!(ran.err.contains("unknown field `disc`"), "{}", ran.err);
}

#[tokio::test]
async fn templates_are_listed_shown_and_deleted() {
    let (double, mayfly) = both().await;
    let template = json!({ "name": "micro", "digest": "sha256:0123456789abcdef", "driver": "qemu", "os": "linux",
        "arch": "x86_64", "cpus": 1, "memory_mib": 256, "network": "internet", "size_bytes": 41_000_000, "created_at": "2026-11-20T10:00:00Z" });
    double.on("GET /templates", 200, json!({ "items": [template] }));
    double.on("GET /templates/micro", 200, template.clone());
    double.on_bytes("DELETE /templates/micro", 204, "application/json", b"");
    let ran = mayfly.run(&["template", "list"]).await.ends(0);
    assert!(ran.out.contains("39.1 MiB") && ran.out.contains("0123456789ab "), "{}", ran.out);
    mayfly.run(&["template", "list", "--json"]).await.ends(0).json();
    let shown = mayfly.run(&["template", "show", "micro"]).await.ends(0).out.clone();
    assert!(shown.contains("sha256:0123456789abcdef") && shown.lines().any(|l| l.ends_with("internet")), "{shown}");
    mayfly.run(&["template", "show", "micro", "--json"]).await.ends(0).json();
    assert_eq!(mayfly.run(&["template", "delete", "micro", "--json"]).await.ends(0).json(), json!({ "name": "micro" }));
    // A name is one segment of the path, whatever is in it.
    mayfly.run(&["template", "show", "a/../b"]).await.ends(1);
    assert_eq!(double.last().path, "/templates/a%2F..%2Fb");
}

#[tokio::test]
async fn a_tokens_secret_is_shown_once_and_alone() {
    let (double, mayfly) = both().await;
    let token = json!({ "id": ID, "name": "ci", "scope": "create", "created_at": "2026-11-20T10:00:00Z", "revoked_at": null,
                "expires_at": "2100-01-01T00:00:00Z", "last_used_at": "2026-11-20T10:00:00Z",
                "limits": { "github_scopes": ["acme/*", "b"], "images": [], "max_cpus": null, "max_live_vms": 4 } });
    let mut created = token.clone();
    created["token"] = json!("mfa_new");
    double.on("POST /tokens", 201, created);
    double.on("GET /tokens", 200, json!({ "items": [token] }));
    double.on(&format!("GET /tokens/{ID}"), 200, token.clone());
    double.on(&format!("DELETE /tokens/{ID}"), 200, token);
    let ran = mayfly.run(&["token", "create", "ci", "--scope", "create"]).await.ends(0);
    assert_eq!(ran.out, "mfa_new\n");
    assert_eq!(double.last().body, json!({ "name": "ci", "scope": "create" }));
    assert_eq!(
        mayfly.run(&["token", "create", "ci", "--scope", "read", "--json"]).await.ends(0).json()["token"],
        "mfa_new"
    );
    assert!(mayfly.run(&["token", "list"]).await.ends(0).out.contains("ci    create  valid"));
    mayfly.run(&["token", "list", "--json"]).await.ends(0).json();
    let list = mayfly.run(&["token", "list"]).await.ends(0).out;
    assert!(list.contains("EXPIRES") && list.contains("in ") && list.contains(" ago"), "{list}");
    let shown = mayfly.run(&["token", "show", "ci"]).await.ends(0).out;
    for line in [
        "github_scopes  acme/*, b",
        "images         nothing",
        "max_live_vms   4",
        "expires        2100-01-01 00:00:00Z",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line} is missing:\n{shown}");
    }
    assert!(!shown.contains("max_cpus") && shown.contains("last used      2026-11-20 10:00:00Z ("), "{shown}");
    mayfly.run(&["token", "show", ID, "--json"]).await.ends(0).json();
    assert_eq!(mayfly.run(&["token", "revoke", "ci"]).await.ends(0).out, "ci  revoked\n");
    assert_eq!(double.last().path, format!("/tokens/{ID}"));
    mayfly.run(&["token", "revoke", "nobody"]).await.ends(1);
}

#[tokio::test]
async fn the_limits_of_a_token_are_options() {
    let (double, mayfly) = both().await;
    double.on("POST /tokens", 201, json!({ "token": "mfa_new" }));
    let args = [
        "token",
        "create",
        "team-a",
        "--scope",
        "create",
        "--github-scope",
        "acme/*",
        "--github-scope",
        "b",
        "--github-label",
        "linux",
        "--template",
        "micro",
        "--image",
        "ghcr.io/acme/*",
        "--max-cpus",
        "4",
        "--max-memory-mib",
        "8192",
        "--max-disk",
        "100GiB",
        "--max-live-vms",
        "4",
        "--expires",
        "2027-01-31T12:00:00Z",
    ];
    mayfly.run(&args).await.ends(0);
    assert_eq!(
        double.last().body,
        json!({
            "name": "team-a", "scope": "create", "expires_at": "2027-01-31T12:00:00Z",
            "limits": {
                "github_scopes": ["acme/*", "b"], "github_labels": ["linux"], "templates": ["micro"],
                "images": ["ghcr.io/acme/*"], "max_cpus": 4, "max_memory_mib": 8192,
                "max_disk_bytes": 100_u64 << 30, "max_live_vms": 4,
            },
        })
    );
    let before = jiff::Timestamp::now();
    mayfly.run(&["token", "create", "x", "--scope", "read", "--expires", "30d"]).await.ends(0);
    let body = double.last().body;
    assert!(body.get("limits").is_none(), "{body}");
    let at: jiff::Timestamp = body["expires_at"].as_str().unwrap().parse().unwrap();
    let lasts = at.duration_since(before).as_secs();
    assert!((30 * 86_400..30 * 86_400 + 60).contains(&lasts), "{body}");
    for wrong in [["--expires", "soon"], ["--max-disk", "big"], ["--max-live-vms", "0"], ["--max-memory-mib", "1"]] {
        let args = [&["token", "create", "x", "--scope", "create"][..], &wrong].concat();
        mayfly.run(&args).await.ends(2);
    }
}

#[tokio::test]
async fn the_host_is_shown() {
    let (double, mayfly) = both().await;
    double.on(
        "GET /host",
        200,
        json!({
            "capacity": { "macos_slots": 2, "linux_slots": 4, "cpus": 8, "memory_mib": 7000 },
            "leased": { "macos": 0, "linux": 1, "cpus": 2, "memory_mib": 512 },
            "foreign": { "macos": 0, "linux": 1, "cpus": 2, "memory_mib": 1024 }, "queued": 3,
            "drivers": [{ "name": "qemu", "usable": true, "accelerator": "tcg", "version": "QEMU 7.2", "note": "no /dev/kvm",
                "networks": [
                    { "mode": "isolated", "enforceable": false, "remedy": "close the door", "default_for": [] },
                    { "mode": "internet", "enforceable": true, "remedy": null, "default_for": ["script", "github"] },
                    { "mode": "host", "enforceable": true, "remedy": null, "default_for": [] }] }],
            "instances": [{ "driver": "qemu", "name": "somebody's", "vm_id": null, "running": true, "os": "linux", "cpus": 2, "memory_mib": 1024 }],
            "observed": true, "observed_age_seconds": 125,
        }),
    );
    let ran = mayfly.run(&["host"]).await.ends(0);
    assert!(ran.out.contains("Linux guests  4      1     1        2"), "{}", ran.out);
    assert!(ran.out.contains("no /dev/kvm") && ran.out.contains("foreign"), "{}", ran.out);
    for line in [
        "  network isolated  cannot be enforced: close the door",
        "  network internet  default for runners of kind script, github",
        "  network host      if it is asked for",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}: {}", ran.out);
    }
    assert!(ran.out.contains("instances listed 2m05s ago"), "{}", ran.out);
    assert_eq!(mayfly.run(&["host", "--json"]).await.ends(0).json()["queued"], 3);
}

/// Whatever is configured: none of its drivers runs macOS guests.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_linux_host_has_no_slots_for_macos() {
    let serve = crate::support::Serve::start(&[]).await;
    let host = serve.get("/host").await;
    assert_eq!(host["slots"]["macos"], json!({ "total": 0, "ours": 0, "foreign": 0, "free": 0 }));
    assert!(host["slots"]["linux"]["total"].as_u64().unwrap() > 0, "{host:#}");
    let metrics = serve.get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("mayfly_slots{os=\"macos\"} 0\n"), "{metrics}");
    let mayfly = Mayfly::new();
    let out = mayfly.run(&["host", "--data-dir", serve.dir.to_str().unwrap()]).await.ends(0).out;
    assert!(out.contains("Linux guests") && !out.contains("macOS"), "{out}");
}
