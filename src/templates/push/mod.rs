//! Pushes templates of the catalog to registries.
//!
//! A template of the driver tart is pushed in Tart's format, any other in Mayfly's format. Both are cut into the same
//! pieces by the same codec. Existing blobs are not sent: a piece is found by its content's digest if a known
//! manifest lists it, and by its blob's digest if it had to be packed. The manifest is uploaded last, so a tag always
//! shows the old image or the complete new one; an interrupted push leaves blobs, which the next one finds.
//!
//! ```text
//! push      what is pushed, and in which order
//!   pack    compresses a piece of a file and computes its digests
//!   known   the blobs that the registry already has
//! ```

mod known;
mod pack;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::{OnceCell, watch},
    task::JoinSet,
};

use self::{
    known::KnownBlobs,
    pack::{PackError, Range},
};
use super::{
    Catalog,
    catalog::pushed::{PushLease, Spool},
    manifest::{FileEntry, Part},
    progress::{Meter, PullProgress},
};
use crate::{
    domain::{Arch, GuestOs},
    platform::{clock, files::SpaceGuard},
    registry::{
        self, RegistryError,
        credentials::CredentialSource,
        oci::{
            self, Digest, Image, ImageFormat, Reference, Role, document,
            form::{Holds, TART_DISK_FORMAT},
            manifest::{Blob, Chunk, LayerFile},
            reference::ReferenceTarget,
        },
        upload::{Arrival, Sent, UploadSource, Uploader},
    },
};

/// Tart's chunk size: the same content at the same offset is then the same chunk in every image.
const PIECE: u64 = 512 << 20;

/// The smallest part size: below it, the request costs more than the part.
const SMALLEST_PART: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Settings {
    pub registry: registry::RegistryOptions,
    /// Concurrent pieces. Each needs up to its size on the file system of the templates.
    pub concurrency: usize,
    pub piece_size: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { registry: registry::RegistryOptions::default(), concurrency: 4, piece_size: PIECE }
    }
}

#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Name or digest.
    pub template: String,
    /// With a tag.
    pub image: Reference,
    /// Limit of a request's body in bytes, for registries that refuse large ones; `None`: a blob is one request.
    pub part_size: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    pub image: Reference,
    /// Digest of the image's manifest.
    pub digest: Digest,
    pub bytes_uploaded: u64,
    /// Bytes of blobs that existed in the registry, or were mounted.
    pub bytes_reused: u64,
    pub layers: usize,
}

