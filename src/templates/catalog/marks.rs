//! Metadata of versions beside their content: files in the version's directory, removed with it.
//!
//! ```text
//! sha256-<hex>/used       its modification time is when a vm was last created from it
//!              pinned     why it must not be pruned
//!              verified   its modification time is when every byte was last read without a fault
//!              damaged    the damage that was found
//!              settings   the settings that it sets itself, if they were changed after its registration
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    io,
    path::Path,
};

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{Catalog, Root, history::History, no_template, storage, write_synced};
use crate::{
    domain::{
        Code, Error, Result, Template,
        template_settings::{OwnSettings, SettingsChange},
        version::{Damage, Pin, VersionStatus},
    },
    platform::{
        clock,
        files::{self, sync_dir},
    },
    templates::manifest::{self, TemplateManifest},
};

const USED: &str = "used";
const PINNED: &str = "pinned";
const VERIFIED: &str = "verified";
const DAMAGED: &str = "damaged";
pub(super) const SETTINGS: &str = "settings";

/// Limit of a reason or a list of faults.
const LONGEST: u64 = 1 << 20;

/// A lease: protects a version from removal while it exists.
#[derive(Debug)]
pub struct TemplateLease {
    _disk: File,
}

impl Catalog {
    /// Resolves a template for a new vm, by its name or digest, with a lease until the vm is in the database. Records
    /// that it was used.
    pub async fn take(&self, name_or_digest: &str) -> Result<(Template, TemplateLease)> {
        // Between the resolution of the name and the lock, the name may move, and its old target may be removed.
        for _ in 0..8 {
            let template = self.get(name_or_digest).await?;
            let root = self.root.clone();
            let taken = tokio::task::spawn_blocking(move || root.take(&template).map(|lease| (template, lease)));
            if let (template, Some(lease)) = taken.await.map_err(Error::internal)?? {
                return Ok((template, lease));
            }
        }
        Err(Error::new(Code::TemplateInUse, format!("the template {name_or_digest} is being removed")).retry_after(1))
    }

    /// The metadata of a version.
    pub async fn status(&self, name_or_digest: &str) -> Result<VersionStatus> {
        let wanted = name_or_digest.to_owned();
        self.blocking(move |root| root.status(&wanted)).await
    }

    /// Pins or unpins a version. Returns its digest.
    pub async fn pin(&self, name_or_digest: &str, why: Option<&str>) -> Result<String> {
        let (wanted, why) = (name_or_digest.to_owned(), why.map(str::to_owned));
        self.blocking(move |root| root.pin(&wanted, why.as_deref())).await
    }
}

impl Catalog {
    /// Changes the settings that a version sets itself. Returns its digest, which stays: it covers the settings of the
    /// registration.
    pub async fn change_settings(&self, name_or_digest: &str, change: SettingsChange) -> Result<String> {
        let wanted = name_or_digest.to_owned();
        self.blocking(move |root| root.change_settings(&wanted, &change)).await
    }
}

pub(super) fn damaged(name: &str, digest: &str, damage: &Damage) -> Error {
    let first = damage.faults.first().map(|f| format!(": {} from byte {} on {}", f.file, f.offset, f.what));
    let of = if name == digest { digest.to_owned() } else { format!("{name} ({digest})") };
    Error::new(
        Code::TemplateDamaged,
        format!("the files of template {of} are damaged{}; pull or register it again", first.unwrap_or_default()),
    )
}

impl Root {
    /// `None`: it is being removed.
    fn take(&self, template: &Template) -> Result<Option<TemplateLease>> {
        if let Some(damage) = self.damage(&template.digest) {
            return Err(damaged(&template.name, &template.digest, &damage));
        }
        let Ok(disk) = File::open(&template.files.disk) else { return Ok(None) };
        if disk.try_lock_shared().is_err() {
            return Ok(None);
        }
        let place = self.place(&template.digest)?;
        // It was removed or replaced between opening and locking, so this lock protects nothing.
        if !same_file(&disk, &template.files.disk) {
            return Ok(None);
        }
        if let Err(error) = touch(&place.join(USED)) {
            // A failure only means that it may be pruned somewhat early.
            tracing::warn!(template.digest = %template.digest, %error, "cannot record that a template was used");
        }
        Ok(Some(TemplateLease { _disk: disk }))
    }

    fn status(&self, wanted: &str) -> Result<VersionStatus> {
        self.status_in(&self.histories().map_err(Error::internal)?, wanted)
    }

    pub(super) fn status_in(&self, histories: &BTreeMap<String, History>, wanted: &str) -> Result<VersionStatus> {
        let not_found = || no_template(wanted);
        let own = histories.get(wanted);
        let digest = match own {
            Some(history) => history.now.digest.clone(),
            None => wanted.to_owned(),
        };
        if manifest::directory(&digest).is_none() || !self.place(&digest)?.exists() {
            return Err(not_found());
        }
        let here = |digest: &str| self.place(digest).is_ok_and(|place| place.exists());
        let names = histories.iter().filter(|(_, h)| h.now.digest == digest).map(|(name, _)| name.clone()).collect();
        Ok(VersionStatus {
            names,
            since: own.and_then(|h| h.now.since),
            why: own.and_then(|h| h.now.why.clone()),
            previous: own.iter().flat_map(|h| &h.before).filter(|t| here(&t.digest)).cloned().collect(),
            pin: self.pinned(&digest),
            last_used_at: self.last_used(&digest),
            verified_at: self.verified(&digest),
            damage: self.damage(&digest),
        })
    }

