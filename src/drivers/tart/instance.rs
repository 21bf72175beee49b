//! A `tart run`: finding it, and telling it from others.
//!
//! There is no daemon: the process *is* the VM, and for as long as it lives it holds a record lock on the VM's `config.json`.
//! The kernel is asked who holds it. The lock is never taken: on macOS, `flock` and record locks exclude one another, and for a
//! `flock` the kernel names the holder -1, to whom `tart stop` would then send its signals, that is to every process of the
//! user. For the same reason nobody but a process with the right command line is ever sent one from here.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::paths::Paths;
use crate::{
    domain::InstanceName,
    drivers::process::{self, CommandLine, Process},
};

/// How often the processes are looked through while matching ones come and go.
const SCANS: u32 = 10;
/// A wrapper script, until it becomes what it wraps.
const SHELLS: [&str; 5] = ["sh", "bash", "zsh", "dash", "env"];

#[derive(Debug)]
pub enum Found {
    Nothing,
    /// A `tart run` of this VM. It may be on its way up and hold no lock yet.
    Running(Process),
    /// Somebody else holds the VM's lock, and the VM does not run: `tart push`, `tart delete`, or a stranger.
    Busy {
        holder: Option<i32>,
    },
}

/// Who holds the lock of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    Process(i32),
    /// The kernel does not say: it is a lock of another kind, or its owner is out of our sight.
    Unknown,
}

/// How this host's Tart appears in a list of processes.
#[derive(Clone, Debug)]
pub struct Names {
    /// `tart`, and what the configured program is called.
    pub programs: Vec<String>,
    /// What precedes Tart until it has its own session.
    pub launcher: Vec<String>,
}

impl Names {
    /// Whether this is a `tart run` of that VM. `run` and the name have to be arguments of Tart's own: a shell, an editor or a
    /// search that merely mentions them is somebody's work.
    pub fn runs(&self, line: &CommandLine, name: &InstanceName) -> bool {
        match line {
            CommandLine::Exact(args) => self.exact(args, name),
            CommandLine::Joined(text) => self.joined(text, name),
        }
    }

    fn is_tart(&self, program: &str) -> bool {
        let program = program.rsplit('/').next().unwrap_or_default();
        self.programs.iter().any(|p| p == program)
    }

    fn exact(&self, args: &[String], name: &InstanceName) -> bool {
        let args = match args.strip_prefix(self.launcher.as_slice()) {
            Some(rest) if !self.launcher.is_empty() => rest,
            _ => args,
        };
        let args = match args {
            [shell, script, ..] if is_shell(shell) && script.starts_with('/') => &args[1..],
            _ => args,
        };
        match args {
            [program, verb, rest @ ..] => {
                self.is_tart(program) && verb == "run" && rest.iter().any(|arg| arg == name.as_str())
            }
            _ => false,
        }
    }

    /// Here, blanks between arguments and within them look alike. Whoever precedes ` run ` is a path that ends in Tart's name,
    /// and what comes first in it may be the launcher or a shell.
    fn joined(&self, text: &str, name: &InstanceName) -> bool {
        let launcher = format!("{} ", self.launcher.join(" "));
        let text = text.strip_prefix(&launcher).unwrap_or(text);
        let text = match text.split_once(' ') {
            Some((shell, script)) if is_shell(shell) && script.starts_with('/') => script,
            _ => text,
        };
        let Some((program, rest)) = text.split_once(" run ") else { return false };
        let alone = program.starts_with('/') || !program.contains(' ');
        alone && self.is_tart(program) && rest.split(' ').any(|word| word == name.as_str())
    }
}

fn is_shell(program: &str) -> bool {
    SHELLS.contains(&program.rsplit('/').next().unwrap_or_default())
}

/// The process of this instance.
pub async fn find(paths: &Paths, name: &InstanceName, names: &Names) -> io::Result<Found> {
    let mut holder = holder(&paths.config())?;
    for _ in 0..SCANS {
        if let Holder::Process(pid) = holder
            && let Some(process) = Process::find(pid).await
            && names.runs(process.command_line(), name)
        {
            return Ok(Found::Running(process));
        }
        // It starts and has no lock yet, or somebody removed the directory under it.
        let mut vanished = false;
        for (pid, line) in process::all().await {
            if !names.runs(&line, name) {
                continue;
            }
            match Process::find(pid).await {
                Some(process) if names.runs(process.command_line(), name) => return Ok(Found::Running(process)),
                // A launcher became Tart between two looks, or it has ended.
                _ => vanished = true,
            }
        }
        let before = std::mem::replace(&mut holder, self::holder(&paths.config())?);
        // One that took the lock meanwhile is looked at; what holds it since before is somebody else.
        if !vanished && holder == before {
            break;
        }
    }
    Ok(match holder {
        Holder::Nobody => Found::Nothing,
        Holder::Process(pid) => Found::Busy { holder: Some(pid) },
        Holder::Unknown => Found::Busy { holder: None },
    })
}

