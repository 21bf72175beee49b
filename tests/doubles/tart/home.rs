//! `$TART_HOME`: the tree, the lock on all of it, and the collection of garbage that nearly every command begins with.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{failure::Failure, output, vm::Vm};

pub struct Home {
    pub root: PathBuf,
}

fn invalid(root: &Path, e: &std::io::Error) -> Failure {
    Failure::runtime(format!("TART_HOME is invalid: {}: {e}", root.display()))
}

impl Home {
    pub fn locate() -> Result<Home, Failure> {
        let root = match std::env::var_os("TART_HOME") {
            Some(root) => PathBuf::from(root),
            None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".tart"),
        };
        // Absolute, because `run` changes its directory.
        let root = std::path::absolute(&root).map_err(|e| invalid(&root, &e))?;
        Ok(Home { root })
    }

    pub fn make(&self) -> Result<(), Failure> {
        fs::create_dir_all(&self.root).map_err(|e| invalid(&self.root, &e))
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        // A failure shows when the directory is used.
        let _ = fs::create_dir_all(&dir);
        dir
    }

    pub fn vms(&self) -> PathBuf {
        self.dir("vms")
    }

    pub fn tmp(&self) -> PathBuf {
        self.dir("tmp")
    }

    /// The double's own.
    pub fn state(&self, name: &str) -> PathBuf {
        self.dir(&format!("double/{name}"))
    }

    /// Waits for the lock that `clone`, `import` and the start of `run` take.
    pub fn lock(&self) -> Result<File, Failure> {
        let dir = File::open(&self.root).map_err(|e| Failure::io("failed to lock TART_HOME", &e))?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|e| Failure::io("failed to lock TART_HOME", &e.into()))?;
        Ok(dir)
    }

    /// A new directory in `tmp`, safe from the collection while the file is open.
    pub fn stage(&self) -> Result<(PathBuf, File), Failure> {
        let path = self.tmp().join(uuid::Uuid::new_v4().to_string().to_uppercase());
        let made = fs::create_dir(&path).and_then(|()| File::open(&path));
        let dir = made.map_err(|e| Failure::io("failed to make a temporary directory", &e))?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|e| Failure::io("failed to lock", &e.into()))?;
        Ok((path, dir))
    }

    /// Deletes each entry of `tmp` that nobody holds.
    pub fn collect_garbage(&self) {
        if let Err(e) = self.try_collect() {
            output::error(&format!("Failed to perform garbage collection: {e}"));
        }
    }

    fn try_collect(&self) -> std::io::Result<()> {
        for entry in fs::read_dir(self.tmp())? {
            let path = entry?.path();
            let held = match File::open(&path) {
                Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
                // Somebody else collected it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if !held {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                match removed {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub fn vm(&self, name: &str) -> Vm {
        Vm::at(self.vms().join(name), name)
    }

    /// Every initialised VM, by name. What lacks a file is passed over in silence.
    pub fn local(&self) -> Result<Vec<Vm>, Failure> {
        let entries = fs::read_dir(self.vms()).map_err(|e| Failure::io("failed to list VMs", &e))?;
        let mut vms: Vec<Vm> = entries
            .filter_map(Result::ok)
            .map(|e| Vm::at(e.path(), &e.file_name().to_string_lossy()))
            .filter(Vm::initialised)
            .collect();
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(vms)
    }
}
