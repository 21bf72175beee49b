//! A client of GitHub's REST API, as far as runners need it. Knows nothing about vms.
//!
//! ```text
//! runners, jobs, deliveries, access   one function per request, and the meaning of its refusals
//!   pages         lists in pages, conditional requests
//!     cache       answers for conditional requests
//!   client        sends requests with credentials
//!     auth        App or token; installations and their tokens, renewed in time
//!     exchange    one request: redirects, retries, rate limits
//!       budget    the rate limit budget of a credential
//!       refusal   the meaning of an unsuccessful answer
//! jit                                 reads just-in-time configurations
//! credentials, jwt                    credentials of the configuration
//! updates                             turns jobs into updates
//! server, model, error                plain types
//! ```
//!
//! GitHub's answers decide about other people's jobs, so nothing is guessed: an answer that cannot be parsed is an
//! error, a runner counts as gone only while its scope can be seen, and the error of a request that may have been
//! carried out says so.

use std::{path::PathBuf, time::Duration};

use crate::platform::{Clock, retry::Retry};

mod access;
mod auth;
mod budget;
mod cache;
mod client;
mod credentials;
mod deliveries;
mod error;
mod exchange;
mod jit;
mod jobs;
mod jwt;
pub mod model;
mod pages;
mod refusal;
pub mod runner_archives;
mod runner_group;
mod runners;
mod section;
mod server;
mod updates;

pub use access::{Account, GitHubApp, Installation, Permissions, RateLimit};
pub use budget::{BudgetView, GitHubLimit, ResourceView};
pub use client::GitHubClient;
pub use credentials::{CredentialLocation, GitHubCredential, KEY_VARIABLE, TOKEN_VARIABLE};
pub use deliveries::{Delivery, DeliveryContent, SentRequest};
pub use error::GitHubError;
pub use exchange::Observed;
pub use jit::runner_of;
pub use jobs::{WorkflowJobFilter, WorkflowRun};
pub use runner_group::RunnerGroup;
pub use runners::{DEFAULT_GROUP, JitConfig, NewRunner, RegistrationToken};
pub use section::{AppId, GitHubSection, RunnerArchiveSection};
pub use server::Server;
pub use updates::{found, queued_update, read_delivery};

pub use crate::{domain::Scope, sources::runner::Removed};

/// The default version of the API.
pub const API_VERSION: &str = "2022-11-28";

/// Settings of the client for one GitHub.
#[derive(Clone, Debug)]
pub struct GitHubOptions {
    pub server: Server,
    pub api_version: String,
    /// PEM certificates of authorities that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// Time limit of one complete answer.
    pub timeout: Duration,
    /// Retries of requests that may be repeated.
    pub retry: Retry,
    /// A new token may not be known to all of GitHub's servers yet.
    pub fresh_token_pause: Duration,
    /// Limits that end within this time are waited for; longer ones are reported to the caller.
    pub patience: Duration,
    /// Interval between two changes. GitHub asks for a second, and for one change at a time.
    pub write_gap: Duration,
    pub clock: Clock,
}

impl GitHubOptions {
    pub fn new(server: Server) -> GitHubOptions {
        GitHubOptions {
            server,
            api_version: API_VERSION.to_owned(),
            ca_file: None,
            connect_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(60),
            retry: Retry {
                attempts: 4,
                first_pause: Duration::from_millis(500),
                longest_pause: Duration::from_secs(5),
            },
            fresh_token_pause: Duration::from_secs(1),
            patience: Duration::from_secs(3),
            write_gap: Duration::from_secs(1),
            clock: Clock::system(),
        }
    }
}
