//! Pools: which jobs of a source get vms on this host, and the settings of those vms.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    BudgetsPatch, Code, Error, NetworkMode, Result, Scope, SourceKind, SourceName,
    budgets::Budgets,
    name::{NAME_RULE, is_name},
    scope::same,
    source_runner::{Registration, SourceRunner},
};

/// Upper limit of a pool's `max_vms`; a larger number is a typing error.
pub const MOST_VMS: u32 = 10_000;
/// Default of `max_vms`.
pub const USUAL_VMS: u32 = 10;
/// Largest number of repositories that a pool may list.
const MOST_REPOSITORIES: usize = 1000;

/// One kind of runner, created for jobs that ask for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    /// Name or digest of a template, or an image in a registry.
    pub template: String,
    /// The source of its jobs.
    #[serde(default)]
    pub job_source: SourceName,
    /// Where its runners are registered, which decides whose jobs they can get.
    pub scope: Scope,
    /// Labels of its runners: a job must ask for at least one of these and for no others.
    pub labels: Vec<String>,
    /// Runner group, by name. `None`: the default group.
    #[serde(default)]
    pub group: Option<String>,
    /// Only these repositories of the scope: `owner/name`, either part may be `*`. Empty: all of them.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// Live vms at once.
    pub max_vms: u32,
    /// Vms booted ahead of jobs.
    #[serde(default)]
    pub warm: u32,
    #[serde(default)]
    pub cpus: Option<u32>,
    #[serde(default)]
    pub memory_mib: Option<u32>,
    /// What its guests may reach. `None`: what the template says, else the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    #[serde(default)]
    pub budgets: BudgetsPatch,
    /// `false`: jobs get no new vms from this pool; existing vms keep their jobs.
    pub enabled: bool,
}

/// Where a pool is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PoolSource {
    /// `mayfly.toml`: changed there, and read at the start.
    Config,
    /// The API.
    Api,
}

impl PoolSource {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Pool {
    /// Errors that do not depend on this host. Pointers are relative to the pool.
    pub fn check(&self) -> Result<()> {
        let invalid = |pointer: &str, what: String| {
            Err(Error::new(Code::RequestInvalid, "there can be no such pool").field(pointer, what))
        };
        if !is_name(&self.name) {
            return invalid("/name", format!("{NAME_RULE}, found {:.80?}", self.name));
        }
        if self.template.is_empty() || self.template.len() > 512 || self.template.chars().any(char::is_control) {
            return invalid(
                "/template",
                "the name or digest of a template, or an image as host/namespace:tag".to_owned(),
            );
        }
        self.runner().check("")?;
        if self.repositories.len() > MOST_REPOSITORIES {
            return invalid("/repositories", format!("at most {MOST_REPOSITORIES}; `*` stands for a whole part"));
        }
        for (n, allowed) in self.repositories.iter().enumerate() {
            let pointer = format!("/repositories/{n}");
            let Some((owner, name)) = pattern(allowed) else {
                return invalid(
                    &pointer,
                    format!("expected owner/name, where `*` may stand for a whole part, found {allowed:.120?}"),
                );
            };
            let meets = match &self.scope {
                Scope::Repository { owner: o, name: n } => admits(owner, o) && admits(name, n),
                Scope::Organization(login) => admits(owner, login),
                Scope::Enterprise(_) | Scope::Instance => true,
            };
            if !meets {
                let why = format!("{allowed} is not of {}, where this pool's runners are registered", self.scope);
                return invalid(&pointer, why);
            }
        }
        if !(1..=MOST_VMS).contains(&self.max_vms) {
            return invalid(
                "/max_vms",
                format!("1 to {MOST_VMS}; `enabled: false` is the way to a pool that takes no jobs"),
            );
        }
        if self.warm > 0 {
            return invalid("/warm", "vms that are booted ahead of jobs are not possible yet: 0".to_owned());
        }
        // Independent of the template's budgets: each field is checked separately.
        self.budgets.over(&Budgets::default()).map(drop)
    }

    /// The runner that each of its vms registers.
    pub fn runner(&self) -> SourceRunner {
        SourceRunner {
            source: self.job_source.clone(),
            scope: self.scope.clone(),
            labels: self.labels.clone(),
            group: self.group.clone(),
            registration: Registration::Managed,
            job: None,
        }
    }

    /// Whether a job of its source, which is of this kind, matches this pool: a job of this repository (`owner/name`)
    /// that asks for these labels.
    pub fn wants(&self, source: &SourceName, kind: SourceKind, repository: &str, labels: &[String]) -> bool {
        // A job without labels names a runner group only, and GitHub does not report which one. It cannot get a runner
        // of a pool in the default group.
        let named = !labels.is_empty() || self.group.is_some();
        self.enabled && named && self.allows(source, repository) && self.runner().takes(kind, labels)
    }

