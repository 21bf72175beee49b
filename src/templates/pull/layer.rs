//! Fetches and verifies one layer, and writes it to the disk and the journal.
//!
//! Chunks go from the network through a short queue to a thread that hashes and decodes them, and from there to a
//! thread that hashes the result and writes it. So a slow disk slows the network down, and memory stays bounded. The
//! first thread, not its caller, writes the journal: when the pull is cancelled, it may be the only one left.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{channel, sync_channel},
    },
    thread,
};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    disk::{self, Disk},
    journal::Journal,
    sparse::{Buffer, BufferExchange, BufferPlacement, Cutter},
};
use crate::{
    platform::files,
    registry::{
        RegistryClient, RegistryError,
        client::{BodyChunk, FetchError},
        oci::{
            Digest,
            lz4::{DecodeError, Decoder},
            manifest::{self, Blob, Chunk},
        },
    },
    templates::{catalog::pulled::Staging, progress::Meter},
};

/// Queue between the network and the thread, for each active layer. A piece has at most some hundred kilobytes.
const QUEUE: usize = 8;

/// Buffers between the two threads of a chunk. With the two in use, four megabytes for each active chunk.
const AHEAD: usize = 2;

/// How often a layer may arrive completely with a wrong digest.
const ATTEMPTS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    #[error("{error}")]
    Registry { error: RegistryError, received: u64 },
    #[error("{0}")]
    Content(String),
    #[error("cannot be written: {0}")]
    Storage(#[from] io::Error),
}

impl From<DecodeError> for LayerError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Write(error) => LayerError::Storage(error),
            other => LayerError::Content(other.to_string()),
        }
    }
}

/// Shared by all layers of a pull.
pub(super) struct Site {
    pub client: Arc<RegistryClient>,
    pub disk: Disk,
    pub journal: Journal,
    pub meter: Meter,
    /// Held by writers, so that a new pull does not start before the last writer has ended.
    pub _staging: Arc<Staging>,
}

/// The target of a layer's content.
#[derive(Clone)]
enum LayerTarget {
    /// `content`: the uncompressed content, if the blob is compressed.
    File {
        path: PathBuf,
        content: Option<Blob>,
    },
    Disk {
        offset: u64,
        content: Blob,
        blank: bool,
    },
}

impl Site {
    pub async fn fetch_file(self: &Arc<Self>, file: &manifest::LayerFile, path: PathBuf) -> Result<(), LayerError> {
        let content = file.packed.then_some(file.content);
        self.fetch(file.layer, file.blob, |_| LayerTarget::File { path: path.clone(), content }).await
    }

    pub async fn fetch_chunk(self: &Arc<Self>, chunk: Chunk) -> Result<(), LayerError> {
        let target =
            |first| LayerTarget::Disk { offset: chunk.offset, content: chunk.content, blank: self.disk.blank && first };
        self.fetch(chunk.layer, chunk.blob, target).await
    }

    /// Fetches the chunk after wrong content was written to its range.
    pub async fn fetch_again(self: &Arc<Self>, chunk: Chunk) -> Result<(), LayerError> {
        let target = |_| LayerTarget::Disk { offset: chunk.offset, content: chunk.content, blank: false };
        self.fetch(chunk.layer, chunk.blob, target).await
    }

    async fn fetch(
        self: &Arc<Self>,
        layer: usize,
        blob: Blob,
        target: impl Fn(bool) -> LayerTarget,
    ) -> Result<(), LayerError> {
        let mut attempt = 1;
        loop {
            let (to, pieces) = mpsc::channel(QUEUE);
            let (site, target) = (self.clone(), target(attempt == 1));
            let worker = tokio::task::spawn_blocking(move || site.receive(layer, blob, target, pieces));
            let fetched = self.client.fetch(blob, &to).await;
            drop(to);
            let (received, kept) = worker.await.map_err(io::Error::other)?;
            if kept.is_err() {
                self.meter.lost(received);
            }
            let error = match (fetched, kept) {
                (_, Ok(())) => return Ok(()),
                // The thread then saw a premature end, which is less precise.
                (Err(FetchError::Registry { error, received }), Err(_)) => {
                    return Err(LayerError::Registry { error, received });
                }
                (Ok(()) | Err(FetchError::ReceiverGone), Err(error)) => error,
            };
            if attempt == ATTEMPTS || matches!(error, LayerError::Storage(_)) {
                return Err(error);
            }
            tracing::warn!(image.layer = layer, %error, "retrying a layer");
            attempt += 1;
        }
    }

