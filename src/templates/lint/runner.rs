//! GitHub's runner in the guest: its version, its owner, and hooks of its own.

use super::{Findings, LintOptions, accounts::GuestUser, guest::GuestTree};

/// Beside the directory in the user's home, in the order in which Mayfly looks.
const PLACES: [&str; 3] = ["/opt/actions-runner", "/actions-runner", "/usr/local/actions-runner"];
const HOOKS: [&str; 2] = ["ACTIONS_RUNNER_HOOK_JOB_STARTED", "ACTIONS_RUNNER_HOOK_JOB_COMPLETED"];
const HOW: &str = "install a newer one in the image (deploy/packer/scripts/github-runner.sh)";

/// Where Mayfly looks for a runner.
pub(super) fn places(user: Option<&GuestUser>) -> Vec<String> {
    let home = user.map(|user| format!("{}/actions-runner", user.home.trim_end_matches('/')));
    home.into_iter().chain(PLACES.iter().map(|&place| place.to_owned())).collect()
}

pub(super) fn check(options: &LintOptions, tree: &GuestTree, user: Option<&GuestUser>, findings: &mut Findings) {
    for place in places(user) {
        if !tree.exists(&format!("{place}/run.sh")) {
            continue;
        }
        version(options, tree, &place, findings);
        if let (Some(user), Some(found)) = (user, tree.details(&place))
            && user.uid != 0
            && found.uid != user.uid
        {
            let what = format!(
                "{place} belongs to the user number {} and not to {}, who writes into it",
                found.uid, user.name
            );
            findings.error("runner.owner", what, format!("run chown -R {}: {place} in the image", user.name));
        }
    }
    // Mayfly replaces these variables for the runner that it starts. Another runner, or a step, gets the old ones.
    let mut files: Vec<String> = places(user).iter().map(|place| format!("{place}/.env")).collect();
    files.push("/etc/environment".to_owned());
    if let Some(user) = user {
        files.extend(
            [".zshenv", ".zprofile", ".profile", ".bash_profile", ".bashrc"]
                .map(|name| format!("{}/{name}", user.home)),
        );
    }
    for file in files {
        let Some(text) = tree.text(&file) else { continue };
        for line in text.lines() {
            let line = line.trim_start().trim_start_matches("export ");
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches(['"', '\'']);
            if !HOOKS.contains(&name) || value.is_empty() {
                continue;
            }
            let next = format!("remove the line from {file}: Mayfly sets the variable for each job");
            if tree.exists(value) {
                findings.warning("runner.hooks", format!("{file} sets {name} to {value}"), next);
            } else {
                let what =
                    format!("{file} sets {name} to {value}, which is not in the image: a job that gets it fails");
                findings.error("runner.hooks", what, next);
            }
        }
    }
}

fn version(options: &LintOptions, tree: &GuestTree, place: &str, findings: &mut Findings) {
    let Some(version) = version_in(tree, place) else {
        let what = format!("the version of the runner in {place} is not known");
        findings.not_checked(
            "runner.version",
            what,
            format!("run {place}/bin/Runner.Listener --version in a vm of it"),
        );
        return;
    };
    if !at_least(&version, &options.runner_minimum) {
        let what = format!(
            "the runner in {place} has the version {version}, and GitHub accepts none before {}",
            options.runner_minimum
        );
        findings.error("runner.version", what, HOW);
    }
}

/// As `github-runner.sh` noted it, or from the program's list of its parts.
fn version_in(tree: &GuestTree, place: &str) -> Option<String> {
    let is_version = |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('.');
    let noted = tree.text(&format!("{place}/.version")).map(|text| text.trim().to_owned());
    noted.filter(|text| is_version(text)).or_else(|| {
        let parts = tree.text(&format!("{place}/bin/Runner.Listener.deps.json"))?;
        let (_, rest) = parts.split_once("\"Runner.Listener/")?;
        let version: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        is_version(&version).then_some(version)
    })
}

/// Number by number; a missing one is zero.
fn at_least(version: &str, minimum: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> { text.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    let (mut have, mut need) = (numbers(version), numbers(minimum));
    let length = have.len().max(need.len());
    have.resize(length, 0);
    need.resize(length, 0);
    have >= need
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn versions_are_compared_number_by_number() {
        for (version, minimum, expected) in [
            ("2.336.0", "2.329.0", true),
            ("2.99.0", "2.329.0", false),
            ("2.329", "2.329.0", true),
            ("3", "2.329.0", true),
        ] {
            assert_eq!(at_least(version, minimum), expected, "{version} {minimum}");
        }
    }
}
