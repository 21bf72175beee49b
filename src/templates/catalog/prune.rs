//! Prunes versions that nothing needs, the least recently used first.
//!
//! A version is needed while a name points at it, a live vm was created from it, it is pinned, or a name may be
//! rolled back to it. Names and pins are checked again under the lock at the moment of removal. Vms are not known
//! here: creating a vm holds a shared lock on the template until the vm is in the database (`Catalog::take`). So a
//! removal takes the exclusive lock first, then asks which versions vms need, then removes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};

use super::{Catalog, Root, history::History, lock_disk, pulled, storage};
use crate::{
    domain::{
        Error, Result,
        version::{HeldKind, PruneRequest, Pruned, VersionUsage},
    },
    platform::clock,
    templates::manifest,
};

/// Something in the catalog that uses space, with the facts that decide whether it is kept.
#[derive(Clone, Debug)]
struct Item {
    kind: HeldKind,
    digest: String,
    place: PathBuf,
    bytes: u64,
    last_used_at: Timestamp,
    /// Names that point at it.
    names: Vec<String>,
    /// Names that pointed at it before, each with the number of newer previous versions that exist.
    before: Vec<(String, usize)>,
    pin: Option<String>,
    damaged: bool,
    /// A pull uses it.
    busy: bool,
}

impl Item {
    fn held(self, why: String) -> VersionUsage {
        let mut names = self.names;
        names.extend(self.before.into_iter().map(|(name, _)| name));
        names.sort();
        names.dedup();
        let Item { kind, digest, bytes, last_used_at, .. } = self;
        VersionUsage { kind, digest, names, bytes, last_used_at, why }
    }

    /// Why it must be kept. `None`: it may be removed.
    fn needed(
        &self,
        users: &TemplateUsers,
        request: &PruneRequest,
        room: Option<RoomFor>,
        now: Timestamp,
    ) -> Option<String> {
        let recent = |seconds: u64| {
            let age = now.duration_since(self.last_used_at);
            let limit = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            (age < limit).then(|| format!("it was used {} s ago, which is less than {seconds} s", age.as_secs().max(0)))
        };
        if self.kind == HeldKind::PartialPull {
            if self.busy {
                return Some("it is being pulled".into());
            }
            let seconds = request.partial_older_than_seconds.unwrap_or_default();
            return match room {
                // Its data is fetched again if it is wanted again.
                Some(room) if room.before_pulls || !users.pulls.contains(&self.digest) => recent(seconds),
                Some(_) => Some("its pull waits for another attempt".into()),
                None => recent(seconds.max(request.older_than_seconds)),
            };
        }
        if let Some(name) = self.names.first() {
            return Some(format!("the name {name} points at it"));
        }
        if users.vms.contains(&self.digest) {
            return Some("a vm needs it".into());
        }
        if let Some(why) = &self.pin {
            return Some(format!("it is pinned: {why}"));
        }
        if let Some((name, _)) = self.before.iter().find(|(_, newer)| *newer < request.keep_previous) {
            return Some(format!("the name {name} may be rolled back to it"));
        }
        recent(request.older_than_seconds)
    }

    fn unneeded(&self) -> String {
        match (self.kind, self.before.first()) {
            (HeldKind::PartialPull, _) => "no pull uses this data any more".into(),
            (HeldKind::Template, None) => "no name, vm or pin needs it".into(),
            (HeldKind::Template, Some((name, _))) => format!("the name {name} has moved on, and no vm or pin needs it"),
        }
    }
}

/// Space that has to be freed.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoomFor {
    pub bytes: u64,
    /// Whether it is more important than pulls that wait for another attempt.
    pub before_pulls: bool,
}

/// By digest: templates that vms need, and images of pulls that have not ended.
#[derive(Clone, Debug, Default)]
struct TemplateUsers {
    vms: BTreeSet<String>,
    pulls: BTreeSet<String>,
}

/// What is removed and what is kept, each with the reason.
struct PrunePlan {
    go: Vec<(Item, String)>,
    stay: Vec<(Item, String)>,
    total: u64,
}

