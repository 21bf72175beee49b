//! Finds programs on the search path.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where a program is: as given when that is a path, else the first executable file of that name on the search path.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return is_executable(program).then(|| program.to_owned());
    }
    search_path().into_iter().map(|dir| dir.join(program)).find(|path| is_executable(path))
}

/// The directories of `PATH`, and those that the `PATH` which launchd gives a service lacks, Homebrew's among them.
pub fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).collect()
}

pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
