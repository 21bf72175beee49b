//! A request to register a template.

use std::path::PathBuf;

use crate::domain::{
    Arch, BudgetsPatch, GuestOs, Handover, NetworkMode, ready_check::ReadyCheck, template::DiskFormat,
};

/// A template to be registered. Its files are imported and not needed afterwards. Settings that are `None` are taken
/// from `config` if it is given, else they have their defaults.
#[derive(Clone, Debug)]
pub struct NewTemplate {
    /// `None`: it is available only by its digest.
    pub name: Option<String>,
    pub driver: Option<String>,
    pub os: Option<GuestOs>,
    pub arch: Option<Arch>,
    pub disk: PathBuf,
    /// `None`, without `config`: detected from the file, if its name and its content agree.
    pub disk_format: Option<DiskFormat>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    /// A Tart VM's `config.json`; makes this a template of the `tart` driver.
    pub config: Option<PathBuf>,
    /// A Tart VM's `nvram.bin`.
    pub nvram: Option<PathBuf>,
    pub ssh_key: Option<PathBuf>,
    /// A file with the password of `user`; its last line end does not count.
    pub ssh_password: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    pub network: Option<NetworkMode>,
    pub ready: Option<ReadyCheck>,
    pub budgets: BudgetsPatch,
}

impl NewTemplate {
    /// A template with default settings, from a disk image.
    pub fn of_disk(name: impl Into<String>, disk: impl Into<PathBuf>) -> Self {
        Self {
            name: Some(name.into()),
            driver: None,
            os: None,
            arch: None,
            disk: disk.into(),
            disk_format: None,
            kernel: None,
            initramfs: None,
            firmware: None,
            config: None,
            nvram: None,
            ssh_key: None,
            ssh_password: None,
            cmdline: None,
            cpus: None,
            memory_mib: None,
            handover: None,
            user: None,
            network: None,
            ready: None,
            budgets: BudgetsPatch::default(),
        }
    }
}
