//! Registers, publishes and removes templates, and resolves names and digests.
//!
//! Changes are serialised by a lock file, so two services may use one directory. A crash leaves files in `staging/`,
//! which the next start removes; directories that are in use are locked and left alone, and so are recently
//! interrupted pulls.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicU64},
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    DriverRequirements, NewTemplate,
    check::{self, CheckedTemplate, ImportSource},
    import::{self, Imported},
    manifest::{self, FileEntry, Origin, Part, TemplateManifest},
    read_budget::{CancelOnDrop, StopFlag},
};
use crate::{
    domain::{Code, Error, Result, Template, template::TemplateFiles, version::VersionStatus},
    platform::files::{self, SpaceGuard, SpaceLow},
    registry::oci::ImageSettings,
};

#[derive(Clone, Debug)]
pub struct Catalog {
    root: Arc<Root>,
}

struct Root {
    dir: PathBuf,
    /// Loaded templates by name, used as long as the files' stamps are unchanged.
    loaded: Mutex<HashMap<String, Loaded>>,
    limits: SpaceLimits,
    /// The guard that writers of templates ask before they write.
    space: SpaceGuard,
    template_usage: OnceLock<Arc<dyn TemplateUsage>>,
    /// Reserved space that is not written yet.
    promised: AtomicU64,
    /// Serialises decisions about space.
    room: tokio::sync::Mutex<()>,
    /// Serialises verifications.
    verifying: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root").field("dir", &self.dir).field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Loaded {
    template: Template,
    /// `None`: the file did not exist.
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Changes when a file is replaced, written to or truncated.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let m = fs::metadata(path).ok()?;
        Some(Stamp { inode: m.ino(), size: m.len(), changed: (m.ctime(), m.ctime_nsec()) })
    }
}

impl Catalog {
    /// Opens the catalog in this directory, creates it if necessary, and removes what a crash left.
    pub fn open(dir: PathBuf) -> Result<Catalog> {
        Self::open_with(dir, SpaceLimits::default())
    }

    /// The same, with limits on disk space.
    pub fn open_with(dir: PathBuf, limits: SpaceLimits) -> Result<Catalog> {
        let root = Root {
            space: SpaceGuard::new(dir.clone(), limits.min_free_bytes),
            dir,
            loaded: Mutex::default(),
            limits,
            template_usage: OnceLock::new(),
            promised: AtomicU64::new(0),
            room: tokio::sync::Mutex::default(),
            verifying: tokio::sync::Mutex::default(),
        };
        root.prepare().map_err(Error::internal)?;
        Ok(Catalog { root: Arc::new(root) })
    }

    /// The guard that writers on the file system of the catalog ask before they write.
    pub fn space(&self) -> &SpaceGuard {
        &self.root.space
    }

    /// Imports and publishes a template. The same name with the same content gives the same template; a name with
    /// other content is refused. Dropping the future does not stop the import: it finishes, and a repeated call finds
    /// its result.
    pub async fn register(&self, new: NewTemplate) -> Result<Template> {
        let room = self.room_for_import(&new).await?;
        self.blocking(move |root| {
            let _room = room;
            root.register(&new)
        })
        .await
    }

    /// Validates a registration: checks the files and copies nothing.
    pub async fn outline(&self, new: NewTemplate) -> Result<DriverRequirements> {
        let stop = StopFlag::default();
        let _cancel = CancelOnDrop(stop.clone());
        self.blocking(move |_| {
            check::check(&new, &stop).map(|c| DriverRequirements { driver: c.driver, os: c.os, handover: c.handover })
        })
        .await
    }

    /// All named templates, by name. Damaged ones are left out and logged.
    pub async fn list(&self) -> Result<Vec<Template>> {
        self.blocking(Root::list).await
    }

    /// The same, each with its metadata.
    pub async fn list_with_status(&self) -> Result<Vec<(Template, VersionStatus)>> {
        self.blocking(Root::list_with_status).await
    }

    /// A template by its name, or by its digest (`sha256:…`).
    pub async fn get(&self, name_or_digest: &str) -> Result<Template> {
        // A few `stat` calls of cached files take less time than another thread would need.
        if let Some(template) = self.root.loaded(name_or_digest) {
            return Ok(template);
        }
        let wanted = name_or_digest.to_owned();
        self.blocking(move |root| root.get(&wanted)).await
    }

