//! Disk space: how much templates may use, how much must stay free, and reservations.
//!
//! A pull reserves its space before it begins, so two pulls do not count on the same space. A clone needs almost
//! nothing at first and may grow to its whole disk, which cannot be reserved; for clones the low-water mark is kept
//! free. Pruning makes space for a request only if that is sufficient: nothing is removed for a request that is
//! refused anyway.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use uuid::Uuid;

use super::{Catalog, Root, prune::RoomFor};
use crate::{
    domain::{
        Code, Error, Result,
        version::{HeldKind, PruneRequest, Pruned, VersionUsage},
    },
    platform::files,
    templates::NewTemplate,
};

/// A version that was created or used this recently is about to be used: by a canary, or by a vm that waits for it.
const SETTLED_SECONDS: u64 = 600;
/// Space that is freed beyond the low-water mark for a guest that was paused because of a full disk.
const PAUSED_GUEST_BYTES: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Limit of all templates and pulls together. 0: no limit.
    pub max_bytes: u64,
    /// Space that is kept free on the file system: for disks of guests, which grow, and for the database.
    pub min_free_bytes: u64,
    /// Versions that nothing needs are removed after this many days without use. 0: only when space is needed.
    pub keep_unused_days: u32,
}

/// What the catalog has to ask the service.
#[async_trait]
pub trait TemplateUsage: Send + Sync {
    /// The digests that live vms need.
    async fn needed(&self) -> Result<BTreeSet<String>>;
    /// The digests of images whose pulls have not ended: also those that wait for another attempt.
    async fn pulling(&self) -> Result<BTreeSet<String>>;
    /// Whether a live vm needs this digest.
    async fn needs(&self, digest: &str) -> Result<bool>;
    /// Notifies that something was pruned.
    async fn pruned(&self, held: &VersionUsage);
}

/// Reserved space, until it is written or released.
#[derive(Debug)]
pub struct SpaceReservation {
    root: Arc<Root>,
    left: AtomicU64,
}

impl SpaceReservation {
    fn of(root: &Arc<Root>, bytes: u64) -> SpaceReservation {
        root.promised.fetch_add(bytes, Ordering::SeqCst);
        SpaceReservation { root: root.clone(), left: AtomicU64::new(bytes) }
    }

