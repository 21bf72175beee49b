use std::{
    collections::BTreeSet,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    process::Command,
    slice,
    time::{Duration, SystemTime},
};

use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};

use super::*;
use crate::{
    domain::{
        Arch, BudgetsPatch, GuestOs, Handover,
        template::DiskFormat,
        version::{HeldKind, PruneRequest, VersionUsage},
    },
    registry::oci,
    templates::manifest::RecordedPiece,
};

mod register;
mod space;
mod verify;
mod versions;

/// What vms need, and what they were told.
#[derive(Debug, Default)]
pub(super) struct Vms {
    /// In the list that is asked for first.
    listed: Mutex<BTreeSet<String>>,
    /// When it is asked for one.
    needed: Mutex<BTreeSet<String>>,
    /// Images whose pulls go on.
    pulling: Mutex<BTreeSet<String>>,
    told: Mutex<Vec<String>>,
}

impl Vms {
    pub fn of(digests: &[&str]) -> Arc<Vms> {
        let digests: BTreeSet<String> = digests.iter().map(|d| (*d).to_owned()).collect();
        Arc::new(Vms { listed: Mutex::new(digests.clone()), needed: Mutex::new(digests), ..Vms::default() })
    }

    fn none(&self) {
        self.listed.lock().clear();
        self.needed.lock().clear();
    }
}

#[async_trait::async_trait]
impl TemplateUsage for Vms {
    async fn needed(&self) -> Result<BTreeSet<String>> {
        Ok(self.listed.lock().clone())
    }

    async fn pulling(&self) -> Result<BTreeSet<String>> {
        Ok(self.pulling.lock().clone())
    }

    async fn needs(&self, digest: &str) -> Result<bool> {
        Ok(self.needed.lock().contains(digest))
    }

    async fn pruned(&self, held: &VersionUsage) {
        self.told.lock().push(held.digest.clone());
    }
}

/// The digests of what can be pruned, which then is.
async fn removed(catalog: &Catalog) -> Vec<String> {
    let pruned = catalog.prune(&PruneRequest::default()).await.unwrap();
    pruned.removed.into_iter().map(|held| held.digest).collect()
}

/// A catalog in a directory beside the files that templates are made of.
struct Fixture {
    dir: tempfile::TempDir,
    catalog: Catalog,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        fs::write(dir.path().join("disk.raw"), vec![7; 4096]).unwrap();
        fs::write(dir.path().join("kernel"), "a kernel").unwrap();
        Fixture { dir, catalog }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str, mode: u32) -> PathBuf {
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        fs::write(self.at(name), key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
        self.at(name)
    }

    fn template(&self, name: &str) -> NewTemplate {
        NewTemplate {
            os: Some(GuestOs::Linux),
            arch: Some(Arch::X86_64),
            cpus: Some(1),
            memory_mib: Some(192),
            ..NewTemplate::of_disk(name, self.at("disk.raw"))
        }
    }

    /// Everything in the catalog's directory, for "nothing is left".
    fn entries(&self) -> Vec<String> {
        let mut entries = Vec::new();
        for dir in ["", "names", "staging"] {
            for entry in fs::read_dir(self.at("templates").join(dir)).unwrap() {
                entries.push(format!("{dir}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        entries.sort();
        entries
    }

    async fn refused(&self, new: NewTemplate) -> Vec<(String, String)> {
        let error = self.catalog.register(new).await.unwrap_err();
        assert_eq!(error.code, Code::TemplateInvalid, "{error}");
        error.fields.into_iter().map(|f| (f.pointer, f.detail)).collect()
    }

    async fn refused_for(&self, new: NewTemplate) -> String {
        let fields = self.refused(new).await;
        assert_eq!(fields.len(), 1, "{fields:?}");
        fields.into_iter().map(|(pointer, _)| pointer).collect()
    }
}

const EMPTY: [&str; 3] = ["/.lock", "/names", "/staging"];

const TART_CONFIG: &str = r#"{"version":1,"os":"linux","arch":"arm64","cpuCountMin":2,"cpuCount":4,"memorySizeMin":1073741824,
 "memorySize":4294967296,"macAddress":"7a:65:e4:3f:b2:51","display":{"width":1024,"height":768}}"#;

fn of_tart(f: &Fixture, name: &str, config: &str) -> NewTemplate {
    fs::write(f.at("config.json"), config).unwrap();
    fs::write(f.at("nvram.bin"), "nvram").unwrap();
    NewTemplate {
        config: Some(f.at("config.json")),
        nvram: Some(f.at("nvram.bin")),
        ..NewTemplate::of_disk(name, f.at("disk.raw"))
    }
}

/// Another version, without a name.
async fn version(f: &Fixture, cpus: u32) -> Template {
    f.catalog.register(NewTemplate { name: None, cpus: Some(cpus), ..f.template("") }).await.unwrap()
}

async fn previous(f: &Fixture, name: &str) -> Vec<String> {
    f.catalog.status(name).await.unwrap().previous.into_iter().map(|t| t.digest).collect()
}
