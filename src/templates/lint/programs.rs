//! Programs and services that Mayfly's scripts need in the guest.

use super::{Findings, LintSubject, guest::GuestTree};
use crate::domain::Handover;

const CURL: [&str; 3] = ["/usr/bin/curl", "/opt/homebrew/bin/curl", "/usr/local/bin/curl"];
const SYSTEM_DIRS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Units of systemd, programs of other init systems: what reads the seed where there is no cloud-init.
const SEED_READERS: [&str; 3] = [
    "/etc/systemd/system/multi-user.target.wants/mayfly-seed.service",
    "/etc/init.d/seed",
    "/usr/local/lib/mayfly/seed.sh",
];
const AGENTS: [&str; 4] = [
    "/usr/bin/tart-guest-agent",
    "/usr/local/bin/tart-guest-agent",
    "/usr/local/libexec/tart-guest-agent",
    "/opt/tart-guest-agent/tart-guest-agent",
];

pub(super) fn check(subject: &LintSubject, tree: &GuestTree, findings: &mut Findings) {
    let in_system = |name: &str| SYSTEM_DIRS.iter().any(|dir| tree.is_program(&format!("{dir}/{name}")));
    if tree.first_program(&CURL).is_none() {
        let what = format!("there is no curl ({}), with which a guest reports", CURL.join(", "));
        findings.error("programs.curl", what, "install curl in the image (deploy/packer/scripts/linux/packages.sh)");
    }
    if !tree.is_program("/bin/sh") {
        findings.error("programs.sh", "there is no /bin/sh, which runs Mayfly's scripts", "install a POSIX shell");
    }
    if !in_system("base64") {
        findings.warning(
            "programs.base64",
            "there is no base64: the job's log stays empty",
            "install coreutils or busybox",
        );
    }
    if !in_system("poweroff") && !in_system("shutdown") {
        let what =
            "there is neither poweroff nor shutdown: a guest that Mayfly gives up runs until a budget ends its vm";
        findings.warning("programs.poweroff", what, "install systemd-sysv, or what your system has for it");
    }
    match subject.handover {
        Handover::Seed => seed(tree, findings),
        Handover::Agent => agent(tree, findings),
        Handover::Ssh => {}
    }
}

fn seed(tree: &GuestTree, findings: &mut Findings) {
    let next =
        "install cloud-init, or the service that deploy/packer/scripts/linux/guest.sh makes, or use --handover ssh";
    if tree.first_program(&["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"]).is_none() {
        if !SEED_READERS.iter().any(|path| tree.is_there(path)) {
            let what = "nothing reads the seed (the NoCloud volume cidata): there is no cloud-init";
            findings.error("programs.seed", what, next);
        }
        return;
    }
    if tree.is_there("/etc/cloud/cloud-init.disabled") {
        let next = "remove /etc/cloud/cloud-init.disabled from the image";
        findings.error("programs.seed", "cloud-init is switched off, so nothing reads the seed", next);
        return;
    }
    let dir = "/etc/cloud/cloud.cfg.d";
    let mut files = vec!["/etc/cloud/cloud.cfg".to_owned()];
    files.extend(tree.names(dir).into_iter().filter(|name| name.ends_with(".cfg")).map(|name| format!("{dir}/{name}")));
    // The last file counts.
    let list = files.into_iter().rev().find_map(|file| {
        let text = tree.text(&file)?;
        let at = text.lines().position(|line| line.trim_start().starts_with("datasource_list:"))?;
        // A list is on one line, or on the next ones, each after a hyphen.
        let lines: Vec<&str> = text.lines().skip(at).collect();
        let rest = lines.iter().skip(1).take_while(|line| line.trim_start().starts_with('-')).copied();
        Some((file, lines.first().copied().into_iter().chain(rest).collect::<Vec<_>>().join(" ")))
    });
    if let Some((file, list)) = list
        && !list.contains("NoCloud")
    {
        let what = format!("cloud-init does not look for the seed: {file} lists the data sources without NoCloud");
        findings.error("programs.seed", what, "add NoCloud to datasource_list (deploy/packer/scripts/linux/guest.sh)");
    }
}

fn agent(tree: &GuestTree, findings: &mut Findings) {
    if tree.first_program(&AGENTS).is_none() {
        let what = "there is no guest agent of Tart, through which this template is provisioned";
        findings.error("programs.agent", what, "install tart-guest-agent in the image, or use --handover ssh");
    }
}
