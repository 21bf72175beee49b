//! One pull of one digest: plans it, carries it out, and publishes the result.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    PullError, PullRequest, PullerState,
    disk::Disk,
    journal::Journal,
    layer::{LayerError, Site},
    plan::{self, ChunkSource},
};
use crate::{
    domain::Code,
    platform::files::{SpaceGuard, SpaceLow},
    registry::{
        RegistryClient, RegistryError,
        oci::{
            self, Digest, Image, Reference,
            manifest::{self, Chunk},
        },
    },
    templates::{
        catalog::{
            SpaceReservation,
            pulled::{KnownPieces, Staging},
        },
        check,
        manifest::{FileEntry, Origin, Part, RecordedPiece},
        progress::Meter,
    },
};

/// Interval of checks whether another process has finished with the same image.
const OTHERS: Duration = Duration::from_millis(250);

/// Space that is kept free beside the image.
const SPARE: u64 = 64 << 20;

/// A chunk that LZ4 compresses below this fraction is mostly zeros, which use no space.
const SHRINKS: u64 = 4;

/// One pull of one digest.
pub(super) struct PullTask {
    pub shared: Arc<PullerState>,
    pub request: PullRequest,
    /// By digest, for messages.
    pub reference: Reference,
    pub digest: Digest,
    pub origin: Origin,
    pub image: Image,
    pub client: Arc<RegistryClient>,
}

impl PullTask {
    pub async fn run(self, meter: Meter) -> Result<(), PullError> {
        let catalog = &self.shared.catalog;
        let staging = loop {
            if let Some(staging) = catalog.staging(self.digest).await? {
                break Arc::new(staging);
            }
            tokio::time::sleep(OTHERS).await;
        };
        // The pull that we waited for may have created it.
        if catalog.find_pulled(self.origin.clone(), self.request.wanted()).await?.is_some() {
            catalog.discard_staging(staging).await?;
            return Ok(());
        }
        let settings = self.settings().await?;
        let files = self.image.files.iter().map(|file| Part::from(file.role));
        let template = files
            .chain([Part::Disk])
            .fold(self.request.template(settings.as_ref()), |t, part| t.with_part(part, staging.part(part)));
        let known = catalog.known_pieces().await?;
        let image = &self.image;
        let prepared = {
            let (staging, image, space) = (staging.clone(), image.clone(), catalog.space().clone());
            tokio::task::spawn_blocking(move || prepare(&staging, &image, &known, &space))
                .await
                .map_err(io::Error::other)??
        };
        let PreparedPull { disk, journal, plan, small } = prepared;
        let room = self.room(&plan, &staging).await?;
        self.announce(&meter, &plan, &small);
        let site = Arc::new(Site { client: self.client.clone(), disk, journal, meter, _staging: staging.clone() });
        for file in &small {
            let fetched = site.fetch_file(file, staging.part(file.role.into())).await;
            fetched.map_err(|e| self.failed(file.layer, None, e))?;
        }
        // The settings and the VM's configuration are the most frequent errors, so they are checked before the disk
        // is downloaded.
        let (checked, disk_size) = (template.clone(), self.image.disk_size);
        tokio::task::spawn_blocking(move || check::check_before_disk(&checked, disk_size))
            .await
            .map_err(io::Error::other)??;
        self.chunks(&site, plan, &room).await?;
        catalog.publish_pulled(staging, self.origin.clone(), settings, template, self.files()).await?;
        Ok(())
    }

    /// The image's own settings, if it has them in a separate document.
    async fn settings(&self) -> Result<Option<oci::ImageSettings>, PullError> {
        if self.image.kind != oci::ImageFormat::Mayfly {
            return Ok(None);
        }
        let bytes = self.client.small_blob(self.image.config).await?;
        let wrong = |what| PullError::Settings { image: Box::new(self.reference.clone()), what };
        oci::ImageSettings::parse(&bytes).map(Some).map_err(wrong)
    }

