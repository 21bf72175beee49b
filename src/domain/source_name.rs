//! Names of sources of jobs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The rule for names of sources, as text.
pub const SOURCE_NAME_RULE: &str =
    "1 to 32 lower-case letters, digits or '-', beginning with a letter and ending with a letter or digit";

/// The name of a source of jobs: a server of a CI system, with the credentials for it. It is a part of the path of the
/// source's webhook, of labels of metrics, and of keys in the database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

impl Default for SourceName {
    fn default() -> Self {
        SourceName::github()
    }
}

impl SourceName {
    pub fn new(name: &str) -> Result<SourceName, String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if name.len() > 32 || !first || name.ends_with('-') || !name.bytes().all(fits) {
            return Err(format!("expected {SOURCE_NAME_RULE}, found {name:.80?}"));
        }
        Ok(SourceName(name.to_owned()))
    }

    /// The source that the section `[github]` configures. Records that were written before sources had names belong to
    /// it.
    pub fn github() -> SourceName {
        SourceName("github".to_owned())
    }

    pub fn is_github(&self) -> bool {
        self.0 == "github"
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SourceName {
    type Error = String;

    fn try_from(name: String) -> Result<SourceName, String> {
        SourceName::new(&name)
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_paths_labels_and_keys() {
        for good in ["github", "g", "gitea-2", &"x".repeat(32)] {
            assert_eq!(SourceName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "2a", "A", "a/b", "a_b", "a.b", "é", &"x".repeat(33)] {
            assert!(SourceName::new(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<SourceName>("\"../x\"").is_err());
    }
}
