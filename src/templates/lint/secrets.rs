//! Secrets and identity that the image must not have: every vm would have the same ones, and every job could read them.

use super::{
    Findings, LintSubject,
    accounts::{Accounts, GuestUser},
    guest::GuestTree,
    runner,
};
use crate::domain::Handover;

const SEAL: &str = "remove it before you save the image (deploy/packer/scripts/linux/seal.sh)";

pub(super) fn check(subject: &LintSubject, tree: &GuestTree, accounts: &Accounts, findings: &mut Findings) {
    identity(tree, findings);
    for user in accounts.with_homes() {
        home(tree, user, findings);
    }
    let job_user = accounts.user(&subject.user);
    for place in runner::places(job_user) {
        for name in [".credentials", ".credentials_rsaparams", ".runner"] {
            let path = format!("{place}/{name}");
            if tree.exists(&path) {
                let what = format!("{path} is the registration of another runner");
                findings.error("secrets.runner", what, format!("remove that runner at GitHub, and {SEAL}"));
                break;
            }
        }
    }
    let mut bundles = vec!["/opt/mayfly".to_owned()];
    bundles.extend(accounts.with_homes().map(|user| format!("{}/.mayfly", user.home.trim_end_matches('/'))));
    for path in bundles.iter().filter(|path| tree.is_dir(path)) {
        let what =
            format!("{path} is the bundle of an earlier vm, with its token: the image was made from a vm of Mayfly");
        findings.error("secrets.bundle", what, format!("rm -rf {path} in the image"));
    }
    passwords(tree, accounts, findings);
    root_logins(subject, tree, findings);
}

fn identity(tree: &GuestTree, findings: &mut Findings) {
    let host_keys: Vec<String> = [("/etc/ssh", "ssh_host_"), ("/etc/dropbear", "dropbear_")]
        .iter()
        .flat_map(|(dir, prefix)| {
            let is_key = move |name: &String| name.starts_with(prefix) && name.ends_with("_key");
            tree.names(dir).into_iter().filter(is_key).map(move |name| format!("{dir}/{name}"))
        })
        .collect();
    if let Some(first) = host_keys.first() {
        let what = format!("{first} and {} more are host keys, which every vm would share", host_keys.len() - 1);
        findings.error("secrets.host_keys", what, SEAL);
    }
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        if tree.link(path).is_some() {
            continue;
        }
        let id = tree.text(path).unwrap_or_default();
        let id = id.trim();
        if !id.is_empty() && id != "uninitialized" {
            let what = format!("{path} has a machine id, which every vm would share: with DHCP even their addresses");
            findings.error("secrets.machine_id", what, format!("empty {path} before you save the image (seal.sh)"));
        }
    }
    if tree.exists("/var/lib/systemd/random-seed") {
        let what = "/var/lib/systemd/random-seed gives every vm the same start of its random numbers";
        findings.warning("secrets.random_seed", what, SEAL);
    }
}

/// What the tools of developers leave in a home.
fn home(tree: &GuestTree, user: &GuestUser, findings: &mut Findings) {
    let home = user.home.trim_end_matches('/');
    let ssh = format!("{home}/.ssh");
    for name in tree.names(&ssh) {
        let path = format!("{ssh}/{name}");
        if !name.ends_with(".pub") && tree.text(&path).is_some_and(|text| text.contains("PRIVATE KEY-----")) {
            findings.error("secrets.keys", format!("{path} is a private key"), SEAL);
        }
    }
    for name in
        [".aws/credentials", ".netrc", ".git-credentials", ".kube/config", ".config/gh/hosts.yml", ".npmrc", ".pypirc"]
    {
        let path = format!("{home}/{name}");
        let text = tree.text(&path).unwrap_or_default();
        // A settings file of npm need not have one.
        if !text.trim().is_empty() && (name != ".npmrc" || text.contains("_authToken") || text.contains("_password")) {
            findings.error("secrets.credentials", format!("{path} holds credentials"), SEAL);
        }
    }
    let docker = format!("{home}/.docker/config.json");
    if tree.text(&docker).is_some_and(|text| text.contains("\"auth\"") || text.contains("\"identitytoken\"")) {
        findings.error("secrets.credentials", format!("{docker} holds logins to registries"), SEAL);
    }
    for name in [".bash_history", ".zsh_history"] {
        let path = format!("{home}/{name}");
        if tree.text(&path).is_some_and(|text| !text.is_empty()) {
            findings.warning("secrets.history", format!("{path} shows what was typed, perhaps passwords"), SEAL);
        }
    }
}

fn passwords(tree: &GuestTree, accounts: &Accounts, findings: &mut Findings) {
    for line in tree.text("/etc/shadow").unwrap_or_default().lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(hash)) = (fields.next(), fields.next()) else { continue };
        if accounts.user(name).is_none() {
            continue;
        }
        if hash.is_empty() {
            let what = format!("{name} has an empty password");
            findings.error("secrets.password", what, format!("run passwd --lock {name} in the image"));
        } else if hash.starts_with('$') {
            let what = format!("{name} has a password, the same in every vm");
            findings.warning(
                "secrets.password",
                what,
                format!("run passwd --lock {name} in the image, if nothing needs it"),
            );
        }
    }
}

/// A key of the build that the template would go on accepting.
fn root_logins(subject: &LintSubject, tree: &GuestTree, findings: &mut Findings) {
    let path = "/root/.ssh/authorized_keys";
    let keys = tree.text(path).unwrap_or_default();
    let count = keys.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).count();
    let used = subject.ssh_key.is_some() || subject.handover == Handover::Ssh;
    if count > 0 && !used {
        let what = format!("{path} lets the owners of {count} keys log in as root, and Mayfly uses none of them");
        findings.warning("secrets.root_login", what, SEAL);
    }
}
