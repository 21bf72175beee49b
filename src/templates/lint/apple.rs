//! A macOS guest's disk is APFS, which cannot be read here. Each check is listed with the command that answers it in a vm.

use super::{Findings, LintSubject};

pub(super) fn not_checked(subject: &LintSubject, findings: &mut Findings) {
    let user = &subject.user;
    let checks: [(&'static str, &str, String); 7] = [
        (
            "access.ssh",
            "whether Remote Login is on",
            "sudo launchctl print system/com.openssh.sshd | grep state".to_owned(),
        ),
        (
            "access.user",
            "whether the user of the jobs exists and is logged in at the screen",
            format!("id {user}; stat -f %Su /dev/console"),
        ),
        ("programs.agent", "whether Tart's guest agent runs", "pgrep -fl tart-guest-agent".to_owned()),
        ("programs.curl", "whether there is curl", "/usr/bin/curl --version".to_owned()),
        (
            "runner.version",
            "whether GitHub accepts the runner",
            "~/actions-runner/bin/Runner.Listener --version; cat ~/actions-runner/.env".to_owned(),
        ),
        (
            "shell.exports",
            "whether variables are exported where jobs see them",
            "grep export ~/.zprofile ~/.zshenv".to_owned(),
        ),
        (
            "secrets.files",
            "whether secrets and host keys were left in the image",
            "ls -A /etc/ssh/ssh_host_* ~/.ssh ~/.aws ~/.mayfly ~/actions-runner/.credentials".to_owned(),
        ),
    ];
    for (check, what, command) in checks {
        let next = format!("in a vm of it: mayfly vm exec NAME -- '{command}'");
        findings.not_checked(check, format!("{what} is not known: a macOS disk (APFS) cannot be read here"), next);
    }
}
