//! Uploads a file in parts: it becomes the object completely or not at all.
//!
//! S3 stores, and bills, the parts of an upload that was never completed or aborted. So each upload is recorded
//! before its first part, and the next upload aborts those that no process works on.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_sdk_s3::{
    Client,
    error::ProvideErrorMetadata,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::{
    BucketClient, Location, S3, S3Error, TransferProgress,
    download::{blocking, pause},
    error::{Sdk, meaning},
};
use crate::{platform::files, registry::oci::Digest};

/// Memory of all concurrent parts together.
const MEMORY: u64 = 128 << 20;
const PARALLEL: u64 = 4;
/// Limits of S3.
const MOST_PARTS: u64 = 10_000;
const LARGEST: u64 = 5 << 40;

/// A created object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedObject {
    pub size: u64,
    pub digest: Digest,
}

/// An upload that is known to S3.
#[derive(Serialize, Deserialize)]
struct Note {
    bucket: String,
    key: String,
    upload_id: String,
    region: String,
}

impl S3 {
    /// Creates an object from a file. An existing one is replaced only with `overwrite`.
    pub async fn store(
        &self,
        from: &Path,
        to: &Location,
        overwrite: bool,
        progress: TransferProgress<'_>,
    ) -> Result<UploadedObject, S3Error> {
        self.end_abandoned().await;
        let path = from.to_owned();
        let (file, size, digest) = blocking(move || measure(&path)).await?;
        let at = to.to_string();
        if size > LARGEST {
            return Err(S3Error::Refused {
                at,
                what: format!("it has {size} bytes, and an object has at most {LARGEST}"),
            });
        }
        if let Some(expected) = to.digest()
            && expected != digest
        {
            return Err(S3Error::Content {
                at,
                what: format!("the file has the digest {digest}, expected {expected}"),
            });
        }
        // Refused before anything is sent; an object that is created meanwhile is detected at the end.
        let connection = self.connect_to_store(to, overwrite).await?;
        let upload = Upload { s3: self, connection, to, at, size, digest, overwrite, file: Arc::new(file) };
        if size <= self.piece {
            upload.at_once().await?
        } else {
            upload.in_parts(progress).await?
        }
        progress(size, size);
        Ok(UploadedObject { size, digest })
    }

    /// Whether the object may be created, as far as can be checked before, with the client for it.
    async fn connect_to_store(&self, to: &Location, overwrite: bool) -> Result<BucketClient, S3Error> {
        match self.head(to).await {
            Ok(_) if !overwrite => Err(S3Error::Exists { at: to.to_string() }),
            Ok((connection, _)) => Ok(connection),
            // Without read permission the check learns nothing; S3 itself refuses to replace the object where it
            // supports that.
            Err(S3Error::NoObject { .. } | S3Error::Denied { .. }) => self.of_bucket(to).await,
            Err(error) => Err(error),
        }
    }

    /// Whether the object may be created, as far as can be checked before.
    pub async fn may_store(&self, to: &Location, overwrite: bool) -> Result<(), S3Error> {
        self.connect_to_store(to, overwrite).await.map(drop)
    }

    /// A client for the bucket's region.
    async fn of_bucket(&self, to: &Location) -> Result<BucketClient, S3Error> {
        let connection = BucketClient::open(None).await?;
        match connection.client.head_bucket().bucket(to.bucket()).send().await {
            Err(error) => match connection.elsewhere(&error) {
                Some(region) => BucketClient::open(Some(&region)).await,
                // Write permission does not include the permission to query the bucket.
                None => Ok(connection),
            },
            Ok(_) => Ok(connection),
        }
    }

    fn notes(&self) -> PathBuf {
        self.dir.join("uploads")
    }

    /// Aborts the uploads of processes that have ended. Failures are retried next time.
    async fn end_abandoned(&self) {
        let notes = self.notes();
        let found = blocking(move || abandoned(&notes)).await.unwrap_or_default();
        for (path, _lock, note) in found {
            let ended = async {
                let BucketClient { client, .. } = BucketClient::open(Some(&note.region)).await?;
                end(&client, &note).await
            };
            match ended.await {
                Ok(()) => {
                    let _ = fs::remove_file(&path);
                    tracing::info!(
                        s3.bucket = note.bucket,
                        s3.key = note.key,
                        "aborted an unfinished multipart upload"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, s3.bucket = note.bucket, s3.key = note.key, "cannot abort an unfinished multipart upload")
                }
            }
        }
    }
}

/// Absence is success.
async fn end(client: &Client, note: &Note) -> Result<(), S3Error> {
    let asked = client.abort_multipart_upload().bucket(&note.bucket).key(&note.key).upload_id(&note.upload_id);
    match asked.send().await {
        Err(error) if error.code() != Some("NoSuchUpload") => {
            let at = format!("s3://{}/{}", note.bucket, note.key);
            match meaning(&error, &at, &note.bucket, &note.region) {
                S3Error::NoObject { .. } | S3Error::NoBucket { .. } => Ok(()),
                error => Err(error),
            }
        }
        _ => Ok(()),
    }
}

