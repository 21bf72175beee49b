//! A real `mayfly serve` with a data directory of its own, and what is needed to watch it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Where `make image` put the guest. Missing is a failure, never a pass: a test that did not run proves nothing.
pub fn image() -> PathBuf {
    let dir = std::env::var_os("MAYFLY_TEST_IMAGE").map(PathBuf::from).unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"));
        cache.join("mayfly/images/micro")
    });
    assert!(dir.join("disk.qcow2").exists(), "no guest image in {}: run `make image`", dir.display());
    dir
}

pub mod authority;
pub mod buildkite;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod cloud_hypervisor;
pub mod dice;
pub mod gitea;
pub mod github;
pub mod macosvm;
pub mod moto;
pub mod proxy;
pub mod registry;
pub mod scripted_registry;
pub mod small_disk;
pub mod sources;
pub mod tart;
pub mod tart_image;

pub struct Serve {
    child: Option<Child>,
    /// Lines of standard error so far.
    log: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    pub dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
    pub url: String,
    token: String,
    settings: Vec<(String, String)>,
    http: reqwest::Client,
}

impl Serve {
    /// Starts a service. Foreign guests are not counted: other tests' guests run on the same machine.
    pub async fn start(settings: &[(&str, &str)]) -> Serve {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::prepared(|_| settings).await
    }

    /// Starts a service in a directory that something was put into before; that also says what the settings are.
    pub async fn prepared(prepare: impl FnOnce(&Path) -> Vec<(String, String)>) -> Serve {
        let temp = tempfile::Builder::new()
            .prefix("mf")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in("/tmp")
            .expect("a directory in /tmp");
        let settings = prepare(temp.path());
        let mut serve = Self::placed(temp.path(), settings);
        serve._temp = Some(temp);
        serve.spawn().await;
        serve
    }

    /// Starts a service in a directory of the caller's.
    pub async fn start_in(dir: &Path, settings: &[(&str, &str)]) -> Serve {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut serve = Self::placed(dir, settings);
        serve.spawn().await;
        serve
    }

    fn placed(dir: &Path, settings: Vec<(String, String)>) -> Serve {
        let mut all = vec![
            ("MAYFLY_SERVER__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            ("MAYFLY_SLOTS__COUNT_FOREIGN".to_owned(), "false".to_owned()),
            ("MAYFLY_SLOTS__LINUX".to_owned(), "2".to_owned()),
            ("MAYFLY_DRIVERS__QEMU__ACCELERATOR".to_owned(), "tcg".to_owned()),
            ("MAYFLY_LOG__LEVEL".to_owned(), "mayfly=debug,info".to_owned()),
        ];
        for (key, value) in settings {
            all.retain(|(k, _)| *k != key);
            all.push((key, value));
        }
        Serve {
            child: None,
            log: Default::default(),
            dir: dir.to_owned(),
            _temp: None,
            url: String::new(),
            token: String::new(),
            settings: all,
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(90)).build().unwrap(),
        }
    }

