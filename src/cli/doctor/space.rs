//! Checks free space on the volumes that hold disks, and whether they support file clones.

use std::path::{Path, PathBuf};

use super::{
    finding::{Check, Finding},
    probe::{FileStatus, HostProbe, Probed, Space, System, Unseen},
    setup::DoctorSetup,
};
use crate::cli::text::bytes;

const DATA: Check = Check::new("host.space", "Free space", "room for a few clones to grow, and for images");
const CLONES: Check =
    Check::new("host.copy_on_write", "Copy-on-write", "the templates' file system clones files without copying them");
const TART: Check = Check::new("tart.space", "Free space (Tart)", "room for every clone to grow");
const APFS: Check = Check::new("tart.apfs", "APFS", "Tart's storage and the data directory on APFS");
const VOLUME: Check = Check::new("tart.one_volume", "One volume", "templates and Tart's storage on the same volume");
const HOME: Check = Check::new("tart.home", "Tart's storage", "a directory of this user, no symbolic link in its path");

const GIB: u64 = 1 << 30;

/// A place that may not be there yet: what holds for it is what holds for the nearest directory that is.
struct NearestDirectory {
    path: PathBuf,
    exists: bool,
    entry: Probed<FileStatus>,
    space: Probed<Space>,
    resolved: Probed<PathBuf>,
}

async fn place(probe: &dyn HostProbe, path: &Path) -> NearestDirectory {
    let mut at = path;
    let mut entry = probe.entry(at).await;
    let exists = entry != Err(Unseen::Absent);
    while entry == Err(Unseen::Absent)
        && let Some(parent) = at.parent()
    {
        at = parent;
        entry = probe.entry(at).await;
    }
    let (space, resolved) = tokio::join!(probe.space(at), probe.resolve(at));
    // The missing directories will be created below the resolved path.
    let rest = path.strip_prefix(at).unwrap_or(Path::new(""));
    let resolved = resolved.map(|dir| if rest.as_os_str().is_empty() { dir } else { dir.join(rest) });
    NearestDirectory { path: path.to_owned(), exists, entry, space, resolved }
}

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Vec<Finding> {
    let system = probe.system();
    let tart = async {
        match &setup.tart.home {
            Some(home) if system == System::Macos && setup.tart.enabled => Some(place(probe, home).await),
            _ => None,
        }
    };
    let (data, tart) = tokio::join!(place(probe, &setup.data_dir), tart);
    let mut findings = vec![room(DATA, &data, system)];
    match (system, tart) {
        (System::Linux, _) => findings.push(copy_on_write(&data)),
        (System::Macos, Some(tart)) => {
            findings.push(room(TART, &tart, system));
            findings.push(home(&tart, probe.uid()));
            let copies = setup.config.drivers.tart.copy_across_volumes;
            findings.push(apfs(&data, &tart, copies));
            findings.push(one_volume(&data, &tart, copies));
        }
        (System::Macos, None) => {}
    }
    findings
}

fn room(check: Check, place: &NearestDirectory, system: System) -> Finding {
    let space = match &place.space {
        Ok(space) => space,
        Err(why) => return check.could_not_look(format!("{}: {why}", place.path.display())),
    };
    // macOS images unpack to tens of GiB, and every clone may grow to its whole disk.
    let (little, fair) = match system {
        System::Macos => (20, 100),
        System::Linux => (2, 10),
    };
    let found = format!("{} of {} free for {}", bytes(space.free), bytes(space.total), place.path.display());
    let remedy = format!(
        "free disk space, or use a larger volume: below {little} GiB guests soon see I/O errors, and {fair} GiB are comfortable"
    );
    match space.free {
        free if free < little * GIB => check.fail(found, remedy),
        free if free < fair * GIB => check.warn(found, remedy),
        _ => check.ok(found),
    }
}

