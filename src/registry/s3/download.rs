//! Downloads and verifies an object, in several concurrent ranges.
//!
//! Completed ranges are recorded, and are used again after a crash if the object's ETag and size have not changed.
//! Each range is requested with that ETag, so that the file never mixes two objects.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_sdk_s3::{Client, operation::head_object::HeadObjectOutput, types::ChecksumMode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    BucketClient, Location, S3, S3Error, TransferProgress,
    error::meaning,
    verify::{sums, verify},
};
use crate::{
    platform::{
        clock,
        files::{self, SpaceGuard},
        retry::Retry,
        tasks::blocking_io,
    },
    registry::{oci::Digest, pace::TransferPace},
};

/// Concurrent ranges.
const PARALLEL: usize = 4;
/// Buffer of a range before it is written.
const BUFFER: usize = 1 << 20;
/// Interval of checks whether another task has finished with the same object.
const OTHERS: Duration = Duration::from_millis(250);
/// An unfinished download that was not resumed for this long is removed.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Free space that is kept on the file system.
const SPARE: u64 = 64 << 20;

/// A complete local copy of an object. Its file is deleted when this is dropped.
#[derive(Debug)]
pub struct DownloadedObject {
    dir: PathBuf,
    /// Excludes other downloads while it is used.
    _lock: File,
    pub size: u64,
    pub digest: Digest,
    /// Notes for the caller, as sentences.
    pub notices: Vec<String>,
}

impl DownloadedObject {
    pub fn path(&self) -> PathBuf {
        self.dir.join(OBJECT)
    }
}

impl Drop for DownloadedObject {
    fn drop(&mut self) {
        // It is complete, so nothing has to be resumed. The lock file stays, because others may wait for it.
        let _ = fs::remove_file(self.dir.join(JOURNAL));
        let _ = fs::remove_file(self.dir.join(OBJECT));
    }
}

const OBJECT: &str = "object";
const JOURNAL: &str = "journal";
const LOCK: &str = ".lock";

/// The identity of an object's content. The first line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ObjectVersion {
    etag: String,
    size: u64,
    piece: u64,
}

impl S3 {
    /// Downloads an object, or the missing parts of it.
    pub async fn fetch(&self, from: &Location, progress: TransferProgress<'_>) -> Result<DownloadedObject, S3Error> {
        let (connection, head) = self.head(from).await?;
        let at = from.to_string();
        let size = head.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        if size == 0 {
            return Err(S3Error::Content { at, what: "it is empty".into() });
        }
        let Some(etag) = head.e_tag().filter(|e| !e.is_empty()).map(str::to_owned) else {
            return Err(S3Error::Refused { at, what: "it has no ETag, so that a change could not be noticed".into() });
        };
        let identity = ObjectVersion { etag, size, piece: self.piece };
        let sums = sums(from, &head)?;

        let dir = self.place(from);
        let lock = self.lock(&dir).await?;
        let (into, of) = (dir.clone(), identity.clone());
        let (file, journal, done) = blocking(move || prepare(&into, &of)).await?;
        let missing: Vec<u64> = (0..size.div_ceil(self.piece)).filter(|n| !done.contains(n)).collect();
        let length = |n: u64| self.piece.min(size - n * self.piece);
        let needed = missing.iter().map(|n| length(*n)).sum::<u64>() + SPARE;
        let available = self.space.available(&dir)?;
        if needed > available {
            return Err(S3Error::Space { at, needed, available });
        }
        let transfer = Arc::new(Transfer {
            client: connection.client.clone(),
            region: connection.region.clone(),
            from: from.clone(),
            identity,
            file,
            space: self.space.clone(),
            journal: Mutex::new(journal),
            pace: TransferPace::urgent(self.limits.clone()),
            received: AtomicU64::new(size - missing.iter().map(|n| length(*n)).sum::<u64>()),
            retry: self.retry,
        });
        let result = transfer.clone().all(missing, progress).await;
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        // On a full disk, data for a later download would only be in the way.
        if matches!(&result, Err(S3Error::Changed { .. })) || matches!(&result, Err(S3Error::Storage(e)) if full(e)) {
            forget(&dir)?;
        }
        result?;

        let path = dir.join(OBJECT);
        let (verified, seen) = (at.clone(), transfer.clone());
        let checked = blocking(move || Ok(verify(&path, seen.identity.size, &sums, &verified))).await?;
        match checked {
            Ok((digest, notices)) => Ok(DownloadedObject { dir, _lock: lock, size, digest, notices }),
            Err(error) => {
                // Otherwise it would be found again, with the same fault.
                forget(&dir)?;
                Err(error)
            }
        }
    }

