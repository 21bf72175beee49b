//! Evidence about processes that are not our children: which one it is, whether it still runs, and its end.
//!
//! A pid alone proves nothing, it may have been given to somebody else meanwhile. So a process is identified once, by its
//! command line, and held from then on: on Linux by a pidfd, elsewhere by its start time.

use std::{io, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, waitpid};

/// How often a process is looked at where its end cannot be waited for.
const POLL: Duration = Duration::from_millis(20);

/// A process that ran when it was looked at.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    started: String,
    command_line: CommandLine,
    #[cfg(target_os = "linux")]
    pidfd: Option<std::os::fd::OwnedFd>,
}

/// The arguments of a process, as exact as the system tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    Exact(Vec<String>),
    /// Joined by blanks, as `ps` shows it.
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

    /// What follows `option`. Of a joined command line that is one word, so a value with a blank in it is cut short.
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

impl Process {
    /// The process with this pid, or `None` when there is none. A zombie has ended.
    pub async fn find(pid: i32) -> Option<Process> {
        let pid = Pid::from_raw(pid).filter(|p| p.as_raw_nonzero().get() > 0)?;
        // Held before it is looked at: whoever this is, all that follows is about the same one.
        #[cfg(target_os = "linux")]
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok();
        let started = system::started(pid).await?;
        let command_line = system::command_line(pid).await?;
        Some(Process {
            pid,
            started,
            command_line,
            #[cfg(target_os = "linux")]
            pidfd,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub fn command_line(&self) -> &CommandLine {
        &self.command_line
    }

    pub async fn is_running(&self) -> bool {
        system::started(self.pid).await.as_ref() == Some(&self.started)
    }

    /// Resolves when it no longer runs.
    pub async fn ended(&self) {
        #[cfg(target_os = "linux")]
        self.pidfd_readable().await;
        #[cfg(not(target_os = "linux"))]
        self.pid_free().await;
        while self.is_running().await {
            tokio::time::sleep(POLL).await;
        }
        // Orphans become children of the first process of a container. If that is this program, nobody else buries them.
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
    }

    /// Resolves when nobody has this pid, or somebody else has it. A guest is watched for hours, and to ask `ps` for it each
    /// time would keep a core busy: a signal that is none costs nothing, and `ps` is asked now and then.
    #[cfg(not(target_os = "linux"))]
    async fn pid_free(&self) {
        const CERTAIN: Duration = Duration::from_secs(5);
        let mut asked = std::time::Instant::now();
        while rustix::process::test_kill_process(self.pid) != Err(rustix::io::Errno::SRCH) {
            if asked.elapsed() > CERTAIN {
                if !self.is_running().await {
                    return;
                }
                asked = std::time::Instant::now();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A pidfd is readable once its process has ended. Returns sooner when that cannot be waited for; the caller looks again.
    #[cfg(target_os = "linux")]
    #[expect(
        deprecated,
        reason = "the successor is unsafe, for types that lie about their descriptor; OwnedFd does not"
    )]
    async fn pidfd_readable(&self) {
        let Some(Ok(pidfd)) = self.pidfd.as_ref().map(std::os::fd::OwnedFd::try_clone) else { return };
        if let Ok(pidfd) = tokio::io::unix::AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE) {
            let _ = pidfd.readable().await.map(|_| ());
        }
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL).await
    }

    /// Sends a signal, to this process and to no later owner of its pid. One that has ended takes it without complaint.
    pub async fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return match rustix::process::pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        if !self.is_running().await {
            return Ok(());
        }
        match rustix::process::kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Every process whose command line this user may read.
pub async fn all() -> Vec<(i32, CommandLine)> {
    system::all().await
}

#[cfg(target_os = "linux")]
mod system {
    use super::{CommandLine, Pid};

    pub async fn started(pid: Pid) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        started_of(&stat)
    }

    pub async fn command_line(pid: Pid) -> Option<CommandLine> {
        exact(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?)
    }

    pub async fn all() -> Vec<(i32, CommandLine)> {
        let scan = || {
            let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
            entries
                .filter_map(|entry| {
                    let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                    Some((pid, exact(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?)?))
                })
                .collect()
        };
        tokio::task::spawn_blocking(scan).await.unwrap_or_default()
    }

    /// Field 22, unless field 3 says that it has ended. The name in field 2 may hold blanks and parentheses.
    pub fn started_of(stat: &str) -> Option<String> {
        let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X" | "x") {
            return None;
        }
        fields.nth(18).map(str::to_owned)
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
    use std::time::Duration;

    use super::{CommandLine, Pid};
    use crate::drivers::command::Command;

    // One keyword per `-o`: to the `ps` of BSD, whatever follows a `=` is that column's title, commas included.
    async fn ps(args: &[&str]) -> Option<String> {
        let output = Command::new("/bin/ps", Duration::from_secs(5)).args(args).run().await.ok()?;
        output.status.success().then(|| output.stdout_text())
    }

    pub async fn started(pid: Pid) -> Option<String> {
        let text = ps(&["-o", "state=", "-o", "lstart=", "-p", &pid.to_string()]).await?;
        let (state, started) = text.trim().split_once(' ')?;
        (!state.starts_with('Z')).then(|| started.trim().to_owned())
    }

    pub async fn command_line(pid: Pid) -> Option<CommandLine> {
        let text = ps(&["-ww", "-o", "command=", "-p", &pid.to_string()]).await?;
        Some(CommandLine::Joined(text.trim().to_owned()))
    }

    pub async fn all() -> Vec<(i32, CommandLine)> {
        let text = ps(&["-axww", "-o", "pid=", "-o", "command="]).await.unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (pid, command) = line.trim().split_once(' ')?;
                Some((pid.parse().ok()?, CommandLine::Joined(command.trim().to_owned())))
            })
            .collect()
    }
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
        assert_eq!(system::started_of(&stat('S')).as_deref(), Some("12345"));
        assert_eq!(system::started_of(&stat('Z')), None);
    }

    #[tokio::test]
    async fn a_process_is_followed_to_its_end() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = child.id().unwrap() as i32;
        // Until the program is executed, this is still a copy of ourselves.
        let process = loop {
            match Process::find(pid).await {
                Some(process) if process.command_line().program() == "sleep" => break process,
                _ => tokio::task::yield_now().await,
            }
        };
        assert!(all().await.iter().any(|(p, _)| *p == pid));
        assert!(process.is_running().await);
        process.kill().await.unwrap();
        // Nobody has waited for it yet: it is a zombie, and counts as ended.
        process.ended().await;
        assert!(!process.is_running().await);
        process.kill().await.unwrap();
        let _ = child.wait().await;
    }
}