    /// Changes an environment variable of the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    pub fn command(dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("MAYFLY_")) {
            command.env_remove(key);
        }
        command.arg("--data-dir").arg(dir).arg("serve").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts the process on the same data directory (again).
    pub async fn spawn(&mut self) {
        self.spawn_by(Self::command(&self.dir)).await;
    }

    /// The same, with so many descriptors and no more.
    #[cfg(target_arch = "x86_64")]
    pub async fn spawn_with_descriptors(&mut self, limit: usize) {
        let service = Self::command(&self.dir);
        let mut shell = Command::new("/bin/sh");
        for (key, value) in service.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh"]);
        shell.arg(service.get_program()).args(service.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        self.spawn_by(shell).await;
    }

    async fn spawn_by(&mut self, mut command: Command) {
        assert!(self.child.is_none());
        let mut child = command
            .envs(self.settings.iter().map(|(k, v)| (k, v)))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (found, address) = tokio::sync::oneshot::channel();
        let log = self.log.clone();
        std::thread::spawn(move || {
            let mut found = Some(found);
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(at) = line.find("listening on http")
                    && let Some(found) = found.take()
                {
                    let url: String = line[at + "listening on ".len()..]
                        .chars()
                        .take_while(|c| !c.is_whitespace() && *c != '"' && *c != '\u{1b}')
                        .collect();
                    let _ = found.send(url);
                }
                log.lock().unwrap().push(line);
            }
        });
        self.child = Some(child);
        self.url = match tokio::time::timeout(Duration::from_secs(30), address).await {
            Ok(Ok(url)) => url,
            _ => panic!("the service did not say where it listens:\n{}", self.log()),
        };
        self.token = std::fs::read_to_string(self.dir.join("admin.token")).expect("an admin token").trim().to_owned();
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the service runs").id()
    }

    /// SIGKILL: the process has no moment to put anything in order.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the service runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the service runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        self.send_as(&self.token, method, path, body).await
    }

    pub async fn send_as(&self, token: &str, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request =
            self.http.request(method, format!("{}{path}", self.url)).header("authorization", format!("Bearer {token}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the service answers");
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(reqwest::Method::GET, path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(reqwest::Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.send(reqwest::Method::DELETE, path, None).await
    }

    /// Registers the micro image, to be reached by seed or over SSH.
    pub async fn template(&self, name: &str, handover: &str, budgets: Value) {
        let image = image();
        let at = |file: &str| image.join(file).to_str().unwrap().to_owned();
        let description: Value =
            serde_json::from_str(&std::fs::read_to_string(image.join("template.json")).unwrap()).unwrap();
        let (status, body) = self
            .post(
                "/templates",
                json!({
                    "name": name, "os": "linux", "disk": at("disk.qcow2"), "kernel": at("vmlinuz"),
                    "initramfs": at("initramfs.img"), "cmdline": description["cmdline"], "cpus": 1, "memory_mib": 192,
                    "handover": handover, "user": "runner", "ssh_key": at("id_ed25519"), "budgets": budgets,
                }),
            )
            .await;
        assert_eq!(status, 201, "{body}");
    }

    /// The pull of an image, as it is when it has ended.
    pub async fn pull(&self, name: &str, image: &str) -> Value {
        let (status, pull) = self.post("/templates", json!({"name": name, "image": image})).await;
        assert!(matches!(status, 200 | 202), "{pull}");
        self.pull_ended(pull["id"].as_str().unwrap()).await
    }

    pub async fn pull_ended(&self, id: &str) -> Value {
        let mut pull = self.get(&format!("/pulls/{id}")).await;
        while pull["ended_at"].is_null() {
            let generation = pull["generation"].as_i64().unwrap();
            pull = self.get(&format!("/pulls/{id}?timeout_seconds=20&wait_generation={generation}")).await;
            assert!(pull["generation"].as_i64().unwrap() > generation, "stuck: {pull:#}\n{}", self.log());
        }
        pull
    }

    pub async fn create(&self, body: Value) -> Value {
        let (status, vm) = self.post("/vms", body).await;
        assert_eq!(status, 201, "{vm}");
        vm
    }

    /// Follows a vm by its generations until `done`.
    pub async fn wait(&self, id: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        // Less than the runner of the tests has: a test that is killed leaves its guests running.
        let end = Instant::now() + Duration::from_secs(100);
        let mut generation = 0;
        loop {
            let vm = self.get(&format!("/vms/{id}?wait_generation={generation}&timeout_seconds=20")).await;
            if done(&vm) {
                return vm;
            }
            assert!(Instant::now() < end, "waited too long until {what}: {vm:#}\n{}", self.log());
            assert_ne!(vm["state"], "deleted", "the vm ended before {what}: {vm:#}\n{}", self.log());
            generation = vm["generation"].as_i64().unwrap();
        }
    }

    pub async fn wait_state(&self, id: &str, state: &str) -> Value {
        self.wait(id, state, |vm| vm["state"] == state).await
    }

    pub async fn log_of(&self, id: &str, source: &str) -> String {
        let response = self
            .http
            .get(format!("{}/vms/{id}/logs?source={source}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    }

    /// Pids of hypervisors that belong to this data directory.
    pub fn hypervisors(&self) -> Vec<i32> {
        hypervisors(&self.dir)
    }

    /// A driver's first probe may run a trial guest, which belongs to no vm.
    async fn until_drivers_are_probed(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (status, body) = self.send(reqwest::Method::GET, "/readyz", None).await;
            if status == 200 {
                return;
            }
            assert!(Instant::now() < end, "the drivers are not probed: {body}\n{}", self.log());
            // Readiness has no event that could be awaited.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing may be left of any vm: no process, no disk, no slot.
    pub async fn assert_nothing_left(&self) {
        self.until_drivers_are_probed().await;
        let host = self.get("/host").await;
        assert_eq!(self.hypervisors(), Vec::<i32>::new(), "hypervisors are left");
        let left: Vec<_> = std::fs::read_dir(self.dir.join("instances"))
            .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "instances are left: {left:?}");
        let listed = self.get("/vms").await;
        assert_eq!(listed["items"], json!([]), "vms are left");
        let _ = host;
    }
}

pub fn hypervisors(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    let needle = format!("{}/", dir.to_str().unwrap());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let cmdline = String::from_utf8_lossy(&cmdline);
        // A script's first word is its interpreter.
        if cmdline.split('\0').take(2).any(|p| p.contains("qemu-system")) && cmdline.contains(&needle) {
            pids.push(pid);
        }
    }
    pids
}

impl Drop for Serve {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What this test started is ended by pid, whatever became of the test.
        let left = hypervisors(&self.dir);
        for pid in &left {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("--- the service's log ---\n{}", self.log());
        } else {
            assert!(left.is_empty(), "the test left {} hypervisors running", left.len());
        }
    }
}

/// A port of the loopback interface that is connected to the socket, once: the SSH client has no way to a socket.
pub fn forwarded(socket: std::path::PathBuf) -> u16 {
    use std::net::{Shutdown, TcpListener};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let guest = std::os::unix::net::UnixStream::connect(socket).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = std::io::copy(&mut &client, &mut &guest);
                let _ = guest.shutdown(Shutdown::Write);
            });
            let _ = std::io::copy(&mut &guest, &mut &client);
            let _ = client.shutdown(Shutdown::Both);
        });
    });
    port
}
