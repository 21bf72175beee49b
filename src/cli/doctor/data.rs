//! Checks the data directory and the files in it that the service needs to start. No file is opened for writing,
//! locked, or printed.

use std::path::Path;

use super::{
    finding::{Check, Finding},
    probe::{FileKind, FileStatus, HostProbe, Probed, Unseen},
    setup::DoctorSetup,
};
use crate::{
    config,
    drivers::qemu::paths::{self, SOCKET_PATH_LIMIT},
};

const DIRECTORY: Check = Check::new("data.directory", "Data directory", "a directory of this user, mode 0700");
const PATH: Check = Check::new("data.path_length", "Length of its path", "short enough for the sockets below it");
const TOKEN: Check = Check::new("data.admin_token", "Admin token", "admin.token, of this user, mode 0600");
const KEY: Check = Check::new("data.key", "Key", "secret.key, 32 bytes, of this user, mode 0600");
const DATABASE: Check = Check::new("data.database", "Database", "mayfly.db, a SQLite database of this user");

const MAGIC: &[u8] = b"SQLite format 3\0";
const KEY_BYTES: u64 = 32;

struct DataDirFacts {
    uid: u32,
    directory: Probed<FileStatus>,
    token: File,
    key: File,
    database: File,
    /// The first bytes of the database.
    head: Probed<Vec<u8>>,
}

struct File {
    entry: Probed<FileStatus>,
    access: Probed<()>,
}

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Vec<Finding> {
    judge(&look(probe, setup).await, setup)
}

async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> DataDirFacts {
    let file = async |name: &str| {
        let path = setup.at(name);
        let (entry, access) = tokio::join!(probe.entry(&path), probe.may_read_and_write(&path));
        File { entry, access }
    };
    let database = setup.at("mayfly.db");
    let (directory, token, key, db, head) = tokio::join!(
        probe.entry(&setup.data_dir),
        file(config::ADMIN_TOKEN_FILE),
        file("secret.key"),
        file("mayfly.db"),
        probe.read(&database, MAGIC.len()),
    );
    DataDirFacts { uid: probe.uid(), directory, token, key, database: db, head }
}

fn judge(facts: &DataDirFacts, setup: &DoctorSetup) -> Vec<Finding> {
    vec![
        directory(facts, &setup.data_dir),
        path_length(&setup.data_dir),
        database(facts, &setup.at("mayfly.db")),
        key(facts, &setup.at("secret.key")),
        token(facts, &setup.at(config::ADMIN_TOKEN_FILE)),
    ]
}

fn directory(facts: &DataDirFacts, dir: &Path) -> Finding {
    let shown = dir.display();
    let entry = match &facts.directory {
        Ok(entry) => entry,
        Err(Unseen::Absent) => return DIRECTORY.ok(format!("{shown}: does not exist yet; the first start creates it")),
        Err(why) => return DIRECTORY.could_not_look(format!("{shown}: {why}")),
    };
    if entry.kind != FileKind::Directory {
        return DIRECTORY.fail(
            format!("{shown} is not a directory"),
            "move it away, or name another with --data-dir or MAYFLY_DATA_DIR",
        );
    }
    if entry.uid != facts.uid {
        return DIRECTORY.fail(
            format!("{shown} belongs to user {}, but `mayfly doctor` runs as user {}", entry.uid, facts.uid),
            "run the service and `mayfly doctor` as its owner; or name another with --data-dir or MAYFLY_DATA_DIR",
        );
    }
    if entry.mode & 0o077 != 0 {
        return DIRECTORY.fail(
            format!("{shown} is accessible to other users (mode {:04o})", entry.mode),
            format!("restrict it:\n    chmod 700 {}", quoted(dir)),
        );
    }
    DIRECTORY.ok(format!("{shown}, not accessible to other users"))
}

fn path_length(dir: &Path) -> Finding {
    let length = dir.as_os_str().len();
    let limit = SOCKET_PATH_LIMIT - "/guest.sock".len();
    let remedy = "choose a shorter data directory with --data-dir or MAYFLY_DATA_DIR";
    match paths::check(&dir.join("instances")) {
        Err(error) => PATH.fail(error.summary, remedy),
        Ok(()) if length > limit => PATH.fail(format!("{length} bytes; {limit} are allowed"), remedy),
        Ok(()) => PATH.ok(format!("{length} bytes")),
    }
}

