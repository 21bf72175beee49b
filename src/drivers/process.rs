//! Identifies and observes processes that are not children of this one.
//!
//! A pid is no proof, because it may have been reused. So a process is identified by its pid and start time, and then
//! held by a pidfd where the system has them. A process of another user is never Mayfly's. Its command line is chosen
//! by the process itself and proves nothing.
//!
//! Every observation has three results: running, not running, and an error. An error means that nothing is known (no
//! free descriptor, no memory, a hanging program); it must never be taken for absence.

use std::{collections::BTreeSet, io, time::Duration};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};

/// Polling interval where the end of a process cannot be awaited.
const POLL: Duration = Duration::from_millis(20);

/// The identity of a process, unique for the life of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Its start, on a clock of the system that does not depend on the time of day, or with the boot id.
    pub started: String,
}

/// A process that was running when it was observed.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    started: String,
    uid: u32,
    age: Duration,
    #[cfg(target_os = "linux")]
    pidfd: Option<std::os::fd::OwnedFd>,
}

/// The arguments of a process, as exactly as the system reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    Exact(Vec<String>),
    /// Joined by blanks, as `ps` prints it.
    Joined(String),
}

impl CommandLine {
    /// Whether `option` is followed by exactly `value`.
    pub fn has_option(&self, option: &str, value: &str) -> bool {
        match self {
            CommandLine::Exact(args) => args.windows(2).any(|w| w[0] == option && w[1] == value),
            CommandLine::Joined(text) => format!("{text} ").contains(&format!(" {option} {value} ")),
        }
    }

    /// The value after `option`. In a joined command line it is one word, so a value with blanks is cut.
    pub fn option(&self, option: &str) -> Option<&str> {
        match self {
            CommandLine::Exact(args) => args.windows(2).find(|w| w[0] == option).map(|w| w[1].as_str()),
            CommandLine::Joined(text) => {
                let mut words = text.split_ascii_whitespace();
                words.find(|w| *w == option)?;
                words.next()
            }
        }
    }

    /// The program's name, without its directory.
    pub fn program(&self) -> &str {
        let first = match self {
            CommandLine::Exact(args) => args.first().map_or("", String::as_str),
            CommandLine::Joined(text) => text.split_ascii_whitespace().next().unwrap_or_default(),
        };
        first.rsplit('/').next().unwrap_or_default()
    }
}

/// The system's data about a process.
struct ProcessStatus {
    started: String,
    /// Its effective user.
    uid: u32,
    age: Duration,
}

/// Pids of children for whose status a task of this program waits.
static AWAITED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// While this exists, only the task that waits for this child reaps it. A status is given out once.
pub struct AwaitedChild(i32);

impl AwaitedChild {
    pub fn new(pid: i32) -> AwaitedChild {
        AWAITED.lock().insert(pid);
        AwaitedChild(pid)
    }
}

impl Drop for AwaitedChild {
    fn drop(&mut self) {
        AWAITED.lock().remove(&self.0);
    }
}

impl Process {
    /// The process with this pid, or `None` if there is none. A zombie has ended.
    pub async fn find(pid: i32) -> io::Result<Option<Process>> {
        let Some(pid) = Pid::from_raw(pid).filter(|p| p.as_raw_nonzero().get() > 0) else { return Ok(None) };
        // Opened first, so that all following observations are of the same process.
        #[cfg(target_os = "linux")]
        let pidfd = match system::pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(system::status(pid).await?.map(|ProcessStatus { started, uid, age }| Process {
            pid,
            started,
            uid,
            age,
            #[cfg(target_os = "linux")]
            pidfd,
        }))
    }

