use std::path::PathBuf;

use crate::domain::{Result, Template, template::*, vm::Budgets};

pub struct Catalog {}
#[derive(Clone, Debug)]
pub struct NewTemplate {
    pub name: String,
    pub driver: String,
    pub os: GuestOs,
    pub arch: Arch,
    pub disk: PathBuf,
    pub disk_format: Option<DiskFormat>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    pub ssh_key: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub cpus: u32,
    pub memory_mib: u32,
    pub handover: Handover,
    pub user: String,
    pub budgets: Budgets,
}
impl Catalog {
    pub async fn register(&self, _: NewTemplate) -> Result<Template> {
        unreachable!()
    }
    pub async fn list(&self) -> Result<Vec<Template>> {
        unreachable!()
    }
    pub async fn get(&self, _: &str) -> Result<Option<Template>> {
        unreachable!()
    }
    pub async fn remove(&self, _: &str) -> Result<()> {
        unreachable!()
    }
}
