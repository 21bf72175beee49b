//! The script of the guest, on this machine: GARM and the runner are simulated.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use serde_json::Value;

use crate::cli::{Ran, run};

const TOKEN: &str = "hush-hush-token";

#[derive(Default)]
struct GarmState {
    asked: Vec<(String, String)>,
    /// By method and path: status and text. 200 and the path if there is none.
    answers: BTreeMap<String, (u16, String)>,
    /// Refuses everything from this request on.
    dead_after: Option<String>,
    dead: bool,
}

#[derive(Clone)]
struct SimulatedGarm {
    state: Arc<Mutex<GarmState>>,
    url: String,
    home: Arc<tempfile::TempDir>,
}

async fn answer(
    State(garm): State<SimulatedGarm>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let mut state = garm.state.lock().unwrap();
    let what = format!("{method} {}", uri.path());
    state.asked.push((what.clone(), String::from_utf8(body.to_vec()).unwrap_or_default()));
    if what.ends_with(".tar.gz") {
        return (StatusCode::OK, "no archive".to_owned());
    }
    let authorized = headers.get("authorization").is_some_and(|value| value == format!("Bearer {TOKEN}").as_str());
    if !authorized || state.dead {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    state.dead = state.dead_after.as_ref() == Some(&what);
    let (status, text) = state.answers.get(&what).cloned().unwrap_or((200, what));
    (StatusCode::from_u16(status).unwrap(), text)
}

impl SimulatedGarm {
    async fn new() -> SimulatedGarm {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let garm = SimulatedGarm { state: Arc::default(), url, home: Arc::new(tempfile::tempdir().unwrap()) };
        let app = Router::new().fallback(answer).with_state(garm.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        garm
    }

    /// Puts a runner into the image.
    fn runner(&self, run: &str, config: &str) {
        let dir = self.home.path().join("actions-runner");
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("run.sh", run), ("config.sh", config)] {
            std::fs::write(dir.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join("actions-runner").join(name)).unwrap_or_default()
    }

    fn answers(&self, what: &str, status: u16, text: &str) {
        self.state.lock().unwrap().answers.insert(what.to_owned(), (status, text.to_owned()));
    }

    fn dead_after(&self, what: &str) {
        self.state.lock().unwrap().dead_after = Some(what.to_owned());
    }

    async fn guest(&self, variables: &[(&str, &str)]) -> Ran {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/adapters/garm/guest.sh");
        let kit = self.home.path().join("kit");
        std::fs::create_dir_all(&kit).unwrap();
        std::fs::write(kit.join("runner.env"), format!("GARM_INSTANCE_TOKEN='{TOKEN}'\n")).unwrap();
        let mut command = tokio::process::Command::new("/bin/sh");
        command.arg(script).env_clear().env("HOME", self.home.path()).env("PATH", "/usr/bin:/bin");
        command.env("MAYFLY_HOME", &kit).env("TMPDIR", self.home.path());
        command.env("GARM_CALLBACK_URL", format!("{}/callbacks/status", self.url));
        command.env("GARM_METADATA_URL", format!("{}/metadata/", self.url));
        command.env("GARM_INSTANCE_TOKEN", TOKEN).env("GARM_RUNNER_NAME", "garm-a1").env("GARM_JIT", "yes");
        command.env("GARM_RUNNER_URL", "https://github.com/acme/app");
        command.envs(variables.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
        let ran = run(&mut command).await;
        assert!(!format!("{}{}", ran.out, ran.err).contains(TOKEN), "{}{}", ran.out, ran.err);
        assert_eq!(std::fs::read_to_string(kit.join("runner.env")).unwrap(), "", "the job could read the token");
        ran
    }

    fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.iter().map(|(what, _)| what.clone()).collect()
    }

    /// The bodies of the reports, in their order.
    fn reports(&self) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        let reports = state.asked.iter().filter(|(what, _)| what == "POST /callbacks/status");
        reports.map(|(_, body)| serde_json::from_str(body).expect("a report is JSON")).collect()
    }
}

const OWN_REPORTS: &str = "POST /callbacks/status";

#[tokio::test]
async fn a_runner_with_a_just_in_time_configuration_runs_one_job() {
    let garm = SimulatedGarm::new().await;
    garm.runner("env >seen.env; echo \"the job runs\"; exit 3", "exit 1");
    let ran = garm.guest(&[]).await.ends(3);
    assert!(ran.out.contains("the job runs") && ran.out.contains("exit code 3"), "{}", ran.out);
    assert_eq!(
        garm.asked(),
        [
            OWN_REPORTS,
            "GET /metadata/credentials/runner",
            "GET /metadata/credentials/credentials",
            "GET /metadata/credentials/credentials_rsaparams",
            "POST /callbacks/system-info/",
            OWN_REPORTS,
        ]
    );
    let reports = garm.reports();
    assert_eq!((reports[0]["status"].as_str(), reports[1]["status"].as_str()), (Some("installing"), Some("idle")));
    assert_eq!(reports[1]["agent_id"], Value::Null);
    assert_eq!(garm.file(".credentials"), "GET /metadata/credentials/credentials");
    assert!(!garm.file("seen.env").contains("GARM_"), "{}", garm.file("seen.env"));
    let left: Vec<_> = std::fs::read_dir(garm.home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "only the runner and the bundle are left: {left:?}");
}

#[tokio::test]
async fn a_token_that_garm_has_given_up_ends_the_vm_before_the_runner_is_started() {
    for dead_after in
        ["", OWN_REPORTS, "GET /metadata/credentials/runner", "GET /metadata/credentials/credentials_rsaparams"]
    {
        let garm = SimulatedGarm::new().await;
        garm.runner("echo started >started", "exit 1");
        garm.dead_after(dead_after);
        garm.state.lock().unwrap().dead = dead_after.is_empty();
        let ran = garm.guest(&[]).await.ends(77);
        assert!(ran.out.contains("does not accept the token"), "{}", ran.out);
        assert_eq!(garm.file("started"), "", "{dead_after}");
    }
    // A job may have begun before the report arrives, and the token ends with it.
    let garm = SimulatedGarm::new().await;
    garm.runner("exit 0", "exit 1");
    garm.dead_after("POST /callbacks/system-info/");
    let ran = garm.guest(&[]).await.ends(0);
    assert!(ran.out.contains("already counts the runner as working"), "{}", ran.out);
}

#[tokio::test]
async fn a_runner_without_a_just_in_time_configuration_registers_itself() {
    let garm = SimulatedGarm::new().await;
    garm.answers("GET /metadata/runner-registration-token/", 200, "registration-hush");
    garm.runner(
        "exit 0",
        "echo \"$*\" >>arguments\necho \"$ACTIONS_RUNNER_INPUT_TOKEN\" >given\n\
         if [ ! -f tried ]; then touch tried; exit 1; fi\nprintf '\\357\\273\\277{\\r\\n  \"agentId\": 42,\\r\\n}' >.runner",
    );
    let ran = garm
        .guest(&[("GARM_JIT", ""), ("GARM_RUNNER_LABELS", "mac,big one"), ("GARM_RUNNER_GROUP", "my group")])
        .await
        .ends(0);
    assert!(!ran.out.contains("registration-hush"));
    assert_eq!(garm.file("given"), "registration-hush\n");
    let arguments = garm.file("arguments");
    assert_eq!(arguments.lines().count(), 2, "the first try failed: {arguments}");
    for word in [
        "--unattended",
        "--ephemeral",
        "--no-default-labels",
        "--labels mac,big one",
        "--runnergroup my group",
        "--name garm-a1",
    ] {
        assert!(arguments.contains(word), "{word}: {arguments}");
    }
    let reports = garm.reports();
    assert_eq!((reports[1]["status"].as_str(), reports[1]["agent_id"].as_u64()), (Some("idle"), Some(42)));
}

#[tokio::test]
async fn what_fails_in_the_guest_is_reported_to_garm() {
    let garm = SimulatedGarm::new().await;
    let tools = format!("linux x64 00 - {0}/r.tar.gz\nlinux arm64 00 - {0}/r.tar.gz\n", garm.url);
    let ran = garm.guest(&[("GARM_TOOLS", &tools)]).await.ends(126);
    assert!(ran.out.contains("does not have the checksum 00"), "{}", ran.out);
    let reports = garm.reports();
    assert_eq!(reports.last().unwrap()["status"], "failed");

    let garm = SimulatedGarm::new().await;
    garm.runner("exit 0", "exit 1");
    garm.answers("GET /metadata/credentials/credentials", 404, "");
    let ran = garm.guest(&[]).await.ends(125);
    assert!(ran.out.contains("GARM answered 404 to credentials/credentials"), "{}", ran.out);
    assert_eq!(garm.reports().last().unwrap()["status"], "failed");
}

/// The runner of the download is used, with the checksum that GARM names.
#[tokio::test]
async fn a_guest_without_a_runner_downloads_the_one_that_garm_names() {
    let garm = SimulatedGarm::new().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("run.sh"), "#!/bin/sh\necho downloaded\n").unwrap();
    std::fs::set_permissions(dir.path().join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let archive = dir.path().join("archive");
    let mut tar = tokio::process::Command::new("tar");
    run(tar.arg("-czf").arg(&archive).arg("-C").arg(dir.path()).arg("run.sh")).await.ends(0);
    let sum = run(tokio::process::Command::new("sha256sum").arg(&archive)).await.ends(0).out;
    let sum = sum.split_whitespace().next().unwrap();
    // curl reads files, too: the archive need not be served.
    let url = format!("file://{}", archive.display());
    let tools =
        format!("osx arm64 {sum} - {url}\nlinux x64 {sum} secret-of-the-download {url}\nlinux arm64 {sum} - {url}\n");
    let ran = garm.guest(&[("GARM_TOOLS", &tools)]).await.ends(0);
    assert!(ran.out.contains("downloading the runner for linux") && ran.out.contains("\ndownloaded\n"), "{}", ran.out);
    assert!(!ran.out.contains("secret-of-the-download"));
}
