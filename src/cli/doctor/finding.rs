//! The result of a check: one line, what was expected, and a remedy.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Ok,
    /// Not checked.
    Skip,
    /// Works now, but will cause problems, or has a cost.
    Warn,
    /// Vms do not run, or not all of them.
    Fail,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Skip => "skip",
            Severity::Warn => "warn",
            Severity::Fail => "fail",
        }
    }
}

/// Why it was not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// It does not exist here, or is not configured.
    NotNeeded,
    /// The check was not possible.
    CouldNotLook,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// For programs: never renamed.
    pub id: &'static str,
    pub severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    pub title: &'static str,
    pub found: String,
    pub expected: &'static str,
    /// What to do. Lines that begin with four blanks are commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub id: &'static str,
    pub title: &'static str,
    pub expected: &'static str,
}

impl Check {
    pub const fn new(id: &'static str, title: &'static str, expected: &'static str) -> Self {
        Self { id, title, expected }
    }

    fn says(self, severity: Severity, found: impl Into<String>, remedy: Option<String>) -> Finding {
        Finding {
            id: self.id,
            severity,
            skipped: None,
            title: self.title,
            found: found.into(),
            expected: self.expected,
            remedy,
        }
    }

    pub fn ok(self, found: impl Into<String>) -> Finding {
        self.says(Severity::Ok, found, None)
    }

    pub fn warn(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.says(Severity::Warn, found, Some(remedy.into()))
    }

    pub fn fail(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.says(Severity::Fail, found, Some(remedy.into()))
    }

    pub fn not_needed(self, why: impl Into<String>) -> Finding {
        Finding { skipped: Some(Skipped::NotNeeded), ..self.says(Severity::Skip, why, None) }
    }

    pub fn could_not_look(self, why: impl std::fmt::Display) -> Finding {
        let found = format!("cannot check: {why}");
        Finding { skipped: Some(Skipped::CouldNotLook), ..self.says(Severity::Skip, found, None) }
    }
}

/// Limit of an unexpected answer that is shown, in bytes.
const SHOWN: usize = 200;

/// Text for an unexpected answer.
pub fn strange(expected: &str, found: &str) -> String {
    let found = found.trim();
    let mut end = found.len().min(SHOWN);
    while !found.is_char_boundary(end) {
        end -= 1;
    }
    if found.is_empty() {
        format!("expected {expected}, found nothing")
    } else {
        format!("expected {expected}, found {:?}", &found[..end])
    }
}

/// Everything that was found, in the order in which it is shown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// Whether something was tried to be looked at and could not be.
    pub fn is_incomplete(&self) -> bool {
        self.findings.iter().any(|f| f.skipped == Some(Skipped::CouldNotLook))
    }
}
