//! The stages of a GitLab job with a real guest.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    cli::{Ran, program, run},
    support::Serve,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_gitlab_runs_in_a_real_guest() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let config = format!("data_dir = '{}'\n[images.micro]\nnetwork = 'isolated'\nshell = ['sh']", serve.dir.display());
    let config = write("mayfly.toml", &config);
    let job =
        write("job.json", r#"{"id": 7, "token": "hush", "runner_info": {"timeout": 600}, "image": {"name": "micro"}}"#);
    let script = write("script", "echo \"$(id -un) says hello\"; exit 7");
    let script = script.to_str().unwrap();
    let stage = async |stage: &[&str], attempt: Option<&str>| -> Ran {
        let mut command = Command::new(program());
        command.args(["gitlab-executor", "--config"]).arg(&config).args(stage).env_clear().stdin(Stdio::null());
        command.env("BUILD_FAILURE_EXIT_CODE", "1").env("SYSTEM_FAILURE_EXIT_CODE", "2").env("JOB_RESPONSE_FILE", &job);
        command.env("BUILD_EXIT_CODE_FILE", dir.path().join("code"));
        command.envs(attempt.map(|attempt| ("MAYFLY_GITLAB_ATTEMPT", attempt)));
        run(&mut command).await
    };
    let answer = stage(&["config"], None).await.ends(0).json();
    let attempt = answer["job_env"]["MAYFLY_GITLAB_ATTEMPT"].as_str();
    stage(&["prepare"], attempt).await.ends(0);
    let ran = stage(&["run", script, "build_script"], attempt).await.ends(1);
    assert_eq!(ran.out, "runner says hello\n", "{}", ran.err);
    assert_eq!(std::fs::read_to_string(dir.path().join("code")).unwrap(), "7");
    let vms = serve.get("/vms").await["items"].take();
    let ids: Vec<&str> = vms.as_array().unwrap().iter().filter_map(|vm: &Value| vm["id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "{vms:#}");
    stage(&["cleanup"], attempt).await.ends(0);
    serve.wait_state(ids[0], "deleted").await;
    serve.assert_nothing_left().await;
}
