//! What cannot work, with its sentence and the exit code that says whose fault it is.

use super::{BUILD_FAILURE, GitLab, SYSTEM_FAILURE, by_hand, exit_code, job};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_asks_for_what_there_is_not_fails_at_once() {
    let gitlab = GitLab::new().await;
    for (image, sentence) in [
        (
            "windows",
            "ERROR: image: \"windows\" is not allowed on this runner: use one of bash, fish, linux, no/login\n",
        ),
        // A template, and no image of the list.
        ("guest", "ERROR: image: \"guest\" is not allowed on this runner: use one of bash, fish, linux, no/login\n"),
        ("$IMAGE", "ERROR: image: \"$IMAGE\" is not allowed on this runner: use one of bash, fish, linux, no/login\n"),
    ] {
        let of_try = gitlab.configured(&job(7, image)).await;
        let ran = gitlab.ran(&of_try, &["prepare"]).await.ends(BUILD_FAILURE);
        assert_eq!(ran.err, sentence);
        gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    }
    assert_eq!(exit_code(&gitlab), "", "no script has failed");
    assert!(gitlab.vms().await.is_empty() && gitlab.records().await.is_empty());
}

/// GitLab Runner tries it again, with a cleanup in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_without_a_login_or_a_shell_is_found_before_the_job_begins() {
    let gitlab = GitLab::new().await;
    for (image, words) in [
        ("no/login", &["micro", "`ssh_key`", "[vm.access_unsupported]"][..]),
        ("fish", &["an empty script ends with exit code 127", "`/nowhere/fish`", "mayfly.toml"][..]),
    ] {
        for attempt in 1..=2 {
            let of_try = gitlab.configured(&job(7, image)).await;
            let ran = gitlab.ran(&of_try, &["prepare"]).await.ends(SYSTEM_FAILURE);
            for word in words {
                assert!(ran.err.contains(word), "{word}: {}", ran.err);
            }
            gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
            gitlab.all_ended().await;
            let records = gitlab.records().await;
            let of_image =
                records.iter().filter(|vm| vm["template"] == if image == "fish" { "guest" } else { "micro" });
            assert_eq!(of_image.count(), attempt, "each try has a vm of its own");
        }
    }
    let ran = gitlab.script(&job(7, "linux"), "true").await.ends(SYSTEM_FAILURE);
    assert!(ran.err.starts_with("ERROR: the vm of this job has ended (cancelled"), "{}", ran.err);
    let ran = gitlab.script(&job(8, "linux"), "true").await.ends(SYSTEM_FAILURE);
    assert!(ran.err.starts_with("ERROR: there is no vm of this job: `prepare_exec`"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_is_told() {
    let gitlab = GitLab::new().await;
    let prepare = async |words: &str| {
        let ran = gitlab.ran(&job(7, "linux"), &["prepare"]).await.ends(SYSTEM_FAILURE);
        assert!(ran.err.starts_with("ERROR: ") && ran.err.contains(words), "{words}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    };
    gitlab.configure("http://gitlab-runner.example:8470", "");
    prepare("the scripts of jobs would travel to gitlab-runner.example:8470 in clear").await;
    gitlab.configure("http://127.0.0.1:1", "timeout = 3");
    prepare("mayfly.toml: line 4: unknown field `timeout`").await;
    gitlab.configure(&gitlab.api.url, "");
    gitlab.write("token", "mfa_wrong");
    prepare("is not accepted").await;
    std::fs::remove_file(gitlab.path("mayfly.toml")).unwrap();
    prepare("mayfly.toml: No such file").await;
}

#[tokio::test]
async fn a_user_who_starts_it_is_told_what_it_is() {
    for stage in [&["config"][..], &["prepare"], &["run", "script", "build_script"], &["cleanup"]] {
        let ran = by_hand("/nowhere/mayfly.toml".as_ref(), stage).await.ends(2);
        assert_eq!(
            ran.err,
            "this is the custom executor of GitLab Runner, and `gitlab-runner` starts it: BUILD_FAILURE_EXIT_CODE is not set; name \
             this program in [runners.custom] of the runner's config.toml (docs/gitlab.md)\n"
        );
    }
    by_hand("/nowhere/mayfly.toml".as_ref(), &["run"]).await.ends(2);
}