/// `room`: only as much as necessary to free this much.
fn plan(
    items: Vec<Item>,
    users: &TemplateUsers,
    request: &PruneRequest,
    room: Option<RoomFor>,
    now: Timestamp,
) -> PrunePlan {
    let total = items.iter().map(|i| i.bytes).sum();
    let over = request.max_bytes.map(|max| u64::saturating_sub(total, max));
    let wanted = match (room.map(|room| room.bytes), over) {
        (None, None) => u64::MAX,
        (a, b) => a.unwrap_or(0).max(b.unwrap_or(0)),
    };
    let (mut go, mut stay) = (Vec::new(), Vec::new());
    let mut may_go = Vec::new();
    for item in items {
        match item.needed(users, request, room, now) {
            Some(why) => stay.push((item, why)),
            None if item.kind == HeldKind::PartialPull && request.partial_older_than_seconds.is_none() => {}
            None => may_go.push(item),
        }
    }
    // Damaged ones first, because they are useless; then the least recently used; pulls that go on last.
    let waits = |item: &Item| item.kind == HeldKind::PartialPull && users.pulls.contains(&item.digest);
    let rank = |item: &Item| (!item.damaged, waits(item), item.last_used_at, item.digest.clone());
    may_go.sort_by_cached_key(rank);
    let mut freed = 0_u64;
    for item in may_go {
        if freed < wanted {
            freed = freed.saturating_add(item.bytes);
            let why = item.unneeded();
            go.push((item, why));
        } else {
            stay.push((item, "there is room for it".into()));
        }
    }
    stay.retain(|(item, _)| item.kind == HeldKind::Template || request.partial_older_than_seconds.is_some());
    PrunePlan { go, stay, total }
}

impl Catalog {
    /// Removes what nothing needs, as requested, and returns what was removed and what is kept, with reasons.
    pub async fn prune(&self, request: &PruneRequest) -> Result<Pruned> {
        self.prune_to_free(request, None).await
    }

    pub(super) async fn prune_to_free(&self, request: &PruneRequest, room: Option<RoomFor>) -> Result<Pruned> {
        let usage = self.template_usage()?;
        let users = TemplateUsers { vms: usage.needed().await?, pulls: usage.pulling().await? };
        let planned = {
            let request = request.clone();
            self.blocking(move |root| Ok(plan(root.items()?, &users, &request, room, clock::now()))).await?
        };
        let PrunePlan { go, mut stay, total } = planned;
        let mut removed = Vec::new();
        for (item, why) in go {
            if request.dry_run {
                removed.push(item.held(why));
                continue;
            }
            match self.remove_item(&item, request).await {
                Ok(None) => {
                    let held = item.held(why);
                    self.template_usage()?.pruned(&held).await;
                    removed.push(held);
                }
                Ok(Some(needed)) => stay.push((item, needed)),
                // The others may be removable nevertheless.
                Err(error) => {
                    tracing::error!(template.digest = item.digest, %error, cause = error.cause.as_ref().map(tracing::field::display), "cannot prune a template");
                    stay.push((item, format!("it could not be removed: {}", error.detail)));
                }
            }
        }
        let freed_bytes = removed.iter().map(|h| h.bytes).sum();
        let kept = stay.into_iter().map(|(item, why)| item.held(why)).collect();
        let available_bytes = self.blocking(|root| root.available().map_err(Error::internal)).await?;
        Ok(Pruned { dry_run: request.dry_run, removed, kept, freed_bytes, total_bytes: total, available_bytes })
    }

    /// Returns the reason if it was kept after all.
    async fn remove_item(&self, item: &Item, request: &PruneRequest) -> Result<Option<String>> {
        if item.kind == HeldKind::PartialPull {
            let place = item.place.clone();
            return self.blocking(move |root| root.remove_partial(&place)).await;
        }
        let place = item.place.clone();
        let locked = self.blocking(move |_| Ok(lock_disk(&place).ok())).await?;
        let Some(exclusive) = locked else { return Ok(Some("it is being cloned, read or removed".into())) };
        // From here on no new vm can take a lease on it.
        let users = match self.template_usage()?.needs(&item.digest).await? {
            true => TemplateUsers { vms: BTreeSet::from([item.digest.clone()]), ..TemplateUsers::default() },
            false => TemplateUsers::default(),
        };
        let (item, request) = (item.clone(), request.clone());
        self.blocking(move |root| root.remove_unneeded(&item, &users, &request, exclusive)).await
    }
}

impl Root {
    fn remove_unneeded(
        &self,
        item: &Item,
        users: &TemplateUsers,
        request: &PruneRequest,
        _exclusive: Option<File>,
    ) -> Result<Option<String>> {
        let _turn = self.lock().map_err(storage)?;
        let histories = self.histories().map_err(storage)?;
        let Some(now) = self.template_item(&item.digest, &histories, &self.here(&histories)) else { return Ok(None) };
        if let Some(why) = now.needed(users, request, None, clock::now()) {
            return Ok(Some(why));
        }
        self.discard(&item.place).map_err(storage)?;
        Ok(None)
    }

