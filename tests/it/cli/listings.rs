//! What lists look like: columns, names and ids, colours, and what is said where there is nothing.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

use super::{
    Mayfly, Ran,
    double::{Double, ID, vm},
    run,
};
use crate::support::Serve;

const AT: &str = "2026-11-20T10:00:00Z";

/// Every command that lists: what it asks for, one thing of that kind, and the name and the id of it.
fn listings() -> Vec<(&'static [&'static str], &'static str, Value, &'static str, &'static str)> {
    vec![
        (&["vm", "list"], "/vms", vm(1, &[("queued", AT)], json!({})), "build-7", ID),
        (&["ps"], "/vms", vm(1, &[("queued", AT)], json!({})), "build-7", ID),
        (
            &["template", "list"],
            "/templates",
            json!({ "name": "micro", "digest": "sha256:0123456789abcdef" }),
            "micro",
            "sha256:0123456789abcdef",
        ),
        (
            &["template", "pulls"],
            "/pulls",
            json!({ "id": ID, "name": "base", "state": "pulling", "created_at": AT }),
            "base",
            ID,
        ),
        (
            &["template", "logins"],
            "/registries",
            json!({ "registry": "ghcr.io", "username": "ci" }),
            "ghcr.io",
            "ghcr.io",
        ),
        (&["pool", "list"], "/pools", json!({ "name": "linux", "enabled": true }), "linux", "linux"),
        (&["token", "list"], "/tokens", json!({ "id": ID, "name": "ci", "scope": "read" }), "ci", ID),
        (&["job", "list"], "/jobs", json!({ "id": 4711, "name": "test" }), "test", "4711"),
        (&["webhook", "list"], "/webhooks/github/deliveries", json!({ "guid": "d-1" }), "d-1", "d-1"),
    ]
}

#[tokio::test]
async fn every_listing_prints_names_ids_and_more_columns_and_says_when_it_is_empty() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    for (command, path, item, name, id) in listings() {
        double.on(&format!("GET {path}"), 200, json!({ "items": [item], "next_cursor": null }));
        let list = async |more: &[&str]| mayfly.run(&[command, more].concat()).await.ends(0).out;
        assert_eq!(list(&["-o", "name"]).await, format!("{name}\n"), "{command:?}");
        assert_eq!(list(&["-o", "id"]).await, format!("{id}\n"), "{command:?}");
        assert_eq!(list(&["-q"]).await, format!("{id}\n"), "{command:?}");
        let (narrow, wide) = (list(&[]).await, list(&["-o", "wide"]).await);
        let heads = |table: &str| table.lines().next().unwrap().split_whitespace().count();
        assert!(heads(&wide) >= heads(&narrow) && wide.contains(name), "{command:?}: {wide}");
        assert_eq!(
            serde_json::from_str::<Value>(&list(&["--json"]).await).unwrap()["items"].as_array().unwrap().len(),
            1
        );
        mayfly.run(&[command, &["-o", "wood"]].concat()).await.ends(2);

        double.on(&format!("GET {path}"), 200, json!({ "items": [], "next_cursor": null }));
        let Ran { out, err, .. } = mayfly.run(command).await.ends(0);
        assert_eq!(out, "", "{command:?}");
        assert!(err.starts_with("no ") && err.lines().count() == 1, "{command:?}: {err}");
        assert_eq!(list(&["-q"]).await, "", "{command:?}");
    }
}

fn ended(end: Value) -> Value {
    vm(2, &[("queued", AT), ("deleted", AT)], end)
}

#[tokio::test]
async fn a_job_that_failed_is_never_called_completed() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    let job = json!({ "id": 1, "name": "test", "status": "completed", "conclusion": "failure" });
    for (end, said) in [
        (
            json!({ "outcome": { "result": "completed", "code": "job.failed", "detail": "7" }, "job": { "exit_code": 7 } }),
            "failed, exit code 7",
        ),
        (json!({ "outcome": { "result": "completed" }, "jobs": [job] }), "failed, the CI system reports failure"),
        (json!({ "outcome": { "result": "completed" }, "job": { "exit_code": 0 } }), "completed, exit code 0"),
        (json!({ "outcome": { "result": "completed" } }), "completed"),
        (json!({ "outcome": { "result": "failed", "code": "guest.not_ready" } }), "guest.not_ready"),
    ] {
        let record = ended(end);
        double.on("GET /vms", 200, json!({ "items": [record], "next_cursor": null }));
        double.on(&format!("GET /vms/{ID}"), 200, record);
        for list in [&["vm", "list", "--all"][..], &["ps", "--all"], &["vm", "wait", ID]] {
            let out = mayfly.run(list).await.ends(0).out;
            assert!(out.trim_end().ends_with(&format!("  {said}")), "{list:?}: {out}");
        }
        let shown = mayfly.run(&["vm", "show", ID]).await.ends(0).out;
        // The exit code of a good job has a line of its own.
        let outcome = said.trim_end_matches(", exit code 0");
        assert!(shown.lines().any(|line| line.starts_with("outcome") && line.contains(outcome)), "{shown}");
    }
}

