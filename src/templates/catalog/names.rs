//! Names: what each points at, and what it pointed at before.
//!
//! ```text
//! names/<name>   sha256:<hex> <since> <why>     what it points at
//!                sha256:<hex> <since> <why>     what it pointed at before, newest first
//! ```
//!
//! A file is replaced as a whole, by rename, so a name points at one version or at the other, whatever happens meanwhile. One
//! line with nothing but a digest is what was written before there was a history, and is read as such.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Catalog, Root, storage, write_synced};
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

/// Versions that a name remembers beside the present one.
const REMEMBERED: usize = 10;

/// Of a reason, in characters.
const LONGEST_WHY: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    pub now: AliasTarget,
    /// Newest first, each digest once.
    pub before: Vec<AliasTarget>,
}

impl History {
    fn parse(text: &str) -> History {
        let mut lines = text.lines().map(target);
        let now = lines.next().unwrap_or_else(|| target(""));
        // What is no digest in an older line names nothing, and is forgotten with the next move.
        let before = lines.filter(|t| manifest::directory(&t.digest).is_some()).collect();
        History { now, before }
    }

    fn to_text(&self) -> String {
        let line = |t: &AliasTarget| {
            let since = t.since.map(|at| format!(" {at:.3}")).unwrap_or_default();
            // A reason without a time could not be told from one.
            let why = t.why.as_deref().filter(|_| t.since.is_some()).map(|w| format!(" {w}")).unwrap_or_default();
            format!("{}{since}{why}\n", t.digest)
        };
        std::iter::once(&self.now).chain(&self.before).map(line).collect()
    }

    /// The same name, pointing at another version.
    fn moved(old: Option<History>, to: AliasTarget) -> History {
        let Some(old) = old else { return History { now: to, before: Vec::new() } };
        let mut before = vec![old.now];
        before.extend(old.before);
        before.retain(|t| t.digest != to.digest);
        before.truncate(REMEMBERED);
        History { now: to, before }
    }
}

