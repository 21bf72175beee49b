//! Exports a template into another layout.

use super::{
    ExportRequest, Exported, MacMachine, Notices, Policy, TemplateLayout, Tools, WrittenFile, bundle, image,
    import::fresh_identity, macosvm, refused, source, tart,
};
use crate::{
    domain::{
        Arch, Code, Error, GuestOs, Result, Template,
        mac::Mac,
        tart_config::{self, TartConfig},
        template::DiskFormat,
    },
    templates::Catalog,
};

/// Exports a template to a path that does not exist. It appears there only when complete.
pub async fn export(catalog: &Catalog, tools: &Tools, template: Template, request: ExportRequest) -> Result<Exported> {
    if let Some(error) = cannot(&template, request.layout) {
        return Err(error);
    }
    let mut notices = Notices::default();
    for (field, given) in
        [("ssh_key", template.files.ssh_key.is_some()), ("ssh_password", template.files.ssh_password.is_some())]
    {
        if given {
            notices.add(field, "does not go along: secrets stay in the catalog");
        }
    }
    notices.add("handover", "does not go along, nor do the user and the budgets: they are Mayfly's own");
    let stage = request.to.stage(catalog).await?;
    let files = if request.layout.is_image() {
        let files = image::export(tools, &template, request.layout, &stage, &mut notices).await?;
        request.to.deliver(stage, files).await?
    } else {
        let (written, noticed) = super::blocking(move || {
            let files = write(&template, &request, stage, &mut notices)?;
            Ok((files, notices))
        })
        .await?;
        notices = noticed;
        written
    };
    Ok(Exported { files, notices: notices.0 })
}

/// Why this template cannot have this layout.
fn cannot(template: &Template, layout: TemplateLayout) -> Option<Error> {
    let refuse = |code, what: String| {
        Some(Error::new(code, format!("the template {} {what}", template.name)).field("/layout", what))
    };
    if layout == TemplateLayout::CloudHypervisor {
        return refuse(Code::LayoutGuest, "is not exported as a tree of images and kernels: export it as qcow2".into());
    }
    let to_mac = matches!(layout, TemplateLayout::ShoesVz | TemplateLayout::Macosvm);
    if layout.is_image() {
        if template.os == GuestOs::Macos {
            return refuse(Code::LayoutGuest, "is a macOS guest, which no disk alone makes: export it as tart".into());
        }
        if template.disk_format == DiskFormat::Asif {
            return refuse(Code::LayoutDisk, "has a disk in Apple's sparse format, which only macOS can read".into());
        }
        return None;
    }
    if to_mac && template.os == GuestOs::Linux {
        return refuse(Code::LayoutGuest, format!("is a linux guest, and {} has macOS guests only", layout.as_str()));
    }
    if to_mac && template.arch != Arch::Aarch64 {
        return refuse(Code::LayoutGuest, "is for amd64, and such guests run on Apple Silicon only".into());
    }
    if to_mac && template.disk_format == DiskFormat::Asif {
        let what = "has a disk in Apple's sparse format, convert it to raw before: `diskutil image` can";
        return refuse(Code::LayoutDisk, what.into());
    }
    if template.files.config.is_none() || template.files.nvram.is_none() {
        return refuse(Code::LayoutGuest, "was not made of a Mac's guest: it has no config.json and nvram.bin".into());
    }
    None
}

fn write(
    template: &Template,
    request: &ExportRequest,
    stage: super::stage::ExportStage,
    notices: &mut Notices,
) -> Result<Vec<WrittenFile>> {
    let missing = || refused(Code::LayoutGuest, "layout", "needs a template with config.json and nvram.bin");
    let (Some(config), Some(nvram)) = (&template.files.config, &template.files.nvram) else { return Err(missing()) };
    let bytes = source::read(config, tart::CONFIG, tart_config::LARGEST)?;
    let was = tart::parse(&bytes)?;
    let mut now = was.clone();
    tart::with_size_of(&mut now, template);
    if request.mac == Policy::Regenerate {
        now.mac = Mac::random();
    }
    if request.identity == Policy::Regenerate {
        match was.os {
            GuestOs::Macos => now.ecid = Some(fresh_identity(notices).to_base64()),
            GuestOs::Linux => notices.add("ecid", "is nothing that a linux guest has"),
        }
    }
    match request.layout {
        TemplateLayout::Tart => {
            tart::write(&stage, &tart::rewritten(&bytes, &was, &now)?, &template.files.disk, nvram)?
        }
        TemplateLayout::ShoesVz => {
            let machine = for_mac(&now, notices)?;
            bundle::write(&stage, template, &machine, &now, nvram, notices)?;
        }
        TemplateLayout::Macosvm => {
            let machine = for_mac(&now, notices)?;
            macosvm::write(&stage, template, &machine, &now, nvram, notices)?;
        }
        TemplateLayout::Qcow2 | TemplateLayout::Raw | TemplateLayout::CloudHypervisor => {
            return Err(Error::internal("an image is not written as a directory"));
        }
    }
    stage.publish()
}

fn for_mac(config: &TartConfig, notices: &mut Notices) -> Result<MacMachine> {
    for key in &config.unknown {
        notices.add(key, "does not go along: the layout has no place for it");
    }
    for (key, is) in [
        ("cpuCountMin", (config.cpus_min != config.cpus).then(|| config.cpus_min.to_string())),
        (
            "memorySizeMin",
            (config.memory_min_bytes != config.memory_bytes).then(|| config.memory_min_bytes.to_string()),
        ),
    ] {
        if let Some(is) = is {
            notices.add(key, format!("is {is} and does not go along: the layout knows no minimum"));
        }
    }
    tart::machine(config)
}