    /// The version with this digest. It gets this name; which names of the catalog point at it is not read.
    pub async fn version(&self, digest: &str, name: &str) -> Result<Template> {
        let (digest, name) = (digest.to_owned(), name.to_owned());
        self.blocking(move |root| root.version(&digest, &name)).await
    }

    /// Removes a name, and the template if that was its last name and no pin or history of another name needs it.
    /// With a digest, removes a template without a name. Refused while its disk is locked; the caller has to know
    /// whether vms still need it.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.blocking(move |root| root.remove(&name)).await
    }

    async fn blocking<T: Send + 'static>(&self, f: impl FnOnce(&Root) -> Result<T> + Send + 'static) -> Result<T> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || f(&root)).await.map_err(Error::internal)?
    }
}

/// A directory in `staging/`: locked while it is in use, removed if it is not published.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
    _lock: File,
    published: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl Root {
    fn names(&self) -> PathBuf {
        self.dir.join("names")
    }

    fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    fn prepare(&self) -> io::Result<()> {
        for dir in [self.dir.clone(), self.names(), self.staging()] {
            files::ensure_private_dir(&dir)?;
        }
        let _turn = self.lock()?;
        for entry in fs::read_dir(self.staging())? {
            let path = entry?.path();
            let Ok(file) = File::open(&path) else { continue };
            if file.try_lock().is_ok() && !pulled::may_go_on(&path) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(e) = removed {
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove leftover files of the template catalog");
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(self.dir.join(".lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn stage(&self) -> io::Result<Staged> {
        // `prepare` takes the same lock. Otherwise it could remove this directory before that is locked.
        let _turn = self.lock()?;
        let path = self.staging().join(Uuid::new_v4().to_string());
        files::create_private_dir(&path)?;
        let lock = File::open(&path)?;
        lock.lock()?;
        Ok(Staged { path, _lock: lock, published: false })
    }

    fn register(&self, new: &NewTemplate) -> Result<Template> {
        let checked = check::check(new, &StopFlag::default())?;
        let mut staged = self.stage().map_err(storage)?;
        let (files, disk_virtual_bytes) =
            take_in(&checked, &staged.path, BTreeMap::new(), &self.space, &StopFlag::default())?;
        let manifest = describe(new, checked, disk_virtual_bytes, None, None, files);
        let bytes = manifest.to_bytes().map_err(Error::internal)?;
        write_synced(&staged.path.join(manifest::FILE_NAME), &bytes).map_err(storage)?;
        files::sync_dir(&staged.path).map_err(storage)?;
        let _turn = self.lock().map_err(storage)?;
        let (template, published) = self.publish(&staged.path, &manifest::digest(&bytes), new.name.as_deref(), None)?;
        staged.published = published;
        Ok(template)
    }

    /// Moves a staged template to its place, unless it exists, and sets its name, if it has one. Only under the
    /// catalog's lock. Returns whether the directory was moved.
    fn publish(
        &self,
        staged: &Path,
        digest: &str,
        name: Option<&str>,
        image: Option<&Origin>,
    ) -> Result<(Template, bool)> {
        let place = self.place(digest)?;
        if let Some(name) = name {
            self.may_name(name, digest, image)?;
        }
        let shown = name.unwrap_or(digest);
        // All steps that need space come before the first visible one.
        let why = match image {
            Some(Origin { repository, digest }) => format!("pulled {repository}@{digest}"),
            None => "registered".to_owned(),
        };
        let staged_name = match name {
            Some(name) => self.stage_name(name, digest, &why).map_err(storage)?.1,
            None => None,
        };
        let mut published = false;
        if self.sound_if_present(digest, shown)?.is_none() {
            if place.exists() {
                // Damaged on disk: it is replaced. Its digest is the same, so its users lose nothing.
                self.carry_over(&place, staged).map_err(storage)?;
                self.discard(&place).map_err(storage)?;
            }
            fs::rename(staged, &place).map_err(storage)?;
            published = true;
            files::sync_dir(&self.dir).map_err(storage)?;
        }
        if let Some(staged_name) = staged_name {
            staged_name.commit().map_err(storage)?;
        }
        Ok((self.load(digest, shown)?, published))
    }

    fn list(&self) -> Result<Vec<Template>> {
        let mut templates = Vec::new();
        for (name, digest) in self.all_names().map_err(Error::internal)? {
            match self.load(&digest, &name) {
                Ok(template) => templates.push(template),
                Err(e) => {
                    tracing::warn!(template.name = name, template.digest = digest, error = %e, "cannot load a template; leaving it out of the list")
                }
            }
        }
        Ok(templates)
    }

    fn list_with_status(&self) -> Result<Vec<(Template, VersionStatus)>> {
        let histories = self.histories().map_err(Error::internal)?;
        let status = |t: Template| Ok((self.status_in(&histories, &t.name)?, t));
        // Removed since it was listed, so it is left out.
        let all = self.list()?.into_iter().map(status).filter_map(|s: Result<_>| s.ok());
        Ok(all.map(|(status, template)| (template, status)).collect())
    }

    fn get(&self, wanted: &str) -> Result<Template> {
        let not_found = || no_template(wanted);
        if manifest::directory(wanted).is_some() {
            let names = self.all_names().map_err(Error::internal)?;
            let name = names.iter().find(|(_, digest)| *digest == wanted).map_or(wanted, |(name, _)| name);
            return self.version(wanted, name);
        }
        if !check::is_name(wanted) {
            return Err(not_found());
        }
        let pointer = self.names().join(wanted);
        // Before it is read, so that a change meanwhile makes this stamp outdated.
        let pointed = Stamp::of(&pointer);
        let digest = self.pointed_at(wanted).map_err(Error::internal)?.ok_or_else(not_found)?;
        let settings = self.place(&digest)?.join(marks::SETTINGS);
        let set = Stamp::of(&settings);
        let template = self.load(&digest, wanted)?;
        let manifest = self.place(&digest)?.join(manifest::FILE_NAME);
        let TemplateFiles { disk, kernel, initramfs, firmware, config, nvram, ssh_key, ssh_password } =
            template.files.clone();
        let files = [Some(manifest), Some(disk), kernel, initramfs, firmware, config, nvram, ssh_key, ssh_password]
            .into_iter()
            .flatten();
        let stamps = files.map(|path| (Stamp::of(&path), path)).chain([(pointed, pointer)]);
        let stamps: Option<Vec<_>> = stamps.map(|(stamp, path)| Some((path, Some(stamp?)))).collect();
        if let Some(mut files) = stamps {
            files.push((settings, set));
            let mut loaded = self.loaded.lock();
            loaded.insert(wanted.to_owned(), Loaded { template: template.clone(), files });
        }
        Ok(template)
    }

    fn loaded(&self, name: &str) -> Option<Template> {
        let mut loaded = self.loaded.lock();
        let found = loaded.get(name)?;
        if found.files.iter().all(|(path, stamp)| Stamp::of(path) == *stamp) {
            return Some(found.template.clone());
        }
        loaded.remove(name);
        None
    }

    fn remove(&self, name: &str) -> Result<()> {
        let not_found = || no_template(name);
        if manifest::directory(name).is_some() {
            return self.remove_unnamed(name);
        }
        if !check::is_name(name) {
            return Err(not_found());
        }
        let _turn = self.lock().map_err(Error::internal)?;
        let mut others = self.histories().map_err(Error::internal)?;
        let digest = others.remove(name).ok_or_else(not_found)?.now.digest;
        let needed = others.values().any(|h| h.now.digest == digest || h.before.iter().any(|t| t.digest == digest));
        let stays = needed || self.pinned(&digest).is_some();
        let place = self.place(&digest).ok().filter(|p| !stays && p.exists());
        let _exclusive = match &place {
            Some(place) => lock_disk(place)?,
            None => None,
        };
        // The name is removed first: a crash afterwards leaves an unnamed template, which `prune` removes.
        fs::remove_file(self.names().join(name)).map_err(Error::internal)?;
        files::sync_dir(&self.names()).map_err(Error::internal)?;
        match place {
            Some(place) => self.discard(&place).map_err(Error::internal),
            None => Ok(()),
        }
    }

    fn remove_unnamed(&self, digest: &str) -> Result<()> {
        let _turn = self.lock().map_err(Error::internal)?;
        let place = self.place(digest)?;
        if !place.exists() {
            return Err(no_template(digest));
        }
        let names = self.all_names().map_err(Error::internal)?;
        if let Some((name, _)) = names.iter().find(|(_, d)| *d == digest) {
            return Err(Error::new(Code::TemplateInUse, format!("the name {name} points at it: delete the name")));
        }
        if let Some(pin) = self.pinned(digest) {
            return Err(Error::new(Code::TemplateInUse, format!("it is pinned ({}): unpin it first", pin.why)));
        }
        let _exclusive = lock_disk(&place)?;
        self.discard(&place).map_err(Error::internal)
    }

    /// The path of the template with this digest, whether it exists or not.
    fn place(&self, digest: &str) -> Result<PathBuf> {
        let directory = manifest::directory(digest)
            .ok_or_else(|| Error::internal(format!("{digest:?} in the template catalog is not a digest")))?;
        Ok(self.dir.join(directory))
    }

    /// Hides a directory in one step, then deletes it.
    fn discard(&self, place: &Path) -> io::Result<()> {
        let grave = self.staging().join(Uuid::new_v4().to_string());
        fs::rename(place, &grave)?;
        files::sync_dir(&self.dir)?;
        if let Err(e) = fs::remove_dir_all(&grave) {
            tracing::warn!(path = %grave.display(), error = %e, "cannot delete the files of a removed template; the next start of the service tries again");
        }
        Ok(())
    }
}

fn no_template(name: &str) -> Error {
    Error::new(Code::TemplateNotFound, format!("there is no template {name}"))
}

/// Copies the sources into a directory. `there` are files that are already in it, with their digests. Returns all
/// files, and the size of the disk in the guest.
fn take_in(
    checked: &CheckedTemplate,
    dir: &Path,
    there: BTreeMap<String, FileEntry>,
    space: &SpaceGuard,
    stop: &StopFlag,
) -> Result<(BTreeMap<String, FileEntry>, u64)> {
    let mut files = there;
    let mut disk_virtual_bytes = 0;
    for ImportSource { part, file } in &checked.sources {
        let path = dir.join(part.name());
        if !files.contains_key(part.name()) {
            let Imported { sha256, size } =
                import::import(file, &path, part.mode(), space).map_err(|e| match e.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => storage(e),
                    _ => check::fault(*part, format!("cannot be imported: {e}")),
                })?;
            files.insert(part.name().to_owned(), FileEntry::Whole { sha256, size });
        }
        // The copy is checked, because the file may have changed since it was validated.
        let copy = File::open(&path).map_err(storage)?;
        let content = check::content(*part, checked.disk_format, &copy, stop);
        if let Some(bytes) = content.map_err(|what| check::fault(*part, what))? {
            disk_virtual_bytes = bytes;
        }
    }
    Ok((files, disk_virtual_bytes))
}

fn describe(
    new: &NewTemplate,
    checked: CheckedTemplate,
    disk_virtual_bytes: u64,
    image: Option<Origin>,
    settings: Option<ImageSettings>,
    files: BTreeMap<String, FileEntry>,
) -> TemplateManifest {
    TemplateManifest {
        version: if image.is_some() { manifest::VERSION_PULLED } else { manifest::VERSION },
        driver: checked.driver,
        os: checked.os,
        arch: checked.arch,
        disk_format: checked.disk_format,
        disk_virtual_bytes,
        cpus: checked.cpus,
        memory_mib: checked.memory_mib,
        cmdline: new.cmdline.clone(),
        handover: checked.handover,
        user: checked.user,
        network: new.network,
        ready: new.ready.clone(),
        budgets: new.budgets.clone(),
        image,
        settings,
        files,
    }
}

/// Excludes clones of this template while the lock is held. `None`: it has no disk to lock.
fn lock_disk(place: &Path) -> Result<Option<File>> {
    let Ok(disk) = File::open(place.join(Part::Disk.name())) else { return Ok(None) };
    match disk.try_lock() {
        Ok(()) => Ok(Some(disk)),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(Code::TemplateInUse, "its disk is being cloned").retry_after(5))
        }
        Err(TryLockError::Error(e)) => Err(Error::internal(e)),
    }
}

pub(in crate::templates) fn storage(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let detail = match SpaceLow::of(&e) {
                Some(low) => {
                    format!("{low} (templates.min_free_bytes) where the templates are: free some and try again")
                }
                None => "no space is left where the templates are, free some and try again".to_owned(),
            };
            Error::new(Code::HostFull, detail).retry_after(60).cause(e)
        }
        _ => Error::internal(e),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    let mut permissions = file.metadata()?.permissions();
    permissions.set_readonly(true);
    file.set_permissions(permissions)?;
    file.sync_all()
}

#[cfg(test)]
mod full_disk_tests;
mod history;
mod load;
mod marks;
mod names;
mod prune;
pub(super) mod pulled;
pub(super) mod pushed;
mod space;
#[cfg(test)]
mod tests;
mod verify;

pub use marks::TemplateLease;
pub use space::{SpaceLimits, SpaceReservation, TemplateUsage};
pub(super) mod workspace;
