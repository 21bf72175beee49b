//! The interface through which checks read from a machine. The checks are pure functions of the results, so tests can
//! replace the machine by a directory of recorded files.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::drivers::process::CommandLine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Macos,
    Linux,
}

impl System {
    pub fn as_str(self) -> &'static str {
        match self {
            System::Macos => "macos",
            System::Linux => "linux",
        }
    }
}

/// Longest that any single look may take. A program that hangs is a finding, not a reason to hang, too.
pub const LOOK: Duration = Duration::from_secs(5);

/// Why something was not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// There is no such file or program.
    Absent,
    Denied,
    TimedOut(Duration),
    Other(String),
}

impl Unseen {
    pub fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            // If a component of the path is not a directory, the path does not exist either.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unseen::Absent,
            io::ErrorKind::PermissionDenied => Unseen::Denied,
            _ => Unseen::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unseen::Absent => f.write_str("it does not exist"),
            Unseen::Denied => f.write_str("permission denied"),
            Unseen::TimedOut(after) => write!(f, "no answer within {} s", after.as_secs()),
            Unseen::Other(why) => f.write_str(why),
        }
    }
}

pub type Probed<T> = Result<T, Unseen>;

/// A command that ran to its end, well or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// What it said, wherever it said it.
    pub fn words(&self) -> &str {
        let stdout = self.stdout.trim();
        if stdout.is_empty() { self.stderr.trim() } else { stdout }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    File,
    Other,
}

/// What is at a path, links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    pub kind: FileKind,
    /// Permission bits, with the SUID bit.
    pub mode: u32,
    pub uid: u32,
    /// The volume: equal for two paths on the same one.
    pub device: u64,
    pub size: u64,
    pub modified: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// For this user, in bytes.
    pub free: u64,
    pub total: u64,
    /// `apfs`, `ext4`, …; `None` if the type is unknown.
    pub file_system: Option<String>,
}

/// Why an address cannot be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Another program listens there.
    Taken,
    /// No interface has this address.
    NoSuchAddress,
    Denied,
    Other(String),
}

#[async_trait]
pub trait HostProbe: Send + Sync {
    fn system(&self) -> System;
    /// The effective user id.
    fn uid(&self) -> u32;
    fn now(&self) -> Timestamp;
    fn env(&self) -> Vec<(String, String)>;
    /// Where a program is: as given when that is a path, else found in `PATH` and the usual places.
    fn find_program(&self, program: &Path) -> Option<PathBuf>;

    /// Runs a program that changes nothing, within `LOOK`.
    async fn run(&self, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Probed<Ran>;
    /// At most `limit` bytes from the beginning.
    async fn read(&self, path: &Path, limit: usize) -> Probed<Vec<u8>>;
    async fn entry(&self, path: &Path) -> Probed<FileStatus>;
    /// The path with every symbolic link in it followed.
    async fn resolve(&self, path: &Path) -> Probed<PathBuf>;
    /// The names in a directory.
    async fn names(&self, dir: &Path) -> Probed<Vec<String>>;
    /// Whether this user may read and write it.
    async fn may_read_and_write(&self, path: &Path) -> Probed<()>;
    async fn space(&self, path: &Path) -> Probed<Space>;
    /// Listens there for a moment.
    async fn listen(&self, address: SocketAddr) -> Result<(), Busy>;
    /// The body of an answer with status 200. No token is sent, and no certificate is checked.
    async fn get(&self, url: &str) -> Probed<Vec<u8>>;
    /// The same over a Unix socket.
    async fn get_over(&self, socket: &Path, path: &str) -> Probed<Vec<u8>>;
    /// Every process that this user may see.
    async fn processes(&self) -> Vec<(i32, CommandLine)>;
    /// Starts the smallest guest there is: the accelerator that ran it, and why it is not a better one.
    async fn boot_guest(&self, qemu: &Path) -> Result<(String, Option<String>), String>;
}

/// A command's words if it succeeded, for programs that print one line.
pub fn line(ran: &Probed<Ran>) -> Probed<String> {
    match ran {
        Ok(ran) if ran.succeeded() => Ok(ran.stdout.trim().to_owned()),
        Ok(ran) => Err(Unseen::Other(refusal(ran))),
        Err(unseen) => Err(unseen.clone()),
    }
}

/// How a command ended that did not do what was asked.
pub fn refusal(ran: &Ran) -> String {
    let said = ran.words().lines().next().unwrap_or("nothing");
    let said: String = said.chars().take(200).collect();
    match ran.code {
        Some(code) => format!("it ended with {code} and said {said:?}"),
        None => format!("it was killed and said {said:?}"),
    }
}