    /// The object's properties, and the client that queried them.
    pub(super) async fn head(&self, at: &Location) -> Result<(BucketClient, HeadObjectOutput), S3Error> {
        let mut connection = BucketClient::open(None).await?;
        let mut pauses = self.retry.pauses();
        loop {
            let asked = connection.client.head_object().bucket(at.bucket()).key(at.key());
            let error = match asked.checksum_mode(ChecksumMode::Enabled).send().await {
                Ok(head) => return Ok((connection, head)),
                Err(error) => error,
            };
            if let Some(region) = connection.elsewhere(&error) {
                connection = BucketClient::open(Some(&region)).await?;
                continue;
            }
            let what = meaning(&error, &at.to_string(), at.bucket(), &connection.region);
            match what {
                // The answer to HEAD has no body, and does not show what is missing or denied. GET does.
                S3Error::NoObject { .. } | S3Error::Denied { .. } => {
                    let asked = connection.client.get_object().bucket(at.bucket()).key(at.key()).range("bytes=0-0");
                    return Err(match asked.send().await {
                        Ok(_) => what,
                        Err(error) => meaning(&error, &at.to_string(), at.bucket(), &connection.region),
                    });
                }
                _ => pause(what, &mut pauses).await?,
            }
        }
    }

    fn place(&self, of: &Location) -> PathBuf {
        self.dir.join("downloads").join(Digest::of(of.to_string().as_bytes()).hex())
    }

    /// Waits until no other task downloads the same object, and removes abandoned downloads.
    async fn lock(&self, dir: &Path) -> Result<File, S3Error> {
        let all = self.dir.join("downloads");
        let own = dir.to_owned();
        let file = blocking(move || {
            files::ensure_private_dir(&own)?;
            remove_abandoned(&all, &own);
            files::private().create(true).append(true).open(own.join(LOCK))
        })
        .await?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(OTHERS).await,
                Err(fs::TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }
}

/// Shared by the concurrent ranges.
struct Transfer {
    client: Client,
    region: String,
    from: Location,
    identity: ObjectVersion,
    file: File,
    space: SpaceGuard,
    journal: Mutex<File>,
    pace: TransferPace,
    received: AtomicU64,
    retry: Retry,
}

impl Transfer {
    async fn all(self: Arc<Self>, missing: Vec<u64>, progress: TransferProgress<'_>) -> Result<(), S3Error> {
        let mut tasks = JoinSet::new();
        let mut waiting = missing.into_iter();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            while tasks.len() < PARALLEL
                && let Some(number) = waiting.next()
            {
                let transfer = self.clone();
                tasks.spawn(async move { transfer.range(number).await });
            }
            progress(self.received.load(Ordering::Relaxed), self.identity.size);
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    None => return Ok(()),
                    // The others are cancelled by dropping them. Their completed ranges are in the journal.
                    Some(ended) => ended.map_err(io::Error::other)??,
                },
                _ = tick.tick() => {}
            }
        }
    }

    async fn range(self: Arc<Self>, number: u64) -> Result<(), S3Error> {
        let begin = number * self.identity.piece;
        let end = (begin + self.identity.piece).min(self.identity.size);
        let mut at = begin;
        let mut pauses = self.retry.pauses();
        let mut headway = at;
        while let Err(error) = self.once(&mut at, end).await {
            if at - headway >= BUFFER as u64 {
                headway = at;
                pauses = self.retry.pauses();
            }
            pause(error, &mut pauses).await?;
        }
        let transfer = self.clone();
        blocking(move || {
            // In this order: a line in the journal whose bytes are not on disk would be trusted.
            transfer.file.sync_data()?;
            let mut journal = transfer.journal.lock();
            let before = journal.metadata()?.len();
            let noted = journal.write_all(format!("{number}\n").as_bytes()).and_then(|()| journal.sync_data());
            if noted.is_err() {
                // A full disk may store half a line: together with the next line it would be the number of another
                // range.
                let _ = journal.set_len(before);
            }
            noted
        })
        .await
    }

    /// Continues from `at`, as far as one answer goes.
    async fn once(self: &Arc<Self>, at: &mut u64, end: u64) -> Result<(), S3Error> {
        if *at == end {
            return Ok(());
        }
        let ObjectVersion { etag, size, .. } = &self.identity;
        let object = self.from.to_string();
        let broken = |what: String| S3Error::Unavailable { at: object.clone(), what };
        let asked = self.client.get_object().bucket(self.from.bucket()).key(self.from.key());
        let asked = asked.range(format!("bytes={at}-{}", end - 1)).if_match(etag);
        let answer = asked.send().await.map_err(|e| meaning(&e, &object, self.from.bucket(), &self.region))?;
        let expected = format!("bytes {at}-{}/{size}", end - 1);
        if answer.content_range() != Some(&*expected) || answer.e_tag() != Some(etag) {
            let found = answer.content_range().unwrap_or("no range");
            return Err(broken(format!("it answered {found:.100}, expected {expected}")));
        }
        let mut body = answer.body;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            let piece = body.next().await.transpose().map_err(|e| broken(aws_error(&e)));
            let (piece, ended) = match piece {
                Ok(Some(piece)) => (piece, None),
                Ok(None) => (bytes::Bytes::new(), Some(Ok(()))),
                // The bytes received before are valid.
                Err(error) => (bytes::Bytes::new(), Some(Err(error))),
            };
            if *at + (buffer.len() + piece.len()) as u64 > end {
                return Err(broken("it sent more than requested".into()));
            }
            self.pace.allow(piece.len()).await;
            buffer.extend_from_slice(&piece);
            if buffer.len() >= BUFFER || ended.is_some() && !buffer.is_empty() {
                let (transfer, offset) = (self.clone(), *at);
                let (written, back) = blocking(move || {
                    // The file already consists of zeros.
                    if buffer.iter().any(|byte| *byte != 0) {
                        transfer.space.write(buffer.len(), || transfer.file.write_all_at(&buffer, offset))?;
                    }
                    let written = buffer.len() as u64;
                    buffer.clear();
                    Ok((written, buffer))
                })
                .await?;
                *at += written;
                self.received.fetch_add(written, Ordering::Relaxed);
                buffer = back;
            }
            match ended {
                None => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(())) if *at < end => return Err(broken(format!("it ended {} bytes too early", end - *at))),
                Some(Ok(())) => return Ok(()),
            }
        }
    }
}

