//! What the driver is made with.

use std::{path::PathBuf, time::Duration};

use super::section::{AcceleratorChoice, QemuSection};
use crate::domain::Arch;

#[derive(Clone, Debug)]
pub struct Settings {
    pub instances_dir: PathBuf,
    /// Where the accelerator probe's answer is remembered.
    pub probe_file: PathBuf,
    /// `qemu-system-<arch>` on `PATH` when absent.
    pub binary: Option<PathBuf>,
    /// `qemu-img` on `PATH` when absent.
    pub qemu_img: Option<PathBuf>,
    pub accelerator: AcceleratorChoice,
    /// How long the first guest under an accelerator may give no sign of life.
    pub first_guest: Duration,
    /// Guests' processor: this host's when absent. Another one is emulated.
    pub arch: Option<Arch>,
    /// Show the QEMU processes that are not ours.
    pub count_foreign: bool,
}

impl Settings {
    pub fn new(instances_dir: impl Into<PathBuf>, probe_file: impl Into<PathBuf>) -> Self {
        Self {
            instances_dir: instances_dir.into(),
            probe_file: probe_file.into(),
            binary: None,
            qemu_img: None,
            accelerator: AcceleratorChoice::default(),
            first_guest: Duration::from_secs(45),
            arch: None,
            count_foreign: true,
        }
    }

    /// With what the section says.
    pub fn with(self, section: &QemuSection) -> Settings {
        Settings {
            binary: section.binary.clone(),
            qemu_img: section.qemu_img.clone(),
            accelerator: section.accelerator,
            first_guest: Duration::from_secs(section.first_guest_seconds.into()),
            ..self
        }
    }
}