    /// The process with this identity, or `None` when it has ended.
    pub async fn find_again(id: &ProcessId) -> io::Result<Option<Process>> {
        Ok(Process::find(id.pid).await?.filter(|process| process.started == id.started))
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid(), started: self.started.clone() }
    }

    /// Its age when it was found.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Whether it runs as the same user as this process.
    pub fn is_own(&self) -> bool {
        self.uid == rustix::process::geteuid().as_raw()
    }

    /// Its command line. `None`: it has ended, or has none.
    pub async fn command_line(&self) -> io::Result<Option<CommandLine>> {
        system::command_line(self.pid).await
    }

    pub async fn is_running(&self) -> io::Result<bool> {
        Ok(system::status(self.pid).await?.is_some_and(|now| now.started == self.started))
    }

    /// Resolves when it no longer runs.
    pub async fn ended(&self) {
        #[cfg(target_os = "linux")]
        let ended = self.pidfd_readable().await;
        #[cfg(not(target_os = "linux"))]
        let ended = self.pid_free().await;
        // While it cannot be observed, it is not known to have ended.
        while !ended && !matches!(self.is_running().await, Ok(false)) {
            tokio::time::sleep(POLL).await;
        }
        // Orphans become children of a container's first process. If that is this program, it has to reap them.
        if !AWAITED.lock().contains(&self.pid()) {
            let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        }
    }

    /// Resolves when no process has this pid, or another process has it. A guest runs for hours, and running `ps`
    /// each time would keep a core busy: signal 0 is cheap, and `ps` runs only now and then.
    #[cfg(not(target_os = "linux"))]
    async fn pid_free(&self) -> bool {
        use crate::platform::clock;
        const CERTAIN: Duration = Duration::from_secs(5);
        let mut asked = clock::monotonic();
        while rustix::process::test_kill_process(self.pid) != Err(rustix::io::Errno::SRCH) {
            if clock::elapsed(asked) > CERTAIN {
                if matches!(self.is_running().await, Ok(false)) {
                    return true;
                }
                asked = clock::monotonic();
            }
            tokio::time::sleep(POLL).await;
        }
        false
    }

    /// A pidfd becomes readable when its process has ended. `false`: it cannot be awaited. Opens no descriptor.
    #[cfg(target_os = "linux")]
    #[expect(
        deprecated,
        reason = "the successor is unsafe, for types that lie about their descriptor; BorrowedFd does not"
    )]
    async fn pidfd_readable(&self) -> bool {
        use std::os::fd::AsFd;
        let Some(pidfd) = self.pidfd.as_ref().map(AsFd::as_fd) else { return false };
        match tokio::io::unix::AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE) {
            Ok(pidfd) => pidfd.readable().await.is_ok(),
            // Another call already waits for it.
            Err(_) => false,
        }
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL).await
    }

    /// Sends a signal to this process, and never to a later process with its pid. Succeeds if it has ended.
    pub async fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return match rustix::process::pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        if !self.is_running().await? {
            return Ok(());
        }
        match rustix::process::kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has an open file in this directory, removed ones included.
    pub async fn has_open_file_in(&self, dir: &std::path::Path) -> io::Result<bool> {
        system::has_open_file_in(self.pid, dir).await
    }
}

/// All processes whose command line this user may read.
pub async fn all() -> io::Result<Vec<(i32, CommandLine)>> {
    system::all().await
}

/// Whether an observation failed because the process does not exist.
#[cfg(target_os = "linux")]
fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn not_understood(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} was not understood"))
}

#[cfg(target_os = "linux")]
mod system {
    use std::{io, os::fd::OwnedFd, path::Path, sync::OnceLock, time::Duration};

    use rustix::{io::Errno, process::PidfdFlags};

    use super::{CommandLine, Pid, ProcessStatus, is_absence, not_understood};

    /// The kernel reports times to programs in hundredths of a second.
    const TICK_MS: u64 = 10;
    /// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
    const KERNEL_THREAD: u64 = 0x0020_0000;
    /// How long a program may take to replace another in a process, and how often its command line is read meanwhile.
    const EXEC: Duration = Duration::from_secs(1);
    const READ_AGAIN: Duration = Duration::from_millis(1);

    /// `None`: this kernel has no pidfds, or they are forbidden.
    pub fn pidfd(pid: Pid) -> io::Result<Option<OwnedFd>> {
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(pidfd)),
            Err(Errno::NOSYS | Errno::PERM) => Ok(None),
            // A thread, not a process.
            Err(Errno::INVAL) => Err(Errno::SRCH.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn absent_is_none<T>(read: io::Result<T>) -> io::Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn status(pid: Pid) -> io::Result<Option<ProcessStatus>> {
        let Some(stat) = absent_is_none(std::fs::read_to_string(format!("/proc/{pid}/stat")))? else {
            return Ok(None);
        };
        let Some(ticks) = started_of(&stat)? else { return Ok(None) };
        // Not the owner of the files, which is root for a protected process.
        let Some(status) = absent_is_none(std::fs::read_to_string(format!("/proc/{pid}/status")))? else {
            return Ok(None);
        };
        let uid = uid_of(&status).ok_or_else(|| not_understood("the owner of a process"))?;
        let up = std::fs::read_to_string("/proc/uptime")?;
        let up = up
            .split(' ')
            .next()
            .and_then(|seconds| seconds.parse::<f64>().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let age =
            up.ok_or_else(|| not_understood("/proc/uptime"))?.saturating_sub(Duration::from_millis(ticks * TICK_MS));
        Ok(Some(ProcessStatus { started: format!("{}:{ticks}", boot()?), uid, age }))
    }

    /// The boot id of the host: start times are relative to the boot.
    fn boot() -> io::Result<&'static str> {
        static BOOT: OnceLock<String> = OnceLock::new();
        if let Some(boot) = BOOT.get() {
            return Ok(boot);
        }
        let read = absent_is_none(std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))?;
        Ok(BOOT.get_or_init(|| read.unwrap_or_default().trim().to_owned()))
    }

