//! A machine simulated from a directory. See `fixtures/README.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Mutex,
};

use async_trait::async_trait;
use jiff::Timestamp;
use mayfly::{
    cli::doctor::probe::{Busy, FileKind, FileStatus, HostProbe, LOOK, Probed, Ran, Space, System, Unseen},
    drivers::process::CommandLine,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    system: String,
    uid: u32,
    now: Timestamp,
    processes: Vec<String>,
    env: BTreeMap<String, String>,
    programs: BTreeMap<String, PathBuf>,
    entries: BTreeMap<PathBuf, At>,
    #[serde(default)]
    links: BTreeMap<PathBuf, PathBuf>,
    spaces: BTreeMap<PathBuf, Volume>,
    ports: BTreeMap<SocketAddr, String>,
    http: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    kind: String,
    mode: u32,
    uid: u32,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    device: u64,
    #[serde(default)]
    modified: Timestamp,
    #[serde(default)]
    denied: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Volume {
    free_gib: u64,
    total_gib: u64,
    file_system: String,
}

pub struct SimulatedMachine {
    machine: Machine,
    files: PathBuf,
    answers: BTreeMap<String, Probed<Ran>>,
    forbidden: BTreeSet<String>,
    run: Mutex<BTreeSet<String>>,
}

pub fn answer(code: i32, stdout: &str) -> Probed<Ran> {
    Ok(Ran { code: Some(code), stdout: stdout.to_owned(), stderr: String::new() })
}

impl SimulatedMachine {
    pub fn load(name: &str) -> SimulatedMachine {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/doctor/fixtures").join(name);
        let text =
            |text: String| text.replace("ARCH", std::env::consts::ARCH).replace("VERSION", env!("CARGO_PKG_VERSION"));
        let machine = fs::read_to_string(dir.join("machine.toml")).expect("a machine");
        let machine: Machine = toml::from_str(&text(machine)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut answers = BTreeMap::new();
        for file in fs::read_dir(dir.join("commands")).expect("commands") {
            let path = file.unwrap().path();
            let (command, answer) =
                parse(&fs::read_to_string(&path).unwrap()).unwrap_or_else(|| panic!("{}", path.display()));
            assert!(answers.insert(text(command), answer).is_none(), "{}: the same command again", path.display());
        }
        SimulatedMachine {
            machine,
            files: dir.join("files"),
            answers,
            forbidden: BTreeSet::new(),
            run: Mutex::default(),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        let env = &self.machine.env;
        env.get("MAYFLY_DATA_DIR").map_or_else(|| Path::new(&env["HOME"]).join(".mayfly"), PathBuf::from)
    }

    pub fn commands(&self) -> Vec<String> {
        self.answers.keys().cloned().collect()
    }

    pub fn set(&mut self, command: &str, answer: Probed<Ran>) {
        assert!(self.answers.insert(command.to_owned(), answer).is_some(), "{command}");
    }

    pub fn forbid(&mut self, command: &str) {
        assert!(self.answers.contains_key(command), "{command}");
        self.forbidden.insert(command.to_owned());
    }

    pub fn remove_entry(&mut self, path: &str) {
        self.machine.entries.remove(Path::new(path)).expect("it was there");
        // The volume is still there, below the directory that holds it.
        let volume = self.machine.spaces.remove(Path::new(path)).expect("it has room");
        let parent = Path::new(path).parent().unwrap();
        self.machine.spaces.insert(parent.to_owned(), volume);
        self.machine.entries.insert(
            parent.to_owned(),
            At {
                kind: "directory".into(),
                mode: 0o755,
                uid: self.machine.uid,
                size: 0,
                device: 0,
                modified: Timestamp::default(),
                denied: false,
            },
        );
    }

    #[track_caller]
    pub fn assert_every_command_was_run(&self) {
        let run = self.run.lock().unwrap();
        let unused: Vec<&String> = self.answers.keys().filter(|command| !run.contains(*command)).collect();
        assert!(unused.is_empty(), "never run: {unused:#?}");
    }

    fn on_disk(&self, path: &Path) -> PathBuf {
        self.files.join(path.strip_prefix("/").expect("an absolute path"))
    }
}

fn parse(text: &str) -> Option<(String, Probed<Ran>)> {
    let (head, rest) = text.split_once("--- stdout\n")?;
    let (stdout, stderr) = rest.split_once("--- stderr\n")?;
    let mut head = head.lines();
    let command = head.next()?.strip_prefix("$ ")?.to_owned();
    let answer = match head.next()?.strip_prefix("exit ")? {
        "timeout" => Err(Unseen::TimedOut(LOOK)),
        code => Ok(Ran { code: Some(code.parse().ok()?), stdout: stdout.to_owned(), stderr: stderr.to_owned() }),
    };
    Some((command, answer))
}

#[async_trait]
impl HostProbe for SimulatedMachine {
    fn system(&self) -> System {
        match self.machine.system.as_str() {
            "macos" => System::Macos,
            "linux" => System::Linux,
            other => panic!("{other}"),
        }
    }

    fn uid(&self) -> u32 {
        self.machine.uid
    }

    fn now(&self) -> Timestamp {
        self.machine.now
    }

    fn env(&self) -> Vec<(String, String)> {
        self.machine.env.clone().into_iter().collect()
    }

    fn find_program(&self, program: &Path) -> Option<PathBuf> {
        self.machine.programs.get(program.to_str()?).cloned()
    }

    async fn run(&self, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Probed<Ran> {
        let command = [&[program.to_str().unwrap()], args].concat().join(" ");
        assert!(!self.forbidden.contains(&command), "{command} must not be run here");
        if program.ends_with("tart") && args[0] == "list" {
            // Without the second, looking deletes cached images.
            assert!(env.iter().any(|(k, v)| *k == "TART_HOME" && !v.is_empty()), "{env:?}");
            assert!(env.iter().any(|(k, _)| *k == "TART_NO_AUTO_PRUNE"), "{env:?}");
        }
        let answer = self.answers.get(&command).unwrap_or_else(|| panic!("no fixture for: {command}"));
        self.run.lock().unwrap().insert(command);
        answer.clone()
    }

    async fn read(&self, path: &Path, limit: usize) -> Probed<Vec<u8>> {
        if self.machine.entries.get(path).is_some_and(|at| at.denied) {
            return Err(Unseen::Denied);
        }
        let mut bytes = fs::read(self.on_disk(path)).map_err(|error| Unseen::from_io(&error))?;
        if path.ends_with("qemu-probe.json") {
            // Follows from the probe's guest.
            let current = mayfly::drivers::qemu::probe::probe_version(mayfly::domain::Arch::X86_64);
            bytes = String::from_utf8(bytes).unwrap().replace("THIS-PROBE", &current).into_bytes();
        }
        bytes.truncate(limit);
        Ok(bytes)
    }

    async fn entry(&self, path: &Path) -> Probed<FileStatus> {
        let at = self.machine.entries.get(path).ok_or(Unseen::Absent)?;
        Ok(FileStatus {
            kind: match at.kind.as_str() {
                "directory" => FileKind::Directory,
                "file" => FileKind::File,
                "other" => FileKind::Other,
                kind => panic!("{kind}"),
            },
            mode: at.mode,
            uid: at.uid,
            device: at.device,
            size: at.size,
            modified: at.modified,
        })
    }

    async fn resolve(&self, path: &Path) -> Probed<PathBuf> {
        Ok(self.machine.links.get(path).cloned().unwrap_or_else(|| path.to_owned()))
    }

    async fn names(&self, dir: &Path) -> Probed<Vec<String>> {
        let entries = fs::read_dir(self.on_disk(dir)).map_err(|error| Unseen::from_io(&error))?;
        Ok(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    async fn may_read_and_write(&self, path: &Path) -> Probed<()> {
        match self.machine.entries.get(path) {
            None => Err(Unseen::Absent),
            Some(at) if at.denied => Err(Unseen::Denied),
            Some(_) => Ok(()),
        }
    }

    async fn space(&self, path: &Path) -> Probed<Space> {
        let volume = self.machine.spaces.get(path).unwrap_or_else(|| panic!("no room at {}", path.display()));
        Ok(Space {
            free: volume.free_gib << 30,
            total: volume.total_gib << 30,
            file_system: Some(volume.file_system.clone()),
        })
    }

    async fn listen(&self, address: SocketAddr) -> Result<(), Busy> {
        match self.machine.ports.get(&address).map(String::as_str) {
            None => Ok(()),
            Some("taken") => Err(Busy::Taken),
            Some("no such address") => Err(Busy::NoSuchAddress),
            Some("denied") => Err(Busy::Denied),
            Some(other) => panic!("{other}"),
        }
    }

    async fn get(&self, url: &str) -> Probed<Vec<u8>> {
        self.machine.http.get(url).map(|body| body.clone().into_bytes()).ok_or(Unseen::Absent)
    }

    async fn get_over(&self, socket: &Path, path: &str) -> Probed<Vec<u8>> {
        self.get(&format!("unix:{}{path}", socket.display())).await
    }

    async fn processes(&self) -> Vec<(i32, CommandLine)> {
        let line = |text: &String| {
            let (pid, command) = text.split_once(' ').expect("pid and command");
            (pid.parse().expect("a pid"), CommandLine::Exact(command.split(' ').map(str::to_owned).collect()))
        };
        self.machine.processes.iter().map(line).collect()
    }

    async fn boot_guest(&self, _: &Path) -> Result<(String, Option<String>), String> {
        unreachable!("guests are booted on real machines")
    }
}
