//! A GitHub: the double in a process of its own, with a clock that both sides go by.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use aws_lc_rs::hmac;
use jiff::SignedDuration;
use mayfly::{
    platform::Clock,
    sources::github::{CredentialLocation, GitHubClient, GitHubOptions, Scope, Server},
};
use serde_json::{Value, json};

pub struct GitHub {
    child: Child,
    pub origin: String,
    http: reqwest::Client,
    clock: Clock,
    dir: tempfile::TempDir,
}

/// An App, installed in the organisation `acme`.
pub struct App {
    pub id: u64,
    pub client_id: String,
    pub installation: u64,
    pub key_file: PathBuf,
    pub pkcs8: String,
}

fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/github-double");
    assert!(double.exists(), "there is no {}: `cargo build --example github-double`", double.display());
    double
}

pub fn acme() -> Scope {
    Scope::organization("acme").unwrap()
}

pub fn app_repository() -> Scope {
    Scope::repository("acme/app").unwrap()
}

pub fn all_permissions() -> Value {
    json!({
        "organization_self_hosted_runners": "write", "administration": "write", "actions": "read", "metadata": "read",
    })
}

pub fn private_file(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What a webhook of GitHub's carries as `X-Hub-Signature-256`.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

impl GitHub {
    /// With the organisation `acme` and its repository `acme/app`.
    pub async fn start() -> GitHub {
        // It ends when its standard input does, so it cannot outlive the test whatever becomes of that.
        let mut child = Command::new(program())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the double starts");
        let mut origin = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut origin).expect("it says where it listens");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let github = GitHub {
            child,
            origin: origin.trim().to_owned(),
            http,
            clock: Clock::adjustable(),
            dir: tempfile::tempdir().unwrap(),
        };
        github.tell("places", json!({"places": ["orgs/acme", "repos/acme/app"]})).await;
        github
    }

    pub async fn told(&self, path: &str, what: Value) -> (u16, Value) {
        let sent = self.http.post(format!("{}/_double/{path}", self.origin)).json(&what).send().await.unwrap();
        let status = sent.status().as_u16();
        (status, sent.json().await.unwrap())
    }

    /// Something that cannot fail.
    pub async fn tell(&self, path: &str, what: Value) -> Value {
        let (status, answer) = self.told(path, what).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
        answer
    }

    /// What goes wrong next.
    pub async fn fault(&self, path: &str, then: Value) {
        self.tell("faults", json!([{"path": path, "then": then}])).await;
    }

    /// The requests since the last time, but those to the double itself.
    pub async fn requests(&self) -> Vec<Value> {
        self.tell("requests", json!({})).await.as_array().unwrap().clone()
    }

    /// Later, for both sides.
    pub async fn advance(&self, seconds: i64) {
        self.clock.shift(SignedDuration::from_secs(seconds));
        self.tell("clock", json!({"seconds": seconds})).await;
    }

    /// Our own clock alone.
    pub fn skew(&self, seconds: i64) {
        self.clock.shift(SignedDuration::from_secs(seconds));
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub async fn app(&self) -> App {
        self.app_with(all_permissions(), json!(["workflow_job"])).await
    }

    pub async fn app_with(&self, permissions: Value, events: Value) -> App {
        let made = self.tell("apps", json!({"permissions": permissions, "events": events})).await;
        let id = made["id"].as_u64().unwrap();
        let installed =
            self.tell("installations", json!({"app": id, "account": "acme", "permissions": permissions})).await;
        let key_file = self.dir.path().join("app.pem");
        private_file(&key_file, made["pkcs1"].as_str().unwrap());
        App {
            id,
            client_id: made["client_id"].as_str().unwrap().to_owned(),
            installation: installed["id"].as_u64().unwrap(),
            key_file,
            pkcs8: made["pkcs8"].as_str().unwrap().to_owned(),
        }
    }

    /// As github.com is spoken to, without waiting for anything.
    pub fn options(&self) -> GitHubOptions {
        self.options_of(Server::new("https://github.com", Some(&self.origin)).unwrap())
    }

    /// As an Enterprise Server is spoken to.
    pub fn enterprise_options(&self) -> GitHubOptions {
        self.options_of(Server::new(&self.origin, None).unwrap())
    }

    pub fn options_of(&self, server: Server) -> GitHubOptions {
        let mut options = GitHubOptions::new(server);
        options.retry.first_pause = Duration::from_millis(5);
        options.retry.longest_pause = Duration::from_millis(20);
        options.fresh_token_pause = Duration::from_millis(5);
        options.patience = Duration::ZERO;
        options.write_gap = Duration::ZERO;
        options.clock = self.clock.clone();
        options
    }

    pub fn source(&self, app: &App) -> CredentialLocation {
        CredentialLocation::AppKeyFile { app_id: app.client_id.clone(), installation: None, path: app.key_file.clone() }
    }

    pub fn client(&self, app: &App) -> GitHubClient {
        GitHubClient::new(self.options(), self.source(app)).unwrap()
    }

    /// A personal token that may do everything in `acme`, and a client that has it.
    pub async fn holder(&self) -> (GitHubClient, String) {
        let told = json!({"classic": "repo, admin:org", "sees": ["acme"]});
        let token = self.tell("tokens", told).await["token"].as_str().unwrap().to_owned();
        (GitHubClient::new(self.options(), CredentialLocation::Token(token.clone().into())).unwrap(), token)
    }
}

impl Drop for GitHub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
