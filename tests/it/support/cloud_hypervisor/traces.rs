//! What guests of Cloud Hypervisor put on the host: processes, namespaces with their taps, sockets. It is noted while they live, because
//! afterwards nothing has their name any more.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The kernel ends the last processes after the service has seen their guest's end.
const SOON: Duration = Duration::from_secs(10);

pub struct Traces {
    done: Arc<AtomicBool>,
    watch: JoinHandle<Seen>,
    /// Of the host, before.
    interfaces: BTreeSet<String>,
    needle: String,
}

#[derive(Default)]
struct Seen {
    /// Pid and start time.
    processes: BTreeSet<(i32, String)>,
    /// As in `net:[4026531840]`, without those of this process.
    namespaces: BTreeSet<String>,
}

impl Traces {
    /// Notes what belongs to guests in this directory of instances, from now on.
    pub fn watch(instances: &Path) -> Self {
        let needle = format!("{}/mayfly-", instances.display());
        let done = Arc::new(AtomicBool::new(false));
        let watch = std::thread::spawn({
            let (done, needle) = (done.clone(), needle.clone());
            move || {
                let mut seen = Seen::default();
                while !done.load(Ordering::Relaxed) {
                    seen.note(&needle);
                    // There is no event for processes of others.
                    std::thread::sleep(Duration::from_millis(50));
                }
                seen
            }
        });
        Self { done, watch, interfaces: interfaces(), needle }
    }

    /// All of it is gone.
    pub fn assert_gone(self) {
        self.done.store(true, Ordering::Relaxed);
        let seen = self.watch.join().unwrap();
        for kind in ["net:", "user:"] {
            let found = seen.namespaces.iter().any(|name| name.starts_with(kind));
            assert!(found, "no guest had a namespace: {:?}", seen.namespaces);
        }
        // Supervisor, hypervisor, gateway.
        assert!(seen.processes.len() >= 3, "{:?}", seen.processes);
        let until = Instant::now() + SOON;
        loop {
            let left = seen.left(&self.needle);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let new: Vec<_> = interfaces().difference(&self.interfaces).cloned().collect();
        assert!(new.is_empty(), "network interfaces are left: {new:?}");
    }
}

impl Seen {
    fn note(&mut self, needle: &str) {
        for process in processes() {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            if !String::from_utf8_lossy(&line).contains(needle) {
                continue;
            }
            let pid = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if let (Some(pid), Some((started, _))) = (pid, stat(&process)) {
                self.processes.insert((pid, started));
            }
            let own = namespaces(Path::new("/proc/self"));
            self.namespaces.extend(namespaces(&process).difference(&own).cloned());
        }
    }

    fn left(&self, needle: &str) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, started) in &self.processes {
            match stat(Path::new(&format!("/proc/{pid}"))) {
                Some((since, state)) if since == *started && state != "Z" => left.push(format!("process {pid}")),
                _ => {}
            }
        }
        // A namespace is kept by a process in it, by a descriptor and by a mount.
        for process in processes() {
            if belongs_to_another_guest(&process, needle) {
                continue;
            }
            let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            let open = files.filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.display().to_string()));
            let kept = namespaces(&process).into_iter().chain(open).filter(|name| self.namespaces.contains(name));
            left.extend(kept.map(|name| format!("{name} of {}", process.display())));
        }
        for file in ["/proc/self/mountinfo", "/proc/self/net/unix"] {
            let text = std::fs::read_to_string(file).unwrap();
            let ours = |line: &&str| line.contains(needle) || self.namespaces.iter().any(|name| line.contains(name));
            left.extend(text.lines().filter(ours).map(|line| format!("{file}: {line}")));
        }
        left
    }
}

/// Whether the process belongs to a guest of another test. The kernel gives the number of a namespace that is gone to a new
/// one, so such a process can be in a namespace of the same name.
fn belongs_to_another_guest(process: &Path, needle: &str) -> bool {
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    line.contains("/mayfly-") && !line.contains(needle)
}

fn processes() -> Vec<PathBuf> {
    let is_pid =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_pid).collect()
}

/// Start time and state.
fn stat(process: &Path) -> Option<(String, String)> {
    let text = std::fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    Some(((*fields.get(19)?).to_owned(), (*fields.first()?).to_owned()))
}

fn namespaces(process: &Path) -> BTreeSet<String> {
    let links = ["net", "user"].map(|kind| std::fs::read_link(process.join("ns").join(kind)));
    links.into_iter().flatten().map(|link| link.display().to_string()).collect()
}

fn interfaces() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|line| line.split(':').next()).map(|name| name.trim().to_owned()).collect()
}
