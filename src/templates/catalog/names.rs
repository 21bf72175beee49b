//! Names of templates: their current and previous versions.
//!
//! ```text
//! names/<name>   sha256:<hex> <since> <why>     current version
//!                sha256:<hex> <since> <why>     previous versions, newest first
//! ```
//!
//! A file is replaced as a whole, by rename, so a name always points at the old or the new version. A file of one
//! line with only a digest is from a version of Mayfly without history, and is still read.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    Catalog, Root,
    history::{History, plain},
    no_template, storage, write_synced,
};
use crate::{
    domain::{
        Code, Error, Result, Template,
        version::{AliasTarget, Moved},
    },
    platform::{clock, files::sync_dir},
    templates::{
        check,
        manifest::{self, Origin},
    },
};

/// The new file of a name, not renamed yet. Removed if it is dropped.
pub(super) struct StagedName {
    file: PathBuf,
    place: PathBuf,
}

impl StagedName {
    pub fn commit(self) -> io::Result<()> {
        fs::rename(&self.file, &self.place)?;
        sync_dir(self.place.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for StagedName {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl Catalog {
    /// Points a name, new or existing, at a version in the catalog. Vms keep the version that they were created from.
    pub async fn point_name(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        let (name, digest, why) = (name.to_owned(), digest.to_owned(), why.to_owned());
        self.blocking(move |root| root.point_name(&name, &digest, &why)).await
    }

    /// The same for a pulled version: an existing name moves only between images of one repository.
    pub async fn point_pulled(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        let (name, digest, why) = (name.to_owned(), digest.to_owned(), why.to_owned());
        self.blocking(move |root| root.point_pulled(&name, &digest, &why)).await
    }

    /// Points a name at a previous version: at `to`, else at the newest one that exists and is undamaged. The current
    /// version becomes the newest previous one, so a second rollback undoes the first.
    pub async fn roll_back(&self, name: &str, to: Option<&str>) -> Result<(Moved, Template)> {
        let (name, to) = (name.to_owned(), to.map(str::to_owned));
        self.blocking(move |root| root.roll_back(&name, to.as_deref())).await
    }
}

impl Root {
    fn point_name(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        if !check::is_name(name) {
            let what = check::NAME_RULE;
            return Err(Error::new(Code::TemplateInvalid, format!("name {what}")).field("/name", what));
        }
        let _turn = self.lock().map_err(storage)?;
        self.may_be_pointed_at(digest, name)?;
        self.point(name, digest, why).map_err(storage)
    }

    fn point_pulled(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        if !check::is_name(name) {
            let what = check::NAME_RULE;
            return Err(Error::new(Code::TemplateInvalid, format!("name {what}")).field("/name", what));
        }
        let _turn = self.lock().map_err(storage)?;
        self.may_be_pointed_at(digest, name)?;
        let image = self.manifest(digest).map_err(Error::internal)?.image;
        self.may_name(name, digest, image.as_ref())?;
        self.point(name, digest, why).map_err(storage)
    }

    fn may_be_pointed_at(&self, digest: &str, name: &str) -> Result<()> {
        if manifest::directory(digest).is_none() || !self.place(digest)?.exists() {
            return Err(Error::new(Code::TemplateUnknown, format!("there is no version {digest}"))
                .field("/digest", "must be the digest of a version that is here"));
        }
        self.sound(digest, name).map(drop)
    }

    fn roll_back(&self, name: &str, to: Option<&str>) -> Result<(Moved, Template)> {
        let not_found = || no_template(name);
        if !check::is_name(name) {
            return Err(not_found());
        }
        let _turn = self.lock().map_err(storage)?;
        let history = self.history(name).map_err(Error::internal)?.ok_or_else(not_found)?;
        let refuse = |detail: String| Err(Error::new(Code::TemplateNoPrevious, detail));
        let digest = match to {
            Some(to) if to == history.now.digest => to.to_owned(),
            Some(to) => {
                if !history.before.iter().any(|t| t.digest == to) {
                    let detail = format!("the name {name} did not point at {to}, as far as is remembered");
                    return Err(Error::new(Code::TemplateNoPrevious, detail).field(
                        "/to",
                        "must be one of `previous` in GET /templates/{name}; PUT points the name anywhere",
                    ));
                }
                if let Err(error) = self.sound(to, name) {
                    if error.code == Code::Internal {
                        return Err(error);
                    }
                    return refuse(format!("the version {to} cannot be gone back to: {}", error.detail));
                }
                to.to_owned()
            }
            None => match self.newest_sound(&history, name)? {
                Some(digest) => digest,
                None if history.before.is_empty() => {
                    return refuse(format!("the name {name} has not pointed at anything else"));
                }
                None => return refuse(format!("no version that the name {name} pointed at before is still here")),
            },
        };
        let why = format!("rolled back from {}", history.now.digest);
        let moved = self.point(name, &digest, &why).map_err(storage)?;
        Ok((moved, self.load(&digest, name)?))
    }

    /// The template of this digest, if it exists and is not marked as damaged.
    pub(super) fn sound(&self, digest: &str, name: &str) -> Result<Template> {
        let template = self.load(digest, name)?;
        match self.damage(digest) {
            Some(damage) => Err(super::marks::damaged(name, digest, &damage)),
            None => Ok(template),
        }
    }

    /// `None`: it is absent or damaged. An error of the system shows neither.
    pub(super) fn sound_if_present(&self, digest: &str, name: &str) -> Result<Option<Template>> {
        match self.sound(digest, name) {
            Ok(template) => Ok(Some(template)),
            Err(error) if error.code == Code::Internal => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The version that the name pointed at most recently and that can be used.
    fn newest_sound(&self, history: &History, name: &str) -> Result<Option<String>> {
        for target in &history.before {
            if self.sound_if_present(&target.digest, name)?.is_some() {
                return Ok(Some(target.digest.clone()));
            }
        }
        Ok(None)
    }

    pub(super) fn history(&self, name: &str) -> io::Result<Option<History>> {
        match fs::read_to_string(self.names().join(name)) {
            Ok(text) => Ok(Some(History::parse(&text))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn pointed_at(&self, name: &str) -> io::Result<Option<String>> {
        Ok(self.history(name)?.map(|h| h.now.digest))
    }

    /// THE only function that moves a name. Only under the catalog's lock.
    pub(super) fn point(&self, name: &str, digest: &str, why: &str) -> io::Result<Moved> {
        let (moved, staged) = self.stage_name(name, digest, why)?;
        if let Some(staged) = staged {
            staged.commit()?;
        }
        Ok(moved)
    }

    /// All but the last step, which needs no space. `None`: the name already points there.
    pub(super) fn stage_name(&self, name: &str, digest: &str, why: &str) -> io::Result<(Moved, Option<StagedName>)> {
        let old = self.history(name)?;
        let why = plain(why);
        let from = old.as_ref().map(|h| h.now.digest.clone());
        let moved = Moved { name: name.to_owned(), from, to: digest.to_owned(), why: why.clone() };
        if !moved.changed() {
            return Ok((moved, None));
        }
        let to = AliasTarget { digest: digest.to_owned(), since: Some(clock::now()), why: Some(why) };
        // An invalid target was written by hand, and is not a previous version.
        let old = old.filter(|h| manifest::directory(&h.now.digest).is_some());
        let staged =
            StagedName { file: self.staging().join(Uuid::new_v4().to_string()), place: self.names().join(name) };
        write_synced(&staged.file, History::moved(old, to).to_text().as_bytes())?;
        Ok((moved, Some(staged)))
    }

    /// Whether the name may point at this digest. A name moves automatically only between images of one repository,
    /// as an update; everything else is a mix-up.
    pub(super) fn may_name(&self, name: &str, digest: &str, image: Option<&Origin>) -> Result<()> {
        let Some(other) = self.pointed_at(name).map_err(storage)? else { return Ok(()) };
        // A dangling name is left over from files that were removed by hand.
        if other == digest || !self.place(&other)?.try_exists().map_err(storage)? {
            return Ok(());
        }
        if let Some(image) = image
            && self.manifest(&other).is_ok_and(|m| m.image.is_some_and(|i| i.repository == image.repository))
        {
            return Ok(());
        }
        let detail = format!("the name {name} is taken by another template, {other}");
        Err(Error::new(Code::TemplateExists, detail)
            .field("/name", "is taken by a template with another content, remove that one or choose another name"))
    }

    /// Name → digest.
    pub(super) fn all_names(&self) -> io::Result<BTreeMap<String, String>> {
        Ok(self.histories()?.into_iter().map(|(name, history)| (name, history.now.digest)).collect())
    }

    pub(super) fn histories(&self) -> io::Result<BTreeMap<String, History>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(self.names())? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if check::is_name(&name)
                && let Some(history) = self.history(&name)?
            {
                all.insert(name, history);
            }
        }
        Ok(all)
    }
}
