//! The catalog's interface for pulls: a working directory that survives restarts, existing content, and publishing.
//!
//! ```text
//! staging/pull-<hex>/            by the digest of the image's manifest; locked while a pull uses it
//!   journal                      the layers that are verified and on disk
//!   template/ disk config nvram  becomes the template's directory, by one rename
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Catalog, Root, describe, storage, take_in, write_synced};
use crate::{
    domain::{Code, Error, Result, Template},
    platform::{
        clock,
        files::{self, sync_dir},
    },
    registry::oci::{Digest, ImageSettings},
    templates::{
        NewTemplate, check,
        manifest::{self, FileEntry, Origin, Part, TemplateManifest},
        read_budget::{CancelOnDrop, StopFlag},
    },
};

const PREFIX: &str = "pull-";
const TEMPLATE: &str = "template";
const JOURNAL: &str = "journal";

/// An interrupted pull that was not resumed for this long is removed.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whether this is a recently interrupted pull.
pub(super) fn may_go_on(path: &Path) -> bool {
    image_of(path).is_some() && changed(path).is_some_and(|at| clock::age(at) < KEPT)
}

/// The digest of the image that is pulled there. `None`: it is not a pull.
pub(super) fn image_of(path: &Path) -> Option<String> {
    Some(format!("sha256:{}", path.file_name()?.to_str()?.strip_prefix(PREFIX)?))
}

/// When data was last added to a pull.
pub(super) fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path.join(JOURNAL)).and_then(|m| m.modified()).ok()
}

/// The working directory of an image. Locked while this exists.
#[derive(Debug)]
pub(in crate::templates) struct Staging {
    dir: PathBuf,
    _lock: File,
}

impl Staging {
    pub fn journal(&self) -> PathBuf {
        self.dir.join(JOURNAL)
    }

    pub fn part(&self, part: Part) -> PathBuf {
        self.dir.join(TEMPLATE).join(part.name())
    }
}

/// A chunk of a disk in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::templates) struct CatalogPiece {
    pub disk: PathBuf,
    pub offset: u64,
}

/// The chunks of all disks in the catalog, by their content: all positions of each.
pub(in crate::templates) type KnownPieces = HashMap<(Digest, u64), Vec<CatalogPiece>>;

impl Catalog {
    /// The newest template of this image, with any settings. `None`: there is none.
    pub(in crate::templates) async fn of_image(&self, image: Origin) -> Result<Option<Template>> {
        self.blocking(move |root| root.of_image(&image)).await
    }

    /// The template of this image with these settings, now under the name of the settings. `None`: there is none.
    /// `new` returns the requested template from the image's own settings.
    pub(in crate::templates) async fn find_pulled(
        &self,
        image: Origin,
        new: impl Fn(Option<&ImageSettings>) -> NewTemplate + Send + 'static,
    ) -> Result<Option<Template>> {
        let stop = StopFlag::default();
        let _cancel = CancelOnDrop(stop.clone());
        self.blocking(move |root| root.find_pulled(&image, &new, &stop)).await
    }

    /// Whether an image may get this name, checked before it is pulled.
    pub(in crate::templates) async fn may_pull(&self, image: Origin, name: Option<String>) -> Result<()> {
        let Some(name) = name else { return Ok(()) };
        self.blocking(move |root| {
            if !check::is_name(&name) {
                let what = check::NAME_RULE;
                return Err(Error::new(Code::TemplateInvalid, format!("name {what}")).field("/name", what));
            }
            root.may_name(&name, "", Some(&image))
        })
        .await
    }

    /// `None`: this or another process already uses the image's working directory.
    pub(in crate::templates) async fn staging(&self, image: Digest) -> Result<Option<Staging>> {
        self.blocking(move |root| root.staging_of(image).map_err(storage)).await
    }

    /// Removes a working directory with its content.
    pub(in crate::templates) async fn discard_staging(&self, staging: Arc<Staging>) -> Result<()> {
        self.blocking(move |root| {
            let _turn = root.lock().map_err(storage)?;
            fs::remove_dir_all(&staging.dir).map_err(storage)
        })
        .await
    }