    async fn chunks(
        &self,
        site: &Arc<Site>,
        plan: Vec<(Chunk, ChunkSource)>,
        room: &SpaceReservation,
    ) -> Result<(), PullError> {
        let (twins, others): (Vec<_>, Vec<_>) =
            plan.into_iter().partition(|(_, source)| matches!(source, ChunkSource::Twin { .. }));
        // The source of this chunk on the same disk must be written first.
        for round in [others, twins] {
            let mut tasks = JoinSet::new();
            let mut waiting = round.into_iter();
            loop {
                while tasks.len() < self.shared.settings.concurrency.max(1)
                    && let Some((chunk, source)) = waiting.next()
                {
                    let site = site.clone();
                    let bytes = takes(&chunk, &source);
                    tasks.spawn(async move { (chunk, obtain(&site, chunk, source).await.map(|()| bytes)) });
                }
                match tasks.join_next().await {
                    None => break,
                    Some(Ok((_, Ok(bytes)))) => room.written(bytes),
                    // The others are cancelled by dropping them. Their completed layers are in the journal.
                    Some(Ok((chunk, Err(error)))) => return Err(self.failed(chunk.layer, Some(chunk.offset), error)),
                    Some(Err(e)) => return Err(io::Error::other(e).into()),
                }
            }
        }
        Ok(())
    }

    fn failed(&self, layer: usize, offset: Option<u64>, error: LayerError) -> PullError {
        if let LayerError::Storage(e) = &error
            && matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            let low = match SpaceLow::of(e) {
                Some(low) => format!(": {low} (templates.min_free_bytes)"),
                None => String::new(),
            };
            let detail = format!("no space is left for layer {layer}{low}; free some, and pull it again");
            let error = crate::domain::Error::new(Code::HostFull, detail).retry_after(60);
            return PullError::Space { image: Box::new(self.reference.clone()), error: Box::new(error) };
        }
        let image = Box::new(self.reference.clone());
        match error {
            // It is about this host's settings, not about the layer.
            LayerError::Registry { error: error @ RegistryError::Settings { .. }, .. } => PullError::Registry(error),
            LayerError::Registry { error, received } => {
                PullError::Layer { image, layer, offset, error: Box::new(error), received }
            }
            LayerError::Content(what) => PullError::Content { image, layer, offset, what },
            LayerError::Storage(_) => PullError::Disk { image, layer, offset, what: error.to_string() },
        }
    }

    fn announce(&self, meter: &Meter, plan: &[(Chunk, ChunkSource)], small: &[manifest::LayerFile]) {
        let fetched =
            plan.iter().filter(|(_, source)| *source == ChunkSource::Registry).map(|(chunk, _)| chunk.blob.size);
        let small = small.iter().map(|file| file.blob.size);
        let done = plan.iter().filter(|(_, source)| matches!(source, ChunkSource::Done | ChunkSource::Zeros)).count();
        meter.planned(fetched.chain(small).sum(), done, plan.len());
    }

    /// Reserves space for the expected writes, or fails before hours of work. The real use is known only at the end.
    async fn room(&self, plan: &[(Chunk, ChunkSource)], staging: &Staging) -> Result<SpaceReservation, PullError> {
        let full = |error: crate::domain::Error| match error.code {
            Code::HostFull => PullError::Space { image: Box::new(self.reference.clone()), error: Box::new(error) },
            _ => error.into(),
        };
        let stat = rustix::fs::statvfs(staging.journal()).map_err(io::Error::from)?;
        let whole = stat.f_blocks.saturating_mul(stat.f_frsize);
        if self.image.disk_size > whole {
            let detail = format!(
                "its disk has {} bytes, and the whole file system where the templates are has {whole}",
                self.image.disk_size
            );
            return Err(full(crate::domain::Error::new(Code::HostFull, detail)));
        }
        let chunks: u64 = plan.iter().map(|(chunk, source)| takes(chunk, source)).sum();
        let files: u64 = self.image.files.iter().map(|file| file.content.size).sum();
        self.shared.catalog.room_for_pull(chunks + files + SPARE).await.map_err(full)
    }

    /// The template's files that came from the registry.
    fn files(&self) -> BTreeMap<String, FileEntry> {
        let Image { files, chunks, .. } = &self.image;
        let pieces =
            chunks.iter().map(|c| RecordedPiece { sha256: c.content.digest.hex(), size: c.content.size }).collect();
        let whole = |blob: &manifest::Blob| FileEntry::Whole { sha256: blob.digest.hex(), size: blob.size };
        let files = files.iter().map(|file| (Part::from(file.role), whole(&file.content)));
        let files = files.chain([(Part::Disk, FileEntry::in_pieces(pieces))]);
        files.map(|(part, entry)| (part.name().to_owned(), entry)).collect()
    }
}

