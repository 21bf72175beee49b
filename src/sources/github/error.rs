//! Errors of GitHub: one variant for each reaction of a caller or an administrator.

use jiff::Timestamp;

use crate::{
    domain::SourceKind,
    sources::error::{SourceError, SourceErrorKind},
};

/// Never contains a token, a key, a runner's configuration or a URL with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitHubError {
    /// Found locally, before any request was sent.
    #[error("cannot send requests to GitHub: {what}")]
    Settings { what: String },
    #[error("{server} rejects the credentials of the request for {what}: {said}")]
    BadCredentials { server: String, what: String, said: String },
    /// `accepted`: the permission that GitHub requires.
    #[error("{server} does not allow {what}{}: {said}", needs(.accepted))]
    MissingPermission { server: String, what: String, accepted: Option<String>, said: String },
    /// It does not exist, or is not visible with these credentials: GitHub does not distinguish them.
    #[error("{server} shows nothing of {what}: it does not exist, or these credentials may not see it{}", needs(.accepted))]
    NotVisible { server: String, what: String, accepted: Option<String> },
    #[error("{server} refuses requests until {until} ({limit} rate limit); request: {what}")]
    RateLimited { server: String, what: String, limit: super::GitHubLimit, until: Timestamp },
    /// It must not be removed now, and neither may its vm.
    #[error("{server}: the runner {runner} is running a job")]
    RunnerBusy { server: String, runner: u64 },
    /// Used by another runner, or by an earlier request whose answer was lost.
    #[error("{server}: there is a runner with the name {name} already")]
    NameTaken { server: String, name: String },
    /// GitHub understood the request and refuses it.
    #[error("{server} refuses {what} with {status}: {said}")]
    Refused { server: String, what: String, status: u16, said: String },
    /// `sent`: it may have been carried out all the same.
    #[error("{server} cannot be reached for {what}: {cause}")]
    Unavailable { server: String, what: String, cause: String, sent: bool },
    #[error("{server} returned an unusable answer for {what}: {found}")]
    Unparsable { server: String, what: String, found: String },
}

fn needs(accepted: &Option<String>) -> String {
    accepted.as_ref().map(|needs| format!(" (needs {needs})")).unwrap_or_default()
}

impl GitHubError {
    /// Whether the request may have been carried out. Then a repetition with the same name may find it done.
    pub fn maybe_done(&self) -> bool {
        matches!(self, GitHubError::Unavailable { sent: true, .. } | GitHubError::Unparsable { .. })
    }

    /// Whether the same request may succeed later without any change.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            GitHubError::RateLimited { .. } | GitHubError::Unavailable { .. } | GitHubError::RunnerBusy { .. }
        )
    }
}

impl From<GitHubError> for SourceError {
    fn from(error: GitHubError) -> Self {
        let kind = match &error {
            GitHubError::Settings { .. } => SourceErrorKind::Settings,
            GitHubError::RateLimited { until, .. } => SourceErrorKind::RateLimited { until: *until },
            GitHubError::RunnerBusy { .. } => SourceErrorKind::RunnerBusy,
            GitHubError::NameTaken { .. } => SourceErrorKind::NameTaken,
            GitHubError::Unavailable { sent, .. } => SourceErrorKind::Unavailable { sent: *sent },
            GitHubError::Unparsable { .. } => SourceErrorKind::Unparsable,
            GitHubError::BadCredentials { .. }
            | GitHubError::MissingPermission { .. }
            | GitHubError::NotVisible { .. }
            | GitHubError::Refused { .. } => SourceErrorKind::Refused,
        };
        SourceError::new(SourceKind::GitHub, kind, error.to_string())
    }
}