    /// Writes a blob's bytes to their target. Returns their number, and whether they are correct.
    fn receive(
        &self,
        layer: usize,
        blob: Blob,
        target: LayerTarget,
        mut pieces: mpsc::Receiver<BodyChunk>,
    ) -> (u64, Result<(), LayerError>) {
        let mut received = 0;
        let mut next = || {
            let piece = pieces.blocking_recv()?;
            received += piece.len() as u64;
            self.meter.received(piece.len() as u64);
            Some(piece)
        };
        let kept = match target {
            LayerTarget::File { path, content } => self.receive_file(layer, blob, content, path, &mut next),
            LayerTarget::Disk { offset, content, blank } => {
                self.receive_chunk(layer, blob, offset, content, blank, &mut next)
            }
        };
        (received, kept)
    }

    fn receive_file(
        &self,
        layer: usize,
        blob: Blob,
        content: Option<Blob>,
        path: PathBuf,
        next: &mut dyn FnMut() -> Option<BodyChunk>,
    ) -> Result<(), LayerError> {
        // Read-only after an interrupted publishing.
        files::ignore_not_found(fs::remove_file(&path))?;
        let mut file = self.disk.space().writer(File::create_new(&path)?);
        let (mut hasher, mut plain) = (Hasher::default(), Hasher::default());
        let mut decoder = content.map(|content| Decoder::new(content.size));
        while let Some(piece) = next() {
            hasher.update(&piece);
            match &mut decoder {
                None => file.write_all(&piece)?,
                Some(decoder) => decoder.push(&piece, &mut |bytes| {
                    plain.update(bytes);
                    file.write_all(bytes)
                })?,
            }
        }
        hasher.verify("the blob", blob)?;
        if let (Some(decoder), Some(content)) = (decoder, content) {
            decoder.finish()?;
            plain.verify("what it unpacks to", content)?;
        }
        file.get_ref().sync_all()?;
        self.journal.note(layer, content.unwrap_or(blob).digest)?;
        Ok(())
    }

    fn receive_chunk(
        &self,
        layer: usize,
        blob: Blob,
        offset: u64,
        content: Blob,
        blank: bool,
        next: &mut dyn FnMut() -> Option<BodyChunk>,
    ) -> Result<(), LayerError> {
        let place = BufferPlacement::new(&self.disk, offset, content.size, blank);
        // Two threads: one verifies and decompresses, the other one verifies and writes the result. So a chunk takes
        // only as long as its slower half, and the last chunks of an image, when there are fewer than cores, use all
        // cores.
        let (to, filled) = sync_channel::<Buffer>(AHEAD);
        let (back, emptied) = channel();
        let (unpacked, written) = thread::scope(|scope| {
            let writing = scope.spawn(move || -> io::Result<Hasher> {
                let mut plain = Hasher::default();
                for buffer in filled {
                    plain.update(buffer.bytes());
                    place.write(&buffer)?;
                    // The other thread may have ended.
                    let _ = back.send(buffer);
                }
                Ok(plain)
            });
            let unpacked = unpack(blob, offset, content.size, next, &mut |buffer| {
                to.send(buffer).map_err(|_| io::Error::other("the writing thread has ended"))?;
                Ok(emptied.try_recv().unwrap_or_else(|_| Buffer::new()))
            });
            drop(to);
            (unpacked, writing.join())
        });
        // If writing failed, decompression failed as a consequence, and its error is less precise.
        let plain = written.map_err(|_| io::Error::other("the thread that writes panicked"))??;
        unpacked?;
        plain.verify("what it unpacks to", content)?;
        self.keep(layer, content)
    }

    /// Copies a chunk from a local disk: another template's, or this one's at another offset. False: the content is
    /// not there.
    pub async fn copy(self: &Arc<Self>, chunk: Chunk, from: Option<PathBuf>, at: u64) -> Result<bool, LayerError> {
        let site = self.clone();
        tokio::task::spawn_blocking(move || site.copy_blocking(chunk, from, at)).await.map_err(io::Error::other)?
    }

