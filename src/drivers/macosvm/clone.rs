//! Clones a template for an instance: disk, auxiliary storage and description are made in a staging directory, and one
//! rename publishes them. macosvm's option `--ephemeral` is not used: it clones into the template's directory, and a
//! killed macosvm leaves its clones behind.

use std::{fs, io, path::Path};

use super::{
    description::{VmDescription, VmShape, mac_of},
    paths::{AUX, DESCRIPTION, DISK, MacosvmPaths},
    settings::Settings,
};
use crate::{
    domain::{
        Code, GuestOs, InstanceName,
        mac::Mac,
        tart_config::{Display, TartConfig},
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        DriverError, ErrorKind, InstanceSpec, Result,
        failure::{self, shown},
        file_clone::{WithoutClones, clone_disk, clone_file},
        stage_dir::StageDir,
        template_lock::lock_shared,
    },
    platform::files,
};

/// The template's machine, if a VM of this spec can be created from it.
pub async fn template(spec: &InstanceSpec) -> Result<TartConfig> {
    let refuse = |summary: String| Err(DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary));
    let (Some(path), Some(_)) = (&spec.files.config, &spec.files.nvram) else {
        return refuse(
            "the template has no machine of a macOS guest: it needs a config.json and an auxiliary storage".to_owned(),
        );
    };
    let bytes = match tokio::fs::read(path).await {
        Ok(bytes) => bytes,
        Err(error) => {
            return refuse(format!("the template's configuration {} cannot be read: {error}", path.display()));
        }
    };
    let config = match TartConfig::parse(&bytes) {
        Ok(config) => config,
        Err(why) => {
            return refuse(format!(
                "the template's configuration {} was not understood: {why}; found: {}",
                path.display(),
                shown(&bytes)
            ));
        }
    };
    if config.os != GuestOs::Macos {
        return refuse(
            "the template's guest runs Linux, and this driver runs macOS guests: use the driver tart or qemu"
                .to_owned(),
        );
    }
    if config.format != DiskFormat::Raw || spec.disk_format != DiskFormat::Raw {
        let format = if config.format == DiskFormat::Raw { spec.disk_format } else { config.format };
        return refuse(format!(
            "the template's disk is in the format {}, and macosvm opens raw disks only: convert it",
            format.as_str()
        ));
    }
    match config.too_small(spec.cpus, spec.memory_mib) {
        Some(why) => Err(DriverError::new(ErrorKind::Permanent, Code::SizeImpossible, why)),
        None => Ok(config),
    }
}

/// Makes the instance. If this future is dropped, the rest of the work finds its directory removed and ends.
pub async fn make(settings: &Settings, spec: &InstanceSpec, config: TartConfig, paths: &MacosvmPaths) -> Result<()> {
    let failed = |error| failure::io(error, Code::CloneFailed, "the instance cannot be prepared");
    let _kept = lock_shared(&spec.files.disk).await?;
    let stage = StageDir::new(&settings.staging(), &spec.name).map_err(failed)?;
    let without = match settings.copy_without_clones || !cfg!(target_os = "macos") {
        true => WithoutClones::Copy,
        false => WithoutClones::Refuse {
            remedy: "put the data directory on an APFS volume, or allow full copies with \
                     `drivers.macosvm.copy_without_clones`",
        },
    };
    let shape = VmShape {
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        mac: unused_mac(&settings.instances_dir),
        identity: settings.identity,
        display: settings.display.as_deref().and_then(Display::parse),
        network: settings.network.clone(),
    };
    let description = VmDescription::of_clone(&config, &shape, paths).map_err(|why| {
        DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, format!("the template's machine {why}"))
    })?;
    let (dir, given_up, files) = (stage.path().to_owned(), stage.given_up(), spec.files.clone());
    let filled = tokio::task::spawn_blocking(move || fill(&dir, &files, &description, without, &given_up));
    filled.await.unwrap_or_else(|error| {
        Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, "cloning was interrupted").source(error))
    })?;
    publish(&stage, paths, &spec.name)
}

fn fill(
    dir: &Path,
    files: &TemplateFiles,
    description: &VmDescription,
    without: WithoutClones,
    given_up: &std::sync::atomic::AtomicBool,
) -> Result<()> {
    let Some(aux) = &files.nvram else {
        return Err(failure::io(io::ErrorKind::NotFound.into(), Code::CloneFailed, "aux"));
    };
    clone_disk(&files.disk, &dir.join(DISK), without, given_up)?;
    clone_file(aux, &dir.join(AUX), true, given_up)
        .map_err(|e| failure::io(e, Code::CloneFailed, "the template's auxiliary storage cannot be cloned"))?;
    let write = || -> io::Result<()> {
        use io::Write;
        files::create_private(&dir.join(DESCRIPTION))?.write_all(&description.to_bytes().map_err(io::Error::other)?)
    };
    write().map_err(|e| failure::io(e, Code::CloneFailed, "the clone's description cannot be written"))
}

fn publish(stage: &StageDir, paths: &MacosvmPaths, name: &InstanceName) -> Result<()> {
    if paths.dir.symlink_metadata().is_ok() {
        let summary = format!("an instance called {name} appeared while its clone was made");
        return Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, summary));
    }
    fs::rename(stage.path(), &paths.dir)
        .map_err(|error| failure::io(error, Code::CloneFailed, "the clone cannot be renamed to its place"))
}

/// An Ethernet address that no instance has, running or not. Two VMs with one address would get one IP address.
fn unused_mac(instances_dir: &Path) -> Mac {
    let entries = fs::read_dir(instances_dir).into_iter().flatten().flatten();
    let taken: Vec<Mac> = entries.filter_map(|e| mac_of(&fs::read(e.path().join(DESCRIPTION)).ok()?)).collect();
    loop {
        let mac = Mac::random();
        if !taken.contains(&mac) {
            return mac;
        }
    }
}
