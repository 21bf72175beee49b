//! Kinds of sources of jobs: the protocols of CI systems that Mayfly speaks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Code;

/// What a source of jobs is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SourceKind {
    /// GitHub, or a GitHub Enterprise Server.
    #[serde(rename = "github")]
    #[strum(serialize = "github")]
    GitHub,
    /// A Gitea server.
    Gitea,
    /// A queue of a Buildkite cluster.
    Buildkite,
}

impl SourceKind {
    pub const ALL: &'static [SourceKind] = <SourceKind as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The name of the CI system, for messages.
    pub fn title(self) -> &'static str {
        match self {
            SourceKind::GitHub => "GitHub",
            SourceKind::Gitea => "Gitea",
            SourceKind::Buildkite => "Buildkite",
        }
    }

    /// Whether a runner is made for one particular job and takes no other. At other sources any matching runner may be given
    /// a job.
    pub fn binds_jobs(self) -> bool {
        match self {
            SourceKind::GitHub | SourceKind::Gitea => false,
            SourceKind::Buildkite => true,
        }
    }

    /// The code of an error: no credentials are configured.
    pub fn not_configured(self) -> Code {
        match self {
            SourceKind::GitHub => Code::GitHubNotConfigured,
            SourceKind::Gitea => Code::GiteaNotConfigured,
            SourceKind::Buildkite => Code::BuildkiteNotConfigured,
        }
    }

    /// The code of an error: the server refused a request.
    pub fn refused(self) -> Code {
        match self {
            SourceKind::GitHub => Code::GitHubRefused,
            SourceKind::Gitea => Code::GiteaRefused,
            SourceKind::Buildkite => Code::BuildkiteRefused,
        }
    }

    /// The code of an error: the server could not be reached.
    pub fn unavailable(self) -> Code {
        match self {
            SourceKind::GitHub => Code::GitHubUnavailable,
            SourceKind::Gitea => Code::GiteaUnavailable,
            SourceKind::Buildkite => Code::BuildkiteUnavailable,
        }
    }
}
