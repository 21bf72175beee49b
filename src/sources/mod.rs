//! Sources of jobs: CI servers with names, and their clients, one folder for each kind.
//!
//! ```text
//! registry      the configured sources by name
//!   ci_server   one server, of whatever kind: registers runners, reports jobs
//!     github    client of GitHub's API
//!     gitea     client of Gitea's API
//!     buildkite client of Buildkite's stacks API
//!       runner, deliveries, error, refusal, server_answer, token_file    what the clients have in common
//! ```

pub mod buildkite;
pub mod ci_server;
pub mod deliveries;
pub mod error;
pub mod gitea;
pub mod github;
mod refusal;
pub mod registry;
pub mod runner;
mod section;
mod server_answer;
mod token_file;

pub use self::{
    ci_server::{CiClient, CiServer},
    error::{SourceError, SourceErrorKind},
    registry::{Source, Sources},
    section::SourceSection,
};
