//! Pure functions from GitHub's answers to findings.

use jiff::SignedDuration;

use crate::{
    cli::{
        doctor::finding::{Check, Finding},
        text,
    },
    sources::github::{GitHubApp, GitHubError, Installation, Permissions, RateLimit, ResourceView, Scope},
};

pub(super) const CREDENTIAL: Check =
    Check::new("github.credential", "Credential", "a private key or token that only this user can read");
pub(super) const REACHABLE: Check = Check::new("github.reachable", "GitHub", "answers at the configured address");
const CLOCK: Check = Check::new("github.clock", "Clock", "within 30 seconds of GitHub's");
pub(super) const APP: Check = Check::new("github.app", "App", "exists, and the private key is one of its keys");
pub(super) const TOKEN: Check = Check::new("github.token", "Token", "accepted, and not about to expire");
const EVENTS: Check = Check::new("github.events", "Webhook events", "the App is subscribed to workflow_job");
pub(super) const INSTALLATION: Check =
    Check::new("github.installation", "Installation", "the App is installed there, and not suspended");
pub(super) const PERMISSIONS: Check =
    Check::new("github.permissions", "Permissions", "what runners and jobs take, granted to the installation");
pub(super) const READ: Check =
    Check::new("github.runners.read", "Runners: list", "these credentials may list the runners");
pub(super) const WRITE: Check =
    Check::new("github.runners.write", "Runners: register", "these credentials may register and remove runners");
pub(super) const JOBS: Check =
    Check::new("github.jobs", "Jobs: read", "these credentials may read workflow runs and jobs");
pub(super) const GROUPS: Check =
    Check::new("github.runner_groups", "Runner groups", "can be listed, so that names can be used");
pub(super) const LIMIT: Check = Check::new("github.rate_limit", "Rate limit", "more than a tenth of it is left");

/// Clock differences that are reported, and those that break authentication: a signed token is issued 60 seconds in
/// the past and is valid for nine minutes.
const NOTICED: SignedDuration = SignedDuration::from_secs(30);
const TOO_FAST: SignedDuration = SignedDuration::from_secs(55);
const TOO_SLOW: SignedDuration = SignedDuration::from_mins(8);

/// The finding that replaces all checks of a scope if none was given.
pub(super) const PLACE: Check =
    Check::new("github.place", "Runners and jobs", "a repository, organisation or enterprise whose jobs are to be run");
pub(super) const NO_PLACE: &str = "not asked: name a place with --repo, --org or --enterprise";

/// `signs`: an App signs tokens that contain the time; a personal access token does not.
pub(super) fn clock(ahead: Option<SignedDuration>, signs: bool) -> Finding {
    const REMEDY: &str = "let the system keep its clock right; `mayfly doctor` says how";
    let Some(ahead) = ahead else { return CLOCK.could_not_look("the answer has no date") };
    let words = |by: SignedDuration| {
        let way = if by.is_negative() { "behind" } else { "ahead of" };
        format!("{} {way} GitHub's", text::duration(by.abs()))
    };
    if signs && (ahead > TOO_FAST || ahead < -TOO_SLOW) {
        return CLOCK.fail(format!("{}: signed tokens are refused", words(ahead)), REMEDY);
    }
    if ahead.abs() > NOTICED {
        return CLOCK.warn(words(ahead), REMEDY);
    }
    // Dates have a resolution of seconds, and the answer takes time: a smaller difference means nothing.
    CLOCK.ok(if ahead.abs() < SignedDuration::from_secs(3) { "as GitHub's".to_owned() } else { words(ahead) })
}

pub(super) fn events(app: &GitHubApp) -> Finding {
    if app.events.iter().any(|event| event == "workflow_job") {
        return EVENTS.ok("workflow_job");
    }
    EVENTS.warn(
        "the App is not subscribed to workflow_job",
        "without it queued jobs are found by asking, which is slower: in the App's settings, under Permissions & events, \
         subscribe to Workflow job (it needs Actions: read-only)",
    )
}

pub(super) fn account(installation: &Installation) -> &str {
    installation.account.as_ref().map_or("an account without a name", |account| &account.login)
}

