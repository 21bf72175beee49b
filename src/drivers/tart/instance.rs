//! Finds the `tart run` of an instance, and distinguishes it from others.
//!
//! There is no daemon: the process *is* the VM, and holds a record lock on the VM's `config.json` while it lives. A
//! run is ours if this Mayfly started it: the launcher records its pid and start time before it executes Tart.
//! Another process that holds the lock of a VM of ours is reported and never gets a signal. A VM of the same name in
//! another Tart home has neither the lock nor the record.
//!
//! Older versions recorded no runs and identified them by their command lines. Such a run, which may be days old, is
//! recognised by the lock of this very VM, by its user, and by being a `tart run`; then it is recorded, too.

use std::{fs::Permissions, io, os::unix::fs::PermissionsExt, path::Path};

use super::paths::TartPaths;
use crate::{
    domain::InstanceName,
    drivers::{
        lock::{self, LockHolder},
        process::{CommandLine, Process},
        record,
    },
};

/// How often a lock is checked while its holders change.
const LOOKS: u32 = 10;
/// A wrapper script, until it executes the program that it wraps.
const SHELLS: [&str; 5] = ["sh", "bash", "zsh", "dash", "env"];

#[derive(Debug)]
pub enum TartPresence {
    Nothing,
    /// A `tart run` of this VM that we started. It may be starting and not hold the lock yet.
    Running(Process),
    /// Another process holds the VM's lock: `tart push`, `tart delete`, or a run that we did not start.
    Busy {
        holder: Option<i32>,
    },
}

/// How this host's Tart appears in a list of processes.
#[derive(Clone, Debug)]
pub struct Names {
    /// `tart`, and the name of the configured program.
    pub programs: Vec<String>,
    /// What precedes Tart until it has its own session.
    pub launcher: Vec<String>,
}

impl Names {
    /// Whether this is a `tart run` of that VM. `run` and the name have to be arguments of Tart itself: a shell, an
    /// editor or a search that merely contains them is another program.
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

    /// Here, blanks between arguments and within them cannot be distinguished. The text before ` run ` must be a path
    /// that ends in Tart's name; the launcher or a shell may come first.
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

/// The process of this instance. An error: nothing is known.
pub async fn find(paths: &TartPaths, name: &InstanceName, names: &Names) -> io::Result<TartPresence> {
    for _ in 0..LOOKS {
        // The lock is checked first: a run of ours is recorded before it can take the lock.
        let holder = match holder(&paths.config())? {
            LockHolder::Free => None,
            LockHolder::Unknown => Some(None),
            LockHolder::Process(pid) => match Process::find(pid).await? {
                Some(process) => Some(Some(process)),
                // It has ended meanwhile.
                None => continue,
            },
        };
        let noted = record::recorded_in(&paths.run).await?;
        if let Some(Some(process)) = holder {
            if noted.running.iter().any(|run| run.id() == process.id()) {
                return Ok(TartPresence::Running(process));
            }
            if !noted.any && is_unnoted_run(&process, name, names).await? {
                record::write(&paths.process(process.pid()), &process.id())?;
                return Ok(TartPresence::Running(process));
            }
            return Ok(match noted.running.into_iter().next() {
                Some(run) => TartPresence::Running(run),
                None => TartPresence::Busy { holder: Some(process.pid()) },
            });
        }
        return Ok(match (noted.running.into_iter().next(), holder) {
            (Some(run), _) => TartPresence::Running(run),
            (None, None) => TartPresence::Nothing,
            (None, Some(_)) => TartPresence::Busy { holder: None },
        });
    }
    Err(io::Error::other("the holders of the VM's lock come and go"))
}

async fn is_unnoted_run(process: &Process, name: &InstanceName, names: &Names) -> io::Result<bool> {
    Ok(process.is_own() && process.command_line().await?.is_some_and(|line| names.runs(&line, name)))
}

/// The holder of the lock of a VM of ours. The configuration is our file, so its mode can be repaired if it prevents
/// the check.
pub fn holder(config: &Path) -> io::Result<LockHolder> {
    match lock::holder(config) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            std::fs::set_permissions(config, Permissions::from_mode(0o600)).map_err(|_| error)?;
            lock::holder(config)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
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
}
