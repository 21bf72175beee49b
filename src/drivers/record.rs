//! Records which process is an instance's hypervisor, in a file beside the instance: its pid and start time. So
//! exactly that process is found later, regardless of other processes and of the hypervisor's own files.
//!
//! A record that cannot be parsed is ignored; other evidence about the instance still counts.

use std::{io, path::Path};

use super::process::{Process, ProcessId};
use crate::platform::files;

/// File name suffix of records.
pub const EXTENSION: &str = "process";
/// Environment variable of `mayfly detach`: the directory in which it records its process before it executes the
/// program.
pub const DIRECTORY: &str = "MAYFLY_PROCESS_RECORDS";
/// No record is that long.
const LIMIT: u64 = 4 << 10;

/// Written atomically, and only for this user.
pub fn write(path: &Path, id: &ProcessId) -> io::Result<()> {
    files::replace_unsynced(path, &serde_json::to_vec(id).map_err(io::Error::other)?)
}

/// Records this process, under its pid.
pub async fn write_own(dir: &Path) -> io::Result<()> {
    let pid = std::process::id();
    let own = Process::find(i32::try_from(pid).map_err(io::Error::other)?).await?;
    let own = own.ok_or_else(|| io::Error::other("this process cannot be seen"))?;
    write(&dir.join(format!("{pid}.{EXTENSION}")), &own.id())
}

/// `None`: there is no readable record.
pub fn read(path: &Path) -> io::Result<Option<ProcessId>> {
    use io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// The recorded process, if it runs and belongs to this user.
pub async fn find(path: &Path) -> io::Result<Option<Process>> {
    match read(path)? {
        Some(id) => Ok(Process::find_again(&id).await?.filter(Process::is_own)),
        None => Ok(None),
    }
}

/// The processes with a record in one directory.
#[derive(Debug, Default)]
pub struct RecordedProcesses {
    pub running: Vec<Process>,
    /// Whether there are any, ended ones included.
    pub any: bool,
}

/// A directory that does not exist has none.
pub async fn recorded_in(dir: &Path) -> io::Result<RecordedProcesses> {
    let mut recorded = RecordedProcesses::default();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(recorded),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            recorded.any = true;
            recorded.running.extend(find(&path).await?);
        }
    }
    Ok(recorded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_is_of_one_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("process");
        assert!(find(&file).await.unwrap().is_none());
        let me = Process::find(i32::try_from(std::process::id()).unwrap()).await.unwrap().unwrap();
        write(&file, &me.id()).unwrap();
        assert_eq!(find(&file).await.unwrap().unwrap().id(), me.id());
        write(&file, &ProcessId { started: "earlier".to_owned(), ..me.id() }).unwrap();
        assert!(find(&file).await.unwrap().is_none(), "an earlier owner of the pid");
        std::fs::write(&file, "{ half").unwrap();
        assert!(find(&file).await.unwrap().is_none());
        assert!(find(&file.join("below a file")).await.is_err(), "not looked at is not absent");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