/// Asks the kernel, as Tart itself does: with a read lock, which only a write lock is in the way of.
pub fn holder(config: &Path) -> io::Result<Holder> {
    let file = match File::open(config) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(error),
    };
    // In a debug build, rustix panics at the pid -1 that stands for a lock of another kind.
    let asked = catch_unwind(AssertUnwindSafe(|| fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))));
    let Ok(asked) = asked else { return Ok(Holder::Unknown) };
    Ok(match asked?.map(|lock| lock.pid.map(|pid| pid.as_raw_nonzero().get())) {
        None => Holder::Nobody,
        Some(Some(pid)) if pid > 0 => Holder::Process(pid),
        Some(_) => Holder::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};

    use super::*;
    use crate::domain::VmId;

    fn names() -> Names {
        let launcher = ["/opt/my apps/mayfly", "detach", "--"].map(str::to_owned).into();
        Names { programs: vec!["tart".to_owned(), "tart-double".to_owned()], launcher }
    }

    #[test]
    fn only_a_run_of_this_vm_is_it() {
        let name = VmId::mint().instance();
        let other = VmId::mint().instance();
        let runs = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.replace("NAME", name.as_str())).collect();
            let joined = names().runs(&CommandLine::Joined(words.join(" ")), &name);
            let exact = names().runs(&CommandLine::Exact(words.clone()), &name);
            assert_eq!(joined, exact, "{words:?}");
            exact
        };
        assert!(runs(&[
            "/opt/homebrew/Cellar/tart/2.32.1/libexec/tart.app/Contents/MacOS/tart",
            "run",
            "NAME",
            "--no-graphics"
        ]));
        assert!(runs(&["tart", "run", "NAME"]));
        assert!(runs(&["tart", "run", "--no-graphics", "NAME"]), "started by hand, and ours all the same");
        assert!(runs(&["/w/tart-double", "run", "NAME"]));
        assert!(runs(&["/bin/sh", "/opt/homebrew/bin/tart", "run", "NAME", "--no-audio"]), "the wrapper");
        assert!(runs(&["/opt/my apps/mayfly", "detach", "--", "/opt/homebrew/bin/tart", "run", "NAME"]), "on its way");
        assert!(runs(&["/opt/my apps/mayfly", "detach", "--", "/bin/sh", "/opt/homebrew/bin/tart", "run", "NAME"]));

        for stranger in [
            &["tart", "run", other.as_str()][..],
            &["tart", "push", "NAME", "registry.example.com/x"],
            &["tart", "delete", "NAME"],
            &["tart", "stop", "NAME"],
            &["tart", "exec", "other", "run", "NAME"],
            &["vim", "tart", "run", "NAME"],
            &["ssh", "host", "/usr/local/bin/tart", "run", "NAME"],
            &["sh", "-c", "tart run NAME"],
            &["grep", "-r", "tart run NAME", "/var/log"],
            &["/usr/bin/not-tart", "run", "NAME"],
            &["tart", "run", "NAME-2"],
            &["tart", "run"],
            &[""],
        ] {
            assert!(!runs(stranger), "{stranger:?}");
        }
    }

    #[test]
    fn a_locks_holder_is_asked_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        assert_eq!(holder(&config).unwrap(), Holder::Nobody);
        std::fs::write(&config, "{}").unwrap();
        assert_eq!(holder(&config).unwrap(), Holder::Nobody);
        // One's own record locks are in nobody's way, so another process is needed, and `flock` is a lock of another kind.
        let file = File::open(&config).unwrap();
        file.lock().unwrap();
        #[cfg(target_os = "linux")]
        assert_eq!(holder(&config).unwrap(), Holder::Nobody);
        drop(file);
        let file = File::options().write(true).open(&config).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(holder(&config).unwrap(), Holder::Nobody);
    }
}
