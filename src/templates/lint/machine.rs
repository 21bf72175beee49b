//! The machine around the disk: a VM of Tart and its identity, or a kernel and its command line.

use std::path::Path;

use super::{Findings, LintSubject};
use crate::{
    domain::{
        Arch, GuestOs,
        machine_identity::MachineIdentity,
        tart_config::{self, TartConfig},
    },
    platform::files,
    templates::source_state,
};

/// Other VMs that are compared with this one.
const MOST_NEIGHBOURS: usize = 1000;

pub(super) fn check(subject: &LintSubject, findings: &mut Findings) {
    if let Some(dir) = &subject.vm_dir
        && let Some(obstacle) = source_state::of_tart(dir)
    {
        let (file, what) = obstacle.describe();
        findings.error("machine.state", format!("{file} {what}"), "then check it again");
    }
    if subject.config.is_some() && subject.nvram.is_none() {
        let what = "there is no nvram.bin beside config.json, and Tart starts no VM without one";
        findings.error("machine.nvram", what, "copy the whole directory of the VM");
    }
    if let Some(config) = &subject.config {
        identity(subject, config, findings);
    }
    let Some(kernel) = &subject.kernel else { return };
    if let Err(what) = files::open_regular(kernel) {
        let what = format!("the kernel {} {what}", kernel.display());
        findings.error("machine.kernel", what, "name another one in template.json");
    }
    let cmdline = subject.cmdline.as_deref().unwrap_or_default();
    let has =
        |word: &str| cmdline.split_whitespace().any(|found| found == word || found.starts_with(&format!("{word}=")));
    if subject.arch == Arch::X86_64 && !has("no_timer_check") {
        findings.warning(
            "machine.cmdline",
            "the kernel's command line has no no_timer_check: without KVM, the kernel panics on a busy host",
            "add no_timer_check to cmdline",
        );
    }
    if !has("console") {
        let what = "the kernel's command line names no console: mayfly vm logs --source console will be empty";
        findings.warning("machine.console", what, "add console=ttyS0 (x86_64) or console=ttyAMA0 (aarch64) to cmdline");
    }
}

fn ecid_of(config: &Path) -> Option<(TartConfig, Option<u64>)> {
    let file = files::open_regular(config).ok()?;
    if file.metadata().ok()?.len() > tart_config::LARGEST {
        return None;
    }
    let parsed = TartConfig::parse(&std::fs::read(config).ok()?).ok()?;
    let ecid = parsed.ecid.as_deref().and_then(|text| MachineIdentity::from_base64(text).ok());
    let ecid = ecid.map(|identity| identity.ecid());
    Some((parsed, ecid))
}

/// Two Macs of one identity must not run at the same time. Each vm gets an identity of its own; other VMs of this host do not.
fn identity(subject: &LintSubject, config: &Path, findings: &mut Findings) {
    let Some((parsed, ecid)) = ecid_of(config) else {
        let what = format!("{} is not a Tart VM's description", config.display());
        findings.error("machine.config", what, "copy the whole directory of the VM");
        return;
    };
    if parsed.os != GuestOs::Macos {
        return;
    }
    let Some(ecid) = ecid else {
        let what = "config.json has no valid ecid, the identity of the Mac: Tart cannot start it";
        findings.error("machine.ecid", what, "copy the whole directory of the VM, or install it anew");
        return;
    };
    let Some(dir) = &subject.vm_dir else { return };
    let Some(vms) = dir.canonicalize().ok().and_then(|dir| dir.parent().map(Path::to_owned)) else { return };
    let own = dir.canonicalize().unwrap_or_else(|_| dir.clone());
    let mut same: Vec<String> = std::fs::read_dir(vms)
        .into_iter()
        .flatten()
        .flatten()
        .take(MOST_NEIGHBOURS)
        .filter(|entry| entry.path() != own)
        .filter(|entry| ecid_of(&entry.path().join(source_state::CONFIG)).is_some_and(|(_, other)| other == Some(ecid)))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    same.sort();
    if let Some(first) = same.first() {
        let what = format!(
            "it has the same ecid as the VM {first}{}: two of them must not run at the same time",
            match same.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            }
        );
        let next = "give this one an identity of its own (tart set NAME --random-serial) and boot it once, or delete the others";
        findings.warning("machine.ecid", what, next);
    }
}
