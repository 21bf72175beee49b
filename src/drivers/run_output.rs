//! The output of a hypervisor that runs in the foreground, in files.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::platform::files::{self, KeptParts};

/// Limit of a run's output that is read.
const READ_LIMIT: u64 = 256 << 10;
/// Size on disk at which a file is cut, in bytes.
const SIZE_LIMIT: u64 = 4 << 20;
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Truncated, and opened for appending, so that two concurrent runs overwrite nothing.
pub fn create(path: &Path) -> io::Result<File> {
    let file = files::private().append(true).create(true).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// The end of the file. A file that does not exist is empty.
pub fn read_end(path: &Path) -> io::Result<String> {
    let bytes = files::read_tail(path, READ_LIMIT)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Cuts files that exceed their limit. They are opened for appending, so the program continues at the new end.
pub async fn keep_bounded(program: &str, paths: &[PathBuf]) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        for path in paths {
            match files::cut_above(path, SIZE_LIMIT, KeptParts::default()) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(file = %path.display(), "the output of `{program}` exceeded its limit and was cut")
                }
                Err(error) => tracing::warn!(%error, file = %path.display(), "cannot cut the output of `{program}`"),
            }
        }
    }
}
