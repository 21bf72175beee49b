//! One process of the program or of its double, in a namespace with a tap, and what it says: over its API, in its events, and at its
//! end.

use std::{
    io::{Read as _, Write as _},
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Entry;

const SOON: Duration = Duration::from_secs(20);
/// Everything that a hypervisor under Mayfly has: a tap, and no rights.
const TAP: &str = "ip tuntap add dev tap0 mode tap user 0 && ip link set tap0 up && \
                   exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- \"$@\"";

/// What the process sees of the host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Usual,
    WithoutKvm,
    WithoutTun,
}

/// `binary` in the place that `host` describes.
fn command(binary: &Path, host: Host) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "--", "sh", "-c"]);
    let hide = match host {
        Host::Usual => "",
        Host::WithoutKvm => "mount -t tmpfs none /dev && ",
        Host::WithoutTun => "mount -t tmpfs none /dev/net && ",
    };
    let tap = if host == Host::Usual { TAP } else { "exec \"$@\"" };
    command.arg(format!("{hide}{tap}")).arg("sh").arg(binary);
    command
}

pub struct Stage {
    pub dir: PathBuf,
    child: Child,
    entries: Vec<Entry>,
}

impl Stage {
    /// Returns when it serves its API.
    pub fn start(binary: &Path, dir: &Path, host: Host) -> Self {
        let socket = dir.join("api.sock");
        let child = command(binary, host)
            .args(["--api-socket", &format!("path={}", socket.display()), "--event-monitor"])
            .arg(format!("path={}", dir.join("events").display()))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.join("stdout")).unwrap())
            .stderr(std::fs::File::create(dir.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut stage = Self { dir: dir.to_owned(), child, entries: Vec::new() };
        let until = Instant::now() + SOON;
        while UnixStream::connect(&socket).is_err() {
            let ended = stage.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{ended:?}: {}", stage.read("stderr"));
            std::thread::sleep(Duration::from_millis(5));
        }
        stage
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    fn note(&mut self, what: impl Into<String>, gave: Value) {
        let gave = masked(gave, &self.dir);
        self.entries.push(Entry { what: what.into(), gave });
    }

    /// One request, and what it is answered.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&str>) -> Value {
        let mut answer = exchange(&self.dir.join("api.sock"), method, path, body);
        if path == "vmm.ping" && answer["status"] == 200 {
            assert_eq!(answer["body"]["pid"], self.child.id(), "{answer}");
            answer["body"]["pid"] = json!("PID");
            let build = answer["body"]["build_version"].as_str().unwrap().to_owned();
            assert!(build.starts_with('v'), "{answer}");
            answer["body"]["build_version"] = json!("BUILD");
        }
        let shown = body.map(|body| format!(" {body}")).filter(|body| body.len() < 80).unwrap_or_default();
        self.note(format!("{method} {path}{shown}"), answer.clone());
        answer
    }

    /// `vm.info` without the machine and the devices.
    pub fn state(&mut self) -> &mut Self {
        let mut answer = exchange(&self.dir.join("api.sock"), "GET", "vm.info", None);
        if answer["status"] == 200 {
            answer["body"] = json!({"state": answer["body"]["state"]});
        }
        self.note("GET vm.info, the state", answer);
        self
    }

    pub fn get(&mut self, name: &str) -> &mut Self {
        self.ask("GET", name, None);
        self
    }

    pub fn put(&mut self, name: &str) -> &mut Self {
        self.ask("PUT", name, None);
        self
    }

    pub fn create(&mut self, machine: &Value) -> &mut Self {
        self.ask("PUT", "vm.create", Some(&machine.to_string()));
        self
    }

    pub fn signal(&mut self, name: &str) -> &mut Self {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
        self.note(format!("SIG{name}"), Value::Null);
        self
    }

    /// Waits for an event.
    pub fn event(&mut self, name: &str) -> &mut Self {
        let until = Instant::now() + SOON;
        while !self.events().iter().any(|event| event == name) {
            assert!(Instant::now() < until, "no {name}: {:?} {}", self.events(), self.read("stderr"));
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// Source, event and properties of each event, without those of the guest's drivers.
    fn events(&self) -> Vec<String> {
        let text = self.read("events");
        let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>().filter_map(Result::ok);
        let shown = |event: Value| {
            let text = |key: &str| event[key].as_str().unwrap_or("?").to_owned();
            let properties =
                if event["properties"].is_null() { String::new() } else { format!(" {}", event["properties"]) };
            format!("{} {}{properties}", text("source"), text("event"))
        };
        events.map(shown).filter(|event| !event.starts_with("virtio-device ")).collect()
    }

    /// The end, for which the caller has given a reason. `last`: the event after which others do not count.
    pub fn end(mut self, last: Option<&str>) -> Vec<Entry> {
        let until = Instant::now() + SOON;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "it does not end: {:?} {}", self.entries, self.read("stderr")),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut events = self.events();
        if let Some(last) = last {
            events.truncate(1 + events.iter().position(|event| event == last).expect("the event was awaited"));
        }
        let layout: Vec<String> =
            self.read("events").lines().take_while(|line| *line != "}").map(without_digits).collect();
        let end = json!({
            "code": status.code(), "signal": status.signal(), "stdout": self.read("stdout"), "stderr": said(&self.read("stderr")),
            "socket is left": self.dir.join("api.sock").exists(), "events": events, "layout of events": layout,
        });
        self.note("end", end);
        std::mem::take(&mut self.entries)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process says that is given these options, and does not serve.
pub fn said_by(binary: &Path, dir: &Path, host: Host, args: &[&str]) -> Entry {
    let output = command(binary, host).args(args).stdin(Stdio::null()).output().unwrap();
    let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout: Vec<String> = lines(&output.stdout).lines().map(without_build).take(2).collect();
    let gave = json!({"code": output.status.code(), "stdout": stdout, "stderr": said(&lines(&output.stderr))});
    Entry { what: args.join(" ").replace(&dir.display().to_string(), "DIR"), gave: masked(gave, dir) }
}

/// The error, without log and usage.
fn said(stderr: &str) -> Vec<String> {
    let mut lines = stderr.lines().skip_while(|line| !line.to_lowercase().starts_with("error"));
    match lines.next() {
        // The parser of the command line adds usage and hints.
        Some(first) if first.starts_with("error") => vec![first.to_owned()],
        Some(first) => std::iter::once(first.to_owned()).chain(lines.map(str::to_owned)).collect(),
        None => Vec::new(),
    }
}

/// A build from a commit says more than its version.
fn without_build(line: &str) -> String {
    if line.starts_with("cloud-hypervisor v") { "cloud-hypervisor vBUILD".to_owned() } else { line.to_owned() }
}

fn without_digits(line: &str) -> String {
    match line.split_once("ecs\": ").or_else(|| line.split_once("nanos\": ")) {
        Some((key, _)) => format!("{key}…"),
        None => line.to_owned(),
    }
}

fn masked(value: Value, dir: &Path) -> Value {
    let dir = dir.display().to_string();
    match value {
        Value::String(text) => Value::String(text.replace(&dir, "DIR")),
        Value::Array(items) => items.into_iter().map(|item| masked(item, Path::new(&dir))).collect(),
        Value::Object(map) => map.into_iter().map(|(key, item)| (key, masked(item, Path::new(&dir)))).collect(),
        other => other,
    }
}

/// The same for what was said about files of another directory.
pub fn masked_entries(entries: Vec<Entry>, dir: &Path) -> Vec<Entry> {
    entries.into_iter().map(|entry| Entry { gave: masked(entry.gave, dir), ..entry }).collect()
}

/// By hand, because a client would not send some of these requests. `path` is below the root of the API, or starts with `/`.
fn exchange(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Value {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/api/v1/{path}") };
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    if let Some(body) = body {
        request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    } else {
        request += "\r\n";
    }
    // It ends by some requests.
    let none = json!("no answer");
    let Ok(mut stream) = UnixStream::connect(socket) else { return none };
    stream.set_read_timeout(Some(SOON)).unwrap();
    if stream.write_all(request.as_bytes()).is_err() {
        return none;
    }
    let (mut received, mut buffer) = (Vec::new(), [0; 16 << 10]);
    let head = loop {
        if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        let read = stream.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            return none;
        }
        received.extend_from_slice(&buffer[..read]);
    };
    let header = String::from_utf8(received[..head].to_vec()).unwrap();
    let field = |name: &str| {
        header.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let length: usize = field("content-length").map_or(0, |length| length.parse().unwrap());
    while received.len() < head + 4 + length {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "half an answer to {request}");
        received.extend_from_slice(&buffer[..read]);
    }
    let body = String::from_utf8(received[head + 4..].to_vec()).unwrap();
    let status: u16 = header.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = json!({"status": status});
    if !body.is_empty() {
        answer["body"] = serde_json::from_str(&body).unwrap_or(Value::String(body));
    }
    for (name, usual) in [("server", "Cloud Hypervisor API"), ("content-type", "application/json")] {
        let given = field(name);
        if given.as_deref() != Some(usual) {
            answer[name] = json!(given);
        }
    }
    answer
}
