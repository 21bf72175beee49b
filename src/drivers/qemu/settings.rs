//! What the configuration says of QEMU.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::domain::Arch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceleratorChoice {
    /// The best one that a guest really runs under.
    #[default]
    Auto,
    Kvm,
    Hvf,
    Tcg,
}

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
}
