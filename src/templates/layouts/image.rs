//! The layout of a disk image, with boot files beside it.

use std::path::Path;

use super::{
    ImportRequest, Notices, TemplateLayout, Tools, chain, invalid, linux, qemu_img,
    stage::{ExportStage, Finished, with_suffix},
};
use crate::{
    domain::{Arch, Code, Error, Result, Template, template::DiskFormat},
    platform::files::{self, SpaceGuard},
    templates::NewTemplate,
};

const KERNEL: &str = ".kernel";
const INITRAMFS: &str = ".initramfs";
const FIRMWARE: &str = ".firmware";

fn format(layout: TemplateLayout) -> DiskFormat {
    if layout == TemplateLayout::Qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}

pub(super) async fn import(
    tools: &Tools,
    space: &SpaceGuard,
    from: &Path,
    work: &Path,
    request: ImportRequest,
    notices: &mut Notices,
) -> Result<NewTemplate> {
    let mut new = request.template;
    let format = format(request.layout);
    new.disk = from.to_owned();
    new.disk_format = Some(format);
    if format == DiskFormat::Qcow2 {
        let (image, allow) = (from.to_owned(), request.allow_backing);
        let chain = super::cancellable(move |stop| chain::of(&image, allow, stop)).await?;
        if chain.len() > 1 {
            let flat = work.join("flat.qcow2");
            qemu_img::convert(tools, space, (&chain[0], format), (&flat, format)).await?;
            qemu_img::compare(tools, (&chain[0], format), (&flat, format)).await?;
            notices.add("disk", format!("was {} images on one another, and is one now", chain.len()));
            new.disk = flat;
        }
    }
    if format == DiskFormat::Raw {
        files::open_regular(from).map_err(|what| invalid("disk", what))?;
    }
    if request.extract_kernel {
        if new.kernel.is_some() || new.initramfs.is_some() || new.firmware.is_some() {
            let what = "takes the kernel from the disk: leave kernel, initramfs and firmware out";
            return Err(
                Error::new(Code::RequestInvalid, format!("extract_kernel {what}")).field("/extract_kernel", what)
            );
        }
        extract(tools, space, &mut new, work, notices).await?;
        return Ok(new);
    }
    if new.kernel.is_none() && new.initramfs.is_none() && new.firmware.is_none() {
        for (suffix, file) in
            [(KERNEL, &mut new.kernel), (INITRAMFS, &mut new.initramfs), (FIRMWARE, &mut new.firmware)]
        {
            let beside = with_suffix(from, suffix);
            if beside.symlink_metadata().is_err() {
                continue;
            }
            let field = suffix.trim_start_matches('.');
            // The request does not name this file. A link in its place must not select another file of the host.
            files::open_regular(&beside).map_err(|what| invalid(field, format!("({}) {what}", beside.display())))?;
            notices.add(field, format!("is {}, found beside the disk", beside.display()));
            *file = Some(beside);
        }
    }
    Ok(new)
}

async fn extract(
    tools: &Tools,
    space: &SpaceGuard,
    new: &mut NewTemplate,
    work: &Path,
    notices: &mut Notices,
) -> Result<()> {
    let mut raw = new.disk.clone();
    if new.disk_format == Some(DiskFormat::Qcow2) {
        raw = work.join("looked-into.raw");
        qemu_img::convert(tools, space, (&new.disk, DiskFormat::Qcow2), (&raw, DiskFormat::Raw)).await?;
    }
    let (disk, dir, copied, space) = (raw.clone(), work.to_owned(), raw != new.disk, space.clone());
    let found = super::cancellable(move |stop| {
        let found = linux::extract(&disk, &dir, &space, stop);
        if copied {
            // As large as the disk, and not needed any more.
            let _ = std::fs::remove_file(&disk);
        }
        found
    })
    .await?;
    notices.add("kernel", format!("is {}, found in {}", found.name, found.place));
    match &found.initramfs {
        Some((name, _)) => notices.add("initramfs", format!("is {name}")),
        None => notices.add("initramfs", "is missing beside that kernel: it has to find its root by itself"),
    }
    new.kernel = Some(found.kernel);
    new.initramfs = found.initramfs.map(|(_, path)| path);
    if new.cmdline.is_none() {
        let console = match new.arch.or_else(Arch::of_this_host) {
            Some(Arch::Aarch64) => "ttyAMA0",
            _ => "ttyS0",
        };
        let cmdline = format!("root={} ro console={console}", found.root);
        notices.add("cmdline", format!("was not given: {cmdline:?} was taken"));
        new.cmdline = Some(cmdline);
    }
    Ok(())
}

pub(super) async fn export(
    tools: &Tools,
    template: &Template,
    layout: TemplateLayout,
    stage: &ExportStage,
    notices: &mut Notices,
) -> Result<Vec<Finished>> {
    const DISK: &str = "disk";
    let files = &template.files;
    let (from, to) = (template.disk_format, format(layout));
    let disk = stage.path(DISK);
    if from == to {
        stage.clone(&files.disk, DISK)?;
    } else {
        qemu_img::convert(tools, stage.space(), (&files.disk, from), (&disk, to)).await?;
        qemu_img::compare(tools, (&files.disk, from), (&disk, to)).await?;
    }
    let mut finished = vec![Finished { name: DISK, suffix: "" }];
    for (file, name, suffix) in [
        (&files.kernel, "kernel", KERNEL),
        (&files.initramfs, "initramfs", INITRAMFS),
        (&files.firmware, "firmware", FIRMWARE),
    ] {
        if let Some(file) = file {
            stage.clone(file, name)?;
            finished.push(Finished { name, suffix });
        }
    }
    if let Some(cmdline) = &template.cmdline {
        notices.add("cmdline", format!("does not go along: say it again when you import the image: {cmdline:?}"));
    }
    for (name, given) in [("config.json", files.config.is_some()), ("nvram.bin", files.nvram.is_some())] {
        if given {
            notices.add(name, "does not go along: an image has no place for it");
        }
    }
    notices.add("cpus", format!("({}) and memory ({} MiB) do not go along", template.cpus, template.memory_mib));
    Ok(finished)
}
