//! The service is down while a guest has something to report. The guest repeats its report until it is acknowledged, and starts no
//! job without permission, so each job runs exactly once.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::UnixListener, time::timeout};

use crate::support::Serve;

/// Stands in for the guest API of a service that is down, so that a test can await the calls of its guests. It answers none.
struct DownService {
    listener: UnixListener,
}

impl DownService {
    /// Takes the place of the service, which was killed and has left its socket.
    fn bind(dir: &Path) -> DownService {
        let socket = dir.join("guest.sock");
        std::fs::remove_file(&socket).unwrap();
        DownService { listener: UnixListener::bind(socket).unwrap() }
    }

    /// The first line of the next request, whose connection is then closed.
    async fn next_call(&self) -> String {
        let (mut connection, _) = self.listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let length = connection.read(&mut head).await.unwrap_or(0);
        String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned()
    }

    async fn refuse_calls(&self, count: usize) -> Vec<String> {
        let mut calls = Vec::new();
        while calls.len() < count {
            let call = timeout(Duration::from_secs(60), self.next_call()).await;
            calls.push(
                call.unwrap_or_else(|_| panic!("the guest called {} times and then no more: {calls:?}", calls.len())),
            );
        }
        calls
    }
}

/// Kills the service while the guest comes up: QEMU runs it, and it has not called yet.
async fn kill_while_the_guest_boots(serve: &mut Serve, id: &str) {
    serve.wait_state(id, "booting").await;
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !runs(&serve.dir) {
        assert!(std::time::Instant::now() < end, "QEMU did not run the guest\n{}", serve.log());
        // QEMU tells this to the service only; its log is a file.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let vm = serve.get(&format!("/vms/{id}")).await;
    assert_eq!(vm["state"], "booting", "{vm:#}");
    serve.kill();
}

/// Whether the only instance was resumed after its paused start, by the events that QEMU logs.
fn runs(dir: &Path) -> bool {
    let mut instances = std::fs::read_dir(dir.join("instances")).into_iter().flatten().flatten();
    let log = instances.next().and_then(|instance| std::fs::read_to_string(instance.path().join("watch.log")).ok());
    log.is_some_and(|log| log.contains("\"RESUME\""))
}

/// The job writes when it runs, so that a job that ran while the service was down cannot pass unseen.
const JOB: &str = "echo ran at $(date +%s)";

/// When the job ran. It ran once.
async fn ran_at(serve: &Serve, id: &str) -> i64 {
    let log = serve.log_of(id, "job").await;
    let runs: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("ran at ")).collect();
    assert_eq!(runs.len(), 1, "the job ran once: {log}");
    runs[0].trim().parse().unwrap()
}

async fn ended(serve: &Serve, id: &str) -> Value {
    serve.wait(id, "deleted", |vm| vm["state"] == "deleted").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_comes_up_meanwhile_waits_for_the_permission_to_start_its_job() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": JOB}})).await;
    let id = vm["id"].as_str().unwrap();
    kill_while_the_guest_boots(&mut serve, id).await;

    let down = DownService::bind(&serve.dir);
    let calls = down.refuse_calls(4).await;
    assert!(calls.iter().all(|call| call.starts_with("POST ")), "{calls:?}");
    drop(down);
    let back_at = Timestamp::now();
    serve.spawn().await;

    let end = ended(&serve, id).await;
    assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
    assert_eq!((&end["job"]["exit_code"], &end["attempt"]), (&json!(0), &json!(1)), "{end:#}");
    assert!(ran_at(&serve, id).await >= back_at.as_second(), "the job ran before the service was back");
    serve.assert_nothing_left().await;
}

/// For longer than the guest may wait: it powers itself off without having started its job, which a fresh clone then runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_waited_in_vain_is_replaced_by_a_fresh_one() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({"configure_seconds": 2})).await;
    let vm = serve
        .create(json!({
            "template": "micro", "runner": {"kind": "command", "command": JOB}, "budgets": {"boot_seconds": 15},
        }))
        .await;
    let id = vm["id"].as_str().unwrap();
    kill_while_the_guest_boots(&mut serve, id).await;

    let down = DownService::bind(&serve.dir);
    let gone = async {
        // A process has no event for others than its parent; the test ends by its time limit if the guest stays.
        while !serve.hypervisors().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let calls = async {
        loop {
            down.next_call().await;
        }
    };
    let waited = timeout(Duration::from_secs(90), async {
        tokio::select! {
            () = gone => {}
            () = calls => {}
        }
    });
    waited.await.expect("the guest powers itself off");
    drop(down);
    let back_at = Timestamp::now();
    serve.spawn().await;

    let end = ended(&serve, id).await;
    assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
    assert_eq!((&end["job"]["exit_code"], &end["attempt"]), (&json!(0), &json!(2)), "{end:#}");
    assert!(ran_at(&serve, id).await >= back_at.as_second(), "the job ran before the service was back");
    serve.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_is_reported_until_it_is_acknowledged() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let command = format!("{JOB}; sleep 2; exit 3");
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": command}})).await;
    let id = vm["id"].as_str().unwrap();
    serve.wait_state(id, "running").await;
    serve.kill();

    let down = DownService::bind(&serve.dir);
    let mut calls = down.refuse_calls(1).await;
    while !calls.last().unwrap().starts_with("DELETE ") {
        assert!(calls.len() < 100, "the job's hook did not call: {calls:?}");
        calls.extend(down.refuse_calls(1).await);
    }
    calls.extend(down.refuse_calls(3).await);
    drop(down);
    serve.spawn().await;

    let end = ended(&serve, id).await;
    assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
    assert_eq!((&end["job"]["exit_code"], &end["attempt"]), (&json!(3), &json!(1)), "{end:#}");
    ran_at(&serve, id).await;
    serve.assert_nothing_left().await;
}
