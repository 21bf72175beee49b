//! Clones a template into a VM: its files are cloned into a staging directory, and one rename publishes the VM.
//!
//! `tart clone` is not used. It replaces an existing VM of the new name, even a running one, and one unreadable
//! configuration in Tart's home makes it fail for all users.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    config::{self, CloneShape},
    paths::{self, CONFIG, DISK, NVRAM},
};
use crate::{
    domain::{
        Code, InstanceName, mac::Mac, machine_identity::MachineIdentity, tart_config::Display, template::TemplateFiles,
    },
    drivers::{
        DriverError, ErrorKind, Result, failure,
        file_clone::{CloneMethod, WithoutClones, clone_disk, clone_file},
        stage_dir::{self, StageDir},
        template_lock::lock_shared,
    },
    platform::{clock, files},
};

/// Tart locks its home for a moment between a VM's check and its lock, or during a full copy.
const HOME_BUSY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A VM that is being built.
#[derive(Debug)]
pub struct CloneStage(StageDir);

impl CloneStage {
    pub fn new(tart_home: &Path, name: &InstanceName) -> io::Result<CloneStage> {
        StageDir::new(&paths::staging(tart_home), name).map(CloneStage)
    }

    /// Fills the stage. If this future is dropped, the rest of the work finds the stage removed and ends.
    pub async fn fill(
        &self,
        files: &TemplateFiles,
        config: Vec<u8>,
        shape: ShapeRequest,
        vms: PathBuf,
        without: WithoutClones,
    ) -> Result<CloneMethod> {
        let _kept = lock_shared(&files.disk).await?;
        let (dir, given_up) = (self.0.path().to_owned(), self.0.given_up());
        let (disk, nvram) = (files.disk.clone(), files.nvram.clone());
        let filled = tokio::task::spawn_blocking(move || {
            let nvram = nvram.ok_or_else(|| no_file("nvram"))?;
            let method = clone_disk(&disk, &dir.join(DISK), without, &given_up)?;
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
        fs::rename(self.0.path(), place).map_err(failed)
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

/// Removes what earlier attempts at this VM left.
pub fn clear(tart_home: &Path, name: &InstanceName) -> io::Result<()> {
    stage_dir::clear(&paths::staging(tart_home), name)
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

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    };

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

        async fn fill(&self, stage: &CloneStage) -> Result<CloneMethod> {
            let shape = ShapeRequest { cpus: 3, memory_mib: 512, display: None };
            stage.fill(&self.files, LINUX.to_vec(), shape, paths::vms(&self.home()), WithoutClones::Copy).await
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
        assert!(other.0.path().exists(), "another VM's stage");
        assert!(next.0.path().exists(), "another attempt's stage");
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
}