    /// Updates how much of it is already on disk, where it is counted.
    pub fn written(&self, bytes: u64) {
        let take = |left: u64| Some(left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap_or_else(|left| left);
        self.root.promised.fetch_sub(before.min(bytes), Ordering::SeqCst);
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.root.promised.fetch_sub(self.left.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// The space that an operation needs.
#[derive(Clone, Copy, Debug)]
struct Need {
    what: &'static str,
    /// On the file system, in addition to existing files and reservations.
    write: u64,
    /// Added to the size of all templates.
    add: u64,
    /// Whether reservations of others count. A waiting job takes precedence over a pull under way.
    beside_promises: bool,
}

/// The available space.
#[derive(Clone, Copy, Debug)]
struct Measure {
    limits: SpaceLimits,
    available: u64,
    promised: u64,
    total: u64,
}

impl Measure {
    /// How many bytes have to be freed for it.
    fn missing(&self, need: Need) -> u64 {
        let promised = if need.beside_promises { self.promised } else { 0 };
        let wanted = self.limits.min_free_bytes.saturating_add(need.write).saturating_add(promised);
        let on_disk = wanted.saturating_sub(self.available);
        let in_budget = match self.limits.max_bytes {
            0 => 0,
            max => self.total.saturating_add(self.promised).saturating_add(need.add).saturating_sub(max),
        };
        // An operation that adds nothing is not refused because of others.
        if need.add == 0 { on_disk } else { on_disk.max(in_budget) }
    }
}

impl Catalog {
    /// Sets the source of information about vms. Only the first call has an effect.
    pub fn set_template_usage(&self, template_usage: Arc<dyn TemplateUsage>) {
        let _ = self.root.template_usage.set(template_usage);
    }

    pub(super) fn template_usage(&self) -> Result<&Arc<dyn TemplateUsage>> {
        // Without it, every version may be needed.
        self.root
            .template_usage
            .get()
            .ok_or_else(|| Error::internal("the catalog does not know yet which templates vms use"))
    }

    /// Reserves space for a pull of this size.
    pub(in crate::templates) async fn room_for_pull(&self, bytes: u64) -> Result<SpaceReservation> {
        let need = Need { what: "the pull", write: bytes, add: bytes, beside_promises: true };
        self.make_room(need, |root| SpaceReservation::of(root, bytes)).await
    }

    /// Reserves space for the files of a new template.
    pub(super) async fn room_for_import(&self, new: &NewTemplate) -> Result<SpaceReservation> {
        let files = [
            Some(new.disk.clone()),
            new.kernel.clone(),
            new.initramfs.clone(),
            new.firmware.clone(),
            new.nvram.clone(),
        ];
        let files: Vec<PathBuf> = files.into_iter().flatten().collect();
        let (write, add) = self.blocking(move |root| Ok(root.import_takes(&files))).await?;
        let need = Need { what: "the import", write, add, beside_promises: true };
        self.make_room(need, |root| SpaceReservation::of(root, write)).await
    }

    /// Whether a clone may be created: the template is undamaged, and there is more free space than the low-water
    /// mark.
    pub async fn may_clone(&self, digest: &str) -> Result<()> {
        let digest = digest.to_owned();
        self.blocking(move |root| match root.damage(&digest) {
            Some(damage) => Err(super::marks::damaged(&digest, &digest, &damage)),
            None => Ok(()),
        })
        .await?;
        self.make_room(Need { what: "a clone", write: 0, add: 0, beside_promises: false }, |_| ()).await
    }

    /// Frees as much space as possible, up to the low-water mark, for a guest that is paused because of a full disk.
    /// Less also helps it, so this reserves nothing.
    pub async fn room_for_paused_guest(&self) -> Result<()> {
        let _turn = self.root.room.lock().await;
        if self.root.template_usage.get().is_none() {
            return Ok(());
        }
        let need = Need { what: "a paused guest", write: PAUSED_GUEST_BYTES, add: 0, beside_promises: false };
        let missing = self.measure().await?.missing(need);
        if missing > 0 {
            self.prune_to_free(&for_room(), Some(RoomFor { bytes: missing, before_pulls: true })).await?;
        }
        Ok(())
    }

    /// Removes versions that were not used for long, and what exceeds the limit.
    pub async fn tidy(&self) -> Result<()> {
        let limits = self.root.limits;
        if self.root.template_usage.get().is_none() {
            return Ok(());
        }
        if limits.keep_unused_days > 0 {
            let seconds = u64::from(limits.keep_unused_days) * 24 * 3600;
            let request = PruneRequest {
                older_than_seconds: seconds,
                partial_older_than_seconds: Some(seconds),
                ..PruneRequest::default()
            };
            self.prune(&request).await?;
        }
        let over = Need { what: "what is there", write: 0, add: 0, beside_promises: true };
        let measure = self.measure().await?;
        let in_budget = match limits.max_bytes {
            0 => 0,
            max => measure.total.saturating_sub(max),
        };
        let missing = measure.missing(over).max(in_budget);
        if missing > 0 {
            self.prune_to_free(&for_room(), Some(RoomFor { bytes: missing, before_pulls: false })).await?;
        }
        Ok(())
    }

    async fn measure(&self) -> Result<Measure> {
        self.blocking(|root| root.measure().map_err(Error::internal)).await
    }

    async fn make_room<T>(&self, need: Need, promise: impl FnOnce(&Arc<Root>) -> T) -> Result<T> {
        if self.root.limits == SpaceLimits::default() && need.write == 0 {
            return Ok(promise(&self.root));
        }
        // Serialised, because each reservation has to be seen by the next one.
        let _turn = self.root.room.lock().await;
        let measure = self.measure().await?;
        let missing = measure.missing(need);
        if missing == 0 {
            return Ok(promise(&self.root));
        }
        if self.root.template_usage.get().is_none() {
            return Err(full(need, measure, missing, None));
        }
        let room = |bytes| Some(RoomFor { bytes, before_pulls: !need.beside_promises });
        let dry = PruneRequest { dry_run: true, ..for_room() };
        let outlook = self.prune_to_free(&dry, room(missing)).await?;
        if outlook.freed_bytes < missing {
            return Err(full(need, measure, missing, Some(outlook)));
        }
        // Removed files may share blocks with others, so the result is measured.
        let mut freed = self.prune_to_free(&for_room(), room(missing)).await?;
        loop {
            let measure = self.measure().await?;
            let missing = measure.missing(need);
            if missing == 0 {
                return Ok(promise(&self.root));
            }
            if freed.removed.is_empty() {
                return Err(full(need, measure, missing, Some(freed)));
            }
            freed = self.prune_to_free(&for_room(), room(missing)).await?;
        }
    }
}

fn for_room() -> PruneRequest {
    PruneRequest { older_than_seconds: SETTLED_SECONDS, partial_older_than_seconds: Some(0), ..PruneRequest::default() }
}

fn full(need: Need, measure: Measure, missing: u64, outlook: Option<Pruned>) -> Error {
    let Measure { limits, available, promised, total } = measure;
    let mut detail = match (need.write, limits.min_free_bytes) {
        (0, low_water) => format!("{} needs {} to stay free", need.what, size(low_water)),
        (write, 0) => format!("{} needs {}", need.what, size(write)),
        (write, low_water) => format!("{} needs {}, and {} stay free", need.what, size(write), size(low_water)),
    };
    detail += &format!("; {} are available", size(available));
    if promised > 0 {
        detail += &format!(", {} of them promised to pulls under way", size(promised));
    }
    if limits.max_bytes > 0 {
        detail += &format!("; templates take {} of the {} that they may", size(total), size(limits.max_bytes));
    }
    detail += &format!("; {} are missing", size(missing));
    if let Some(outlook) = outlook {
        detail += &match outlook.freed_bytes {
            0 => ", and there is nothing that nothing needs".to_owned(),
            bytes => format!(", and removing what nothing needs frees {} at most", size(bytes)),
        };
        let mut kept = outlook.kept;
        kept.sort_by_key(|h| std::cmp::Reverse(h.bytes));
        let reasons: Vec<String> = kept.iter().take(5).map(reason).collect();
        if !reasons.is_empty() {
            detail += &format!("; kept are {}", reasons.join(", "));
        }
        if kept.len() > reasons.len() {
            detail += &format!(" and {} more", kept.len() - reasons.len());
        }
    }
    Error::new(Code::HostFull, detail).retry_after(60)
}

fn reason(held: &VersionUsage) -> String {
    let kind = match held.kind {
        HeldKind::Template => "",
        HeldKind::PartialPull => "the pull of ",
    };
    let short: String = held.digest.chars().take(19).collect();
    format!("{kind}{short} with {} ({})", size(held.bytes), held.why)
}

fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        1..1024 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

impl Root {
    pub(super) fn available(&self) -> io::Result<u64> {
        files::free(&self.dir)
    }

    fn measure(&self) -> io::Result<Measure> {
        let total = if self.limits.max_bytes == 0 { 0 } else { self.total()? };
        let promised = self.promised.load(Ordering::SeqCst);
        Ok(Measure { limits: self.limits, available: self.available()?, promised, total })
    }

    /// What an import writes, and the size of templates afterwards. A file that cannot be inspected is refused later,
    /// with its name.
    fn import_takes(&self, files: &[PathBuf]) -> (u64, u64) {
        let found: Vec<fs::Metadata> = files.iter().filter_map(|f| fs::metadata(f).ok()).collect();
        let add = found.iter().map(|m| m.blocks() * 512).sum();
        let here = fs::metadata(&self.dir).map(|m| m.dev()).ok();
        let cloned = found.iter().all(|m| Some(m.dev()) == here) && self.clones().unwrap_or(false);
        (if cloned { 0 } else { add }, add)
    }

    /// Whether this file system clones files without copying; only a test shows it.
    fn clones(&self) -> io::Result<bool> {
        let (from, to) =
            (self.staging().join(Uuid::new_v4().to_string()), self.staging().join(Uuid::new_v4().to_string()));
        let cloned = fs::write(&from, [1; 4096])
            .and_then(|()| File::open(&from))
            .map(|file| reflink_copy::reflink_file_to_path(&file, &to).is_ok());
        for path in [from, to] {
            let _ = fs::remove_file(path);
        }
        cloned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PULL: Need = Need { what: "the pull", write: 100, add: 100, beside_promises: true };
    const CLONE: Need = Need { what: "a clone", write: 0, add: 0, beside_promises: false };

    #[test]
    fn space_for_pulls_jobs_and_clones() {
        let limits = SpaceLimits { max_bytes: 1000, min_free_bytes: 50, keep_unused_days: 0 };
        let measure = Measure { limits, available: 150, promised: 0, total: 900 };
        assert_eq!((measure.missing(PULL), measure.missing(CLONE)), (0, 0));
        // Reserved space counts as used.
        assert_eq!(Measure { promised: 10, ..measure }.missing(PULL), 10);
        assert_eq!(Measure { available: 140, total: 925, ..measure }.missing(PULL), 25);
        // A clone needs only the low-water mark.
        let low = Measure { available: 49, promised: 40, total: 5000, ..measure };
        assert_eq!(low.missing(CLONE), 1);
        let no_limit = Measure { limits: SpaceLimits { max_bytes: 0, ..limits }, total: u64::MAX, ..measure };
        assert_eq!(no_limit.missing(PULL), 0);
        let mad = Measure { limits: SpaceLimits { min_free_bytes: u64::MAX, ..limits }, ..measure };
        assert_eq!(mad.missing(PULL), u64::MAX - 150);
    }

    #[test]
    fn a_refusal_says_what_is_missing_and_what_is_kept() {
        let limits = SpaceLimits { max_bytes: 0, min_free_bytes: 2 << 30, keep_unused_days: 0 };
        let measure = Measure { limits, available: 3 << 30, promised: 1 << 30, total: 0 };
        let need = Need { write: 4 << 30, add: 4 << 30, ..PULL };
        let held = VersionUsage {
            kind: HeldKind::Template,
            digest: format!("sha256:{}", "a".repeat(64)),
            names: vec!["macos".into()],
            bytes: 40 << 30,
            last_used_at: jiff::Timestamp::UNIX_EPOCH,
            why: "the name macos points at it".into(),
        };
        let outlook = Pruned {
            dry_run: true,
            removed: vec![],
            kept: vec![held; 7],
            freed_bytes: 0,
            total_bytes: 0,
            available_bytes: 0,
        };
        let error = full(need, measure, measure.missing(need), Some(outlook));
        assert_eq!((error.code, error.retry_after), (Code::HostFull, Some(60)));
        assert!(error.detail.starts_with(
            "the pull needs 4.0 GiB, and 2.0 GiB stay free; 3.0 GiB are available, 1.0 GiB of them promised to pulls under \
             way; 4.0 GiB are missing, and there is nothing that nothing needs; kept are sha256:aaaaaaaaaaaa with 40.0 GiB \
             (the name macos points at it), "
        ), "{}", error.detail);
        assert!(error.detail.ends_with(" and 2 more"), "{}", error.detail);
    }
}