    pub(super) fn remove_partial(&self, place: &Path) -> Result<Option<String>> {
        let _turn = self.lock().map_err(storage)?;
        let dir = match File::open(place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(storage)?,
        };
        if dir.try_lock().is_err() {
            return Ok(Some("it is being pulled".into()));
        }
        let removed = if place.is_dir() { fs::remove_dir_all(place) } else { fs::remove_file(place) };
        removed.map_err(storage)?;
        Ok(None)
    }

    /// Everything that uses space.
    fn items(&self) -> Result<Vec<Item>> {
        // Under the lock, so that nothing is being moved meanwhile.
        let _turn = self.lock().map_err(storage)?;
        let histories = self.histories().map_err(Error::internal)?;
        let here = self.here(&histories);
        let mut items = Vec::new();
        for digest in self.digests().map_err(Error::internal)? {
            items.extend(self.template_item(&digest, &histories, &here));
        }
        for entry in fs::read_dir(self.staging()).map_err(Error::internal)? {
            let entry = entry.map_err(Error::internal)?;
            let (place, entry_name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let Ok(file) = File::open(&place) else { continue };
            let metadata = file.metadata().map_err(Error::internal)?;
            let changed = pulled::changed(&place).or_else(|| metadata.modified().ok()).unwrap_or(std::time::UNIX_EPOCH);
            items.push(Item {
                kind: HeldKind::PartialPull,
                digest: pulled::image_of(&place).unwrap_or_else(|| entry_name.clone()),
                bytes: on_disk(&place).map_err(Error::internal)?,
                last_used_at: changed.try_into().unwrap_or(Timestamp::UNIX_EPOCH),
                names: Vec::new(),
                before: Vec::new(),
                pin: None,
                damaged: false,
                busy: file.try_lock().is_err(),
                place,
            });
        }
        Ok(items)
    }

    fn template_item(
        &self,
        digest: &str,
        histories: &BTreeMap<String, History>,
        here: &BTreeMap<String, Vec<String>>,
    ) -> Option<Item> {
        let place = self.place(digest).ok()?;
        let pointing = histories.iter().filter(|(_, h)| h.now.digest == digest).map(|(name, _)| name.clone());
        let before =
            here.iter().filter_map(|(name, previous)| Some((name.clone(), previous.iter().position(|d| d == digest)?)));
        Some(Item {
            kind: HeldKind::Template,
            digest: digest.to_owned(),
            bytes: on_disk(&place).ok()?,
            last_used_at: self.last_used(digest).unwrap_or(Timestamp::UNIX_EPOCH),
            names: pointing.collect(),
            before: before.collect(),
            pin: self.pinned(digest).map(|pin| pin.why),
            damaged: self.damage(digest).is_some(),
            busy: false,
            place,
        })
    }

    /// By name: the versions for a rollback, newest first.
    fn here(&self, histories: &BTreeMap<String, History>) -> BTreeMap<String, Vec<String>> {
        let sound =
            |digest: &String| self.place(digest).is_ok_and(|place| place.exists()) && self.damage(digest).is_none();
        let of = |h: &History| h.before.iter().map(|t| t.digest.clone()).filter(sound).collect();
        histories.iter().map(|(name, h)| (name.clone(), of(h))).collect()
    }

    pub(super) fn digests(&self) -> io::Result<Vec<String>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(digest) = name.to_str().map(|n| n.replacen("sha256-", "sha256:", 1)) else { continue };
            if manifest::directory(&digest).is_some() {
                digests.push(digest);
            }
        }
        digests.sort();
        Ok(digests)
    }

    /// The size of all templates and pulls on disk.
    pub(super) fn total(&self) -> io::Result<u64> {
        let mut total = 0;
        for entry in fs::read_dir(self.staging())? {
            total += on_disk(&entry?.path()).unwrap_or_default();
        }
        for digest in self.digests()? {
            if let Some(directory) = manifest::directory(&digest) {
                // A file that is removed meanwhile uses no space.
                total += on_disk(&self.dir.join(directory)).unwrap_or_default();
            }
        }
        Ok(total)
    }
}

