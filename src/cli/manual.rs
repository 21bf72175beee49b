//! `mayfly manual`: writes a manual page for each command.

use std::path::Path;

use super::{exit, failure::CommandFailure};

pub(super) fn run(dir: &Path) -> Result<u8, CommandFailure> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(super::command(), dir)
    };
    write().map_err(|error| CommandFailure::Other(format!("{}: {error}", dir.display())))?;
    Ok(exit::OK)
}