/// Those that are no longer locked by their process.
fn abandoned(notes: &Path) -> io::Result<Vec<(PathBuf, File, Note)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(notes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        if path.extension().is_none_or(|e| e != "json") || file.try_lock().is_err() {
            continue;
        }
        match serde_json::from_reader(&file) {
            Ok(note) => found.push((path, file, note)),
            // A crash cut it off before the upload's id: there is nothing to abort.
            Err(_) => drop(fs::remove_file(&path)),
        }
    }
    Ok(found)
}

struct Upload<'a> {
    s3: &'a S3,
    connection: BucketClient,
    to: &'a Location,
    at: String,
    size: u64,
    digest: Digest,
    overwrite: bool,
    file: Arc<File>,
}

impl Upload<'_> {
    fn failed<E>(&self, error: &Sdk<E>) -> S3Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match meaning(error, &self.at, self.to.bucket(), &self.connection.region) {
            // For our own precondition that the object does not exist.
            S3Error::Changed { at } => S3Error::Exists { at },
            error => error,
        }
    }

    fn only_new(&self) -> Option<String> {
        (!self.overwrite).then(|| "*".to_owned())
    }

    async fn at_once(&self) -> Result<(), S3Error> {
        let (bytes, sum) = part(self.file.clone(), 0, self.size).await?;
        let mut pauses = self.s3.retry.pauses();
        loop {
            let asked = self.connection.client.put_object().bucket(self.to.bucket()).key(self.to.key());
            let asked = asked.metadata("sha256", self.digest.hex()).set_if_none_match(self.only_new());
            let asked = asked.checksum_sha256(&sum).content_type("application/octet-stream");
            match asked.body(ByteStream::from(bytes.clone())).send().await {
                Ok(_) => return Ok(()),
                Err(error) => pause(self.failed(&error), &mut pauses).await?,
            }
        }
    }

    async fn begin(&self) -> Result<String, S3Error> {
        let mut pauses = self.s3.retry.pauses();
        loop {
            let asked = self.connection.client.create_multipart_upload().bucket(self.to.bucket()).key(self.to.key());
            let asked = asked.metadata("sha256", self.digest.hex()).content_type("application/octet-stream");
            let error = match asked.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await {
                Ok(made) => match made.upload_id().filter(|id| !id.is_empty()) {
                    Some(id) => return Ok(id.to_owned()),
                    None => {
                        S3Error::Unavailable { at: self.at.clone(), what: "an upload was begun without an id".into() }
                    }
                },
                Err(error) => self.failed(&error),
            };
            pause(error, &mut pauses).await?;
        }
    }

    async fn in_parts(&self, progress: TransferProgress<'_>) -> Result<(), S3Error> {
        let upload_id = self.begin().await?;
        let note = Note {
            bucket: self.to.bucket().to_owned(),
            key: self.to.key().to_owned(),
            upload_id,
            region: self.connection.region.clone(),
        };
        let mut guard = Guard::new(&self.s3.notes(), note, self.connection.client.clone());
        let done = async {
            guard.write().await?;
            let parts = self.parts(&guard.note().upload_id, progress).await?;
            self.complete(&guard.note().upload_id, parts).await
        }
        .await;
        guard.finish(done.is_ok()).await;
        done
    }

    async fn parts(&self, upload_id: &str, progress: TransferProgress<'_>) -> Result<Vec<CompletedPart>, S3Error> {
        let length = part_size(self.size, self.s3.piece);
        let parallel = (MEMORY / length).clamp(1, PARALLEL) as usize;
        let mut done = Vec::new();
        let mut tasks: JoinSet<Result<(u64, CompletedPart), S3Error>> = JoinSet::new();
        let mut waiting = 0..self.size.div_ceil(length);
        let mut sent = 0;
        progress(0, self.size);
        loop {
            while tasks.len() < parallel
                && let Some(number) = waiting.next()
            {
                let (client, file, to) = (self.connection.client.clone(), self.file.clone(), self.to.clone());
                let (region, upload_id) = (self.connection.region.clone(), upload_id.to_owned());
                let (offset, retry) = (number * length, self.s3.retry);
                let length = length.min(self.size - offset);
                tasks.spawn(async move {
                    let (bytes, sum) = part(file, offset, length).await?;
                    let number = number as i32 + 1;
                    let mut pauses = retry.pauses();
                    loop {
                        let asked = client.upload_part().bucket(to.bucket()).key(to.key()).upload_id(&upload_id);
                        let asked = asked.part_number(number).checksum_sha256(&sum);
                        match asked.body(ByteStream::from(bytes.clone())).send().await {
                            // Without it the parts cannot be assembled.
                            Ok(sent) if sent.e_tag().is_none() => {
                                let what = format!("part {number} was answered without an ETag");
                                pause(S3Error::Unavailable { at: to.to_string(), what }, &mut pauses).await?;
                            }
                            Ok(sent) => {
                                let part = CompletedPart::builder().part_number(number).checksum_sha256(sum);
                                return Ok((length, part.set_e_tag(sent.e_tag().map(str::to_owned)).build()));
                            }
                            Err(error) => {
                                let error = meaning(&error, &to.to_string(), to.bucket(), &region);
                                pause(error, &mut pauses).await?;
                            }
                        }
                    }
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(ended) => {
                    let (length, part) = ended.map_err(io::Error::other)??;
                    sent += length;
                    progress(sent, self.size);
                    done.push(part);
                }
            }
        }
        done.sort_by_key(|part| part.part_number());
        Ok(done)
    }

    async fn complete(&self, upload_id: &str, parts: Vec<CompletedPart>) -> Result<(), S3Error> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let mut pauses = self.s3.retry.pauses();
        let mut again = false;
        loop {
            let asked = self.connection.client.complete_multipart_upload();
            let asked = asked.bucket(self.to.bucket()).key(self.to.key()).upload_id(upload_id);
            let asked = asked.multipart_upload(parts.clone()).set_if_none_match(self.only_new());
            let error = match asked.send().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            // The answer to an earlier attempt may have been lost after it created the object.
            if again
                && matches!(error.code(), Some("NoSuchUpload" | "PreconditionFailed"))
                && let Ok((_, head)) = self.s3.head(self.to).await
                && head.metadata().and_then(|m| m.get("sha256")) == Some(&self.digest.hex())
            {
                return Ok(());
            }
            again = true;
            pause(self.failed(&error), &mut pauses).await?;
        }
    }
}

