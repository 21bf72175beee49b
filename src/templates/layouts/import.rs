//! Imports a template from another layout.

use std::path::Path;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha256};

use super::{
    ImportRequest, MacMachine, Notice, Notices, Policy, TemplateLayout, Tools, bundle, cloud_hypervisor, image,
    macosvm, payload::MachineIdentity, tart,
};
use crate::{
    domain::{Arch, Error, GuestOs, Result, mac::Mac, template::DiskFormat},
    templates::{Catalog, NewTemplate, catalog::workspace::CatalogWorkspace},
};

/// A source in the catalog's layout, to be registered while this exists.
#[derive(Debug)]
pub struct PreparedImport {
    pub template: NewTemplate,
    pub notices: Vec<Notice>,
    _work: CatalogWorkspace,
}

/// Reads, validates and converts a source. The source is not changed, and nothing is visible until the template is
/// registered.
pub async fn import(catalog: &Catalog, tools: &Tools, request: ImportRequest) -> Result<PreparedImport> {
    let work = catalog.workspace().await?;
    let from = request.from.obtain(work.path()).await?;
    let mut notices = Notices::default();
    let template = match request.layout {
        TemplateLayout::Tart => {
            let discard_memory = request.discard_memory;
            let (found, noticed) = super::blocking(move || {
                let mut notices = Notices::default();
                tart::read(&from, discard_memory, &mut notices).map(|found| (found, notices))
            })
            .await?;
            notices = noticed;
            NewTemplate { disk: found.disk, config: Some(found.config), nvram: Some(found.nvram), ..request.template }
        }
        TemplateLayout::ShoesVz | TemplateLayout::Macosvm => {
            let (layout, identity, mac, outside) =
                (request.layout, request.identity, request.mac, request.allow_outside);
            let config = work.path().join(tart::CONFIG);
            let (disk, nvram, noticed, config) = super::blocking(move || {
                let mut notices = Notices::default();
                let (disk, nvram, machine) = if layout == TemplateLayout::ShoesVz {
                    let found = bundle::read(&from, &mut notices)?;
                    (found.disk, found.aux, found.machine)
                } else {
                    let found = macosvm::read(&from, outside, &mut notices)?;
                    (found.disk, found.aux, found.machine)
                };
                write_config(&config, machine, identity, mac, &mut notices)?;
                Ok((disk, nvram, notices, config))
            })
            .await?;
            notices = noticed;
            NewTemplate {
                os: Some(GuestOs::Macos),
                arch: Some(Arch::Aarch64),
                disk,
                disk_format: Some(DiskFormat::Raw),
                config: Some(config),
                nvram: Some(nvram),
                ..request.template
            }
        }
        TemplateLayout::Qcow2 | TemplateLayout::Raw => {
            image::import(tools, catalog.space(), &from, work.path(), request, &mut notices).await?
        }
        TemplateLayout::CloudHypervisor => {
            let (extract_kernel, mut new) = (request.extract_kernel, request.template.clone());
            let (disk, new, noticed) = super::blocking(move || {
                let mut notices = Notices::default();
                let disk = cloud_hypervisor::read(&from, extract_kernel, &mut new, &mut notices)?;
                Ok((disk, new, notices))
            })
            .await?;
            notices = noticed;
            let request = ImportRequest { layout: TemplateLayout::Qcow2, template: new, ..request };
            image::import(tools, catalog.space(), &disk, work.path(), request, &mut notices).await?
        }
    };
    Ok(PreparedImport { template, notices: notices.0, _work: work })
}

fn write_config(path: &Path, machine: MacMachine, identity: Policy, mac: Policy, notices: &mut Notices) -> Result<()> {
    let machine = match identity {
        Policy::Keep => machine,
        Policy::Regenerate => MacMachine { identity: fresh_identity(notices), ..machine },
    };
    let address = match (mac, machine.mac) {
        (Policy::Keep, Some(mac)) => mac,
        (Policy::Keep, None) => {
            notices.add("macAddress", "was made up, because the source has none");
            mac_of(&machine.identity)
        }
        (Policy::Regenerate, _) => mac_of(&machine.identity),
    };
    std::fs::write(path, tart::config_of(&machine, address).to_bytes()).map_err(Error::internal)
}

pub(super) fn fresh_identity(notices: &mut Notices) -> MachineIdentity {
    let mut ecid = [0; 8];
    SystemRandom::new().fill(&mut ecid).expect("the operating system gives randomness");
    notices.add(
        "ecid",
        "is a new one: the guest has another serial number, and what is bound to the old one has to be set up again",
    );
    // Zero means none.
    MachineIdentity::new(u64::from_be_bytes(ecid).max(1))
}

/// The template's own Ethernet address, which clones do not get. Derived from the machine's identity, so that the
/// same source always gives the same template.
fn mac_of(identity: &MachineIdentity) -> Mac {
    let digest = Sha256::digest([b"mac".as_slice(), &identity.ecid().to_be_bytes()].concat());
    Mac::local(*digest.first_chunk().expect("a digest is longer"))
}
