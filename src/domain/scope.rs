//! Where runners are registered: a repository, an organisation, an enterprise or a whole server.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Validated when created, so that a name cannot become another API path. Written as `owner/name`, `login`,
/// `enterprises/slug` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    Repository {
        owner: String,
        name: String,
    },
    Organization(String),
    /// Of GitHub.
    Enterprise(String),
    /// All repositories of a server of one's own.
    Instance,
}

impl Scope {
    /// From `owner/name`.
    pub fn repository(full_name: &str) -> Result<Scope, String> {
        let wrong = || format!("expected owner/name, found {full_name:?}");
        let (owner, name) = full_name.split_once('/').ok_or_else(wrong)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = !matches!(name, "" | "." | "..") && name.len() <= 100 && name.chars().all(fits);
        if !(is_login(owner) && named) {
            return Err(wrong());
        }
        Ok(Scope::Repository { owner: owner.to_owned(), name: name.to_owned() })
    }

    pub fn organization(login: &str) -> Result<Scope, String> {
        if !is_login(login) {
            return Err(format!("expected an organisation's login such as acme, found {login:?}"));
        }
        Ok(Scope::Organization(login.to_owned()))
    }

    pub fn enterprise(slug: &str) -> Result<Scope, String> {
        if !is_login(slug) {
            return Err(format!("expected an enterprise's slug such as acme-corp, found {slug:?}"));
        }
        Ok(Scope::Enterprise(slug.to_owned()))
    }

    /// The beginning of every API path of this scope.
    pub fn prefix(&self) -> Vec<&str> {
        match self {
            Scope::Repository { owner, name } => vec!["repos", owner, name],
            Scope::Organization(login) => vec!["orgs", login],
            Scope::Enterprise(slug) => vec!["enterprises", slug],
            Scope::Instance => vec!["admin"],
        }
    }

    /// `prefix`, and then this.
    pub fn path(&self, rest: &[&str]) -> Vec<String> {
        self.prefix().iter().chain(rest).map(|&s| s.to_owned()).collect()
    }

    /// As it is written in requests and configurations.
    pub fn slug(&self) -> String {
        match self {
            Scope::Repository { owner, name } => format!("{owner}/{name}"),
            Scope::Organization(login) => login.clone(),
            Scope::Enterprise(slug) => format!("enterprises/{slug}"),
            Scope::Instance => "*".to_owned(),
        }
    }

    /// Whether runners of this scope may be given jobs of a repository. Only GitHub knows the organisations of an
    /// enterprise, so any repository may belong to one.
    pub fn covers(&self, owner: &str, name: &str) -> bool {
        match self {
            Scope::Repository { owner: o, name: n } => same(o, owner) && same(n, name),
            Scope::Organization(login) => same(login, owner),
            Scope::Enterprise(_) | Scope::Instance => true,
        }
    }

    /// The permission of a GitHub App that managing its runners requires. For enterprises none is documented.
    pub fn runner_permission(&self) -> Option<&'static str> {
        match self {
            Scope::Repository { .. } => Some("administration"),
            Scope::Organization(_) => Some("organization_self_hosted_runners"),
            Scope::Enterprise(_) | Scope::Instance => None,
        }
    }

    /// The scope of a classic token that managing its runners requires.
    pub fn token_scope(&self) -> &'static str {
        match self {
            Scope::Repository { .. } => "repo",
            Scope::Organization(_) => "admin:org",
            Scope::Enterprise(_) | Scope::Instance => "manage_runners:enterprise",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Repository { owner, name } => write!(f, "the repository {owner}/{name}"),
            Scope::Organization(login) => write!(f, "the organisation {login}"),
            Scope::Enterprise(slug) => write!(f, "the enterprise {slug}"),
            Scope::Instance => write!(f, "the whole server"),
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Scope, String> {
        match text.split_once('/') {
            Some(("enterprises", slug)) => Scope::enterprise(slug),
            Some(_) => Scope::repository(text),
            None if text == "*" => Ok(Scope::Instance),
            None => Scope::organization(text),
        }
        .map_err(|_| format!("expected owner/name, an organisation's login, enterprises/slug, or `*` for a whole server, found {text:.120?}"))
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(text: String) -> Result<Scope, String> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> String {
        scope.slug()
    }
}

/// GitHub's names are equal regardless of case.
pub fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Letters, digits and dashes; names of managed users also contain an underscore.
fn is_login(text: &str) -> bool {
    !text.is_empty() && text.len() <= 100 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_becomes_another_path() {
        let repository = Scope::repository("acme/app.rs").unwrap();
        assert_eq!(repository.path(&["actions", "runners"]), ["repos", "acme", "app.rs", "actions", "runners"]);
        for wrong in
            ["", "acme", "acme/", "/app", "acme/..", "acme/a/b", "ac me/app", "acme/app?x", "acme/%2e", "ä/app"]
        {
            assert!(Scope::repository(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a/b", "..", "a b", "a?b"] {
            assert!(Scope::organization(wrong).is_err() && Scope::enterprise(wrong).is_err(), "{wrong}");
        }
        assert!(Scope::organization("octo_acme").is_ok());
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["acme/app.rs", "acme", "enterprises/acme-corp", "*"] {
            assert_eq!(text.parse::<Scope>().unwrap().slug(), text);
        }
        for wrong in ["", "a/b/c", "https://github.com/acme", "enterprises/", "a b"] {
            assert!(wrong.parse::<Scope>().is_err(), "{wrong}");
        }
    }
}
