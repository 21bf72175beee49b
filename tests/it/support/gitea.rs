//! A Gitea: the double in a process of its own, with a clock that both sides go by, and runners that speak its protocol.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{body::Bytes, http::HeaderMap};
use jiff::SignedDuration;
use mayfly::platform::Clock;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub const SECRET: &str = "It's a Secret to Everybody";

pub struct Gitea {
    child: Child,
    /// Where the double takes orders.
    origin: String,
    /// What users of this server write as its address.
    pub root: String,
    http: reqwest::Client,
    clock: Clock,
    dir: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobIds {
    pub job: u64,
    pub run: u64,
}

fn program() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/gitea-double");
    assert!(double.exists(), "there is no {}: `cargo build --example gitea-double`", double.display());
    double
}

/// The program that simulates Gitea's runner in a guest.
pub fn runner_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doubles/gitea/runner/gitea-runner")
}

impl Gitea {
    /// With the organisation `acme`, its repository `acme/app`, and the administrator `someone`, who owns both.
    pub async fn start() -> Gitea {
        Gitea::start_below("").await
    }

    /// Below a path of its address, as behind a reverse proxy: `/git`.
    pub async fn start_below(path: &str) -> Gitea {
        // It ends when its standard input does, so it cannot outlive the test whatever becomes of that.
        let mut child = Command::new(program())
            .env_clear()
            .env("GITEA_DOUBLE_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the double starts");
        let mut root = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut root).expect("it says where it listens");
        let root = root.trim().to_owned();
        let gitea = Gitea {
            child,
            origin: root.strip_suffix(path).unwrap().to_owned(),
            root,
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap(),
            clock: Clock::adjustable(),
            dir: tempfile::tempdir().unwrap(),
        };
        gitea.tell("users", json!({"login": "someone", "administrator": true})).await;
        gitea.tell("orgs", json!({"name": "acme", "owners": ["someone"]})).await;
        gitea.tell("repos", json!({"full_name": "acme/app"})).await;
        gitea
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

    /// Everything that the double knows, see `tests/doubles/gitea/state.rs`.
    pub async fn state(&self) -> Value {
        self.tell("state", json!({})).await
    }

    /// Rows of runners, with `scope` and `task` beside what the API shows.
    pub async fn runners(&self) -> Vec<Value> {
        self.state().await["runners"].as_array().unwrap().clone()
    }

    /// The job, with `log`, `outputs` and `attempts` beside what the API shows.
    pub async fn job_state(&self, id: u64) -> Value {
        let state = self.state().await;
        state["jobs"].as_array().unwrap().iter().find(|job| job["id"] == id).expect("there is such a job").clone()
    }

    /// How many rows were deleted while their runner had a job. Each cost a result.
    pub async fn busy_deletions(&self) -> u64 {
        self.state().await["busy_deletions"].as_u64().unwrap()
    }

    /// What goes wrong next.
    pub async fn fault(&self, path: &str, then: Value) {
        self.tell("faults", json!([{"path": path, "then": then}])).await;
    }

    /// How often the double was asked for a path with this end, since the beginning.
    pub async fn count(&self, end: &str) -> u64 {
        let counts = self.state().await["counts"].clone();
        let ends = counts.as_object().unwrap().iter().filter(|(path, _)| path.ends_with(end));
        ends.map(|(_, count)| count.as_u64().unwrap()).sum()
    }