fn target(line: &str) -> AliasTarget {
    let (digest, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let (since, why) = rest.split_once(' ').unwrap_or((rest, ""));
    let since: Option<Timestamp> = since.parse().ok();
    let why = (since.is_some() && !why.is_empty()).then(|| why.to_owned());
    AliasTarget { digest: digest.to_owned(), since, why }
}

/// One line, and not a long one.
pub(super) fn plain(why: &str) -> String {
    let words: Vec<&str> = why.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(LONGEST_WHY).collect()
}

/// A name's file, written and not in its place yet. Dropped, it is as if it had never been.
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
    /// Points a name, new or not, at a version that is here. Vms keep the version that they were made from.
    pub async fn point_name(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        let (name, digest, why) = (name.to_owned(), digest.to_owned(), why.to_owned());
        self.blocking(move |root| root.point_name(&name, &digest, &why)).await
    }

    /// The same for a version that was pulled, as pulls do it: a name that is taken moves only within one repository.
    pub async fn point_pulled(&self, name: &str, digest: &str, why: &str) -> Result<Moved> {
        let (name, digest, why) = (name.to_owned(), digest.to_owned(), why.to_owned());
        self.blocking(move |root| root.point_pulled(&name, &digest, &why)).await
    }

    /// Points a name back at what it pointed at before: at `to`, else at the newest one that is still here and sound. What it
    /// points at now becomes the newest of those before, so doing it twice undoes it.
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
        let not_found = || Error::new(Code::TemplateNotFound, format!("there is no template {name}"));
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
                    return refuse(format!("the version {to} cannot be gone back to: {}", error.detail));
                }
                to.to_owned()
            }
            None => match history.before.iter().find(|t| self.sound(&t.digest, name).is_ok()) {
                Some(target) => target.digest.clone(),
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

    /// The template of this digest, if it is here and nothing is known to be wrong with it.
    pub(super) fn sound(&self, digest: &str, name: &str) -> Result<Template> {
        let template = self.load(digest, name)?;
        match self.damage(digest) {
            Some(damage) => Err(super::marks::damaged(name, digest, &damage)),
            None => Ok(template),
        }
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

    /// THE way in which a name moves. Only in turn.
    pub(super) fn point(&self, name: &str, digest: &str, why: &str) -> io::Result<Moved> {
        let (moved, staged) = self.stage_name(name, digest, why)?;
        if let Some(staged) = staged {
            staged.commit()?;
        }
        Ok(moved)
    }

    /// All of it but the last step, which needs no space. `None`: the name points there already.
    pub(super) fn stage_name(&self, name: &str, digest: &str, why: &str) -> io::Result<(Moved, Option<StagedName>)> {
        let old = self.history(name)?;
        let why = plain(why);
        let from = old.as_ref().map(|h| h.now.digest.clone());
        let moved = Moved { name: name.to_owned(), from, to: digest.to_owned(), why: why.clone() };
        if !moved.changed() {
            return Ok((moved, None));
        }
        let to = AliasTarget { digest: digest.to_owned(), since: Some(clock::now()), why: Some(why) };
        // A target that was no digest was put there by hand, and is nothing to go back to.
        let old = old.filter(|h| manifest::directory(&h.now.digest).is_some());
        let staged =
            StagedName { file: self.staging().join(Uuid::new_v4().to_string()), place: self.names().join(name) };
        write_synced(&staged.file, History::moved(old, to).to_text().as_bytes())?;
        Ok((moved, Some(staged)))
    }

    /// Whether the name may point at this digest. A name moves by itself only from one image of a repository to another one of
    /// the same: that is an update, and all else is a mix-up.
    pub(super) fn may_name(&self, name: &str, digest: &str, image: Option<&Origin>) -> Result<()> {
        let Some(other) = self.pointed_at(name).map_err(storage)? else { return Ok(()) };
        // A name that points at nothing was left by somebody who removed files by hand.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        manifest::digest(&[n])
    }

    fn at(n: u8, why: &str) -> AliasTarget {
        let since = Timestamp::from_second(1_700_000_000 + i64::from(n)).unwrap();
        AliasTarget { digest: digest(n), since: Some(since), why: (!why.is_empty()).then(|| why.to_owned()) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let history =
            History { now: at(3, "pulled registry.example.com/a/b"), before: vec![at(2, ""), at(1, "by hand")] };
        assert_eq!(History::parse(&history.to_text()), history);
        let old = AliasTarget { digest: digest(1), since: None, why: None };
        // As it was written before there was a history, by an editor, and by a program of a later time.
        for text in [format!("{}\n", digest(1)), digest(1), format!("  {} \n", digest(1))] {
            assert_eq!(History::parse(&text), History { now: old.clone(), before: vec![] }, "{text:?}");
        }
        let mixed = format!("{} yesterday because\n\nnonsense\n{}\n", digest(1), digest(2));
        let before = vec![AliasTarget { digest: digest(2), since: None, why: None }];
        assert_eq!(History::parse(&mixed), History { now: old, before });
        assert_eq!(History::parse("").now.digest, "");
    }

    #[test]
    fn a_move_and_back_is_a_swap_and_the_oldest_are_forgotten() {
        let digests = |h: &History| -> Vec<String> {
            std::iter::once(&h.now).chain(&h.before).map(|t| t.digest.clone()).collect()
        };
        let mut history = History::moved(None, at(0, ""));
        for n in 1..=2 {
            history = History::moved(Some(history), at(n, ""));
        }
        assert_eq!(digests(&history), [digest(2), digest(1), digest(0)]);
        let back = History::moved(Some(history), at(1, ""));
        assert_eq!(digests(&back), [digest(1), digest(2), digest(0)]);
        let mut history = History::moved(Some(back), at(2, ""));
        assert_eq!(digests(&history), [digest(2), digest(1), digest(0)]);
        for n in 3..40 {
            history = History::moved(Some(history), at(n, ""));
        }
        assert_eq!(history.before.len(), REMEMBERED);
        assert_eq!((digests(&history)[0].clone(), digests(&history)[10].clone()), (digest(39), digest(29)));
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(plain(" because\n of\tthat \u{1b}[31m "), "because of that [31m");
        assert_eq!(plain(&"x".repeat(1000)).len(), LONGEST_WHY);
        let odd = History { now: AliasTarget { why: Some(plain("a\nb")), ..at(1, "") }, before: vec![] };
        assert_eq!(History::parse(&odd.to_text()), odd);
    }
}
