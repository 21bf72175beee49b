//! The external provider of GARM.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    api::{Api, api},
    cli::{Ran, program, run},
};

mod create;
mod delete;
mod guest;
mod interrupted;
mod refused;
mod versions;

pub const CONTROLLER: &str = "7d1f0f6c-3c1b-4f0e-9f0a-0c5f3b1f9a11";
pub const POOL: &str = "0b0c9c7e-53f8-4a53-8b0f-5f1f9f0c1c22";

/// A GARM with a provider of its own, and the service that the provider asks.
pub struct Garm {
    pub api: Api,
    dir: tempfile::TempDir,
}

/// One call of the provider.
pub struct Call {
    variables: Vec<(String, String)>,
    input: Vec<u8>,
    config: PathBuf,
}

impl Call {
    pub fn variable(mut self, name: &str, value: &str) -> Call {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn version(self, version: &str) -> Call {
        self.variable("GARM_INTERFACE_VERSION", version)
    }

    pub fn pool(self, pool: &str) -> Call {
        self.variable("GARM_POOL_ID", pool)
    }

    pub fn controller(self, controller: &str) -> Call {
        self.variable("GARM_CONTROLLER_ID", controller)
    }

    pub fn config(mut self, config: &Path) -> Call {
        self.config = config.to_owned();
        self
    }

    /// As GARM starts it: no arguments, and nothing in the environment but what GARM sets.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("GARM_PROVIDER_CONFIG_FILE", &self.config);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub async fn ran(&self) -> Ran {
        let mut child = self.command().spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A provider that refuses the call does not read it.
        let _ = stdin.write_all(&self.input).await;
        drop(stdin);
        let output = child.wait_with_output().await.expect("the program ends");
        Ran {
            code: output.status.code().expect("it exits by itself"),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    pub fn input(&self) -> &[u8] {
        &self.input
    }
}

impl Garm {
    pub async fn new() -> Garm {
        let api = api().await;
        let url = api.url.clone();
        Garm::asking(api, &url)
    }

    /// The provider asks the service at this address.
    pub fn asking(api: Api, url: &str) -> Garm {
        let dir = tempfile::tempdir().expect("a directory");
        let garm = Garm { api, dir };
        let token = garm.write("token", &garm.api.create);
        garm.write(
            "mayfly.toml",
            &format!("url = '{url}'\ntoken_file = '{}'\ntimeout_seconds = 20\n", token.display()),
        );
        garm
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn call(&self, command: &str) -> Call {
        let call = Call { variables: Vec::new(), input: Vec::new(), config: self.path("mayfly.toml") };
        call.variable("GARM_COMMAND", command).controller(CONTROLLER)
    }

    pub fn create(&self, name: &str, token: &str) -> Call {
        self.create_with(name, token, json!({}))
    }

    /// With changes to the usual request.
    pub fn create_with(&self, name: &str, token: &str, changes: Value) -> Call {
        let mut call = self.call("CreateInstance").pool(POOL);
        let mut request = bootstrap(name, token);
        for (key, value) in changes.as_object().expect("an object") {
            request[key] = value.clone();
        }
        call.input = request.to_string().into_bytes();
        call
    }

    pub fn delete(&self, name: &str) -> Call {
        self.call("DeleteInstance").variable("GARM_INSTANCE_ID", name)
    }

    pub fn list(&self, pool: &str) -> Call {
        self.call("ListInstances").pool(pool)
    }

    /// Vms that are not deleted, newest first.
    pub async fn vms(&self) -> Vec<Value> {
        let listed = self.api.get("/vms?limit=200", &self.api.admin).await.ok(200);
        listed["items"].as_array().expect("a list").clone()
    }
}

/// A token of GARM's: valid for half an hour. The text makes it differ from others.
pub fn token(text: &str, attempt: u32) -> String {
    token_for(text, attempt, 1800)
}

pub fn token_for(text: &str, attempt: u32, seconds: i64) -> String {
    let expires = jiff::Timestamp::now().as_second() + seconds;
    let claims = json!({"name": "garm", "exp": expires, "create_attempt": attempt, "entity": "acme/app"});
    format!("eyJhbGciOiJIUzI1NiJ9.{}.{text}", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What GARM's main of August 2026 writes to standard input, shortened.
fn bootstrap(name: &str, token: &str) -> Value {
    json!({
        "name": name,
        "tools": [
            {"os": "win", "architecture": "x64", "download_url": "https://h.example/w.zip", "filename": "actions-runner-win.zip"},
            {"os": "linux", "architecture": "x64", "download_url": "https://h.example/l.tar.gz",
             "filename": "actions-runner-linux-x64.tar.gz", "sha256_checksum": "00"},
            {"os": "osx", "architecture": "arm64", "download_url": "https://h.example/o.tar.gz",
             "filename": "actions-runner-osx-arm64.tar.gz", "temp_download_token": null},
        ],
        "repo_url": "https://github.com/acme/app",
        "callback-url": "https://garm.example/api/v1/callbacks/status",
        "metadata-url": "https://garm.example/api/v1/metadata",
        "instance-token": token,
        "ssh-keys": null,
        "extra_specs": {"runner_install_template": "aHVzaC1odXNo"},
        "github-runner-group": "",
        "ca-cert-bundle": "",
        "arch": "amd64",
        "os_type": "linux",
        "flavor": "default",
        "image": "micro",
        "labels": null,
        "pool_id": POOL,
        "user_data_options": {"disable_updates_on_boot": false, "extra_packages": null, "enable_boot_debug": false},
        "jit_config_enabled": true,
        "proxy_config": {"http_proxy": "", "https_proxy": "", "no_proxy": ""},
    })
}

/// The program under the name of a link, without GARM's environment.
pub async fn by_hand(args: &[&str], link: &Path) -> Ran {
    let mut command = Command::new(link);
    command.args(args).env_clear().stdin(Stdio::null());
    run(&mut command).await
}
