//! Verifies versions: reads every byte and compares it with the manifest, because disks lose data silently.
//!
//! Nothing is repaired here. A version with a fault is marked: no vm is created from it, no pull reuses its chunks,
//! and pulling or registering it again replaces it. One version is read at a time, by one thread, bypassing the page
//! cache where the system allows it, because cached data says nothing about the disk.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{fs::SeekFrom, io::Errno};
use sha2::{Digest as _, Sha256};

use super::{Catalog, Root, no_template, storage};
use crate::{
    domain::{
        Code, Error, Result,
        version::{Damage, FileFault, Verified},
    },
    platform::{clock, files},
    templates::manifest::{self, FileEntry, Part, TemplateManifest},
};

const BLOCK: usize = 1 << 20;
/// Limit of the faults in the mark.
const NAMED: usize = 256;

/// Stops the reading when its caller is gone.
struct Watched(Arc<AtomicBool>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Catalog {
    /// Verifies a version, by its name or digest, and records the result. Dropping the future stops it without a
    /// record.
    pub async fn verify(&self, name_or_digest: &str) -> Result<Verified> {
        let _turn = self.root.verifying.lock().await;
        let stop = Watched(Arc::default());
        let (stopped, wanted) = (stop.0.clone(), name_or_digest.to_owned());
        self.blocking(move |root| root.verify(&wanted, &stopped)).await
    }
}

impl Root {
    fn verify(&self, wanted: &str, stop: &AtomicBool) -> Result<Verified> {
        let not_found = || no_template(wanted);
        let digest = match manifest::directory(wanted) {
            Some(_) => wanted.to_owned(),
            None if crate::templates::is_name(wanted) => {
                self.pointed_at(wanted).map_err(Error::internal)?.ok_or_else(not_found)?
            }
            None => return Err(not_found()),
        };
        let place = self.place(&digest)?;
        let identity = identity_of(&place).ok_or_else(not_found)?;
        // Protects the version from removal until it was read.
        let disk = File::open(place.join(Part::Disk.name())).ok();
        if disk.as_ref().is_some_and(|disk| disk.try_lock_shared().is_err()) {
            let detail = format!("the template {wanted} is being removed");
            return Err(Error::new(Code::TemplateInUse, detail).retry_after(1));
        }
        let mut reading = Reading { stop, zeros: HashMap::new(), bytes: 0, read: 0, faults: Vec::new() };
        let read = match self.manifest(&digest) {
            Ok(manifest) => reading.all(&place, &manifest),
            Err(fault) => match fault.shortage() {
                Ok(error) => Err(Unfinished::Shortage(error)),
                Err(fault) => {
                    let bytes = fs::metadata(place.join(manifest::FILE_NAME)).map_or(0, |m| m.len());
                    reading.fault(manifest::FILE_NAME, 0, bytes, fault.to_string());
                    Ok(())
                }
            },
        };
        // A part of the result is of no use.
        read.map_err(|unfinished| match unfinished {
            Unfinished::Stopped => Error::new(Code::Internal, "the verification was given up"),
            Unfinished::Shortage(error) => Error::internal(error),
        })?;
        let Reading { bytes, read: bytes_read, faults, .. } = reading;
        let _turn = self.lock().map_err(storage)?;
        if identity_of(&place) != Some(identity) {
            // Replaced meanwhile: the result is about a removed directory.
            return Err(not_found());
        }
        let damage = (!faults.is_empty()).then(|| {
            let named = faults.iter().take(NAMED).cloned().collect();
            Damage { at: clock::now(), faults: named }
        });
        self.note_verified(&place, damage.as_ref()).map_err(storage)?;
        Ok(Verified { name: wanted.to_owned(), digest, bytes, bytes_read, faults })
    }
}

/// The identity of a directory, because another one may replace it.
fn identity_of(place: &Path) -> Option<(u64, u64)> {
    fs::metadata(place).ok().map(|m| (m.dev(), m.ino()))
}

/// Why not everything was read.
enum Unfinished {
    /// The caller is gone.
    Stopped,
    /// The system or this process lacks something now, which says nothing about the template.
    Shortage(io::Error),
}

struct Reading<'a> {
    stop: &'a AtomicBool,
    /// The digest of this many zeros.
    zeros: HashMap<u64, String>,
    bytes: u64,
    read: u64,
    faults: Vec<FileFault>,
}