fn aws_error(error: &(dyn std::error::Error + 'static)) -> String {
    crate::registry::aws::causes(error)
}

/// The file, its journal, and the ranges in it.
fn prepare(dir: &Path, identity: &ObjectVersion) -> io::Result<(File, File, BTreeSet<u64>)> {
    let known = known(dir, identity);
    if known.is_none() {
        forget(dir)?;
    }
    let open = |name: &str| files::private().read(true).write(true).create(true).truncate(false).open(dir.join(name));
    let file = open(OBJECT)?;
    if known.is_none() {
        file.set_len(identity.size)?;
        file.sync_all()?;
        let mut journal = open(JOURNAL)?;
        journal.write_all(format!("{}\n", serde_json::to_string(identity)?).as_bytes())?;
        journal.sync_all()?;
        files::sync_dir(dir)?;
    }
    let journal = OpenOptions::new().append(true).open(dir.join(JOURNAL))?;
    // Text after the last line end was cut off by a crash. The next line must not be appended to it.
    let whole = fs::read(dir.join(JOURNAL))?.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    journal.set_len(whole as u64)?;
    Ok((file, journal, known.unwrap_or_default()))
}

/// The completed ranges of an earlier attempt at the same object. `None`: there was none, or it was another object.
fn known(dir: &Path, identity: &ObjectVersion) -> Option<BTreeSet<u64>> {
    if fs::metadata(dir.join(OBJECT)).ok()?.len() != identity.size {
        return None;
    }
    let mut lines = BufReader::new(File::open(dir.join(JOURNAL)).ok()?);
    let mut line = String::new();
    let mut next = || {
        line.clear();
        // The last line may be incomplete after a crash; its range is fetched again.
        (lines.read_line(&mut line).is_ok() && line.ends_with('\n')).then(|| line.trim_end().to_owned())
    };
    let of: ObjectVersion = serde_json::from_str(&next()?).ok()?;
    if of != *identity {
        return None;
    }
    let mut done = BTreeSet::new();
    while let Some(line) = next() {
        // A line that is not the number of a range is ignored.
        done.extend(line.parse::<u64>().ok().filter(|n| *n < identity.size.div_ceil(identity.piece)));
    }
    Some(done)
}

/// Removes the journal first: it must not describe a missing file.
fn forget(dir: &Path) -> io::Result<()> {
    for name in [JOURNAL, OBJECT] {
        files::ignore_not_found(fs::remove_file(dir.join(name)))?;
    }
    Ok(())
}

/// Best effort: the next call tries again.
fn remove_abandoned(all: &Path, own: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let dir = entry.path();
        let newest =
            [JOURNAL, OBJECT].iter().filter_map(|name| fs::metadata(dir.join(name)).ok()?.modified().ok()).max();
        let old = newest.is_some_and(|at| clock::age(at) > ABANDONED);
        if dir == own || !old {
            continue;
        }
        // A locked directory is in use.
        if let Ok(lock) = File::open(dir.join(LOCK))
            && lock.try_lock().is_ok()
            && forget(&dir).is_ok()
        {
            tracing::info!(path = %dir.display(), "removed an unfinished download that was not resumed");
        }
    }
}

/// Waits for the next attempt, or returns the error if there is none.
pub(super) async fn pause(error: S3Error, pauses: &mut impl Iterator<Item = Duration>) -> Result<(), S3Error> {
    let Some(pause) = pauses.next().filter(|_| error.may_pass()) else { return Err(error) };
    tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "retrying a request to S3");
    tokio::time::sleep(pause).await;
    Ok(())
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, S3Error> {
    Ok(blocking_io(work).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_no_part_of_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let identity = ObjectVersion { etag: "e".into(), size: 200, piece: 1 };
        let (_, mut journal, done) = prepare(dir.path(), &identity).unwrap();
        assert!(done.is_empty());
        // The end of a line that says 12.
        journal.write_all(b"3\n1").unwrap();
        let (_, mut journal, done) = prepare(dir.path(), &identity).unwrap();
        assert_eq!(done, BTreeSet::from([3]));
        journal.write_all(b"7\n").unwrap();
        assert_eq!(prepare(dir.path(), &identity).unwrap().2, BTreeSet::from([3, 7]), "17 was never fetched");
    }
}