pub(super) fn installations(answer: Result<Vec<Installation>, GitHubError>, app: &GitHubApp, web: &str) -> Finding {
    match answer {
        Err(error) => INSTALLATION.could_not_look(error),
        Ok(all) if all.is_empty() => INSTALLATION.fail(
            "the App is not installed anywhere",
            format!("install it:\n    {web}apps/{}/installations/new", app.slug.as_deref().unwrap_or("<name>")),
        ),
        Ok(all) => {
            let names: Vec<String> = all
                .iter()
                .map(|i| format!("{}{}", account(i), if i.suspended_at.is_some() { " (suspended)" } else { "" }))
                .collect();
            INSTALLATION.ok(names.join(", "))
        }
    }
}

fn level(granted: &Permissions, name: &str) -> u8 {
    match granted.get(name).map(String::as_str) {
        Some("admin") => 3,
        Some("write") => 2,
        Some("read") => 1,
        _ => 0,
    }
}

pub(super) fn permissions(scope: &Scope, asked: &Permissions, granted: &Permissions) -> Finding {
    let runners = scope.runner_permission().map(|name| (name, "write", 2));
    let needed: Vec<(&str, &str, u8)> =
        runners.into_iter().chain([("actions", "read", 1), ("metadata", "read", 1)]).collect();
    let list = |of: &[&(&str, &str, u8)]| of.iter().map(|(n, l, _)| format!("{n}={l}")).collect::<Vec<_>>().join(", ");
    let missing: Vec<_> = needed.iter().filter(|(name, _, least)| level(granted, name) < *least).collect();
    if missing.is_empty() {
        return PERMISSIONS.ok(list(&needed.iter().collect::<Vec<_>>()));
    }
    let unasked: Vec<_> = missing.iter().copied().filter(|(name, _, least)| level(asked, name) < *least).collect();
    let remedy = if unasked.is_empty() {
        "the App requests them, but they have not been accepted: an owner of the account can accept them in its settings under GitHub Apps"
            .to_owned()
    } else {
        format!(
            "in the App's settings, under Permissions & events, add {}; then an owner of the account accepts",
            list(&unasked)
        )
    };
    PERMISSIONS.fail(format!("missing: {}", list(&missing)), remedy)
}

pub(super) fn visible(scope: &Scope, read: &Result<(), GitHubError>) -> Finding {
    match read {
        Ok(()) => READ.ok(format!("of {scope}")),
        Err(error @ (GitHubError::Unavailable { .. } | GitHubError::RateLimited { .. })) => READ.could_not_look(error),
        Err(error @ GitHubError::NotVisible { .. }) => READ.fail(
            error.to_string(),
            "check the name; a token's owner has to be admin there, and an App's installation has to include the repository",
        ),
        Err(error) => READ.fail(error.to_string(), format!("grant {}", wanted(scope))),
    }
}

/// The permission that an administrator must grant, in GitHub's terms.
fn wanted(scope: &Scope) -> String {
    match scope.runner_permission() {
        Some(name) => format!("{name}=write (classic tokens: {})", scope.token_scope()),
        None => format!(
            "a classic token the scope {}: Apps are not documented to manage an enterprise's runners",
            scope.token_scope()
        ),
    }
}

pub(super) fn registering(scope: &Scope, granted: &Permissions) -> Finding {
    match scope.runner_permission() {
        Some(name) if level(granted, name) >= 2 => {
            WRITE.ok(format!("{name}={}: granted, and nothing was created to try it", granted[name]))
        }
        Some(name) => WRITE.fail(
            format!("{name} is {}", granted.get(name).map_or("not granted", String::as_str)),
            format!("grant {name}=write"),
        ),
        None => WRITE.could_not_look("GitHub documents no permission of Apps for the runners of an enterprise"),
    }
}

