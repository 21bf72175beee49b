//! A Buildkite: the double in a process of its own, with a clock that both sides go by, and agents that speak its protocol.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use jiff::SignedDuration;
use mayfly::platform::Clock;
use serde_json::{Value, json};

/// The queue that is there.
pub const QUEUE: &str = "macs";

pub struct Buildkite {
    child: Child,
    /// The address of the API.
    pub root: String,
    http: reqwest::Client,
    clock: Clock,
    dir: tempfile::TempDir,
}

fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/buildkite-double");
    assert!(double.exists(), "there is no {}: `cargo build --example buildkite-double`", double.display());
    double
}

impl Buildkite {
    /// With the queue `macs`.
    pub async fn start() -> Buildkite {
        // It ends when its standard input does, so it cannot outlive the test whatever becomes of that.
        let mut child = Command::new(program())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the double starts");
        let mut root = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut root).expect("it says where it listens");
        let buildkite = Buildkite {
            child,
            root: root.trim().to_owned(),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap(),
            clock: Clock::adjustable(),
            dir: tempfile::tempdir().unwrap(),
        };
        buildkite.tell("queues", json!({"key": QUEUE})).await;
        buildkite
    }

    pub async fn tell(&self, what: &str, told: Value) -> Value {
        let origin = self.root.strip_suffix("/v3").unwrap();
        let sent = self.http.post(format!("{origin}/_double/{what}")).json(&told).send().await.unwrap();
        let status = sent.status();
        let answer: Value = sent.json().await.unwrap();
        assert!(status.is_success(), "{what}: {answer}");
        answer
    }

    /// A new agent token of the cluster.
    pub async fn token(&self) -> String {
        self.tell("tokens", json!({})).await["token"].as_str().unwrap().to_owned()
    }

    /// A scheduled job with these rules.
    pub async fn job(&self, rules: &[&str]) -> String {
        let told = json!({"queue": QUEUE, "rules": rules, "step": "test", "build": 7});
        self.tell("jobs", told).await["id"].as_str().unwrap().to_owned()
    }

    pub async fn cancel(&self, job: &str) {
        self.tell("cancel", json!({"job": job})).await;
    }

    pub async fn pause(&self, paused: bool) {
        self.tell("pause", json!({"queue": QUEUE, "paused": paused})).await;
    }

    /// What goes wrong next.
    pub async fn fault(&self, path: &str, then: Value) {
        self.faults(path, 1, then).await;
    }

    pub async fn faults(&self, path: &str, times: u32, then: Value) {
        self.tell("faults", json!([{"path": path, "times": times, "then": then}])).await;
    }

    pub async fn state(&self) -> Value {
        self.tell("state", json!({})).await
    }

    /// The job as the double knows it: `state`, `starts`, `end`, `reserved_by`.
    pub async fn job_state(&self, id: &str) -> Value {
        let state = self.state().await;
        state["jobs"].as_array().unwrap().iter().find(|job| job["id"] == id).expect("there is such a job").clone()
    }

    /// The requests since the last time, but those to the double itself.
    pub async fn requests(&self) -> Vec<Value> {
        self.tell("requests", json!({})).await.as_array().unwrap().clone()
    }

    /// Waits for something that another program does.
    pub async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !is_so().await {
            assert!(std::time::Instant::now() < deadline, "{what}: not in 30 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Later, for both sides.
    pub async fn advance(&self, seconds: i64) {
        self.clock.shift(SignedDuration::from_secs(seconds));
        self.tell("clock", json!({"seconds": seconds})).await;
    }

    /// For a service that is to see the same time.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// A directory for the secrets of a client.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Status and body of a request to the API.
    pub async fn ask(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> (u16, Value) {
        let method: reqwest::Method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}/{path}", self.root));
        request = request.header("authorization", format!("Token {token}"));
        if path.ends_with("/acquire") {
            request = request.header("x-buildkite-lock-acquire-job", "1");
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    /// An agent that has what the guest got: a job and a token. The error is the status of the refusal.
    pub async fn agent(&self, registration: &str) -> Result<Agent<'_>, u16> {
        let (job, token) = registration.split_once(' ').expect("a job and a token");
        assert!(token.starts_with("bkjat_") && !token.contains(' '), "not a token for one job");
        let told = json!({"name": "agent", "meta_data": ["queue=macs"], "ignore_in_dispatches": true});
        match self.ask("POST", "register", token, Some(told)).await {
            (200, made) => {
                let access = made["access_token"].as_str().unwrap().to_owned();
                Ok(Agent { buildkite: self, job: job.to_owned(), access, job_token: OnceLock::new() })
            }
            (status, _) => Err(status),
        }
    }
}

impl Drop for Buildkite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What Buildkite's agent says, without the program.
pub struct Agent<'b> {
    buildkite: &'b Buildkite,
    pub job: String,
    /// Until it has the job.
    access: String,
    /// With which it asks for its job from then on.
    job_token: OnceLock<String>,
}

impl Agent<'_> {
    /// `acquire`, `start` or `finish`: the status of the answer.
    pub async fn act(&self, act: &str) -> u16 {
        let path = format!("jobs/{}/{act}", self.job);
        let token = self.job_token.get().unwrap_or(&self.access);
        let told = json!({"started_at": "2026-01-01T00:00:00Z", "exit_status": "0"});
        let (status, answer) = self.buildkite.ask("PUT", &path, token, Some(told)).await;
        if let Some(token) = answer["token"].as_str() {
            self.job_token.get_or_init(|| token.to_owned());
        }
        status
    }

    /// Takes the job and begins it.
    pub async fn begin(&self) {
        assert_eq!((self.act("acquire").await, self.act("start").await), (200, 200));
    }

    /// Ends the job, and itself.
    pub async fn finish(&self) {
        assert_eq!(self.act("finish").await, 200);
        self.buildkite.ask("POST", "disconnect", &self.access, Some(json!({}))).await;
    }
}