    fn pin(&self, wanted: &str, why: Option<&str>) -> Result<String> {
        let _turn = self.lock().map_err(storage)?;
        let digest = self.get(wanted)?.digest;
        let place = self.place(&digest)?;
        match why {
            Some(why) => {
                let pin = Pin { why: super::history::plain(why), at: clock::now() };
                self.note(&place, PINNED, &pin).map_err(storage)?;
            }
            None => forget(&place, PINNED).map_err(storage)?,
        }
        Ok(digest)
    }

    fn change_settings(&self, wanted: &str, change: &SettingsChange) -> Result<String> {
        let _turn = self.lock().map_err(storage)?;
        let digest = self.get(wanted)?.digest;
        let manifest = self.manifest(&digest).map_err(Error::internal)?;
        let own = change.apply_to(self.own_settings(&digest, &manifest)?)?;
        self.note(&self.place(&digest)?, SETTINGS, &own).map_err(storage)?;
        Ok(digest)
    }

    pub(super) fn own_settings(&self, digest: &str, manifest: &TemplateManifest) -> Result<OwnSettings> {
        Ok(match self.noted_unless_short(digest, SETTINGS).map_err(Error::internal)? {
            Some(Some(own)) => own,
            noted => {
                if noted.is_some() {
                    tracing::warn!(
                        template.digest = digest,
                        "the changed settings of a template cannot be read; it has those of its registration"
                    );
                }
                OwnSettings {
                    cpus: None,
                    memory_mib: None,
                    network: manifest.network,
                    ready: manifest.ready.clone(),
                    budgets: manifest.budgets.clone(),
                }
            }
        })
    }

    pub(super) fn pinned(&self, digest: &str) -> Option<Pin> {
        // An unreadable pin counts as a pin, so that the version is not lost.
        let unread = || Pin { why: "its reason cannot be read".into(), at: Timestamp::UNIX_EPOCH };
        self.noted(digest, PINNED)?.or_else(|| Some(unread()))
    }

    pub(super) fn damage(&self, digest: &str) -> Option<Damage> {
        let unread = || Damage { at: Timestamp::UNIX_EPOCH, faults: Vec::new() };
        self.noted(digest, DAMAGED)?.or_else(|| Some(unread()))
    }

    pub(super) fn last_used(&self, digest: &str) -> Option<Timestamp> {
        let place = self.place(digest).ok()?;
        [USED, manifest::FILE_NAME].into_iter().filter_map(|name| changed(&place.join(name))).max()
    }

    pub(super) fn verified(&self, digest: &str) -> Option<Timestamp> {
        changed(&self.place(digest).ok()?.join(VERIFIED))
    }

    /// Records the result of reading every byte of this directory. Only under the catalog's lock.
    pub(super) fn note_verified(&self, place: &Path, damage: Option<&Damage>) -> io::Result<()> {
        match damage {
            Some(damage) => {
                forget(place, VERIFIED)?;
                self.note(place, DAMAGED, damage)
            }
            None => {
                forget(place, DAMAGED)?;
                touch(&place.join(VERIFIED))
            }
        }
    }

    /// Keeps metadata when a damaged version is replaced. Linked and not moved, so that a crash in between loses
    /// nothing.
    pub(super) fn carry_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        for name in [PINNED, USED, SETTINGS] {
            match fs::hard_link(from.join(name), to.join(name)) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn note(&self, place: &Path, name: &str, what: &impl Serialize) -> io::Result<()> {
        let new = self.staging().join(Uuid::new_v4().to_string());
        let noted = write_synced(&new, &serde_json::to_vec(what)?).and_then(|()| fs::rename(&new, place.join(name)));
        if noted.is_err() {
            let _ = fs::remove_file(&new);
        }
        noted?;
        sync_dir(place)
    }

    /// `None`: the file does not exist. `Some(None)`: it cannot be read.
    fn noted<T: DeserializeOwned>(&self, digest: &str, name: &str) -> Option<Option<T>> {
        self.noted_unless_short(digest, name).unwrap_or(Some(None))
    }

    /// The same. A shortage of the system, such as of descriptors, says nothing about the file and is an error.
    fn noted_unless_short<T: DeserializeOwned>(&self, digest: &str, name: &str) -> io::Result<Option<Option<T>>> {
        let Ok(place) = self.place(digest) else { return Ok(None) };
        let path = place.join(name);
        let read =
            fs::metadata(&path).and_then(|m| if m.len() <= LONGEST { fs::read(&path).map(Some) } else { Ok(None) });
        match read {
            Ok(bytes) => Ok(Some(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if files::is_shortage(&error) => Err(error),
            Err(_) => Ok(Some(None)),
        }
    }
}

fn forget(place: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(place.join(name)) {
        Ok(()) => sync_dir(place),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Sets its modification time to now. Not flushed: after a crash it only has an older time.
fn touch(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.set_times(FileTimes::new().set_modified(clock::now().into()))
}

fn changed(path: &Path) -> Option<Timestamp> {
    fs::metadata(path).and_then(|m| m.modified()).ok()?.try_into().ok()
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