#[tokio::test]
async fn colours_are_for_terminals_and_on_request() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    let failed = ended(json!({ "outcome": { "result": "completed" }, "job": { "exit_code": 7 } }));
    double.on("GET /vms", 200, json!({ "items": [failed], "next_cursor": null }));
    let list = async |args: &[&str], env: &[(&str, &str)]| {
        run(mayfly.command(&[&["vm", "list"], args].concat()).envs(env.iter().copied())).await.ends(0).out
    };
    let red = "\u{1b}[31mfailed, exit code 7\u{1b}[0m";
    for (args, env, coloured) in [
        (&[][..], &[][..], false),
        (&["--color", "always"], &[], true),
        (&["--color=always"], &[("NO_COLOR", "1")], true),
        (&[], &[("CLICOLOR_FORCE", "1")], true),
        (&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        (&["--color", "never"], &[("CLICOLOR_FORCE", "1")], false),
        (&["--color", "always", "-q"], &[], false),
        (&["--color", "always", "--json"], &[], false),
    ] {
        let out = list(args, env).await;
        assert_eq!(out.contains('\u{1b}'), coloured, "{args:?} {env:?}: {out:?}");
        assert_eq!(out.contains(red), coloured, "{args:?} {env:?}: {out:?}");
    }
    // Columns stand where they stand without colours.
    let plain = list(&[], &[]).await;
    let mut filtered = list(&["--color", "always"], &[]).await;
    for code in ["\u{1b}[31m", "\u{1b}[2m", "\u{1b}[0m"] {
        filtered = filtered.replace(code, "");
    }
    assert_eq!(filtered, plain);
    let wrong = mayfly.run(&["vm", "list", "--nonsense", "--color", "always"]).await.ends(2);
    assert!(wrong.err.contains('\u{1b}'), "{:?}", wrong.err);
    let away = mayfly.run(&["vm", "show", ID, "--color", "always"]).await.ends(1);
    assert!(away.err.starts_with("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m"), "{:?}", away.err);
    mayfly.run(&["vm", "list", "--color", "green"]).await.ends(2);
}

#[tokio::test]
async fn times_are_given_as_such_or_as_how_long_ago() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    double.on("GET /vms", 200, json!({ "items": [], "next_cursor": null }));
    double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", b"");
    let at = |query: &str, name: &str| -> jiff::Timestamp {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        value.replace("%3A", ":").parse().unwrap_or_else(|error| panic!("{query}: {error}"))
    };
    mayfly.run(&["vm", "list", "--since", "2026-11-20T10:00:00Z"]).await.ends(0);
    assert_eq!(at(&double.last().query, "created_since"), AT.parse().unwrap());
    let ran = mayfly.run(&["vm", "logs", ID, "--since", "10m"]).await.ends(0);
    let ago = jiff::Timestamp::now().duration_since(at(&double.last().query, "since")).as_secs();
    assert!((600..660).contains(&ago), "{ago}");
    assert_eq!(ran.err, "nothing was written to the log job since then\n");
    for wrong in ["soon", "-1h", ""] {
        mayfly.run(&["ps", "--since", wrong]).await.ends(2);
    }
}

/// The program while it runs.
struct Watching {
    child: tokio::process::Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Watching {
    fn start(mut command: tokio::process::Command) -> Watching {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Watching { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(std::time::Duration::from_secs(20), self.lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("a line")
    }

    /// Ctrl-C, and the exit code.
    async fn interrupt(self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait_with_output().await.unwrap().status.code()
    }
}

#[tokio::test]
async fn a_watched_list_prints_what_changes() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    let page = |items: Value| json!({ "items": items, "next_cursor": null });
    // A stream that ends, as when the service stops, is opened again.
    double.on_bytes("GET /events", 200, "text/event-stream", b"retry: 1000\n\n");
    double.on("GET /vms", 200, page(json!([vm(1, &[("queued", AT)], json!({}))])));
    let mut watching = Watching::start(mayfly.command(&["ps", "--watch"]));
    assert!(watching.line().await.starts_with("NAME"));
    assert!(watching.line().await.contains("queued"));
    double.on("GET /vms", 200, page(json!([vm(2, &[("queued", AT), ("running", AT)], json!({}))])));
    assert!(watching.line().await.starts_with("build-7  running"));
    // It leaves the list of live vms, and its end is printed.
    let end = json!({ "generation": 3, "outcome": { "result": "completed" }, "job": { "exit_code": 7 } });
    double.on(&format!("GET /vms/{ID}"), 200, ended(end));
    double.on("GET /vms", 200, page(json!([])));
    let last = watching.line().await;
    assert!(last.contains("deleted") && last.ends_with("failed, exit code 7"), "{last}");
    assert_eq!(watching.interrupt().await, Some(130));
}

#[tokio::test]
async fn an_event_of_the_service_reaches_a_watched_list_at_once() {
    let serve =
        Serve::start(&[("MAYFLY_DRIVERS__QEMU__ENABLED", "false"), ("MAYFLY_DRIVERS__FAKE__ENABLED", "true")]).await;
    let mayfly = Mayfly::new();
    let dir = serve.dir.to_str().unwrap();
    let mut watching = Watching::start(mayfly.command(&["vm", "list", "--watch", "--json", "--data-dir", dir]));
    // It waits for its image: nothing else happens to it.
    let body =
        |name: &str| json!({ "template": "registry.invalid/ci/none:1", "name": name, "runner": { "kind": "none" } });
    for name in ["one", "two"] {
        let (status, answer) = serve.post("/vms", body(name)).await;
        assert_eq!(status, 201, "{answer:#}");
        loop {
            let changed: Value = serde_json::from_str(&watching.line().await).unwrap();
            if changed["name"] == name {
                break;
            }
        }
    }
    assert_eq!(watching.interrupt().await, Some(130));
}