    fn copy_blocking(&self, chunk: Chunk, from: Option<PathBuf>, at: u64) -> Result<bool, LayerError> {
        let other;
        let from = match from {
            Some(path) => match File::open(&path) {
                // Protects the template from removal while it is read.
                Ok(file) if file.try_lock_shared().is_ok() => {
                    other = file;
                    &other
                }
                _ => return Ok(false),
            },
            None => self.disk.file(),
        };
        if self.disk.share(from, at, chunk.offset, chunk.content.size) {
            return self.check_blocking(chunk);
        }
        let mut hasher = Hasher::default();
        let place = BufferPlacement::new(&self.disk, chunk.offset, chunk.content.size, self.disk.blank);
        let mut cutter = Cutter::new(chunk.offset, chunk.content.size);
        let mut unwritten = false;
        let mut full = |buffer: Buffer| place.write(&buffer).map(|()| buffer).inspect_err(|_| unwritten = true);
        let read = disk::read(from, at, chunk.content.size, |bytes, _| {
            hasher.update(bytes);
            cutter.write(bytes, &mut full)
        });
        let copied = read.and_then(|()| cutter.flush(&mut full));
        match copied {
            Ok(()) => {}
            // If it cannot be written, fetching it would fail as well.
            Err(error) if unwritten => return Err(error.into()),
            Err(_) => return Ok(false),
        }
        if hasher.verify("the copy", chunk.content).is_err() {
            return Ok(false);
        }
        self.keep(chunk.layer, chunk.content)?;
        Ok(true)
    }

    /// Keeps the existing content of the chunk's range, if it is correct.
    pub async fn check(self: &Arc<Self>, chunk: Chunk) -> Result<bool, LayerError> {
        let site = self.clone();
        tokio::task::spawn_blocking(move || site.check_blocking(chunk)).await.map_err(io::Error::other)?
    }

    fn check_blocking(&self, chunk: Chunk) -> Result<bool, LayerError> {
        let mut hasher = Hasher::default();
        let read = self.disk.read(chunk.offset, chunk.content.size, |bytes, _| {
            hasher.update(bytes);
            Ok(())
        });
        if read.is_err() || hasher.verify("what is there", chunk.content).is_err() {
            return Ok(false);
        }
        self.keep(chunk.layer, chunk.content)?;
        Ok(true)
    }

    /// Makes the chunk's range contain zeros. Not recorded, because a repetition is cheap.
    pub async fn zero(self: &Arc<Self>, chunk: Chunk) -> Result<(), LayerError> {
        let site = self.clone();
        let zeroed = move || site.disk.zero(chunk.offset, chunk.content.size);
        Ok(tokio::task::spawn_blocking(zeroed).await.map_err(io::Error::other)??)
    }

    fn keep(&self, layer: usize, content: Blob) -> Result<(), LayerError> {
        // In this order: a line in the journal whose bytes are not on disk would be trusted.
        self.disk.file().sync_data()?;
        self.journal.note(layer, content.digest)?;
        Ok(())
    }
}

/// Verifies and decompresses the received data into buffers.
fn unpack(
    blob: Blob,
    offset: u64,
    size: u64,
    next: &mut dyn FnMut() -> Option<BodyChunk>,
    full: &mut BufferExchange,
) -> Result<(), LayerError> {
    let mut compressed = Hasher::default();
    let mut decoder = Decoder::new(size);
    let mut cutter = Cutter::new(offset, size);
    while let Some(piece) = next() {
        compressed.update(&piece);
        decoder.push(&piece, &mut |bytes| cutter.write(bytes, full))?;
    }
    compressed.verify("the blob", blob)?;
    decoder.finish()?;
    cutter.flush(full)?;
    Ok(())
}

#[derive(Default)]
struct Hasher {
    hasher: Sha256,
    size: u64,
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
    }

    fn verify(self, what: &str, expected: Blob) -> Result<(), LayerError> {
        let Blob { digest, size } = expected;
        if self.size != size {
            return Err(LayerError::Content(format!("{what} has {} bytes, expected {size}", self.size)));
        }
        let found = Digest::finish(self.hasher);
        if found != digest {
            return Err(LayerError::Content(format!("{what} has the digest {found}, expected {digest}")));
        }
        Ok(())
    }
}
