//! Settings of the QEMU driver.

use std::{path::PathBuf, time::Duration};

use super::section::{AcceleratorChoice, QemuSection};
use crate::domain::{Arch, NetworkSupport};

#[derive(Clone, Debug)]
pub struct Settings {
    pub instances_dir: PathBuf,
    /// Mayfly's own program, which is started as the gateways of guests.
    pub program: PathBuf,
    /// File with the cached result of the accelerator probe.
    pub probe_file: PathBuf,
    /// `qemu-system-<arch>` on `PATH` when absent.
    pub binary: Option<PathBuf>,
    /// `qemu-img` on `PATH` when absent.
    pub qemu_img: Option<PathBuf>,
    pub accelerator: AcceleratorChoice,
    /// How long the first guest under an accelerator may be silent.
    pub first_guest: Duration,
    /// Size on disk at which the console's log is cut.
    pub console_limit: u64,
    /// Architecture of guests; this host's if absent. Another one is emulated.
    pub arch: Option<Arch>,
    /// What is enforced, and the default.
    pub network: NetworkSupport,
    /// List foreign QEMU processes.
    pub count_foreign: bool,
}

impl Settings {
    /// With the defaults of the section.
    pub fn new(instances_dir: impl Into<PathBuf>, probe_file: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Self::of(&QemuSection::default(), instances_dir, probe_file, program)
    }

    pub fn of(
        section: &QemuSection,
        instances_dir: impl Into<PathBuf>,
        probe_file: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
    ) -> Self {
        Self {
            instances_dir: instances_dir.into(),
            program: program.into(),
            probe_file: probe_file.into(),
            binary: section.binary.clone(),
            qemu_img: section.qemu_img.clone(),
            accelerator: section.accelerator,
            first_guest: Duration::from_secs(section.first_guest_seconds.into()),
            console_limit: section.console_log_bytes,
            arch: None,
            network: section.network_support(),
            count_foreign: true,
        }
    }
}
