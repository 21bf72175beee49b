//! Clones a template into a VM: its files are cloned into a staging directory, and one rename publishes the VM.
//!
//! `tart clone` is not used. It replaces an existing VM of the new name, even a running one, and one unreadable
//! configuration in Tart's home makes it fail for all users.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{fs::SeekFrom, io::Errno};
use uuid::Uuid;

use super::{
    config::{self, CloneShape},
    paths::{self, CONFIG, DISK, NVRAM},
};
use crate::{
    domain::{
        Code, InstanceName, mac::Mac, machine_identity::MachineIdentity, tart_config::Display, template::TemplateFiles,
    },
    drivers::{DriverError, ErrorKind, Result, failure, keep::lock_shared},
    platform::{
        clock,
        files::{self, ignore_not_found},
    },
};

/// Tart locks its home for a moment between a VM's check and its lock, or during a full copy.
const HOME_BUSY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const CHUNK: usize = 1 << 20;

/// A directory in which a VM is built. It is removed if it is not published.
#[derive(Debug)]
pub struct CloneStage {
    dir: PathBuf,
    /// Cancels a copy that is no longer needed.
    given_up: Arc<AtomicBool>,
}

/// How a file was cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Its blocks are shared with the template until they are written.
    CopyOnWrite,
    Copy,
}

impl CloneStage {
    pub fn new(tart_home: &Path, name: &InstanceName) -> io::Result<CloneStage> {
        let staging = paths::staging(tart_home);
        files::ensure_private_dir(&staging)?;
        let dir = staging.join(format!("{name}-{}", Uuid::new_v4()));
        files::create_private_dir(&dir)?;
        Ok(CloneStage { dir, given_up: Arc::default() })
    }

    /// Fills the stage. If this future is dropped, the rest of the work finds the stage removed and ends.
    pub async fn fill(
        &self,
        files: &TemplateFiles,
        config: Vec<u8>,
        shape: ShapeRequest,
        vms: PathBuf,
        copy: bool,
    ) -> Result<Method> {
        let _kept = lock_shared(&files.disk).await?;
        let (dir, given_up) = (self.dir.clone(), self.given_up.clone());
        let (disk, nvram) = (files.disk.clone(), files.nvram.clone());
        let filled = tokio::task::spawn_blocking(move || {
            let nvram = nvram.ok_or_else(|| no_file("nvram"))?;
            let method = clone_disk(&disk, &dir.join(DISK), copy, &given_up)?;
            clone_file(&nvram, &dir.join(NVRAM), true, &given_up)
                .map_err(|e| failure::io(e, Code::CloneFailed, "the template's nvram cannot be cloned"))?;
            let shape = shape.with(unused_mac(&vms));
            let config = config::for_clone(&config, &shape).map_err(|why| {
                DriverError::new(
                    ErrorKind::Permanent,
                    Code::TemplateInvalid,
                    format!("the template's configuration: {why}"),
                )
            })?;
            let write = || -> io::Result<()> {
                use io::Write;
                let mut file = files::create_private(&dir.join(CONFIG))?;
                file.write_all(&config)
            };
            write().map_err(|e| failure::io(e, Code::CloneFailed, "the clone's configuration cannot be written"))?;
            Ok(method)
        });
        filled.await.unwrap_or_else(|error| {
            Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, "cloning was interrupted").source(error))
        })
    }

    /// Publishes the VM. It never replaces an existing one: a directory cannot be renamed onto one that is not empty.
    pub async fn publish(self, tart_home: &Path, name: &InstanceName) -> Result<()> {
        let failed = |error| failure::io(error, Code::CloneFailed, "the clone could not be put in place");
        let vms = paths::vms(tart_home);
        fs::create_dir_all(&vms).map_err(failed)?;
        let _home = lock_home(tart_home).await?;
        let place = vms.join(name.as_str());
        if place.symlink_metadata().is_ok() {
            let summary = format!("a VM called {name} appeared while its clone was made");
            return Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, summary));
        }
        fs::rename(&self.dir, place).map_err(failed)
    }
}

impl Drop for CloneStage {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        discard(&self.dir);
    }
}

/// The configuration of the clone, except for its Ethernet address and its identity.
#[derive(Clone, Debug)]
pub struct ShapeRequest {
    pub cpus: u32,
    pub memory_mib: u32,
    pub display: Option<Display>,
}

impl ShapeRequest {
    fn with(self, mac: Mac) -> CloneShape {
        let identity = MachineIdentity::random();
        CloneShape { cpus: self.cpus, memory_mib: self.memory_mib, mac, identity, display: self.display }
    }
}

const TRASH: &str = "trash-";

/// Removes what earlier attempts at this VM left, and all trash. A copy that still writes there ends because its
/// directory is gone.
pub fn clear(tart_home: &Path, name: &InstanceName) -> io::Result<()> {
    let prefix = format!("{name}-");
    let entries = match fs::read_dir(paths::staging(tart_home)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // The name of a later attempt begins with that of the first one.
        let staged = |n: &str| n.strip_prefix(&prefix).is_some_and(|rest| Uuid::try_parse(rest).is_ok());
        if entry.file_name().to_str().is_some_and(|n| staged(n) || n.starts_with(TRASH)) {
            discard(&entry.path());
        }
    }
    Ok(())
}