/// A note: QEMU's clones are overlays, which need nothing of the file system; importing a template is what gets faster.
fn copy_on_write(data: &NearestDirectory) -> Finding {
    let name = match &data.space {
        Ok(space) => space.file_system.as_deref(),
        Err(why) => return CLONES.could_not_look(why),
    };
    match name {
        Some(name @ ("btrfs" | "bcachefs")) => CLONES.ok(format!("{name}: yes")),
        Some("xfs") => CLONES.ok("xfs: yes, if it was made with reflink=1, as is usual"),
        Some("zfs") => CLONES.ok("zfs: from version 2.2 on"),
        Some(name @ ("nfs" | "cifs" | "fuse" | "9p")) => CLONES.warn(
            format!("{name}: a file system of another machine or program"),
            "keep the data directory on a local disk: the database and the disks of guests lie there",
        ),
        Some("tmpfs") => CLONES.warn(
            "tmpfs: everything is in memory, and gone after a restart of the host",
            "keep the data directory on a disk; name another with --data-dir or MAYFLY_DATA_DIR",
        ),
        Some(name) => CLONES.ok(format!("{name}: no, and not needed: QEMU's clones are overlays")),
        None => CLONES.ok("an unknown file system; not needed: QEMU's clones are overlays"),
    }
}

fn home(tart: &NearestDirectory, uid: u32) -> Finding {
    let shown = tart.path.display();
    let resolved = match (&tart.entry, &tart.resolved) {
        (Ok(_), Ok(resolved)) => resolved,
        (Err(why), _) | (_, Err(why)) => return HOME.could_not_look(format!("{shown}: {why}")),
    };
    if *resolved != tart.path {
        return HOME.fail(
            format!("{shown} leads to {} through a symbolic link", resolved.display()),
            format!(
                "macOS cannot run guests from such a path; configure the resolved path:\n    drivers.tart.home = \"{}\"",
                resolved.display()
            ),
        );
    }
    match &tart.entry {
        Ok(entry) if tart.exists && entry.uid != uid => HOME.fail(
            format!("{shown} belongs to user {}, but `mayfly doctor` runs as user {uid}", entry.uid),
            "run the service and `mayfly doctor` as its owner",
        ),
        _ if tart.exists => HOME.ok(format!("{shown}")),
        _ => HOME.ok(format!("{shown}: does not exist yet; Tart creates it")),
    }
}

/// What keeps disks from being cloned is fatal, unless the configuration allows copying.
fn uncloned(check: Check, copies: bool, found: String, remedy: &str) -> Finding {
    if copies {
        check.warn(format!("{found}; disks are copied, as the configuration allows"), remedy)
    } else {
        check.fail(found, remedy)
    }
}

fn apfs(data: &NearestDirectory, tart: &NearestDirectory, copies: bool) -> Finding {
    let mut others = Vec::new();
    for place in [data, tart] {
        match &place.space {
            Ok(Space { file_system: Some(name), .. }) if name == "apfs" => {}
            Ok(Space { file_system, .. }) => {
                others.push(format!(
                    "{} is on {}",
                    place.path.display(),
                    file_system.as_deref().unwrap_or("an unknown one")
                ));
            }
            Err(why) => return APFS.could_not_look(format!("{}: {why}", place.path.display())),
        }
    }
    if others.is_empty() {
        return APFS.ok("both on APFS");
    }
    uncloned(
        APFS,
        copies,
        others.join("; "),
        "only APFS clones a disk without copying it: move both to an APFS volume (Disk Utility: APFS, not case-sensitive)",
    )
}

fn one_volume(data: &NearestDirectory, tart: &NearestDirectory, copies: bool) -> Finding {
    match (&data.entry, &tart.entry) {
        (Ok(a), Ok(b)) if a.device == b.device => VOLUME.ok("templates and clones are on one volume"),
        (Ok(_), Ok(_)) => uncloned(
            VOLUME,
            copies,
            format!("{} and {} are on two volumes", data.path.display(), tart.path.display()),
            "a clone across volumes is a copy, which takes minutes and the whole size of the disk: \
             move one of them (--data-dir, drivers.tart.home)",
        ),
        (Err(why), _) | (_, Err(why)) => VOLUME.could_not_look(why),
    }
}