/// The blocks of a file, or of all files in a directory.
fn on_disk(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match on_disk(&entry?.path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                more => bytes += more.unwrap_or_default(),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn item(digest: &str, hours: i64, bytes: u64) -> Item {
        Item {
            kind: HeldKind::Template,
            digest: digest.into(),
            place: PathBuf::new(),
            bytes,
            last_used_at: now() - SignedDuration::from_secs(hours * HOUR),
            names: Vec::new(),
            before: Vec::new(),
            pin: None,
            damaged: false,
            busy: false,
        }
    }

    fn pull(digest: &str, hours: i64, bytes: u64) -> Item {
        Item { kind: HeldKind::PartialPull, ..item(digest, hours, bytes) }
    }

    fn gone(items: &[Item], vms: &[&str], request: &PruneRequest, free: Option<u64>) -> Vec<String> {
        let users = TemplateUsers { vms: vms.iter().map(|v| (*v).to_owned()).collect(), ..TemplateUsers::default() };
        let room = free.map(|bytes| RoomFor { bytes, before_pulls: false });
        let plan = plan(items.to_vec(), &users, request, room, now());
        assert!(plan.stay.iter().all(|(_, why)| !why.is_empty()));
        plan.go.into_iter().map(|(item, _)| item.digest).collect()
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_requested() {
        let items = [item("a", 1, 10), item("b", 30, 10), item("c", 5, 10)];
        let all = PruneRequest::default();
        assert_eq!(gone(&items, &[], &all, None), ["b", "c", "a"]);
        assert_eq!(gone(&items, &[], &all, Some(11)), ["b", "c"]);
        assert_eq!(gone(&items, &[], &all, Some(0)), [""; 0]);
        let small = PruneRequest { max_bytes: Some(20), ..all.clone() };
        assert_eq!(gone(&items, &[], &small, None), ["b"]);
        assert_eq!(gone(&items, &[], &PruneRequest { max_bytes: Some(30), ..all.clone() }, None), [""; 0]);
        let old = PruneRequest { older_than_seconds: 5 * 3600, ..all.clone() };
        assert_eq!(gone(&items, &[], &old, None), ["b", "c"]);
        let damaged = Item { damaged: true, ..item("d", 0, 1) };
        assert_eq!(gone(&[items[1].clone(), damaged], &[], &all, Some(1)), ["d"]);
    }

    #[test]
    fn needed_versions_are_kept_whatever_is_requested() {
        let named = Item { names: vec!["n".into()], ..item("named", 900, 10) };
        let pinned = Item { pin: Some("because".into()), ..item("pinned", 900, 10) };
        let previous = |digest: &str, newer| Item { before: vec![("n".into(), newer)], ..item(digest, 900, 10) };
        let items = [named, pinned, item("vm", 900, 10), previous("one", 0), previous("two", 1), previous("three", 2)];
        let mut request = PruneRequest::default();
        assert_eq!(gone(&items, &["vm"], &request, None), ["three", "two"]);
        for (keep, expected) in [(0, vec!["one", "three", "two"]), (2, vec!["three"]), (3, vec![])] {
            request.keep_previous = keep;
            assert_eq!(gone(&items, &["vm"], &request, None), expected);
        }
        let greedy = PruneRequest { max_bytes: Some(0), keep_previous: 0, ..PruneRequest::default() };
        assert_eq!(gone(&items, &["vm"], &greedy, Some(u64::MAX)), ["one", "three", "two"]);
    }

    #[test]
    fn unused_interrupted_pulls_are_removed_on_request() {
        let busy = Item { busy: true, ..pull("busy", 900, 1) };
        let items = [pull("old", 50, 1), pull("young", 1, 1), busy, item("t", 2, 1)];
        let without = PruneRequest::default();
        assert_eq!(gone(&items, &[], &without, None), ["t"]);
        let all = PruneRequest { partial_older_than_seconds: Some(0), ..without.clone() };
        assert_eq!(gone(&items, &[], &all, None), ["old", "t", "young"]);
        let old = PruneRequest { partial_older_than_seconds: Some(86_400), ..without };
        assert_eq!(gone(&items, &[], &old, None), ["old", "t"]);
    }

    #[test]
    fn data_of_pulls_gives_way_when_space_is_needed() {
        let request =
            PruneRequest { older_than_seconds: 600, partial_older_than_seconds: Some(0), ..PruneRequest::default() };
        let users = TemplateUsers { pulls: BTreeSet::from(["waits".to_owned()]), ..TemplateUsers::default() };
        let busy = Item { busy: true, ..pull("busy", 0, 1) };
        let items = [pull("waits", 9, 1), pull("left", 0, 1), busy, item("young", 0, 1), item("old", 1, 1)];
        let gone = |before_pulls| -> Vec<String> {
            let room = Some(RoomFor { bytes: 100, before_pulls });
            plan(items.to_vec(), &users, &request, room, now()).go.into_iter().map(|(item, _)| item.digest).collect()
        };
        // However recent it is, for a pull or an import; and what will go on, for a job, at last.
        assert_eq!(gone(false), ["old", "left"]);
        assert_eq!(gone(true), ["old", "left", "waits"]);
    }
}