/// Why a push failed. The next push finds the uploaded blobs.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Template(#[from] crate::domain::Error),
    /// The push target is not valid.
    #[error("{} cannot be pushed to {}: {what}", .request.template, .request.image)]
    Target { request: Box<PushRequest>, what: String },
    #[error("{} cannot be pushed to {}: {error}{hint}", .request.template, .request.image)]
    Registry { request: Box<PushRequest>, error: RegistryError, hint: &'static str },
    #[error("{template} cannot be pushed: {file} was changed on disk; register or pull it again")]
    Damaged { template: String, file: &'static str },
    #[error("{template} cannot be pushed: {what}")]
    NotPushable { template: String, what: String },
    #[error("the image cannot be put together: {0}")]
    Storage(#[from] io::Error),
}

/// Pushes templates of one catalog.
#[derive(Clone)]
pub struct Pusher {
    catalog: Catalog,
    settings: Settings,
    credentials: Arc<dyn CredentialSource>,
}

impl Pusher {
    pub fn new(catalog: Catalog, settings: Settings, credentials: Arc<dyn CredentialSource>) -> Pusher {
        Pusher { catalog, settings, credentials }
    }

    /// Pushes a template. Dropping the future ends the push; the next one continues it. The same content again
    /// uploads nothing and does not change the image.
    pub async fn push(
        &self,
        request: &PushRequest,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Pushed, PushError> {
        let target = |what: &str| PushError::Target { request: Box::new(request.clone()), what: what.to_owned() };
        if let ReferenceTarget::Digest(_) = request.image.target() {
            return Err(target("the push target must be a tag, not a digest"));
        }
        if request.part_size.is_some_and(|size| size < SMALLEST_PART) {
            return Err(target("a part of an upload has at least 1 MB"));
        }
        let held = Arc::new(self.catalog.hold(&request.template).await?);
        let origins = self.catalog.images_of(request.image.registry()).await?;
        let registry_failed = |error: RegistryError| failed(request, error);
        let options = &self.settings.registry;
        let known = KnownBlobs::gather(&request.image, held.origin(), origins, options, &self.credentials).await;
        let known = known.map_err(|error| match error {
            known::Unusable::Registry(error) => registry_failed(error),
            known::Unusable::Tag(what) => target(&what),
        })?;
        let credentials = self.credentials.clone();
        let uploader = Uploader::new(&request.image, options, credentials, &known.mounts(), request.part_size);
        let uploader = uploader.map_err(registry_failed)?;
        let spool = self.catalog.spool().await?;
        let job = PushTask {
            request: request.clone(),
            settings: self.settings.clone(),
            kind: if held.template.files.config.is_some() { ImageFormat::Tart } else { ImageFormat::Mayfly },
            held,
            known,
            uploader,
            spool: Arc::new(spool),
            space: self.catalog.space().clone(),
            meter: Meter::new(progress.clone()),
            packed: Mutex::default(),
            zeros: Mutex::default(),
            uploaded: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        };
        Arc::new(job).run().await
    }
}

fn failed(request: &PushRequest, error: RegistryError) -> PushError {
    let hint = match &error {
        RegistryError::Refused { status: 413, .. } => "; it may accept parts: use --chunk-size",
        RegistryError::Denied { .. } => "; a push needs more permissions than a pull",
        _ => "",
    };
    PushError::Registry { request: Box::new(request.clone()), error, hint }
}

/// One push.
struct PushTask {
    request: PushRequest,
    settings: Settings,
    kind: ImageFormat,
    held: Arc<PushLease>,
    known: KnownBlobs,
    uploader: Uploader,
    spool: Arc<Spool>,
    space: SpaceGuard,
    meter: Meter,
    /// By content: each piece is compressed and uploaded once.
    packed: Mutex<HashMap<Digest, Arc<OnceCell<Blob>>>>,
    /// By size.
    zeros: Mutex<HashMap<u64, Digest>>,
    uploaded: AtomicU64,
    reused: AtomicU64,
}

/// A piece that becomes one compressed layer.
#[derive(Clone)]
struct LayerPiece {
    part: Part,
    /// None: a chunk of the disk.
    role: Option<Role>,
    range: Range,
    /// The known digest of its content.
    content: Option<Digest>,
}

/// Stops background reads when the push is cancelled.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl PushTask {
    async fn run(self: Arc<Self>) -> Result<Pushed, PushError> {
        let pieces = self.pieces()?;
        let chunks = pieces.iter().filter(|piece| piece.role.is_none()).count();
        self.meter.planned(pieces.iter().map(|piece| piece.range.size).sum(), 0, chunks);
        let checking = self.check_whole(&pieces);
        let config = self.config().await?;
        let plain = self.plain_files().await?;
        let mut packed = self.pack_all(pieces).await?;
        if let Some((_stop, checking)) = checking {
            let sound = checking.await.map_err(io::Error::other)??;
            if !sound {
                return Err(self.damaged(Part::Disk));
            }
        }
        // In the order of the manifest, not of completion.
        packed.sort_by_key(|(piece, ..)| (piece.role, piece.range.start));
        let image = self.image(config, plain, packed);
        let digest = self.publish(&image).await?;
        Ok(Pushed {
            image: self.request.image.clone(),
            digest,
            bytes_uploaded: self.uploaded.load(Ordering::Relaxed),
            bytes_reused: self.reused.load(Ordering::Relaxed),
            layers: image.layers().count(),
        })
    }

    fn registry(&self, error: RegistryError) -> PushError {
        failed(&self.request, error)
    }

    fn damaged(&self, part: Part) -> PushError {
        PushError::Damaged { template: self.request.template.clone(), file: part.name() }
    }

    fn not_pushable(&self, what: impl Into<String>) -> PushError {
        PushError::NotPushable { template: self.request.template.clone(), what: what.into() }
    }

    /// The files of the template for this image format, and the form of each.
    fn files(&self) -> Result<Vec<(Part, Role, bool)>, PushError> {
        let mut files = Vec::new();
        let mut places = Vec::new();
        for slot in self.kind.form().slots {
            let (role, packed) = match slot.holds {
                Holds::Disk => continue,
                Holds::Plain(role) => (role, false),
                Holds::Packed(role) => (role, true),
            };
            let part = Part::from(role);
            places.push(part);
            let Some(entry) = self.held.entry(part) else {
                if slot.needed {
                    return Err(self.not_pushable(format!("it has no {}", part.name())));
                }
                continue;
            };
            if !(1..=slot.largest).contains(&entry.size()) {
                return Err(self.not_pushable(format!("its {} has {} bytes", part.name(), entry.size())));
            }
            files.push((part, role, packed));
        }
        // Without one of its files it would be another template.
        let left = Part::SHARED
            .into_iter()
            .find(|part| *part != Part::Disk && self.held.entry(*part).is_some() && !places.contains(part));
        match left {
            Some(part) => Err(self.not_pushable(format!("its {} has no place in an image", part.name()))),
            None => Ok(files),
        }
    }

    fn pieces(&self) -> Result<Vec<LayerPiece>, PushError> {
        let mut pieces = Vec::new();
        for (part, role, packed) in self.files()? {
            let Some(entry) = self.held.entry(part).filter(|_| packed) else { continue };
            let range = Range { start: 0, size: entry.size() };
            pieces.push(LayerPiece { part, role: Some(role), range, content: whole(entry) });
        }
        let disk = self.held.entry(Part::Disk).ok_or_else(|| self.not_pushable("it has no disk"))?;
        let cut = cut(disk.size(), self.settings.piece_size);
        let contents = contents(disk, &cut);
        pieces.extend(cut.into_iter().enumerate().map(|(at, range)| {
            let content = contents.as_ref().and_then(|contents| contents.get(at).copied());
            LayerPiece { part: Part::Disk, role: None, range, content }
        }));
        Ok(pieces)
    }

    /// Compares the disk with the template's manifest, if its chunks cannot be compared one by one, so that damage
    /// does not spread.
    fn check_whole(&self, pieces: &[LayerPiece]) -> Option<(Stop, tokio::task::JoinHandle<io::Result<bool>>)> {
        if pieces.iter().all(|piece| piece.content.is_some()) {
            return None;
        }
        let entry = self.held.entry(Part::Disk)?.clone();
        let stopped = Arc::new(AtomicBool::new(false));
        let (held, stop) = (self.held.clone(), stopped.clone());
        let task = tokio::task::spawn_blocking(move || pack::is_sound(&held.path(Part::Disk), &entry, &stop));
        Some((Stop(stopped), task))
    }

    /// The manifest's configuration.
    async fn config(&self) -> Result<Blob, PushError> {
        let template = &self.held.template;
        let bytes = match self.kind {
            ImageFormat::Mayfly => oci::ImageSettings::of(template).to_bytes(),
            // It is not used, but some registries require it.
            ImageFormat::Tart => document::canonical(&json!({
                "architecture": match template.arch { Arch::X86_64 => "amd64", Arch::Aarch64 => "arm64" },
                "config": {"Labels": {TART_DISK_FORMAT: template.disk_format.as_str()}},
                "os": match template.os { GuestOs::Macos => "darwin", GuestOs::Linux => "linux" },
            })),
        };
        let bytes = bytes.map_err(io::Error::other)?;
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        self.put(blob, UploadSource::Bytes(bytes.into()), unmetered()).await?;
        Ok(blob)
    }

    /// Uploads files that are not compressed.
    async fn plain_files(&self) -> Result<Vec<(Role, Blob)>, PushError> {
        let mut files = Vec::new();
        for (part, role, packed) in self.files()? {
            let Some(entry) = self.held.entry(part).filter(|_| !packed) else { continue };
            let (path, range) = (self.held.path(part), Range { start: 0, size: entry.size() });
            let digest = self.hash(path.clone(), range).await?;
            if whole(entry) != Some(digest) {
                return Err(self.damaged(part));
            }
            let blob = Blob { digest, size: range.size };
            self.put(blob, UploadSource::File(path), unmetered()).await?;
            files.push((role, blob));
        }
        Ok(files)
    }

    async fn pack_all(self: &Arc<Self>, pieces: Vec<LayerPiece>) -> Result<Vec<(LayerPiece, Blob, Blob)>, PushError> {
        let mut done = Vec::with_capacity(pieces.len());
        let mut tasks = JoinSet::new();
        let mut waiting = pieces.into_iter();
        loop {
            while tasks.len() < self.settings.concurrency.max(1)
                && let Some(piece) = waiting.next()
            {
                let job = self.clone();
                tasks.spawn(async move { job.piece(piece).await });
            }
            let error = match tasks.join_next().await {
                None => return Ok(done),
                Some(Ok(Ok(piece))) => {
                    done.push(piece);
                    continue;
                }
                Some(Ok(Err(error))) => error,
                Some(Err(e)) => io::Error::other(e).into(),
            };
            tasks.shutdown().await;
            return Err(error);
        }
    }

    /// Ensures that a piece is in the registry. Returns its blob and its content.
    async fn piece(self: &Arc<Self>, piece: LayerPiece) -> Result<(LayerPiece, Blob, Blob), PushError> {
        let digest = match piece.content {
            Some(digest) => digest,
            None => self.hash(self.held.path(piece.part), piece.range).await?,
        };
        let content = Blob { digest, size: piece.range.size };
        let cell = {
            let mut packed = self.packed.lock();
            packed.entry(digest).or_default().clone()
        };
        let mut ours = false;
        let blob = cell
            .get_or_try_init(|| {
                ours = true;
                self.bring(&piece, content)
            })
            .await?;
        if !ours {
            self.meter.spared(content.size);
        }
        if piece.role.is_none() {
            self.meter.chunk_done();
        }
        Ok((piece, *blob, content))
    }

    async fn bring(self: &Arc<Self>, piece: &LayerPiece, content: Blob) -> Result<Blob, PushError> {
        if let Some(found) = self.known.packed(content) {
            let arrival = self.uploader.reuse(found.blob, found.mount.as_deref()).await;
            if let Some(arrival) = arrival.map_err(|e| self.registry(e))? {
                self.count(found.blob, arrival);
                self.meter.spared(content.size);
                return Ok(found.blob);
            }
        }
        let (path, range) = (self.held.path(piece.part), piece.range);
        let space = self.space.clone();
        let (spool, to) = (self.spool.clone(), self.spool.path().join(content.digest.hex()));
        let job = {
            let to = to.clone();
            move || {
                // Held until the last byte is written, so that nothing is written after the directory was removed.
                let _spool = spool;
                pack::pack(&path, range, content.digest, &to, &space)
            }
        };
        let packed = tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?;
        let blob = packed.map_err(|error| match error {
            PackError::Changed => self.damaged(piece.part),
            PackError::Storage(e) => e.into(),
        })?;
        let arrival = self.put(blob, UploadSource::File(to.clone()), self.metered(blob, content)).await?;
        if arrival != Arrival::Sent {
            self.meter.spared(content.size);
        }
        let _ = tokio::fs::remove_file(&to).await;
        Ok(blob)
    }

    async fn put(&self, blob: Blob, source: UploadSource, sent: Sent) -> Result<Arrival, PushError> {
        let from = self.known.mount(blob);
        let arrival = self.uploader.put(blob, &source, from, &sent).await.map_err(|e| self.registry(e))?;
        self.count(blob, arrival);
        Ok(arrival)
    }

    fn count(&self, blob: Blob, arrival: Arrival) {
        let sum = if arrival == Arrival::Sent { &self.uploaded } else { &self.reused };
        sum.fetch_add(blob.size, Ordering::Relaxed);
    }

    /// Progress is counted in bytes of content, whose total is known from the beginning.
    fn metered(&self, blob: Blob, content: Blob) -> Sent {
        let (meter, sent) = (self.meter.clone(), Mutex::new((0_i64, 0_u64)));
        Arc::new(move |bytes| {
            let mut sent = sent.lock();
            sent.0 = (sent.0 + bytes).max(0);
            let done = u128::from(sent.0.unsigned_abs()) * u128::from(content.size) / u128::from(blob.size.max(1));
            let done = (done as u64).min(content.size);
            match done.checked_sub(sent.1) {
                Some(more) => meter.received(more),
                None => meter.lost(sent.1 - done),
            }
            sent.1 = done;
        })
    }

    async fn hash(&self, path: PathBuf, range: Range) -> Result<Digest, PushError> {
        let digest =
            tokio::task::spawn_blocking(move || pack::hash(&path, range)).await.map_err(io::Error::other)??;
        let mut zeros = self.zeros.lock();
        Ok(digest.unwrap_or_else(|| *zeros.entry(range.size).or_insert_with(|| pack::of_zeros(range.size))))
    }

    fn image(&self, config: Blob, plain: Vec<(Role, Blob)>, packed: Vec<(LayerPiece, Blob, Blob)>) -> Image {
        let mut image = Image { kind: self.kind, config, files: Vec::new(), chunks: Vec::new(), disk_size: 0 };
        let mut layer = 0;
        for slot in self.kind.form().slots {
            match slot.holds {
                Holds::Plain(role) => {
                    for (_, blob) in plain.iter().filter(|(r, _)| *r == role) {
                        image.files.push(LayerFile { layer, role, blob: *blob, content: *blob, packed: false });
                        layer += 1;
                    }
                }
                Holds::Packed(role) => {
                    for (_, blob, content) in packed.iter().filter(|(piece, ..)| piece.role == Some(role)) {
                        image.files.push(LayerFile { layer, role, blob: *blob, content: *content, packed: true });
                        layer += 1;
                    }
                }
                Holds::Disk => {
                    for (_, blob, content) in packed.iter().filter(|(piece, ..)| piece.role.is_none()) {
                        image.chunks.push(Chunk { layer, blob: *blob, offset: image.disk_size, content: *content });
                        image.disk_size += content.size;
                        layer += 1;
                    }
                }
            }
        }
        image
    }

    /// Points the tag at the image, unless it already does.
    async fn publish(&self, image: &Image) -> Result<Digest, PushError> {
        if let Some((there, digest)) = self.known.at_target()
            && there == image
        {
            return Ok(digest);
        }
        let now = Timestamp::from_second(clock::now().as_second()).map_err(io::Error::other)?;
        let bytes = image.to_bytes(&now.to_string()).map_err(io::Error::other)?;
        // The manifest is checked by our own reader, so that no image is pushed that Mayfly would refuse.
        match oci::manifest::parse(&bytes, None) {
            Ok(oci::manifest::Document::Image(read)) if read == *image => {}
            other => return Err(self.not_pushable(format!("its manifest would not be read: {other:.300?}"))),
        }
        self.uploader.put_manifest(&bytes).await.map_err(|e| self.registry(e))
    }
}

fn unmetered() -> Sent {
    Arc::new(|_| {})
}

/// The digest of a file that was hashed as a whole.
fn whole(entry: &FileEntry) -> Option<Digest> {
    match entry {
        FileEntry::Whole { sha256, .. } => format!("sha256:{sha256}").parse().ok(),
        FileEntry::Pieces { .. } => None,
    }
}

fn cut(size: u64, piece: u64) -> Vec<Range> {
    let piece = piece.max(1);
    let starts = (0..size.div_ceil(piece)).map(|n| n * piece);
    starts.map(|start| Range { start, size: piece.min(size - start) }).collect()
}

/// The digests of these pieces, if the template's manifest has exactly these.
fn contents(disk: &FileEntry, cut: &[Range]) -> Option<Vec<Digest>> {
    match disk {
        FileEntry::Whole { .. } => (cut.len() == 1).then(|| Some(vec![whole(disk)?]))?,
        FileEntry::Pieces { pieces, .. } => {
            let same = pieces.iter().map(|p| p.size).eq(cut.iter().map(|range| range.size));
            let digests = pieces.iter().map(|p| format!("sha256:{}", p.sha256).parse().ok());
            same.then(|| digests.collect())?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::templates::manifest::RecordedPiece as Recorded;

    #[test]
    fn a_disk_is_cut_into_pieces_that_make_it_up() {
        let range = |start, size| Range { start, size };
        assert_eq!(cut(10, 4), [range(0, 4), range(4, 4), range(8, 2)]);
        assert_eq!(cut(8, 4), [range(0, 4), range(4, 4)]);
        assert_eq!(cut(3, 4), [range(0, 3)]);
        assert_eq!(cut(0, 4), []);
    }

    #[test]
    fn digests_are_taken_over_from_pieces_of_the_same_cut_only() {
        let recorded = |content: &[u8]| Recorded { sha256: Digest::of(content).hex(), size: content.len() as u64 };
        let disk = FileEntry::in_pieces(vec![recorded(b"abcd"), recorded(b"ef")]);
        assert_eq!(contents(&disk, &cut(6, 4)), Some(vec![Digest::of(b"abcd"), Digest::of(b"ef")]));
        assert_eq!(contents(&disk, &cut(6, 3)), None);
        let disk = FileEntry::Whole { sha256: Digest::of(b"abcdef").hex(), size: 6 };
        assert_eq!(contents(&disk, &cut(6, 8)), Some(vec![Digest::of(b"abcdef")]));
        assert_eq!(contents(&disk, &cut(6, 4)), None);
    }
}