    pub async fn command_line(pid: Pid) -> io::Result<Option<CommandLine>> {
        let pid = pid.as_raw_nonzero().get();
        let read = move || absent_is_none(read_command_line(pid)).map(Option::flatten);
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// While a program replaces another in a process (execve(2)), the kernel shows an empty command line for a moment.
    /// That is not the absence of one: a hypervisor that is just starting would be overlooked. An error if it stays
    /// empty.
    fn read_command_line(pid: i32) -> io::Result<Option<CommandLine>> {
        let mut left = EXEC;
        loop {
            let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))?;
            if !bytes.is_empty() || !is_program_of_ours(pid)? {
                return Ok(exact(&bytes));
            }
            if left.is_zero() {
                return Err(not_understood(&format!("the empty command line of process {pid}")));
            }
            std::thread::sleep(READ_AGAIN);
            left = left.saturating_sub(READ_AGAIN);
        }
    }

    /// Whether this is a process of our user that has not ended, and no kernel thread.
    fn is_program_of_ours(pid: i32) -> io::Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Most processes without a command line are kernel threads, for which the second file is not needed.
        if is_kernel_thread(&stat)? || started_of(&stat)?.is_none() {
            return Ok(false);
        }
        let uid = uid_of(&std::fs::read_to_string(format!("/proc/{pid}/status"))?);
        Ok(uid == Some(rustix::process::geteuid().as_raw()))
    }

    /// Field 9 has the flags.
    pub fn is_kernel_thread(stat: &str) -> io::Result<bool> {
        let after_name = stat.rfind(')').map(|end| &stat[end + 1..]);
        let flags = after_name.and_then(|fields| fields.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
        Ok(flags.ok_or_else(|| not_understood("the flags of a process"))? & KERNEL_THREAD != 0)
    }

    pub async fn has_open_file_in(pid: Pid, dir: &Path) -> io::Result<bool> {
        let Some(files) = absent_is_none(std::fs::read_dir(format!("/proc/{pid}/fd")))? else { return Ok(false) };
        for file in files {
            let Some(file) = absent_is_none(file)? else { continue };
            if absent_is_none(std::fs::read_link(file.path()))?.is_some_and(|target| target.starts_with(dir)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub async fn all() -> io::Result<Vec<(i32, CommandLine)>> {
        let scan = || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir("/proc")? {
                let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
                match read_command_line(pid) {
                    Ok(line) => found.extend(line.map(|line| (pid, line))),
                    // It has ended meanwhile, or is not visible to this user.
                    Err(error) if is_absence(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        };
        tokio::task::spawn_blocking(scan).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Field 22, unless field 3 shows a zombie. The name in field 2 may contain blanks and parentheses.
    pub fn started_of(stat: &str) -> io::Result<Option<u64>> {
        let garbled = || not_understood("the state of a process");
        let mut fields = stat[stat.rfind(')').ok_or_else(garbled)? + 1..].split_ascii_whitespace();
        let state = fields.next().ok_or_else(garbled)?;
        if matches!(state, "Z" | "X" | "x") {
            return Ok(None);
        }
        fields.nth(18).and_then(|ticks| ticks.parse().ok()).map(Some).ok_or_else(garbled)
    }

    /// The effective one of four.
    pub fn uid_of(status: &str) -> Option<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// Empty for kernel threads and zombies.
    fn exact(cmdline: &[u8]) -> Option<CommandLine> {
        let cmdline = cmdline.strip_suffix(&[0]).unwrap_or(cmdline);
        (!cmdline.is_empty()).then(|| {
            CommandLine::Exact(cmdline.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into()).collect())
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{io, path::Path, time::Duration};

    use super::{CommandLine, Pid, ProcessStatus, not_understood};
    use crate::platform::process::Command;

    /// `None`: there is no such process. One keyword per `-o`, because BSD's `ps` takes everything after a `=` as the
    /// column's title, commas included.
    async fn ps(args: &[&str]) -> io::Result<Option<String>> {
        let output = Command::new("/bin/ps", Duration::from_secs(5))
            .args(args)
            .unsupervised()
            .run()
            .await
            .map_err(io::Error::other)?;
        let text = output.stdout_text();
        match output.status.success() {
            true => Ok(Some(text)),
            // This is how it reports that there is no such process.
            false if text.trim().is_empty() && output.stderr_tail.is_empty() => Ok(None),
            false => Err(io::Error::other(format!("ps ended with {}: {}", output.status, output.stderr_tail))),
        }
    }

    pub async fn status(pid: Pid) -> io::Result<Option<ProcessStatus>> {
        let columns = ["-o", "state=", "-o", "uid=", "-o", "etime=", "-o", "lstart=", "-p", &pid.to_string()];
        match ps(&columns).await? {
            Some(text) => super::status_of(&text),
            None => Ok(None),
        }
    }

    pub async fn command_line(pid: Pid) -> io::Result<Option<CommandLine>> {
        let text = ps(&["-ww", "-o", "command=", "-p", &pid.to_string()]).await?;
        Ok(text.map(|text| CommandLine::Joined(text.trim().to_owned())))
    }

    pub async fn has_open_file_in(pid: Pid, dir: &Path) -> io::Result<bool> {
        let lsof =
            Command::new("/usr/sbin/lsof", Duration::from_secs(5)).args(["-Fn", "-p", &pid.to_string()]).unsupervised();
        let output = lsof.run().await.map_err(io::Error::other)?;
        // It exits with 1 also if only some processes exist, and without a message if none does.
        let text = output.stdout_text();
        if text.is_empty() && !output.stderr_tail.is_empty() {
            return Err(io::Error::other(format!("lsof ended with {}: {}", output.status, output.stderr_tail)));
        }
        Ok(text.lines().filter_map(|line| line.strip_prefix('n')).any(|file| Path::new(file).starts_with(dir)))
    }

    pub async fn all() -> io::Result<Vec<(i32, CommandLine)>> {
        let text = ps(&["-axww", "-o", "pid=", "-o", "command="]).await?;
        let text = text.ok_or_else(|| not_understood("a list of no processes"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| match line.split_once(' ') {
                Some((pid, command)) => {
                    let pid = pid.parse().map_err(|_| not_understood("a line of ps"))?;
                    Ok((pid, CommandLine::Joined(command.trim().to_owned())))
                }
                None => {
                    Ok((line.parse().map_err(|_| not_understood("a line of ps"))?, CommandLine::Joined(String::new())))
                }
            })
            .collect()
    }
}

/// Parses `ps -o state= -o uid= -o etime= -o lstart=`: `Ss 501 01-02:03:04 Fri Nov 20 10:00:00 2026`. A zombie has
/// ended.
#[cfg(any(test, not(target_os = "linux")))]
fn status_of(text: &str) -> io::Result<Option<ProcessStatus>> {
    let garbled = || not_understood("what ps says of a process");
    let mut words = text.split_ascii_whitespace();
    let Some(state) = words.next() else { return Ok(None) };
    if state.starts_with('Z') {
        return Ok(None);
    }
    let uid = words.next().and_then(|uid| uid.parse().ok()).ok_or_else(garbled)?;
    let age = words.next().and_then(elapsed).ok_or_else(garbled)?;
    let started = words.collect::<Vec<_>>().join(" ");
    if started.is_empty() {
        return Err(garbled());
    }
    Ok(Some(ProcessStatus { started, uid, age }))
}

/// `[[days-]hours:]minutes:seconds`.
#[cfg(any(test, not(target_os = "linux")))]
fn elapsed(text: &str) -> Option<Duration> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let mut seconds = 0u64;
    for part in clock.split(':') {
        seconds = seconds.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    Some(Duration::from_secs(days.parse::<u64>().ok()?.checked_mul(86_400)?.checked_add(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_both_kinds_of_command_lines() {
        let exact = CommandLine::Exact(
            ["/usr/bin/qemu-system-x86_64", "-m", "4 G", "-pidfile", "/a b/p"].map(str::to_owned).into(),
        );
        assert_eq!(exact.program(), "qemu-system-x86_64");
        assert_eq!(exact.option("-m"), Some("4 G"));
        assert!(exact.has_option("-pidfile", "/a b/p"));
        assert!(!exact.has_option("-pidfile", "/a b"));

        let joined = CommandLine::Joined("/usr/bin/qemu-system-x86_64 -m 4G -pidfile /a b/p".to_owned());
        assert_eq!(joined.option("-m"), Some("4G"));
        assert!(joined.has_option("-pidfile", "/a b/p"));
        assert!(!joined.has_option("-pidfile", "/a b/pq"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_zombie_has_ended() {
        let stat = |state| format!("42 (a) b (c) {state} 1 42 42 0 -1 4194304 80 0 0 0 0 0 0 0 20 0 1 0 12345 0 0");
        assert_eq!(system::started_of(&stat('S')).unwrap(), Some(12345));
        assert_eq!(system::started_of(&stat('Z')).unwrap(), None);
        assert!(system::started_of("42 (a").is_err() && system::started_of("42 (a) S 1").is_err());
        assert!(!system::is_kernel_thread(&stat('S')).unwrap());
        assert!(system::is_kernel_thread("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0").unwrap());
        assert_eq!(system::uid_of("Name:\ta\nUid:\t1\t2\t3\t4\n"), Some(2));
    }

    #[test]
    fn what_ps_says_is_understood_or_an_error() {
        let status = status_of("Ss   501 01-02:03:04 Fri Nov 20 10:00:00 2026\n").unwrap().unwrap();
        assert_eq!((status.uid, status.started.as_str()), (501, "Fri Nov 20 10:00:00 2026"));
        assert_eq!(status.age, Duration::from_secs(86_400 + 2 * 3600 + 3 * 60 + 4));
        assert_eq!(status_of("S 0 00:07 x").unwrap().unwrap().age, Duration::from_secs(7));
        assert!(status_of("Z+ 501 00:07 x").unwrap().is_none() && status_of("\n").unwrap().is_none());
        for garbled in ["S", "S root 00:07 x", "S 501 - x", "S 501 00:07"] {
            assert!(status_of(garbled).is_err(), "{garbled}");
        }
    }

    /// A shell that replaces itself by another one again and again.
    #[tokio::test]
    async fn a_process_has_a_command_line_while_its_program_is_replaced() {
        const TIMES: &str = r#"[ "$1" -eq 0 ] || exec /bin/sh -c "$0" "$0" "$(($1 - 1))""#;
        let mut child = tokio::process::Command::new("/bin/sh").args(["-c", TIMES, TIMES, "1000"]).spawn().unwrap();
        let process = Process::find(child.id().unwrap() as i32).await.unwrap().unwrap();
        let mut seen = 0;
        loop {
            let line = process.command_line().await.unwrap();
            // In this order, because it may end between the two.
            if !process.is_running().await.unwrap() {
                break;
            }
            assert!(line.is_some(), "after it was seen {seen} times");
            seen += 1;
        }
        assert!(seen > 10, "it was seen {seen} times only");
        assert!(child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_process_is_followed_to_its_end() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = child.id().unwrap() as i32;
        // Until the exec, this is still a copy of the parent.
        let process = loop {
            let process = Process::find(pid).await.unwrap().unwrap();
            match process.command_line().await.unwrap() {
                Some(line) if line.program() == "sleep" => break process,
                _ => tokio::task::yield_now().await,
            }
        };
        assert!(all().await.unwrap().iter().any(|(p, _)| *p == pid));
        assert!(process.is_running().await.unwrap() && process.is_own());
        assert!(process.age() < Duration::from_secs(60), "{:?}", process.age());
        assert!(Process::find_again(&process.id()).await.unwrap().is_some());
        let other = ProcessId { started: "another boot:1".to_owned(), ..process.id() };
        assert!(Process::find_again(&other).await.unwrap().is_none(), "its pid alone is not it");
        process.kill().await.unwrap();
        // It was not awaited yet: it is a zombie, and counts as ended.
        process.ended().await;
        assert!(!process.is_running().await.unwrap());
        assert!(Process::find(pid).await.unwrap().is_none());
        process.kill().await.unwrap();
        let _ = child.wait().await;
    }
}