pub(super) fn token_scopes(scope: &Scope, scopes: Option<&str>) -> Finding {
    let Some(scopes) = scopes else {
        return WRITE.could_not_look(format!(
            "GitHub does not tell what a fine-grained token may do; it needs {} there",
            scope.runner_permission().map_or_else(|| scope.token_scope().to_owned(), |name| format!("{name}=write"))
        ));
    };
    let needed = scope.token_scope();
    let wider = if needed == "manage_runners:enterprise" { "admin:enterprise" } else { needed };
    if scopes.split(',').map(str::trim).any(|s| s == needed || s == wider) {
        return WRITE.ok(format!("the token has {needed}, and nothing was created to try it"));
    }
    let has = if scopes.trim().is_empty() { "no scope" } else { scopes };
    WRITE.fail(format!("the token has {has}"), format!("make one with the scope {needed}"))
}

pub(super) const JOBS_REMEDY: &str = "grant actions=read (classic tokens: repo)";

pub(super) fn jobs(scope: &Scope, answer: Result<usize, GitHubError>) -> Finding {
    match answer {
        Ok(queued) => JOBS.ok(format!("of {scope}; runs that wait now: {queued}")),
        Err(error @ (GitHubError::Unavailable { .. } | GitHubError::RateLimited { .. })) => JOBS.could_not_look(error),
        Err(error) => JOBS.fail(error.to_string(), JOBS_REMEDY),
    }
}

pub(super) fn limits(answer: Result<RateLimit, GitHubError>) -> Finding {
    let limits = match answer {
        Ok(limits) => limits,
        Err(error) => return LIMIT.could_not_look(error),
    };
    let ours = ["core", "actions_runner_registration"];
    let of_ours: Vec<&ResourceView> = limits.iter().filter(|l| ours.contains(&l.resource.as_str())).collect();
    if of_ours.is_empty() {
        return LIMIT.ok("none is set");
    }
    let shown: Vec<String> = of_ours
        .iter()
        .map(|l| format!("{}: {} of {} left until {}", l.resource, l.remaining, l.limit, text::time(l.resets_at)))
        .collect();
    let shown = shown.join("; ");
    if of_ours.iter().any(|l| l.remaining * 10 < l.limit) {
        return LIMIT.warn(
            shown,
            "look at what else uses these credentials; an App has a limit of its own, a token shares its owner's",
        );
    }
    LIMIT.ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Severity;

    #[test]
    fn clocks_are_judged_by_what_github_takes() {
        for (seconds, severity) in [
            (0, Severity::Ok),
            (-20, Severity::Ok),
            (40, Severity::Warn),
            (-60, Severity::Warn),
            (56, Severity::Fail),
            (-481, Severity::Fail),
        ] {
            let ahead = Some(SignedDuration::from_secs(seconds));
            assert_eq!(clock(ahead, true).severity, severity, "{seconds}");
            assert_eq!(clock(ahead, false).severity, severity.min(Severity::Warn), "{seconds}");
        }
        assert_eq!(clock(None, true).severity, Severity::Skip);
    }

    #[test]
    fn the_remedy_names_who_can_grant_a_missing_permission() {
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let scope = Scope::organization("acme").unwrap();
        let all: Permissions =
            of(&[("organization_self_hosted_runners", "write"), ("actions", "read"), ("metadata", "read")]);
        let less: Permissions =
            of(&[("organization_self_hosted_runners", "read"), ("actions", "write"), ("metadata", "read")]);
        assert_eq!(permissions(&scope, &all, &all).severity, Severity::Ok);
        let accept = permissions(&scope, &all, &less);
        assert!(accept.found == "missing: organization_self_hosted_runners=write", "{accept:?}");
        assert!(accept.remedy.unwrap().contains("have not been accepted"));
        assert!(
            permissions(&scope, &less, &less).remedy.unwrap().contains("add organization_self_hosted_runners=write")
        );
    }

    #[test]
    fn a_fine_grained_token_proves_nothing_about_writing() {
        let org = Scope::organization("acme").unwrap();
        assert_eq!(token_scopes(&org, Some("admin:org, repo")).severity, Severity::Ok);
        assert_eq!(token_scopes(&org, Some("repo")).severity, Severity::Fail);
        assert_eq!(token_scopes(&org, Some("")).severity, Severity::Fail);
        assert_eq!(token_scopes(&org, None).severity, Severity::Skip);
        let enterprise = Scope::enterprise("acme").unwrap();
        assert_eq!(token_scopes(&enterprise, Some("admin:enterprise")).severity, Severity::Ok);
    }
}