    /// Removes the working directory of an image without making one, so that it also works on a full disk. `false`: a
    /// pull uses it.
    pub(in crate::templates) async fn remove_staging(&self, image: Digest) -> Result<bool> {
        self.blocking(move |root| {
            let place = root.staging().join(format!("{PREFIX}{}", image.hex()));
            Ok(root.remove_partial(&place)?.is_none())
        })
        .await
    }

    pub(in crate::templates) async fn known_pieces(&self) -> Result<KnownPieces> {
        self.blocking(|root| root.known_pieces().map_err(Error::internal)).await
    }

    /// Creates a template from the staged and verified files, and publishes it. `new` refers to the staged files. Dropping the
    /// future ends the check of the files.
    pub(in crate::templates) async fn publish_pulled(
        &self,
        staging: Arc<Staging>,
        image: Origin,
        settings: Option<ImageSettings>,
        new: NewTemplate,
        files: BTreeMap<String, FileEntry>,
    ) -> Result<Template> {
        let stop = StopFlag::default();
        let _cancel = CancelOnDrop(stop.clone());
        self.blocking(move |root| root.publish_pulled(&staging, image, settings, &new, files, &stop)).await
    }
}

impl Root {
    fn staging_of(&self, image: Digest) -> io::Result<Option<Staging>> {
        // Under the lock of `prepare` and of publishing, so that the locked directory is the current one.
        let _turn = self.lock()?;
        let dir = self.staging().join(format!("{PREFIX}{}", image.hex()));
        files::ensure_private_dir(&dir)?;
        let lock = File::open(&dir)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        files::ensure_private_dir(&dir.join(TEMPLATE))?;
        Ok(Some(Staging { dir, _lock: lock }))
    }

