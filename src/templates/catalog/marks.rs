//! What is noted of a version beside its content: in files of its directory, which go when it goes.
//!
//! ```text
//! sha256-<hex>/used       its time of change is when a vm was last made from it
//!              pinned     why it is not to be pruned
//!              verified   its time of change is when every byte was last read and right
//!              damaged    what was found to be wrong with it
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

use super::{Catalog, Root, history::History, storage, write_synced};
use crate::{
    domain::{
        Code, Error, Result, Template,
        version::{Damage, Pin, VersionStatus},
    },
    platform::{clock, files::sync_dir},
    templates::manifest,
};

const USED: &str = "used";
const PINNED: &str = "pinned";
const VERIFIED: &str = "verified";
const DAMAGED: &str = "damaged";

/// No reason and no list of faults is longer.
const LONGEST: u64 = 1 << 20;

/// Keeps a version from being removed for as long as it lives.
#[derive(Debug)]
pub struct TemplateLease {
    _disk: File,
}

impl Catalog {
    /// A template that a vm is to be made from, by its name or digest, kept until the vm is known to the database. Notes that
    /// it was used.
    pub async fn take(&self, name_or_digest: &str) -> Result<(Template, TemplateLease)> {
        // A name may move, and what it pointed at may go, between the look at the name and the lock.
        for _ in 0..8 {
            let template = self.get(name_or_digest).await?;
            let root = self.root.clone();
            let taken = tokio::task::spawn_blocking(move || root.take(&template).map(|kept| (template, kept)));
            if let (template, Some(kept)) = taken.await.map_err(Error::internal)?? {
                return Ok((template, kept));
            }
        }
        Err(Error::new(Code::TemplateInUse, format!("the template {name_or_digest} is being removed")).retry_after(1))
    }

    /// What is known of a version beside its content.
    pub async fn standing(&self, name_or_digest: &str) -> Result<VersionStatus> {
        let wanted = name_or_digest.to_owned();
        self.blocking(move |root| root.standing(&wanted)).await
    }

    /// Keeps a version from being pruned, or lets it go. Gives its digest.
    pub async fn pin(&self, name_or_digest: &str, why: Option<&str>) -> Result<String> {
        let (wanted, why) = (name_or_digest.to_owned(), why.map(str::to_owned));
        self.blocking(move |root| root.pin(&wanted, why.as_deref())).await
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
        // Opened and removed before it was locked, or mended meanwhile: this lock keeps nothing.
        if !same_file(&disk, &template.files.disk) {
            return Ok(None);
        }
        if let Err(error) = touch(&place.join(USED)) {
            // Pruned somewhat sooner than it should be, and that is all.
            tracing::warn!(template.digest = %template.digest, %error, "cannot record that a template was used");
        }
        Ok(Some(TemplateLease { _disk: disk }))
    }

    fn standing(&self, wanted: &str) -> Result<VersionStatus> {
        self.standing_in(&self.histories().map_err(Error::internal)?, wanted)
    }

    pub(super) fn standing_in(&self, histories: &BTreeMap<String, History>, wanted: &str) -> Result<VersionStatus> {
        let not_found = || Error::new(Code::TemplateNotFound, format!("there is no template {wanted}"));
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

    pub(super) fn pinned(&self, digest: &str) -> Option<Pin> {
        // A pin that cannot be read is a pin all the same: what it kept must not be lost by that.
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

    /// Notes what reading every byte of this directory has found. Only in turn.
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

    /// What outlives the mending of a version. Linked and not moved, so that a crash in between loses nothing.
    pub(super) fn carry_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        for name in [PINNED, USED] {
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

    /// `None`: nothing is noted. `Some(None)`: something that cannot be read.
    fn noted<T: DeserializeOwned>(&self, digest: &str, name: &str) -> Option<Option<T>> {
        let path = self.place(digest).ok()?.join(name);
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Ok(m) if m.len() <= LONGEST => Some(fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok())),
            _ => Some(None),
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

/// Its time of change is now. Not flushed: a crash makes it an older one, and no more.
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
