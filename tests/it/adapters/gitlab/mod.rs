//! The custom executor of GitLab Runner, with vms of the fake driver. The guest is this machine: a real OpenSSH server on the
//! loopback interface.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use mayfly::{domain::endpoint::Endpoint, templates::NewTemplate};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    simulated_vms::{Address, ended, service_with_vms},
    sshd::{self, Sshd},
};
use crate::{
    api::{Api, disk, new_template},
    cli::{Ran, program, run},
};

mod interrupted;
mod refused;
mod scripts;

pub const BUILD_FAILURE: i32 = 71;
pub const SYSTEM_FAILURE: i32 = 72;
/// In every job: as a variable, and in its token.
pub const SECRET: &str = "hush-hush-5eCret";

/// A GitLab Runner with an executor of its own, and the service that the executor asks.
pub struct GitLab {
    pub api: Api,
    dir: tempfile::TempDir,
    _sshd: Sshd,
}

/// One job of GitLab's.
#[derive(Clone)]
pub struct Job {
    id: u32,
    image: String,
    /// From the stage `config`.
    env: Vec<(String, String)>,
}

impl GitLab {
    /// With two slots.
    pub async fn new() -> GitLab {
        let sshd = Sshd::start().await;
        let api = service_with_vms(Endpoint::address("127.0.0.1", sshd.port), Address::Early).await;
        let template = NewTemplate {
            ssh_key: Some(sshd.key()),
            user: Some(sshd::user()),
            ..new_template("guest", disk(&api.dir, "guest.raw", 2))
        };
        api.parts.catalog.register(template).await.unwrap();
        let url = api.url.clone();
        let gitlab = GitLab { api, dir: tempfile::tempdir().unwrap(), _sshd: sshd };
        gitlab.configure(&url, "");
        gitlab
    }

    /// The executor's configuration, with what the test adds to its beginning.
    pub fn configure(&self, url: &str, more: &str) {
        let token = self.write("token", &self.api.create);
        let text = format!(
            "url = '{url}'\ntoken_file = '{}'\ntimeout_seconds = 20\n{more}\n[defaults]\nshell = ['sh']\n\
             [images.linux]\ntemplate = 'guest'\n[images.'no/login']\ntemplate = 'micro'\n\
             [images.bash]\ntemplate = 'guest'\nshell = ['bash', '--login']\nbuilds_dir = '/builds'\n\
             [images.fish]\ntemplate = 'guest'\nshell = ['/nowhere/fish']",
            token.display()
        );
        self.write("mayfly.toml", &text);
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As GitLab sends it, and GitLab Runner 19.3 writes it to a file: shortened.
    fn job_file(&self, job: &Job) -> PathBuf {
        let text = json!({
            "id": job.id, "token": format!("glcbt-{SECRET}-{}", job.id), "allow_git_fetch": true,
            "job_info": {"name": "build", "stage": "test", "project_id": 3, "project_name": "app"},
            "git_info": {"repo_url": format!("https://gitlab-ci-token:{SECRET}@gitlab.example:8443/acme/app.git"), "sha": "ab"},
            "runner_info": {"timeout": 3600}, "image": {"name": "$IMAGE", "entrypoint": null}, "services": null,
            "variables": [{"key": "SECRET", "value": SECRET, "public": false, "masked": true}],
        });
        self.write(&format!("job-{}.json", job.id), &text.to_string())
    }

    /// As the runner starts a stage.
    pub fn stage(&self, job: &Job, stage: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(["gitlab-executor", "--config"]).arg(self.path("mayfly.toml")).args(stage);
        command.env_clear().current_dir(self.dir.path()).env("TMPDIR", self.dir.path());
        command.env("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE.to_string());
        command.env("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE.to_string());
        command.env("BUILD_EXIT_CODE_FILE", self.path("build_exit_code"));
        command.env("JOB_RESPONSE_FILE", self.job_file(job));
        command.env("CUSTOM_ENV_CI_JOB_IMAGE", &job.image).env("CUSTOM_ENV_SECRET", SECRET);
        // What the author of a job would set if it could do harm.
        command.env("CUSTOM_ENV_MAYFLY_URL", "http://127.0.0.1:1").env("CUSTOM_ENV_CI_JOB_ID", "1");
        command.envs(job.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn ran(&self, job: &Job, stage: &[&str]) -> Ran {
        run(&mut self.stage(job, stage)).await
    }

    /// The stage `config`, whose variables the runner sets for the following stages of this try.
    pub async fn configured(&self, job: &Job) -> Job {
        let answer = self.ran(job, &["config"]).await.ends(0).json();
        let env = answer["job_env"].as_object().unwrap();
        let env = env.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
        Job { env: env.collect(), ..job.clone() }
    }

    /// A job whose vm is ready.
    pub async fn prepared(&self, id: u32, image: &str) -> Job {
        let job = self.configured(&job(id, image)).await;
        self.ran(&job, &["prepare"]).await.ends(0);
        job
    }

    pub async fn script(&self, job: &Job, text: &str) -> Ran {
        let script = self.write("script", text);
        self.ran(job, &["run", script.to_str().unwrap(), "build_script"]).await
    }

    /// Vms that are not deleted, newest first.
    pub async fn vms(&self) -> Vec<Value> {
        let listed = self.api.get("/vms?limit=200", &self.api.admin).await.ok(200);
        listed["items"].as_array().unwrap().clone()
    }

    pub async fn records(&self) -> Vec<Value> {
        let listed = self.api.get("/vms?limit=200&state=deleted", &self.api.admin).await.ok(200);
        listed["items"].as_array().unwrap().clone()
    }

    /// Waits until no vm of a job is left.
    pub async fn all_ended(&self) {
        for vm in self.vms().await {
            self.ended(vm["id"].as_str().unwrap()).await;
        }
    }

    pub async fn ended(&self, id: &str) {
        ended(&self.api, id).await;
    }
}

pub fn job(id: u32, image: &str) -> Job {
    Job { id, image: image.to_owned(), env: Vec::new() }
}

pub fn exit_code(gitlab: &GitLab) -> String {
    std::fs::read_to_string(gitlab.path("build_exit_code")).unwrap_or_default()
}

/// The program without anything of GitLab Runner's environment.
pub async fn by_hand(config: &Path, stage: &[&str]) -> Ran {
    let mut command = Command::new(program());
    command.args(["gitlab-executor", "--config"]).arg(config).args(stage).env_clear().stdin(Stdio::null());
    run(&mut command).await
}
