//! Who gets into the guest: its SSH server, and the user of the jobs.

use super::{
    Findings, LintSubject,
    accounts::{Accounts, GuestUser},
    guest::GuestTree,
};
use crate::{domain::Handover, platform::files};

const SERVERS: [&str; 4] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/sbin/dropbear", "/usr/bin/sshd"];
const UNITS: [&str; 5] = ["ssh.service", "sshd.service", "ssh.socket", "sshd.socket", "dropbear.service"];
/// Their members can become root.
const ROOT_GROUPS: [&str; 8] = ["root", "sudo", "wheel", "admin", "docker", "lxd", "libvirt", "disk"];

/// Returns the user of the jobs, if there is one.
pub(super) fn check<'a>(
    subject: &LintSubject,
    tree: &GuestTree,
    accounts: &'a Accounts,
    findings: &mut Findings,
) -> Option<&'a GuestUser> {
    let user = check_user(subject, tree, accounts, findings);
    // Whoever is provisioned by other means needs it for `vm exec` only.
    let needed = subject.handover == Handover::Ssh;
    if needed || subject.ssh_key.is_some() || subject.ssh_password {
        let mut found = Findings::default();
        server(tree, &mut found);
        key(subject, tree, user, &mut found);
        for finding in found.0 {
            let level = if needed { finding.level } else { finding.level.max(super::LintLevel::Warning) };
            findings.0.push(super::LintFinding { level, ..finding });
        }
    }
    user
}

fn server(tree: &GuestTree, findings: &mut Findings) {
    if tree.first_program(&SERVERS).is_none() {
        let next = "install openssh-server in the image (deploy/packer/scripts/linux/packages.sh)";
        findings.error("access.ssh", "there is no SSH server, so no one can log in", next);
        return;
    }
    if !tree.is_program("/lib/systemd/systemd") && !tree.is_program("/usr/lib/systemd/systemd") {
        let what = "whether the SSH server starts at boot is not known: the guest does not use systemd";
        findings.not_checked("access.ssh", what, "boot a vm of it: ssh to it, or mayfly vm exec NAME -- true");
        return;
    }
    let masked = UNITS
        .iter()
        .find(|unit| tree.link(&format!("/etc/systemd/system/{unit}")).is_some_and(|target| target == "/dev/null"));
    let enabled = UNITS.iter().any(|unit| {
        ["multi-user.target.wants", "sockets.target.wants", "default.target.wants", "graphical.target.wants"]
            .iter()
            .any(|wants| tree.is_there(&format!("/etc/systemd/system/{wants}/{unit}")))
    });
    match (masked, enabled) {
        (Some(unit), false) => {
            let what = format!("the SSH server does not start: {unit} is masked");
            findings.error(
                "access.ssh",
                what,
                format!("run systemctl unmask {unit} && systemctl enable {unit} in the image"),
            );
        }
        (_, true) => {}
        (None, false) => {
            let what = "the SSH server does not start at boot: no unit of it is enabled";
            findings.error("access.ssh", what, "run systemctl enable ssh (or sshd) in the image");
        }
    }
}

/// The key with which Mayfly logs in.
fn key(subject: &LintSubject, tree: &GuestTree, user: Option<&GuestUser>, findings: &mut Findings) {
    let (Some(path), Some(user)) = (&subject.ssh_key, user) else {
        if subject.ssh_password {
            let what = "whether the guest accepts the template's password is not known";
            findings.not_checked("access.key", what, "boot a vm of it: mayfly vm exec NAME -- true");
        }
        return;
    };
    let public = files::open_regular(path)
        .ok()
        .and_then(|_| std::fs::read_to_string(path).ok())
        .and_then(|text| russh::keys::decode_secret_key(&text, None).ok())
        .and_then(|key| key.public_key().to_openssh().ok());
    let Some(public) = public else {
        let what = format!("the template's key {} cannot be read", path.display());
        findings.not_checked("access.key", what, "check it as the service's user");
        return;
    };
    // Type and key; what follows is a comment.
    let wanted: Vec<&str> = public.split_whitespace().take(2).collect();
    let file = format!("{}/.ssh/authorized_keys", user.home);
    let accepted = tree.text(&file).unwrap_or_default();
    let accepts = accepted.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        !line.trim_start().starts_with('#') && words.windows(2).any(|pair| pair == wanted.as_slice())
    });
    if !accepts {
        let what = format!("{} does not accept the template's key: it is not in {file}", user.name);
        findings.error("access.key", what, "add its public key there, or register the template with another --ssh-key");
    }
}

fn check_user<'a>(
    subject: &LintSubject,
    tree: &GuestTree,
    accounts: &'a Accounts,
    findings: &mut Findings,
) -> Option<&'a GuestUser> {
    let name = &subject.user;
    let Some(user) = accounts.user(name) else {
        let next = "make it (deploy/packer/scripts/linux/runner-user.sh), or name another one with --user";
        findings.error("access.user", format!("the guest has no user {name}, as which jobs run"), next);
        return None;
    };
    match tree.details(&user.home) {
        Some(home) if home.is_dir && home.uid == user.uid => {}
        Some(home) if home.is_dir => {
            let what = format!("{} belongs to the user number {} and not to {name}", user.home, home.uid);
            findings.error("access.home", what, format!("run chown -R {name}: {} in the image", user.home));
        }
        _ => {
            let what = format!("{name} has no home directory {}", user.home);
            findings.error(
                "access.home",
                what,
                format!("run mkhomedir_helper {name}, or make and chown it, in the image"),
            );
        }
    }
    let usable = !["/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false"].contains(&user.shell.as_str());
    if !usable || !tree.is_program(&user.shell) {
        let what = format!("{name} has the shell {}, which runs nothing", user.shell);
        findings.error("access.shell", what, format!("run usermod --shell /bin/bash {name} in the image"));
    }
    if user.uid == 0 {
        let what = "jobs run as root: a job can read Mayfly's token and report in its name";
        findings.warning("access.root", what, "use a user of its own, without sudo (docs/guest.md, Users)");
        return Some(user);
    }
    let groups = accounts.groups_of(user);
    let group = groups.iter().find(|group| ROOT_GROUPS.contains(group)).map(|group| format!("is in the group {group}"));
    let rule = || sudo_rule(tree, user, &groups).map(|file| format!("may use sudo without a password ({file})"));
    if let Some(how) = group.or_else(rule) {
        let what =
            format!("{name} can become root: it {how}. A job can then read Mayfly's token and report in its name");
        findings.warning("access.root", what, "take that away if jobs do not need it (docs/guest.md, Users)");
    }
    Some(user)
}

/// The file with a rule that makes the user root without a password. A rule with a single command is none.
fn sudo_rule(tree: &GuestTree, user: &GuestUser, groups: &[&str]) -> Option<String> {
    let dir = "/etc/sudoers.d";
    let mut files = vec!["/etc/sudoers".to_owned()];
    files.extend(tree.names(dir).iter().map(|name| format!("{dir}/{name}")));
    let names =
        |who: &str| who == user.name || who == "ALL" || who.strip_prefix('%').is_some_and(|g| groups.contains(&g));
    files.into_iter().find(|file| {
        tree.text(file).unwrap_or_default().lines().any(|line| {
            let who = line.split_whitespace().next().unwrap_or_default();
            names(who) && line.contains("NOPASSWD") && line.trim_end().ends_with("ALL")
        })
    })
}
