//! The disk's file on the host: its format, its size, and whether it is as small as it could be.

use std::os::unix::fs::MetadataExt as _;

use super::{Findings, LintSubject, guest::GuestTree};
use crate::{
    domain::template::DiskFormat,
    platform::files,
    templates::{
        qcow2,
        read_budget::{ReadBudget, StopFlag},
    },
};

/// A smaller disk is not worth an effort.
const WORTH_SPARSING: u64 = 64 << 20;
/// Free space below which few jobs succeed.
const LEAST_FREE: u64 = 1 << 30;

/// Whether the disk can be read.
pub(super) fn check(subject: &LintSubject, findings: &mut Findings) -> bool {
    let name = subject.disk.display();
    let next = "make the image anew, or name another file";
    let file = match files::open_regular(&subject.disk) {
        Ok(file) => file,
        Err(what) => {
            findings.error("disk.file", format!("the disk {name} {what}"), next);
            return false;
        }
    };
    let Ok(metadata) = file.metadata() else {
        findings.error("disk.file", format!("the disk {name} cannot be read"), next);
        return false;
    };
    let (length, allocated) = (metadata.len(), metadata.blocks() * 512);
    match subject.disk_format {
        DiskFormat::Qcow2 => {
            let checked = ReadBudget::bounded_by(&file)
                .map_err(|error| format!("cannot be read: {}", error.kind()))
                .and_then(|budget| qcow2::check(&file, &budget.until(&StopFlag::default())));
            if let Err(what) = checked {
                findings.error("disk.format", format!("the disk {name} {what}"), "do that, then check it again");
                return false;
            }
        }
        DiskFormat::Raw if qcow2::has_magic(&file) => {
            let next = "set disk_format to qcow2 in template.json, or give --disk-format qcow2";
            findings.error("disk.format", format!("the disk {name} is a qcow2 image, and is called raw"), next);
            return false;
        }
        DiskFormat::Raw => {
            if length == 0 || length % 512 != 0 {
                let what = format!("the disk {name} has {length} bytes, which is no multiple of 512");
                findings.error("disk.format", what, "copy or download it again");
                return false;
            }
            // For a guest whose file system can be read, what is in use is known: see `check_space`.
            if length >= WORTH_SPARSING && allocated >= length / 10 * 9 && subject.os == crate::domain::GuestOs::Macos {
                not_sparse(findings, &name.to_string(), length, allocated);
            }
        }
        DiskFormat::Asif => {}
    }
    true
}

/// What the guest's file system says about the space on the disk.
pub(super) fn check_space(subject: &LintSubject, tree: &GuestTree, findings: &mut Findings) {
    let state = tree.state();
    if !state.clean {
        findings.error(
            "disk.clean",
            "the guest's file system was not unmounted: each vm would have to repair it, and may lose what was written last",
            "boot it once and shut it down (poweroff) before you save the image",
        );
    }
    if state.free_bytes < LEAST_FREE {
        findings.warning(
            "disk.size",
            format!("the guest has {} MiB of free space, of {} MiB", state.free_bytes >> 20, state.total_bytes >> 20),
            "make the disk larger before you build the image (qemu-img resize, then grow its file system), or clean it up",
        );
    }
    let Ok(metadata) = subject.disk.metadata() else { return };
    let (allocated, used) = (metadata.blocks() * 512, state.total_bytes.saturating_sub(state.free_bytes));
    // Metadata of the file system is in use, too, and there may be other partitions.
    if allocated >= WORTH_SPARSING && allocated > used.saturating_mul(2).saturating_add(WORTH_SPARSING) {
        not_sparse(findings, &subject.disk.display().to_string(), used, allocated);
    }
}

fn not_sparse(findings: &mut Findings, name: &str, used: u64, allocated: u64) {
    findings.warning(
        "disk.sparse",
        format!("the disk {name} takes {} MiB on the host, for {} MiB", allocated >> 20, used >> 20),
        "run fstrim -a in the guest, shut it down, and copy the image with qemu-img convert, which leaves out what is empty",
    );
}