/// The probable size of a chunk on disk: one that is mostly zeros uses little.
fn takes(chunk: &Chunk, source: &ChunkSource) -> u64 {
    match source {
        ChunkSource::Done | ChunkSource::Zeros | ChunkSource::Shared(_) => 0,
        ChunkSource::Known(_) | ChunkSource::Registry | ChunkSource::Twin { .. } => {
            chunk.content.size.min(chunk.blob.size.saturating_mul(SHRINKS))
        }
    }
}

async fn obtain(site: &Arc<Site>, chunk: Chunk, source: ChunkSource) -> Result<(), LayerError> {
    let here = match source {
        ChunkSource::Done => return Ok(()),
        ChunkSource::Zeros if site.disk.blank => return Ok(()),
        ChunkSource::Zeros => return site.zero(chunk).await,
        ChunkSource::Registry => {
            site.fetch_chunk(chunk).await?;
            true
        }
        ChunkSource::Shared(known) => {
            site.check(chunk).await? || site.copy(chunk, Some(known.disk), known.offset).await?
        }
        ChunkSource::Known(known) => site.copy(chunk, Some(known.disk), known.offset).await?,
        ChunkSource::Twin { offset } => site.copy(chunk, None, offset).await?,
    };
    if !here {
        tracing::warn!(
            image.layer = chunk.layer,
            "a reused chunk does not match the manifest; fetching it from the registry"
        );
        site.meter.also(chunk.blob.size);
        site.fetch_again(chunk).await?;
    }
    site.meter.chunk_done();
    Ok(())
}

struct PreparedPull {
    disk: Disk,
    journal: Journal,
    plan: Vec<(Chunk, ChunkSource)>,
    /// Fetches the layers that are files of their own, if they are not here yet.
    small: Vec<manifest::LayerFile>,
}

fn prepare(staging: &Staging, image: &Image, known: &KnownPieces, space: &SpaceGuard) -> io::Result<PreparedPull> {
    let contents: Vec<Digest> = image.layers().map(|(_, _, content)| content.digest).collect();
    let (journal, mut done) = Journal::open(&staging.journal(), &contents)?;
    let there = |part, size| fs::metadata(staging.part(part)).is_ok_and(|m| m.len() == size);
    for file in &image.files {
        if !there(file.role.into(), file.content.size) {
            done.remove(&file.layer);
        }
    }
    let path = staging.part(Part::Disk);
    // The journal is about a disk of the expected size.
    if !there(Part::Disk, image.disk_size) {
        journal.restart()?;
        done.clear();
        remove(&path)?;
    }
    let disk = Disk::open(&path, image.disk_size, plan::base(image, known).as_deref(), space)?;
    let small = image.files.iter().filter(|file| !done.contains(&file.layer)).copied().collect();
    let plan = plan::plan(image, &done, known, disk.blank);
    Ok(PreparedPull { disk, journal, plan, small })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
