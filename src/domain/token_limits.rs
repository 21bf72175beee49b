//! What a token with the scope `create` may ask for.
//!
//! Patterns are compared with the whole text; `*` stands for any characters, also none. Where a name has parts (the owner
//! of a repository, the host of an image), `*` never reaches from one part into the next one that decides about trust.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    scope::Scope,
    source_name::SourceName,
    source_runner::SourceRunner,
};

const MOST_PATTERNS: usize = 100;
const LONGEST_PATTERN: usize = 512;
/// Patterns that an error lists; more are counted only.
const SHOWN_PATTERNS: usize = 10;

/// What a token with the scope `create` may ask for. A member that is not set does not limit; an empty list allows
/// nothing. A token with limits ends, and reads the logs of, only vms that were created with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenLimits {
    /// Names of the sources of jobs at which runners may be registered; `*` stands for any characters. If this is not set
    /// and `github_scopes` or `github_labels` is, only `github`.
    #[schema(example = json!(["forge"]), max_items = 100)]
    pub sources: Option<Vec<String>>,
    /// Where runners may be registered: `owner/name`, an organisation's login, or `enterprises/slug`. `*` stands
    /// for any characters within a part: `acme/*` is every repository of acme, and not acme itself. Upper and lower case
    /// are equal.
    #[schema(example = json!(["acme/*"]), max_items = 100)]
    pub github_scopes: Option<Vec<String>>,
    /// Labels that runners of sources of jobs may have; `*` stands for any characters. Upper and lower case are equal.
    #[schema(example = json!(["linux", "team-a-*"]), max_items = 100)]
    pub github_labels: Option<Vec<String>>,
    /// Names or digests of templates; `*` stands for any characters. If this or `images` is set, whatever neither of them
    /// lists is refused.
    #[schema(example = json!(["micro", "macos-*"]), max_items = 100)]
    pub templates: Option<Vec<String>>,
    /// Images that vms may be made of: `host` (a whole registry), `host/namespace` (with every tag and digest),
    /// `host/namespace:tag`. `*` stands for any characters within the host, and within the rest. If this or `templates` is
    /// set, whatever neither of them lists is refused.
    #[schema(example = json!(["ghcr.io/acme/*"]), max_items = 100)]
    pub images: Option<Vec<String>>,
    /// Most cores of a vm.
    #[schema(minimum = 1)]
    pub max_cpus: Option<u32>,
    /// Most memory of a vm, in MiB.
    #[schema(minimum = 32)]
    pub max_memory_mib: Option<u32>,
    /// Largest disk of a vm, in bytes, as its guest sees it.
    #[schema(minimum = 1)]
    pub max_disk_bytes: Option<u64>,
    /// Most vms that were created with the token and are not deleted yet, including those that wait in the queue.
    #[schema(minimum = 1, maximum = 1000000)]
    pub max_live_vms: Option<u32>,
}

/// The largest vm that may be made. Stored with a vm whose template is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

impl SizeLimits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Of the vm as it would be made, with what its template or image adds.
    pub fn check(&self, cpus: u32, memory_mib: u32, disk_bytes: u64) -> Result<()> {
        at_most("max_cpus", "/cpus", self.cpus.map(u64::from), cpus.into(), "cores")?;
        at_most("max_memory_mib", "/memory_mib", self.memory_mib.map(u64::from), memory_mib.into(), "MiB of memory")?;
        at_most("max_disk_bytes", "/template", self.disk_bytes, disk_bytes, "bytes of disk")
    }
}

