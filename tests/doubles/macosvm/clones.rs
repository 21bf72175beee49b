//! `--ephemeral`: the VM runs on clones beside its files, which a normal end and three signals remove, and others leave.

use std::path::PathBuf;

use crate::{cli::Ended, words};

#[derive(Default)]
pub struct Clones(Vec<PathBuf>);

impl Clones {
    pub fn make(&mut self, file: &str) -> Result<String, Ended> {
        let clone = format!("{file}-clone-{}", std::process::id());
        if let Err(error) = std::fs::copy(file, &clone) {
            let errno = error.raw_os_error().unwrap_or_default();
            words::log(&format!(
                "*** Terminating app due to uncaught exception 'FSClone', reason: 'Failed to clone '{file}' to '{clone}': \
                 [errno={errno}] {error}'"
            ));
            self.remove();
            std::process::abort();
        }
        self.0.push(PathBuf::from(&clone));
        Ok(clone)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn remove(&mut self) {
        for file in self.0.drain(..) {
            words::print(&format!("INFO: removing ephemeral {}", file.display()));
            let _ = std::fs::remove_file(file);
        }
    }
}
