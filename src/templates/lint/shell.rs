//! The start files of the user's shell.

use super::{Findings, accounts::GuestUser, guest::GuestTree};

/// How the block begins that Mayfly's bundle writes in a vm.
const BLOCK: &str = "# >>> mayfly >>>";

pub(super) fn check(tree: &GuestTree, user: Option<&GuestUser>, findings: &mut Findings) {
    let Some(user) = user else { return };
    let home = user.home.trim_end_matches('/');
    for (file, read_by) in [(".zprofile", "login shells of zsh"), (".zlogin", "login shells of zsh")] {
        let path = format!("{home}/{file}");
        let text = tree.text(&path).unwrap_or_default();
        if let Some(name) = text.lines().find_map(exported) {
            let what = format!("{path} exports {name}, and is read by {read_by} only: commands over SSH do not see it");
            findings.warning(
                "shell.exports",
                what,
                format!("move the exports to {home}/.zshenv, which every zsh reads"),
            );
        }
    }
    let path = format!("{home}/.zshenv");
    if tree.text(&path).is_some_and(|text| text.contains(BLOCK)) {
        let what = format!("{path} has the block of an earlier vm");
        findings.warning("shell.block", what, format!("remove what is between {BLOCK:?} and its end"));
    }
}

/// The variable that a line exports.
fn exported(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if line.starts_with("eval ") && line.contains("brew shellenv") {
        return Some("Homebrew's PATH");
    }
    let assigned = line.strip_prefix("export ").or_else(|| line.strip_prefix("typeset -x "))?.trim_start();
    Some(assigned.split(['=', ' ']).next().unwrap_or_default()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::exported;

    #[test]
    fn exports_are_found_and_comments_are_not() {
        assert_eq!(exported("  export JAVA_HOME=/opt/java"), Some("JAVA_HOME"));
        assert_eq!(exported("eval \"$(/opt/homebrew/bin/brew shellenv)\""), Some("Homebrew's PATH"));
        for line in ["# export A=b", "echo export", "exported=1", ""] {
            assert_eq!(exported(line), None, "{line}");
        }
    }
}
