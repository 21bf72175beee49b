//! Settings of the driver for Cloud Hypervisor.

use std::path::PathBuf;

use super::section::CloudHypervisorSection;
use crate::domain::NetworkSupport;

#[derive(Clone, Debug)]
pub struct Settings {
    pub instances_dir: PathBuf,
    /// Mayfly's own program, which is started as the supervisors of hypervisors and the gateways of guests.
    pub program: PathBuf,
    /// `cloud-hypervisor` on `PATH` when absent.
    pub binary: Option<PathBuf>,
    /// `qemu-img` on `PATH` when absent.
    pub qemu_img: Option<PathBuf>,
    /// Size on disk at which the console's log is cut.
    pub console_limit: u64,
    /// What is enforced, and the default.
    pub network: NetworkSupport,
    /// List foreign guests.
    pub count_foreign: bool,
}

impl Settings {
    /// With the defaults of the section.
    pub fn new(instances_dir: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        Self::of(&CloudHypervisorSection::default(), instances_dir, program)
    }

    pub fn of(
        section: &CloudHypervisorSection,
        instances_dir: impl Into<PathBuf>,
        program: impl Into<PathBuf>,
    ) -> Self {
        Self {
            instances_dir: instances_dir.into(),
            program: program.into(),
            binary: section.binary.clone(),
            qemu_img: section.qemu_img.clone(),
            console_limit: section.console_log_bytes,
            network: section.network_support(),
            count_foreign: true,
        }
    }
}
