//! Why GitHub did not do what was asked, told apart as far as somebody would act differently.

use jiff::Timestamp;

/// Never holds a token, a key, a runner's configuration or an address with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitHubError {
    /// Found on this side, before anything was sent.
    #[error("GitHub cannot be asked: {what}")]
    Settings { what: String },
    #[error("{server} does not accept who asks for {what}: {said}")]
    BadCredentials { server: String, what: String, said: String },
    /// `accepted`: what GitHub says would have been enough.
    #[error("{server} does not allow {what}{}: {said}", needs(.accepted))]
    MissingPermission { server: String, what: String, accepted: Option<String>, said: String },
    /// Not there, or not to be seen with these credentials: GitHub does not tell which.
    #[error("{server} shows nothing of {what}: it does not exist, or these credentials may not see it{}", needs(.accepted))]
    NotVisible { server: String, what: String, accepted: Option<String> },
    #[error("{server} answers no more until {until} ({limit} rate limit), asked for {what}")]
    RateLimited { server: String, what: String, limit: super::GitHubLimit, until: Timestamp },
    /// It may not be removed now, and neither may its vm.
    #[error("{server}: the runner {runner} is running a job")]
    RunnerBusy { server: String, runner: u64 },
    /// By somebody else, or by an earlier call whose answer was lost.
    #[error("{server}: there is a runner with the name {name} already")]
    NameTaken { server: String, name: String },
    /// GitHub understood, and will not.
    #[error("{server} refuses {what} with {status}: {said}")]
    Refused { server: String, what: String, status: u16, said: String },
    /// `sent`: it may have been done all the same.
    #[error("{server} cannot be reached for {what}: {cause}")]
    Unavailable { server: String, what: String, cause: String, sent: bool },
    #[error("{server} gave an answer that cannot be used for {what}: {found}")]
    Unparsable { server: String, what: String, found: String },
}

fn needs(accepted: &Option<String>) -> String {
    accepted.as_ref().map(|needs| format!(" (needs {needs})")).unwrap_or_default()
}

impl GitHubError {
    /// Whether what was asked for may have been done. Then asking again with the same name may find it done.
    pub fn maybe_done(&self) -> bool {
        matches!(self, GitHubError::Unavailable { sent: true, .. } | GitHubError::Unparsable { .. })
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            GitHubError::RateLimited { .. } | GitHubError::Unavailable { .. } | GitHubError::RunnerBusy { .. }
        )
    }
}