    /// Waits for something that another program does.
    pub async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !is_so().await {
            assert!(std::time::Instant::now() < deadline, "{what}: not in 30 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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

    /// For a service that is to see the same time.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// A directory for the secrets of a client.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An access token of this user, who must be there.
    pub async fn token(&self, user: &str, scopes: &[&str]) -> String {
        let made = self.tell("tokens", json!({"user": user, "scopes": scopes})).await;
        made["token"].as_str().unwrap().to_owned()
    }

    /// A token that may do everything.
    pub async fn owner_token(&self) -> String {
        self.token("someone", &["all"]).await
    }

    /// A queued job of `acme/app`.
    pub async fn job(&self, labels: &[&str]) -> JobIds {
        self.job_with(json!({"labels": labels})).await
    }

    pub async fn job_with(&self, told: Value) -> JobIds {
        let made = self.tell("jobs", told).await;
        JobIds { job: made["id"].as_u64().unwrap(), run: made["run"].as_u64().unwrap() }
    }

    /// `release`, `cancel`, `skip` or `rerun`.
    pub async fn order(&self, what: &str, job: u64) {
        self.tell(what, json!({"job": job})).await;
    }

    /// A webhook of this scope (`system`, `orgs/acme`, `repos/acme/app`).
    pub async fn hook(&self, scope: &str, url: &str) -> u64 {
        let told = json!({"scope": scope, "url": url, "secret": SECRET});
        self.tell("hooks", told).await["id"].as_u64().unwrap()
    }

    /// Status, headers and body of a request to the API.
    pub async fn ask(&self, method: &str, path: &str, token: Option<&str>) -> (u16, HeaderMap, Value) {
        let method: reqwest::Method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}/api/v1/{path}", self.root));
        if let Some(token) = token {
            request = request.header("authorization", format!("token {token}"));
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    /// Registers a runner for one job of `acme`'s, as the service does it.
    pub async fn register(&self, name: &str, labels: &[&str]) -> Program<'_> {
        let token = self.owner_token().await;
        let (_, _, made) = self.ask("POST", "orgs/acme/actions/runners/registration-token", Some(&token)).await;
        let told = json!({"name": name, "token": made["token"], "labels": labels, "ephemeral": true, "version": "v1"});
        let registered = self.call("Register", None, &told).await.expect("it is registered");
        let runner = &registered["runner"];
        let text = |key: &str| runner[key].as_str().unwrap().to_owned();
        Program {
            gitea: self,
            id: text("id").parse().unwrap(),
            name: text("name"),
            uuid: text("uuid"),
            token: text("token"),
        }
    }

    /// The program that has this `.runner` file.
    pub fn program(&self, registration: &str) -> Program<'_> {
        let file: Value = serde_json::from_str(registration).expect("a .runner file is JSON");
        assert_eq!(file["address"], json!(self.root), "the runner would ask another server");
        let text = |key: &str| file[key].as_str().expect("it is text").to_owned();
        let id = file["id"].as_u64().expect("it is a number");
        Program { gitea: self, id, name: text("name"), uuid: text("uuid"), token: text("token") }
    }

    /// A call of the runner protocol: the answer, or the text of the error.
    async fn call(&self, procedure: &str, who: Option<&Program<'_>>, message: &Value) -> Result<Value, String> {
        let url = format!("{}/api/actions/runner.v1.RunnerService/{procedure}", self.root);
        let mut request = self.http.post(url).header("connect-protocol-version", "1").json(message);
        if let Some(program) = who {
            request = request.header("x-runner-uuid", &program.uuid).header("x-runner-token", &program.token);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        if status.is_success() { Ok(body) } else { Err(body["message"].as_str().unwrap_or_default().to_owned()) }
    }
}

impl Drop for Gitea {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What Gitea's runner program says, without the program.
pub struct Program<'g> {
    gitea: &'g Gitea,
    pub id: u64,
    pub name: String,
    uuid: String,
    token: String,
}

impl Program<'_> {
    /// The content of its `.runner` file.
    pub fn registration(&self, address: &str, labels: &[&str]) -> String {
        let labels: Vec<String> = labels.iter().map(|label| format!("{label}:host")).collect();
        let file = json!({
            "WARNING": "", "id": self.id, "uuid": self.uuid, "name": self.name, "token": self.token, "address": address,
            "labels": labels, "ephemeral": true,
        });
        file.to_string()
    }

    pub async fn call(&self, procedure: &str, message: Value) -> Result<Value, String> {
        self.gitea.call(procedure, Some(self), &message).await
    }

    /// The first thing that it says: it is online from now on.
    pub async fn declare(&self, labels: &[&str]) -> Result<Value, String> {
        self.call("Declare", json!({"version": "v1", "labels": labels})).await
    }

    /// The number of the task, if there was one.
    pub async fn fetch(&self) -> Result<Option<u64>, String> {
        let answer = self.call("FetchTask", json!({"tasksVersion": "0"})).await?;
        Ok(answer["task"]["id"].as_str().map(|id| id.parse().unwrap()))
    }

    /// It is still working on it.
    pub async fn report(&self, task: u64) -> Result<Value, String> {
        self.call("UpdateTask", json!({"state": {"id": task.to_string()}})).await
    }

    pub async fn log(&self, task: u64, index: usize, lines: &[&str], ends: bool) -> Result<Value, String> {
        let rows: Vec<Value> = lines.iter().map(|line| json!({"content": line})).collect();
        let message = json!({"taskId": task.to_string(), "index": index.to_string(), "rows": rows, "noMore": ends});
        self.call("UpdateLog", message).await
    }

    /// The end of a task with a single step: `SUCCESS`, `FAILURE`, `CANCELLED`, `SKIPPED`.
    pub async fn finish(&self, task: u64, result: &str) -> Result<Value, String> {
        let state = self.gitea.state().await;
        let (now, result) = (state["now"].clone(), format!("RESULT_{result}"));
        let step = json!({"id": "0", "startedAt": now, "stoppedAt": now, "result": result});
        let state =
            json!({"id": task.to_string(), "startedAt": now, "stoppedAt": now, "result": result, "steps": [step]});
        self.call("UpdateTask", json!({"state": state})).await
    }
}

/// Receives webhooks, and answers each with this status.
pub async fn receiver(status: u16) -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (to, from) = mpsc::unbounded_channel();
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    let app = axum::Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
        let to = to.clone();
        async move {
            to.send((headers, body)).unwrap();
            status
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhooks/gitea", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, from)
}