impl TokenLimits {
    /// Errors of the limits themselves; pointers are relative to the request for a token.
    pub fn check(&self) -> Result<()> {
        let invalid = |field: &str, what: String| {
            Err(Error::new(Code::RequestInvalid, "there can be no such limit").field(format!("/limits{field}"), what))
        };
        if *self == Self::default() {
            return invalid("", "sets no limit: leave it out".to_owned());
        }
        type IsPattern = fn(&str) -> bool;
        let lists: [(&str, &Option<Vec<String>>, IsPattern, &str); 5] = [
            (
                "sources",
                &self.sources,
                |name| SourceName::new(&name.replace('*', "x")).is_ok(),
                "the name of a source of jobs",
            ),
            ("github_scopes", &self.github_scopes, is_scope, "owner/name, an organisation's login or enterprises/slug"),
            ("github_labels", &self.github_labels, |label| !label.contains(','), "a label"),
            ("templates", &self.templates, |name| !name.contains('/'), "the name of a template, or its digest"),
            ("images", &self.images, is_image, "host, host/namespace or host/namespace:tag"),
        ];
        for (limit, patterns, is_pattern, expected) in lists {
            let patterns = patterns.as_deref().unwrap_or_default();
            if patterns.len() > MOST_PATTERNS {
                return invalid(
                    &format!("/{limit}"),
                    format!("at most {MOST_PATTERNS}; `*` stands for any characters"),
                );
            }
            for (n, pattern) in patterns.iter().enumerate() {
                let plain = !pattern.chars().any(char::is_control) && pattern.trim() == pattern;
                if pattern.is_empty() || pattern.len() > LONGEST_PATTERN || !plain || !is_pattern(pattern) {
                    let what = format!("expected {expected}, with `*` for any characters, found {pattern:.120?}");
                    return invalid(&format!("/{limit}/{n}"), what);
                }
            }
        }
        for (limit, least, most, given) in [
            ("max_cpus", 1, u64::MAX, self.max_cpus.map(u64::from)),
            ("max_memory_mib", 32, u64::MAX, self.max_memory_mib.map(u64::from)),
            ("max_disk_bytes", 1, u64::MAX, self.max_disk_bytes),
            ("max_live_vms", 1, 1_000_000, self.max_live_vms.map(u64::from)),
        ] {
            if given.is_some_and(|given| given < least) {
                return invalid(&format!("/{limit}"), format!("at least {least}"));
            }
            if given.is_some_and(|given| given > most) {
                return invalid(&format!("/{limit}"), format!("at most {most}"));
            }
        }
        Ok(())
    }

    /// Refuses a runner of a CI server, whether Mayfly or the caller registers it.
    pub fn check_runner(&self, runner: &SourceRunner) -> Result<()> {
        // Such a token was made for GitHub. On another server the same names may belong to others.
        let only_github = [SourceName::github().to_string()];
        let for_github = self.github_scopes.is_some() || self.github_labels.is_some();
        let implied = for_github.then_some(&only_github[..]);
        if let Some(sources) = self.sources.as_deref().or(implied)
            && !sources.iter().any(|pattern| matches(&fold(pattern), runner.source.as_str()))
        {
            return Err(not_listed("sources", "/runner/source", runner.source.as_str(), sources));
        }
        let scope = runner.scope.slug();
        if let Some(patterns) = &self.github_scopes
            && !patterns.iter().any(|pattern| admits_scope(pattern, &runner.scope))
        {
            return Err(not_listed("github_scopes", "/runner/scope", &scope, patterns));
        }
        let Some(patterns) = &self.github_labels else { return Ok(()) };
        match runner.labels.iter().find(|label| !patterns.iter().any(|p| matches(&fold(p), &fold(label)))) {
            Some(label) => Err(not_listed("github_labels", "/runner/labels", label, patterns)),
            None => Ok(()),
        }
    }

    /// Refuses a template of this host, by the text that the request names it by.
    pub fn check_template(&self, asked: &str) -> Result<()> {
        let Some(patterns) = self.templates.as_deref().or(self.images.as_ref().map(|_| &[][..])) else { return Ok(()) };
        if patterns.iter().any(|pattern| matches(pattern, asked)) {
            return Ok(());
        }
        Err(not_listed("templates", "/template", asked, patterns))
    }

    /// Refuses an image before anything of it is fetched. `target` is what follows the repository: `:tag` or `@digest`.
    pub fn check_image(&self, registry: &str, repository: &str, target: &str) -> Result<()> {
        let Some(patterns) = self.images.as_deref().or(self.templates.as_ref().map(|_| &[][..])) else { return Ok(()) };
        let whole = format!("{repository}{target}");
        let admits = |pattern: &String| {
            let (host, rest) = pattern.split_once('/').unwrap_or((pattern, "*"));
            matches(&fold(host), &fold(registry)) && (matches(rest, &whole) || matches(rest, repository))
        };
        if patterns.iter().any(admits) {
            return Ok(());
        }
        Err(not_listed("images", "/template", &format!("{registry}/{whole}"), patterns))
    }

    pub fn size(&self) -> SizeLimits {
        SizeLimits { cpus: self.max_cpus, memory_mib: self.max_memory_mib, disk_bytes: self.max_disk_bytes }
    }
}

fn not_listed(limit: &str, pointer: &str, asked: &str, patterns: &[String]) -> Error {
    let allowed = match patterns {
        [] => "nothing".to_owned(),
        patterns => {
            let more = patterns.len().saturating_sub(SHOWN_PATTERNS);
            let shown = patterns.iter().take(SHOWN_PATTERNS).map(String::as_str).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{shown} and {more} more") } else { shown }
        }
    };
    Error::new(
        Code::AuthLimitExceeded,
        format!("the limit `{limit}` of the token allows {allowed}; the request asks for {asked:.200}"),
    )
    .field(pointer, format!("not allowed by the token's `{limit}`: {allowed}"))
}