fn database(facts: &DataDirFacts, path: &Path) -> Finding {
    let entry = match &facts.database.entry {
        Ok(entry) => entry,
        Err(Unseen::Absent) => return DATABASE.ok("does not exist yet; the first start creates it"),
        Err(why) => return DATABASE.could_not_look(why),
    };
    if let Some(finding) = ours(DATABASE, &facts.database, facts.uid, path) {
        return finding;
    }
    match &facts.head {
        Err(why) => DATABASE.could_not_look(why),
        Ok(head) if head.is_empty() => DATABASE.ok("empty; the first start fills it"),
        Ok(head) if head != MAGIC => DATABASE.fail(
            format!("{} is not a SQLite database", path.display()),
            "move it away to start with an empty one, or restore a backup",
        ),
        Ok(_) => DATABASE.ok(format!("{} KiB", entry.size / 1024)),
    }
}

fn key(facts: &DataDirFacts, path: &Path) -> Finding {
    let written = facts.database.entry.as_ref().is_ok_and(|db| db.size > 0);
    let entry = match &facts.key.entry {
        Ok(entry) => entry,
        Err(Unseen::Absent) if written => {
            return KEY.fail(
                "missing, but the database was written with it",
                "restore secret.key from a backup, or move the database away to start with an empty one",
            );
        }
        Err(Unseen::Absent) => return KEY.ok("does not exist yet; the first start creates it"),
        Err(why) => return KEY.could_not_look(why),
    };
    if let Some(finding) = ours(KEY, &facts.key, facts.uid, path) {
        return finding;
    }
    if entry.size != KEY_BYTES {
        return KEY.fail(
            format!("{} bytes instead of {KEY_BYTES}", entry.size),
            "restore secret.key from a backup: without it the secrets of live vms cannot be read",
        );
    }
    private(KEY, entry, path).unwrap_or_else(|| KEY.ok("readable only by this user"))
}

fn token(facts: &DataDirFacts, path: &Path) -> Finding {
    let entry = match &facts.token.entry {
        Ok(entry) => entry,
        Err(Unseen::Absent) => {
            let started = facts.database.entry.as_ref().is_ok_and(|db| db.size > 0);
            return if started {
                TOKEN.warn(
                    "removed, so commands on this machine have no token",
                    "restart the service, which creates a new one; or set a token in MAYFLY_TOKEN",
                )
            } else {
                TOKEN.ok("does not exist yet; the first start creates it")
            };
        }
        Err(why) => return TOKEN.could_not_look(why),
    };
    if let Some(finding) = ours(TOKEN, &facts.token, facts.uid, path) {
        return finding;
    }
    if entry.size == 0 {
        return TOKEN.fail("admin.token is empty", "remove it and restart the service, which creates a new one");
    }
    private(TOKEN, entry, path).unwrap_or_else(|| TOKEN.ok("readable only by this user"))
}

/// What is wrong with a file that this user must own and be able to use.
fn ours(check: Check, file: &File, uid: u32, path: &Path) -> Option<Finding> {
    let entry = file.entry.as_ref().ok()?;
    let shown = path.display();
    if entry.kind != FileKind::File {
        return Some(check.fail(format!("{shown} is not a file"), "move it away"));
    }
    match &file.access {
        Ok(()) => None,
        Err(Unseen::Denied) => Some(check.fail(
            format!("this user has no access to {shown} (owner {}, mode {:04o})", entry.uid, entry.mode),
            format!("run the service and `mayfly doctor` as one user; user {uid} has no access"),
        )),
        Err(why) => Some(check.could_not_look(why)),
    }
}

fn private(check: Check, entry: &FileStatus, path: &Path) -> Option<Finding> {
    (entry.mode & 0o077 != 0).then(|| {
        check.fail(
            format!("accessible to other users (mode {:04o})", entry.mode),
            format!("restrict it, and treat its content as disclosed:\n    chmod 600 {}", quoted(path)),
        )
    })
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