/// Removes a directory to which a copy may still be writing. It is renamed first, so that the copy cannot add files.
pub fn discard(dir: &Path) {
    let trash = dir.with_file_name(format!("{TRASH}{}", Uuid::new_v4()));
    match fs::rename(dir, &trash) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return tracing::warn!(%error, dir = %dir.display(), "cannot remove the files of a failed clone"),
    }
    if let Err(error) = ignore_not_found(fs::remove_dir_all(&trash)) {
        tracing::warn!(%error, dir = %trash.display(), "cannot remove the files of a failed clone");
    }
}

/// Takes Tart's lock of its home: `tart run`, `clone` and `import` wait for it when they look at several VMs.
pub async fn lock_home(tart_home: &Path) -> Result<File> {
    let failed = |error| failure::io(error, Code::HostUnavailable, "Tart's home cannot be locked");
    let home = File::open(tart_home).map_err(failed)?;
    let patience = clock::monotonic() + HOME_BUSY;
    loop {
        match home.try_lock() {
            Ok(()) => return Ok(home),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if clock::monotonic() > patience => {
                let summary =
                    format!("a command of Tart holds {} for more than {} s", tart_home.display(), HOME_BUSY.as_secs());
                return Err(DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn no_file(what: &str) -> DriverError {
    let summary =
        format!("the template has no {what} file, which every VM of Tart has: it was made for another driver");
    DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary)
}

/// An Ethernet address that no VM of this host has, running or not. Two VMs with one address would get one IP
/// address.
fn unused_mac(vms: &Path) -> Mac {
    let entries = fs::read_dir(vms).into_iter().flatten().flatten();
    let taken: Vec<Mac> = entries.filter_map(|e| config::mac_of(&fs::read(e.path().join(CONFIG)).ok()?)).collect();
    loop {
        let mac = Mac::random();
        if !taken.contains(&mac) {
            return mac;
        }
    }
}

fn clone_disk(from: &Path, to: &Path, copy: bool, given_up: &AtomicBool) -> Result<Method> {
    match clone_file(from, to, copy, given_up) {
        Ok(Method::Copy) => {
            tracing::debug!(from = %from.display(), to = %to.display(), "copied the disk, because its file system does not support clones");
            Ok(Method::Copy)
        }
        Ok(method) => Ok(method),
        Err(error) if cannot_clone(&error) => {
            let summary = format!(
                "the template's disk {} cannot be cloned to {}: put the data directory and Tart's home on one APFS volume, or \
                 allow full copies with `drivers.tart.copy_across_volumes`",
                from.display(),
                to.display()
            );
            Err(DriverError::new(ErrorKind::Host, Code::CloneFailed, summary).source(error))
        }
        Err(error) => Err(failure::io(error, Code::CloneFailed, "the template's disk cannot be cloned")),
    }
}

/// Clones one file, or copies it if that is not possible and `copy` allows it. The template's files are read-only,
/// the clone's are not.
fn clone_file(from: &Path, to: &Path, copy: bool, given_up: &AtomicBool) -> io::Result<Method> {
    let method = match reflink_copy::reflink(from, to) {
        Ok(()) => Method::CopyOnWrite,
        Err(error) if copy && cannot_clone(&error) => {
            sparse_copy(from, to, given_up)?;
            Method::Copy
        }
        Err(error) => return Err(error),
    };
    fs::set_permissions(to, Permissions::from_mode(0o600))?;
    Ok(method)
}

/// Another volume, or a file system without clones.
fn cannot_clone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    // On Linux, two of these have the same value.
    let cannot = [Errno::XDEV, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::NOSYS];
    errno.is_some_and(|errno| cannot.contains(&errno))
}

/// Copies a file without its holes. A disk of a hundred gigabytes usually contains only a few.
fn sparse_copy(from: &Path, to: &Path, given_up: &AtomicBool) -> io::Result<()> {
    let source = File::open(from)?;
    let target = files::create_private(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let (begin, end) = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(begin) => (begin, rustix::fs::seek(&source, SeekFrom::Hole(begin))?),
            Err(Errno::NXIO) => break,
            // The file system does not report holes.
            Err(_) => (at, length),
        };
        at = begin;
        while at < end {
            if given_up.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the copy was cancelled"));
            }
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let got = source.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the template's disk became shorter"));
            }
            target.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::domain::VmId;

    const LINUX: &[u8] = include_bytes!("fixtures/config-linux.json");

    struct Home {
        dir: tempfile::TempDir,
        files: TemplateFiles,
    }

    impl Home {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = |name: &str| dir.path().join(name);
            let disk = File::options().write(true).create_new(true).open(file("disk")).unwrap();
            disk.set_len(64 << 20).unwrap();
            disk.write_all_at(b"begin", 0).unwrap();
            disk.write_all_at(b"middle", (17 << 20) + 3).unwrap();
            fs::write(file("nvram"), b"nvram").unwrap();
            for name in ["disk", "nvram"] {
                fs::set_permissions(file(name), Permissions::from_mode(0o444)).unwrap();
            }
            let files = TemplateFiles { disk: file("disk"), nvram: Some(file("nvram")), ..TemplateFiles::default() };
            Self { dir, files }
        }

        fn home(&self) -> PathBuf {
            let home = self.dir.path().join("home");
            fs::create_dir_all(&home).unwrap();
            home
        }

        async fn fill(&self, stage: &CloneStage) -> Result<Method> {
            let shape = ShapeRequest { cpus: 3, memory_mib: 512, display: None };
            stage.fill(&self.files, LINUX.to_vec(), shape, paths::vms(&self.home()), true).await
        }
    }

    fn entries(dir: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_clone_is_whole_sparse_and_writable() {
        let home = Home::new();
        let name = VmId::mint().instance();
        let stage = CloneStage::new(&home.home(), &name).unwrap();
        home.fill(&stage).await.unwrap();
        stage.publish(&home.home(), &name).await.unwrap();

        let vm = paths::vms(&home.home()).join(name.as_str());
        let disk = fs::read(vm.join(DISK)).unwrap();
        assert!(disk == fs::read(&home.files.disk).unwrap());
        assert!(disk[17 << 20..].starts_with(b"\0\0\0middle"));
        let meta = vm.join(DISK).metadata().unwrap();
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks of {} bytes", meta.blocks(), meta.len());
        for file in [CONFIG, DISK, NVRAM] {
            assert_eq!(vm.join(file).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        let config = config::parse(&fs::read(vm.join(CONFIG)).unwrap()).unwrap();
        assert_eq!((config.cpus, config.memory_mib()), (3, 512));
        assert_ne!(Some(config.mac), config::mac_of(LINUX), "an address of its own");
        assert_eq!(entries(&paths::staging(&home.home())), [""; 0]);
    }

    #[tokio::test]
    async fn nothing_that_is_there_is_replaced() {
        let home = Home::new();
        let name = VmId::mint().instance();
        let place = paths::vms(&home.home()).join(name.as_str());
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("precious"), "x").unwrap();
        let stage = CloneStage::new(&home.home(), &name).unwrap();
        home.fill(&stage).await.unwrap();
        let error = stage.publish(&home.home(), &name).await.unwrap_err();
        assert_eq!((error.kind, error.code), (ErrorKind::Retry, Code::CloneFailed));
        assert_eq!(entries(&place), ["precious"]);
        assert_eq!(entries(&paths::staging(&home.home())), [""; 0], "what is not published is removed");
    }

    #[tokio::test]
    async fn what_was_cleared_is_never_published() {
        let home = Home::new();
        let name = VmId::mint().instance();
        let stage = CloneStage::new(&home.home(), &name).unwrap();
        let other = CloneStage::new(&home.home(), &VmId::mint().instance()).unwrap();
        let next = CloneStage::new(&home.home(), &name.vm_id().instance_of(2)).unwrap();
        clear(&home.home(), &name).unwrap();
        assert!(home.fill(&stage).await.is_err());
        assert!(stage.publish(&home.home(), &name).await.is_err());
        assert!(!paths::vms(&home.home()).join(name.as_str()).exists());
        assert!(other.dir.exists(), "another VM's stage");
        assert!(next.dir.exists(), "another attempt's stage");
    }

    #[tokio::test]
    async fn the_home_is_locked_while_a_vm_is_put_into_it() {
        let home = Home::new();
        let name = VmId::mint().instance();
        let held = lock_home(&home.home()).await.unwrap();
        let stage = CloneStage::new(&home.home(), &name).unwrap();
        home.fill(&stage).await.unwrap();
        let path = home.home();
        let publish = tokio::spawn(async move { stage.publish(&path, &name).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(entries(&paths::vms(&home.home())), [""; 0]);
        drop(held);
        publish.await.unwrap().unwrap();
        assert_eq!(entries(&paths::vms(&home.home())).len(), 1);
    }

    #[test]
    fn a_cancelled_copy_ends() {
        let home = Home::new();
        let error = sparse_copy(&home.files.disk, &home.dir.path().join("copy"), &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn without_leave_to_copy_the_remedy_is_named() {
        let home = Home::new();
        let to = home.dir.path().join("copy");
        match clone_disk(&home.files.disk, &to, false, &AtomicBool::new(false)) {
            Ok(method) => assert_eq!(method, Method::CopyOnWrite, "this file system can clone"),
            Err(error) => {
                assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::CloneFailed));
                for part in
                    [home.files.disk.to_str().unwrap(), to.to_str().unwrap(), "drivers.tart.copy_across_volumes"]
                {
                    assert!(error.summary.contains(part), "{error}");
                }
            }
        }
    }
}