fn at_most(limit: &str, pointer: &str, most: Option<u64>, asked: u64, unit: &str) -> Result<()> {
    match most {
        Some(most) if asked > most => Err(Error::new(
            Code::AuthLimitExceeded,
            format!("the limit `{limit}` of the token allows {most}; the vm would have {asked} {unit}"),
        )
        .field(pointer, format!("at most {most} {unit}"))),
        _ => Ok(()),
    }
}

fn is_scope(pattern: &str) -> bool {
    // By GitHub's rules, with a valid placeholder.
    pattern.replace('*', "x").parse::<Scope>().is_ok()
}

fn is_image(pattern: &str) -> bool {
    let (host, rest) = pattern.split_once('/').unwrap_or((pattern, "*"));
    !host.is_empty() && !rest.is_empty() && pattern.bytes().all(|b| b.is_ascii_graphic())
}

fn admits_scope(pattern: &str, scope: &Scope) -> bool {
    let admits = |pattern: &str, name: &str| matches(&fold(pattern), &fold(name));
    match (pattern.split_once('/'), scope) {
        (Some(("enterprises", of_slug)), Scope::Enterprise(slug)) => admits(of_slug, slug),
        // A whole server is more than any pattern names.
        (_, Scope::Instance) => false,
        (Some(("enterprises", _)), _) | (Some(_), Scope::Enterprise(_) | Scope::Organization(_)) => false,
        (Some((of_owner, of_name)), Scope::Repository { owner, name }) => {
            admits(of_owner, owner) && admits(of_name, name)
        }
        (None, Scope::Organization(login)) => admits(pattern, login),
        (None, Scope::Repository { .. } | Scope::Enterprise(_)) => false,
    }
}

fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// Whether the whole text fits the pattern, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last `*`, and where in the text the attempt to go on behind it began.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, begin)) = star {
            star = Some((at, begin + 1));
            (p, t) = (at + 1, begin + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::source_runner::Registration;

    fn list(patterns: &[&str]) -> Option<Vec<String>> {
        Some(patterns.iter().map(|&p| p.to_owned()).collect())
    }

    #[test]
    fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
        for (pattern, text) in
            [("*", ""), ("*", "abc"), ("a*c", "ac"), ("a*c", "abcabc"), ("*b*", "abc"), ("a**", "a"), ("é*", "éa")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", ""), ("a*c", "abcd"), ("a.c", "abc"), ("ab*b", "ab"), ("*a", "ab")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        // Linear enough for the longest pattern and text.
        assert!(!matches(&format!("{}b", "a*".repeat(250)), &"a".repeat(512)));
    }

    #[test]
    fn a_pattern_of_one_kind_of_scope_admits_no_other_kind() {
        let cases = [
            ("acme/*", "acme/app", true),
            ("acme/*", "ACME/App", true),
            ("acme/app-*", "acme/app-1", true),
            ("acme/*", "acme", false),
            ("acme/*", "acme2/app", false),
            ("*/*", "enterprises/acme", false),
            ("*/acme", "enterprises/acme", false),
            ("enterprises/*", "enterprises/acme", true),
            ("enterprises/*", "enterprise/acme", false),
            ("acme", "acme", true),
            ("acme", "acme/app", false),
            ("*", "acme", true),
            ("*", "acme/app", false),
        ];
        for (pattern, scope, admitted) in cases {
            assert!(is_scope(pattern), "{pattern}");
            assert_eq!(admits_scope(pattern, &scope.parse().unwrap()), admitted, "{pattern} {scope}");
        }
    }

    #[test]
    fn the_host_of_an_image_is_compared_by_itself() {
        let cases = [
            ("ghcr.io", "ghcr.io", "acme/app", true),
            ("GHCR.io", "ghcr.io", "acme/app", true),
            ("ghcr.io/acme/*", "ghcr.io", "acme/a/b", true),
            ("ghcr.io/acme/*", "ghcr.io", "acme2/app", false),
            ("ghcr.io/acme/app", "ghcr.io", "acme/app", true),
            ("ghcr.io/acme/app:v1", "ghcr.io", "acme/app", true),
            ("ghcr.io/acme/app:v2", "ghcr.io", "acme/app", false),
            ("ghcr.io/acme/app:v*", "ghcr.io", "acme/app", true),
            ("ghcr.io", "ghcr.io.evil.example", "acme/app", false),
            // The `*` of the host ends where the host ends.
            ("*.acme.dev/ci/*", "evil.example", "x.acme.dev/ci/app", false),
            ("*.acme.dev/ci/*", "eu.acme.dev", "ci/app", true),
        ];
        for (pattern, registry, repository, admitted) in cases {
            let limits = TokenLimits { images: list(&[pattern]), ..TokenLimits::default() };
            limits.check().unwrap();
            let checked = limits.check_image(registry, repository, ":v1");
            assert_eq!(checked.is_ok(), admitted, "{pattern} {registry}/{repository}");
        }
    }

    #[test]
    fn one_list_of_sources_closes_the_other_kind_of_source() {
        let templates = TokenLimits { templates: list(&["micro"]), ..TokenLimits::default() };
        let images = TokenLimits { images: list(&["ghcr.io"]), ..TokenLimits::default() };
        let none = TokenLimits { max_cpus: Some(1), ..TokenLimits::default() };
        assert!(templates.check_template("micro").is_ok() && templates.check_image("ghcr.io", "a", ":b").is_err());
        assert!(images.check_template("micro").is_err() && images.check_image("ghcr.io", "a", ":b").is_ok());
        assert!(none.check_template("micro").is_ok() && none.check_image("ghcr.io", "a", ":b").is_ok());
        // A digest is listed like a name: the name of a template says nothing about its older versions.
        assert!(templates.check_template("sha256:00").is_err());
    }

    #[test]
    fn every_label_of_a_runner_counts() {
        let limits = TokenLimits { github_labels: list(&["linux", "team-a-*"]), ..TokenLimits::default() };
        let runner = |labels: &[&str]| SourceRunner {
            source: SourceName::github(),
            scope: "acme".parse().unwrap(),
            labels: labels.iter().map(|&l| l.to_owned()).collect(),
            group: None,
            registration: Registration::Managed,
            job: None,
        };
        assert!(limits.check_runner(&runner(&["Linux", "team-a-gpu"])).is_ok());
        let error = limits.check_runner(&runner(&["linux", "deploy"])).unwrap_err();
        assert_eq!(error.code, Code::AuthLimitExceeded);
        assert!(error.detail.contains("`github_labels`") && error.detail.contains("deploy"), "{error}");
    }

    #[test]
    fn limits_for_github_allow_no_other_server() {
        let runner = |source: &str| SourceRunner {
            source: SourceName::new(source).unwrap(),
            scope: "acme".parse().unwrap(),
            labels: vec!["linux".into()],
            group: None,
            registration: Registration::Managed,
            job: None,
        };
        let allows = |limits: &TokenLimits, source| limits.check_runner(&runner(source)).is_ok();
        let scopes = TokenLimits { github_scopes: list(&["acme"]), ..TokenLimits::default() };
        assert!(allows(&scopes, "github") && !allows(&scopes, "forge"));
        let both = TokenLimits { sources: list(&["github", "for*"]), ..scopes };
        assert!(allows(&both, "github") && allows(&both, "forge") && !allows(&both, "other"));
        let size = TokenLimits { max_cpus: Some(1), ..TokenLimits::default() };
        assert!(allows(&size, "github") && allows(&size, "forge"));
    }

    #[test]
    fn what_is_wrong_with_a_limit_is_said_of_its_member() {
        for (at, limits) in [
            ("/limits", TokenLimits::default()),
            ("/limits/github_scopes/1", TokenLimits { github_scopes: list(&["a", "a/b/c"]), ..Default::default() }),
            ("/limits/github_labels/0", TokenLimits { github_labels: list(&["a,b"]), ..Default::default() }),
            ("/limits/sources/0", TokenLimits { sources: list(&["A"]), ..Default::default() }),
            ("/limits/templates/0", TokenLimits { templates: list(&["ghcr.io/a"]), ..Default::default() }),
            ("/limits/images/0", TokenLimits { images: list(&["/a"]), ..Default::default() }),
            ("/limits/images/0", TokenLimits { images: list(&[" "]), ..Default::default() }),
            ("/limits/images", TokenLimits { images: Some(vec!["a".into(); 101]), ..Default::default() }),
            ("/limits/max_cpus", TokenLimits { max_cpus: Some(0), ..Default::default() }),
            ("/limits/max_memory_mib", TokenLimits { max_memory_mib: Some(31), ..Default::default() }),
            ("/limits/max_live_vms", TokenLimits { max_live_vms: Some(0), ..Default::default() }),
        ] {
            assert_eq!(limits.check().unwrap_err().fields[0].pointer, at);
        }
    }
}