    /// Whether its runners may be given jobs of this repository of this source.
    pub fn allows(&self, source: &SourceName, repository: &str) -> bool {
        if *source != self.job_source {
            return false;
        }
        let Some((owner, name)) = repository.split_once('/') else { return false };
        let listed = |allowed: &String| pattern(allowed).is_some_and(|(o, n)| admits(o, owner) && admits(n, name));
        self.scope.covers(owner, name) && (self.repositories.is_empty() || self.repositories.iter().any(listed))
    }
}

fn admits(wanted: &str, found: &str) -> bool {
    wanted == "*" || same(wanted, found)
}

/// A pattern `owner/name` of an allow-list; either part may be `*`.
fn pattern(text: &str) -> Option<(&str, &str)> {
    let (owner, name) = text.split_once('/')?;
    let or = |part: &str, filler: &str| if part == "*" { filler.to_owned() } else { part.to_owned() };
    // Both parts are checked by GitHub's rules, with a valid placeholder for `*`.
    Scope::repository(&format!("{}/{}", or(owner, "any"), or(name, "any"))).ok()?;
    Some((owner, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool {
            name: "macos".into(),
            template: "macos-tahoe".into(),
            job_source: SourceName::github(),
            scope: "acme".parse().unwrap(),
            labels: vec!["self-hosted".into(), "macOS".into(), "ARM64".into()],
            group: None,
            repositories: Vec::new(),
            max_vms: 2,
            warm: 0,
            cpus: None,
            memory_mib: None,
            network: None,
            budgets: BudgetsPatch::default(),
            enabled: true,
        }
    }

    fn labels(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|&l| l.to_owned()).collect()
    }

    #[test]
    fn a_job_is_wanted_when_every_label_it_asks_for_is_there() {
        let pool = pool();
        for wanted in [&["macos"][..], &["SELF-HOSTED", "arm64"], &["arm64", "macos", "self-hosted"]] {
            assert!(pool.wants(&SourceName::github(), SourceKind::GitHub, "acme/app", &labels(wanted)), "{wanted:?}");
        }
        for wanted in [&[][..], &["linux"], &["macos", "gpu"], &["mac"], &[""]] {
            assert!(!pool.wants(&SourceName::github(), SourceKind::GitHub, "acme/app", &labels(wanted)), "{wanted:?}");
        }
        let other = SourceName::new("forge").unwrap();
        assert!(!pool.wants(&other, SourceKind::GitHub, "acme/app", &labels(&["macos"])), "a job of another source");
        assert!(!Pool { enabled: false, ..pool }.wants(
            &SourceName::github(),
            SourceKind::GitHub,
            "acme/app",
            &labels(&["macos"])
        ));
    }

    /// `runs-on: { group: builders }` gives a job no labels.
    #[test]
    fn a_job_that_names_only_a_runner_group_is_for_pools_with_a_group() {
        let grouped = Pool { group: Some("builders".into()), ..pool() };
        assert!(
            grouped.wants(&SourceName::github(), SourceKind::GitHub, "acme/app", &[])
                && grouped.wants(&SourceName::github(), SourceKind::GitHub, "acme/app", &labels(&["macos"]))
        );
        assert!(
            !grouped.wants(&SourceName::github(), SourceKind::GitHub, "acme/app", &labels(&["gpu"]))
                && !grouped.wants(&SourceName::github(), SourceKind::GitHub, "other/app", &[])
        );
    }

    #[test]
    fn only_jobs_of_its_scope_and_its_list_are_wanted() {
        let of = |scope: &str, repositories: &[&str]| Pool {
            scope: scope.parse().unwrap(),
            repositories: labels(repositories),
            ..pool()
        };
        let cases: [(&str, &[&str], &str, bool); 16] = [
            ("acme/app", &[], "*/*", false),
            ("acme/app", &[], "acme/app", true),
            ("acme/app", &[], "Acme/App", true),
            ("acme/app", &[], "acme/app2", false),
            ("acme/app", &[], "evil/app", false),
            ("acme", &[], "ACME/any", true),
            ("acme", &[], "acme2/any", false),
            ("acme", &[], "acme", false),
            ("acme", &["acme/app", "acme/Lib"], "acme/lib", true),
            ("acme", &["acme/app"], "acme/lib", false),
            ("acme", &["acme/*"], "acme/lib", true),
            ("acme", &["*/lib"], "evil/lib", false),
            ("enterprises/acme", &[], "whoever/lib", true),
            ("enterprises/acme", &["acme/*", "*/tools"], "other/tools", true),
            ("enterprises/acme", &["acme/*"], "other/tools", false),
            ("enterprises/acme", &["acme/*"], "acme/x", true),
        ];
        for (scope, list, repository, wanted) in cases {
            let pool = of(scope, list);
            pool.check().unwrap();
            assert_eq!(
                pool.wants(&SourceName::github(), SourceKind::GitHub, repository, &labels(&["macos"])),
                wanted,
                "{scope} {list:?} {repository}"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_pool_is_said_of_its_field() {
        pool().check().unwrap();
        type Spoil = fn(&mut Pool);
        let wrong: [(&str, Spoil); 18] = [
            ("/name", |p| p.name = String::new()),
            ("/name", |p| p.name = "-x".into()),
            ("/name", |p| p.name = "a/b".into()),
            ("/name", |p| p.name = "x".repeat(64)),
            ("/template", |p| p.template.clear()),
            ("/labels", |p| p.labels.clear()),
            ("/labels", |p| p.labels = labels(&["a,b"])),
            ("/group", |p| p.group = Some(" ".into())),
            ("/group", |p| {
                p.scope = "acme/app".parse().unwrap();
                p.group = Some("builders".into());
            }),
            ("/repositories/0", |p| p.repositories = labels(&["app"])),
            ("/repositories/0", |p| p.repositories = labels(&["acme/ap*"])),
            ("/repositories/1", |p| p.repositories = labels(&["acme/app", "other/app"])),
            ("/repositories/0", |p| p.repositories = labels(&["acme/a/b"])),
            ("/max_vms", |p| p.max_vms = 0),
            ("/max_vms", |p| p.max_vms = MOST_VMS + 1),
            ("/warm", |p| p.warm = 1),
            ("/budgets/idle_seconds", |p| p.budgets.idle_seconds = Some(0)),
            ("/budgets/stop_grace_seconds", |p| p.budgets.stop_grace_seconds = Some(601)),
        ];
        for (pointer, spoil) in wrong {
            let mut spoilt = pool();
            spoil(&mut spoilt);
            let error = spoilt.check().expect_err(pointer);
            assert_eq!(error.fields[0].pointer, pointer, "{error}");
        }
    }
}
