//! Jobs that go well, and jobs that fail by themselves.

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{BUILD_FAILURE, GitLab, SECRET, exit_code, job};

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_of_a_job_run_in_one_vm_that_is_ended_with_it() {
    let gitlab = GitLab::new().await;
    let config = gitlab.ran(&job(7, "bash"), &["config"]).await.ends(0).json();
    assert_eq!((&config["driver"]["name"], &config["builds_dir"]), (&json!("mayfly"), &json!("/builds")), "{config:#}");
    assert_eq!(config["builds_dir_is_shared"], false);

    let of_try = gitlab.configured(&job(7, "bash")).await;
    let prepared = gitlab.ran(&of_try, &["prepare"]).await.ends(0);
    assert!(
        prepared.out.contains(" of the template guest") && prepared.out.contains(": ready after "),
        "{}",
        prepared.out
    );
    let vms = gitlab.vms().await;
    assert_eq!(vms.len(), 1);
    let vm = &vms[0];
    assert!(vm["name"].as_str().unwrap().starts_with("gitlab-7-"), "{vm:#}");
    for (label, value) in [
        ("owner", "gitlab"),
        ("gitlab.job", "7"),
        ("gitlab.project", "acme/app"),
        ("gitlab.server", "gitlab.example:8443"),
    ] {
        assert_eq!(vm["labels"][label], value, "{vm:#}");
    }
    // The job's time and ten minutes; every job reaches its GitLab.
    assert_eq!((&vm["budgets"]["lifetime_seconds"], &vm["network"]), (&json!(4200), &json!("internet")), "{vm:#}");

    // Both streams, and the end of a script that reads nothing else.
    let ran = gitlab.script(&of_try, "echo one; echo two >&2; cat; echo three").await.ends(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("one\nthree\n", "two\n"));
    // More than all buffers between here and there.
    let long = format!("{}echo the end", ": some line of a script that is long\n".repeat(20_000));
    assert_eq!(gitlab.script(&of_try, &long).await.ends(0).out, "the end\n");

    // Exit codes are those of the script.
    let failed = gitlab.script(&of_try, "echo out; exit 42").await.ends(BUILD_FAILURE);
    assert_eq!((failed.out.as_str(), failed.err.as_str(), exit_code(&gitlab).as_str()), ("out\n", "", "42"));
    gitlab.script(&of_try, "kill -KILL $$").await.ends(BUILD_FAILURE);
    assert_eq!(exit_code(&gitlab), "137");

    assert_eq!(gitlab.vms().await.len(), 1, "no stage made another vm");
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
    let records = gitlab.records().await;
    assert_eq!((records.len(), &records[0]["id"]), (1, &vm["id"]));
}

/// The guest is this machine, so the script sees every process on it.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_a_job_are_no_argument_and_in_no_record() {
    let gitlab = GitLab::new().await;
    let of_try = gitlab.prepared(7, "linux").await;
    let script = format!(
        "secret={SECRET}\nfor process in /proc/[0-9]*; do\n  line=$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)\n  case $line in \
         *\"$secret\"*) echo \"argument: $line\";; *gitlab-executor*) echo executor;; esac\ndone\nenv"
    );
    let ran = gitlab.script(&of_try, &script).await.ends(0);
    assert!(ran.out.contains("executor\n"), "the executor was seen: {}", ran.out);
    for found in ["argument:", SECRET, "CUSTOM_ENV_"] {
        assert!(!ran.out.contains(found), "{found}: {}", ran.out);
    }
    let vm = gitlab.vms().await.remove(0);
    let id = vm["id"].as_str().unwrap();
    let events = gitlab.api.get(&format!("/vms/{id}/events?limit=200"), &gitlab.api.admin).await;
    assert!(events.text.contains("session_opened"), "{}", events.text);
    assert!(!events.text.contains(SECRET) && !vm.to_string().contains(SECRET));
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_says_for_what_and_at_which_place() {
    let gitlab = GitLab::new().await;
    let mut first = Vec::new();
    for id in 1..=2 {
        first.push(gitlab.prepared(id, "linux").await);
    }
    let of_try = gitlab.configured(&job(3, "linux")).await;
    let mut waiting = gitlab.stage(&of_try, &["prepare"]).spawn().unwrap();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let waits = line.ends_with(": queued, waits for a slot, position 1");
        said.push(line);
        if waits {
            gitlab.ran(&first[0], &["cleanup"]).await.ends(0);
        }
    }
    assert!(waiting.wait().await.unwrap().success(), "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.contains("position")).count(), 1, "{said:#?}");
    // The others' vms were not touched: each job finds its own.
    for of_try in [&first[1], &of_try] {
        let ran = gitlab.script(of_try, "echo here").await.ends(0);
        assert_eq!(ran.out, "here\n");
        gitlab.ran(of_try, &["cleanup"]).await.ends(0);
    }
    gitlab.all_ended().await;
    assert_eq!(gitlab.records().await.len(), 3);
}
