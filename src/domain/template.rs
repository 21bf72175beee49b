//! A template: a bootable image ready to be cloned, identified by its digest.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BudgetsPatch, NetworkMode, ready_check::ReadyCheck};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum GuestOs {
    Linux,
    Macos,
}

impl GuestOs {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Arch {
    #[serde(rename = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    pub fn of_this_host() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "aarch64" => Some(Arch::Aarch64),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DiskFormat {
    Raw,
    Qcow2,
    /// Apple's sparse container, for macOS 26 and later.
    Asif,
}

impl DiskFormat {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How the guest is provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// A NoCloud volume labelled `cidata`, read by cloud-init (or a subset of it) while the guest boots.
    Seed,
    /// Upload and start over SSH when the guest answers.
    Ssh,
    /// Upload and start through the guest agent, over the hypervisor's own channel. Needs no network.
    Agent,
}

/// Files of a template, absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateFiles {
    pub disk: PathBuf,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    /// UEFI firmware image; without one and without a kernel the hypervisor's own BIOS boots the disk.
    pub firmware: Option<PathBuf>,
    /// The VM's configuration, in the hypervisor's own format (Tart's `config.json`).
    pub config: Option<PathBuf>,
    /// The firmware's variables (Tart's `nvram.bin`).
    pub nvram: Option<PathBuf>,
    pub ssh_key: Option<PathBuf>,
    /// File with the password for the SSH login, if there is no key.
    pub ssh_password: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    pub name: String,
    /// `sha256:…` over the template's manifest, which holds the digest of each of its files.
    pub digest: String,
    pub driver: String,
    pub os: GuestOs,
    pub arch: Arch,
    pub disk_format: DiskFormat,
    /// Size of the disk as the guest sees it, in bytes.
    pub disk_virtual_bytes: u64,
    /// Space that the template's files take on this host, in bytes.
    pub size_bytes: u64,
    pub cpus: u32,
    pub memory_mib: u32,
    /// Kernel command line; only with a kernel.
    pub cmdline: Option<String>,
    pub handover: Handover,
    /// The user that runs the runner in the guest, also for the SSH login.
    pub user: String,
    /// What its guests may reach, unless the request or the pool says it.
    pub network: Option<NetworkMode>,
    /// What has to hold in its guests before their runner is started.
    pub ready: Option<ReadyCheck>,
    /// Those that it sets itself; for the others the service's defaults count.
    pub budgets: BudgetsPatch,
    pub files: TemplateFiles,
    pub created_at: Timestamp,
}