    pub(super) fn published(&self) -> io::Result<Vec<(String, TemplateManifest)>> {
        let mut published = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(digest) = name.to_str().map(|n| n.replacen("sha256-", "sha256:", 1)) else { continue };
            if manifest::directory(&digest).is_none() {
                continue;
            }
            match self.manifest(&digest) {
                Ok(manifest) => published.push((digest, manifest)),
                // Damaged without a shortage: it counts as absent.
                Err(fault) => {
                    if let Ok(shortage) = fault.shortage() {
                        return Err(shortage);
                    }
                }
            }
        }
        Ok(published)
    }

    fn find_pulled(
        &self,
        image: &Origin,
        new: &dyn Fn(Option<&ImageSettings>) -> NewTemplate,
        stop: &StopFlag,
    ) -> Result<Option<Template>> {
        for (digest, manifest) in self.published().map_err(Error::internal)? {
            if manifest.image.as_ref() != Some(image) {
                continue;
            }
            let place = self.place(&digest)?;
            let new = new(manifest.settings.as_ref());
            let there = Part::SHARED.into_iter().filter(|part| manifest.files.contains_key(part.name()));
            let asked = there.fold(new.clone(), |asked, part| asked.with_part(part, place.join(part.name())));
            // A damaged one counts as absent, and is replaced when it is published again.
            let Ok(checked) = check::check(&asked, stop) else { continue };
            let mut files = BTreeMap::new();
            for source in &checked.sources {
                let name = source.part.name();
                let entry = match manifest.files.get(name) {
                    Some(entry) if Part::SHARED.contains(&source.part) => entry.clone(),
                    _ => whole(&source.file).map_err(Error::internal)?,
                };
                files.insert(name.to_owned(), entry);
            }
            let (origin, settings) = (manifest.image.clone(), manifest.settings.clone());
            if describe(&asked, checked, manifest.disk_virtual_bytes, origin, settings, files) != manifest
                || self.sound_if_present(&digest, &digest)?.is_none()
            {
                continue;
            }
            let _turn = self.lock().map_err(storage)?;
            if let Some(name) = &new.name {
                self.may_name(name, &digest, Some(image))?;
            }
            let shown = new.name.as_ref().unwrap_or(&digest);
            let Some(template) = self.sound_if_present(&digest, shown)? else { continue };
            if let Some(name) = &new.name {
                let Origin { repository, digest: of } = image;
                self.point(name, &digest, &format!("pulled {repository}@{of}")).map_err(storage)?;
            }
            return Ok(Some(template));
        }
        Ok(None)
    }

    fn of_image(&self, image: &Origin) -> Result<Option<Template>> {
        let names = self.all_names().map_err(Error::internal)?;
        let mut newest: Option<Template> = None;
        for (digest, manifest) in self.published().map_err(Error::internal)? {
            if manifest.image.as_ref() != Some(image) {
                continue;
            }
            let name = names.iter().find(|(_, d)| **d == digest).map_or(&digest, |(name, _)| name);
            // A damaged one counts as absent.
            if let Some(template) = self.sound_if_present(&digest, name)?
                && newest.as_ref().is_none_or(|n| n.created_at < template.created_at)
            {
                newest = Some(template);
            }
        }
        Ok(newest)
    }

    fn known_pieces(&self) -> io::Result<KnownPieces> {
        let mut known = KnownPieces::new();
        for (digest, manifest) in self.published()? {
            let Some(FileEntry::Pieces { pieces, .. }) = manifest.files.get(Part::Disk.name()) else { continue };
            // A disk with one fault may have more.
            if self.damage(&digest).is_some() {
                continue;
            }
            let Ok(place) = self.place(&digest) else { continue };
            let mut offset = 0;
            for piece in pieces {
                if let Ok(content) = format!("sha256:{}", piece.sha256).parse() {
                    let disk = place.join(Part::Disk.name());
                    known.entry((content, piece.size)).or_default().push(CatalogPiece { disk, offset });
                }
                offset += piece.size;
            }
        }
        Ok(known)
    }

    fn publish_pulled(
        &self,
        staging: &Staging,
        image: Origin,
        settings: Option<ImageSettings>,
        new: &NewTemplate,
        there: BTreeMap<String, FileEntry>,
        stop: &StopFlag,
    ) -> Result<Template> {
        let checked = check::check(new, stop)?;
        let dir = staging.dir.join(TEMPLATE);
        // Removes what an interrupted publishing left.
        for entry in fs::read_dir(&dir).map_err(storage)? {
            let entry = entry.map_err(storage)?;
            if !entry.file_name().to_str().is_some_and(|name| there.contains_key(name)) {
                fs::remove_file(entry.path()).map_err(storage)?;
            }
        }
        for name in there.keys() {
            let file = File::open(dir.join(name)).map_err(storage)?;
            file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(storage)?;
            file.sync_all().map_err(storage)?;
        }
        let (files, disk_virtual_bytes) = take_in(&checked, &dir, there, &self.space, stop)?;
        if let Some(says) = settings.as_ref().and_then(|s| s.disk_size)
            && says != disk_virtual_bytes
        {
            let what = format!("has {disk_virtual_bytes} bytes for the guest, and the image says {says}");
            return Err(check::fault(Part::Disk, what));
        }
        let manifest = describe(new, checked, disk_virtual_bytes, Some(image), settings, files);
        let bytes = manifest.to_bytes().map_err(Error::internal)?;
        write_synced(&dir.join(manifest::FILE_NAME), &bytes).map_err(storage)?;
        sync_dir(&dir).map_err(storage)?;
        let _turn = self.lock().map_err(storage)?;
        let (template, _) =
            self.publish(&dir, &manifest::digest(&bytes), new.name.as_deref(), manifest.image.as_ref())?;
        if let Err(e) = fs::remove_dir_all(&staging.dir) {
            tracing::warn!(path = %staging.dir.display(), error = %e, "cannot remove the files of a pull");
        }
        Ok(template)
    }
}

/// For a key or a password: small, and checked to be so.
fn whole(mut file: &File) -> io::Result<FileEntry> {
    let mut content = secrecy::zeroize::Zeroizing::new(Vec::new());
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(FileEntry::Whole { sha256: manifest::sha256(&content), size: content.len() as u64 })
}