impl Reading<'_> {
    fn fault(&mut self, file: &str, offset: u64, bytes: u64, what: impl Into<String>) {
        self.faults.push(FileFault { file: file.to_owned(), offset, bytes, what: what.into() });
    }

    fn all(&mut self, place: &Path, manifest: &TemplateManifest) -> Result<(), Unfinished> {
        for (name, entry) in &manifest.files {
            self.bytes += entry.size();
            let file = match File::open(place.join(name)) {
                Ok(file) => file,
                Err(e) if files::is_shortage(&e) => return Err(Unfinished::Shortage(e)),
                Err(e) => {
                    self.fault(name, 0, entry.size(), format!("it cannot be opened: {}", e.kind()));
                    continue;
                }
            };
            let size = file.metadata().map_or(0, |m| m.len());
            if size != entry.size() {
                let (from, to) = (size.min(entry.size()), size.max(entry.size()));
                self.fault(name, from, to - from, format!("it has {size} bytes and should have {}", entry.size()));
            }
            match entry {
                FileEntry::Whole { sha256, size } => self.part(name, &file, 0, *size, sha256)?,
                FileEntry::Pieces { pieces, .. } => {
                    let mut offset = 0;
                    for piece in pieces {
                        self.part(name, &file, offset, piece.size, &piece.sha256)?;
                        offset += piece.size;
                    }
                }
            }
        }
        Ok(())
    }

    fn part(&mut self, name: &str, file: &File, offset: u64, size: u64, expected: &str) -> Result<(), Unfinished> {
        // The missing end was reported above.
        let there = file.metadata().map_or(0, |m| m.len());
        if there < offset + size {
            return Ok(());
        }
        match self.hash(file, offset, size)? {
            Ok(found) if found == expected => {}
            Ok(_) => self.fault(name, offset, size, "its bytes are not those of its digest"),
            Err(e) if files::is_shortage(&e) => return Err(Unfinished::Shortage(e)),
            Err(e) => self.fault(name, offset, size, format!("it cannot be read: {e}")),
        }
        Ok(())
    }

    fn hash(&mut self, file: &File, offset: u64, size: u64) -> Result<io::Result<String>, Unfinished> {
        let end = offset + size;
        if next(file, SeekFrom::Data(offset), end) == end
            && let Some(known) = self.zeros.get(&size)
        {
            return Ok(Ok(known.clone()));
        }
        let mut hasher = Sha256::new();
        let mut block = vec![0; BLOCK];
        let (mut at, mut all_zeros) = (offset, true);
        while at < end {
            let data = next(file, SeekFrom::Data(at), end);
            let zeros = [0; 64 << 10];
            while at < data {
                let n = (data - at).min(zeros.len() as u64);
                hasher.update(&zeros[..n as usize]);
                at += n;
                self.go_on()?;
            }
            let hole = next(file, SeekFrom::Hole(at), end);
            all_zeros &= at == end;
            while at < hole {
                self.go_on()?;
                let n = (hole - at).min(BLOCK as u64);
                past_the_cache(file, at, n);
                if let Err(e) = file.read_exact_at(&mut block[..n as usize], at) {
                    return Ok(Err(e));
                }
                past_the_cache(file, at, n);
                hasher.update(&block[..n as usize]);
                at += n;
                self.read += n;
            }
        }
        let found = hex::encode(hasher.finalize());
        if all_zeros {
            self.zeros.insert(size, found.clone());
        }
        Ok(Ok(found))
    }

    fn go_on(&self) -> Result<(), Unfinished> {
        if self.stop.load(Ordering::Relaxed) { Err(Unfinished::Stopped) } else { Ok(()) }
    }
}

/// The start of the next data or hole. A file system that does not report holes has none.
fn next(file: &File, from: SeekFrom, end: u64) -> u64 {
    match (rustix::fs::seek(file, from), from) {
        (Ok(at), _) => at.min(end),
        (Err(Errno::NXIO), _) | (Err(_), SeekFrom::Hole(_)) => end,
        (Err(_), SeekFrom::Data(at)) => at,
        (Err(_), _) => end,
    }
}

/// Drops the file from the page cache, so that the disk is read, and without evicting pages of guests.
#[cfg(target_os = "linux")]
fn past_the_cache(file: &File, offset: u64, bytes: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn past_the_cache(_: &File, _: u64, _: u64) {}