/// Aborts the upload if it is dropped before it is complete, and records it for the next process if this one dies.
struct Guard {
    dir: PathBuf,
    client: Client,
    note: Option<Note>,
    /// The note's file, and its lock.
    file: Option<(PathBuf, File)>,
}

impl Guard {
    fn new(dir: &Path, note: Note, client: Client) -> Guard {
        Guard { dir: dir.to_owned(), client, note: Some(note), file: None }
    }

    fn note(&self) -> &Note {
        self.note.as_ref().expect("it is taken at the end only")
    }

    async fn write(&mut self) -> Result<(), S3Error> {
        let path = self.dir.join(format!("{}.json", uuid::Uuid::new_v4()));
        let (dir, at) = (self.dir.clone(), path.clone());
        let bytes = serde_json::to_vec(self.note()).map_err(io::Error::other)?;
        let file = blocking(move || {
            files::ensure_private_dir(&dir)?;
            let mut file = files::create_private(&at)?;
            file.lock()?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            files::sync_dir(&dir)?;
            Ok(file)
        })
        .await?;
        self.file = Some((path, file));
        Ok(())
    }

    async fn finish(mut self, done: bool) {
        let (note, file) = (self.note.take(), self.file.take());
        if let Some(note) = note {
            ended(&self.client, note, file, done).await;
        }
    }
}

/// The note stays until S3 has confirmed the abort.
async fn ended(client: &Client, note: Note, file: Option<(PathBuf, File)>, done: bool) {
    if !done && let Err(error) = end(client, &note).await {
        tracing::warn!(%error, s3.bucket = note.bucket, s3.key = note.key, "cannot abort a failed multipart upload");
        return;
    }
    if let Some((path, _lock)) = file {
        let _ = fs::remove_file(path);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (Some(note), file, client) = (self.note.take(), self.file.take(), self.client.clone()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ended(&client, note, file, false).await });
        }
    }
}

/// The file, opened once, so that the measured content is the sent content.
fn measure(path: &Path) -> io::Result<(File, u64, Digest)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        read += n as u64;
    }
    if read != size {
        return Err(io::Error::other(format!("{} was changed while it was read", path.display())));
    }
    Ok((file, size, Digest::finish(hasher)))
}

/// A part's bytes, and their SHA-256 in Base64, which S3 verifies.
async fn part(file: Arc<File>, offset: u64, length: u64) -> Result<(bytes::Bytes, String), S3Error> {
    blocking(move || {
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset)?;
        let sum = STANDARD.encode(Sha256::digest(&bytes));
        Ok((bytes.into(), sum))
    })
    .await
}

/// The smallest size, in whole MiB, with which the number of parts is within S3's limit.
fn part_size(size: u64, usual: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    usual.max(size.div_ceil(MOST_PARTS).div_ceil(MIB) * MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_many_as_s3_takes_and_fit_into_memory() {
        assert_eq!(part_size(1 << 30, 16 << 20), 16 << 20);
        for size in [1 << 20, 100 << 30, 1 << 40, LARGEST] {
            let length = part_size(size, 16 << 20);
            assert!(size.div_ceil(length) <= MOST_PARTS, "{size}");
            assert!(length <= 5 << 30);
        }
        // Up to a TiB, several parts are concurrent.
        assert!(MEMORY / part_size(600 << 30, 16 << 20) >= 2);
    }
}
