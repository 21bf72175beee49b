//! GitHub's REST API, as far as runners need it. Knows nothing of vms.
//!
//! ```text
//! runners, jobs, deliveries, access   one function per call, and what its refusals mean
//!   pages         lists in pages, conditional requests
//!     cache       answers that need not be given again
//!   client        whose name a call is made in
//!     auth        App or token; installations and their tokens, renewed in time
//!     exchange    one call over the wire: redirects, another attempt, rate limits
//!       budget    what GitHub still allows, per credential
//!       refusal   what an answer that is no success means
//! jit                                 whose a configuration is
//! credentials, jwt                    who we are
//! server, model, error         plain types
//! ```
//!
//! What GitHub answers decides about other people's jobs, so nothing is guessed: what was not understood is an error, a
//! runner counts as gone only while the place it was in can be seen, and a call that may have been carried out says so.

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
pub use runners::{DEFAULT_GROUP, JitConfig, NewRunner, RegistrationToken, Removed};
pub use section::{AppId, GitHubSection, RunnerArchiveSection};
pub use server::Server;

pub use crate::domain::Scope;

/// The version of the API that is asked for where nobody chose one.
pub const API_VERSION: &str = "2022-11-28";

/// How one GitHub is spoken to.
#[derive(Clone, Debug)]
pub struct GitHubOptions {
    pub server: Server,
    pub api_version: String,
    /// PEM certificates of authorities that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// For one answer, whole.
    pub timeout: Duration,
    /// For calls that may be made twice.
    pub retry: Retry,
    /// A token that was made a moment ago may not be known everywhere yet.
    pub fresh_token_pause: Duration,
    /// Limits that end within this are waited for; of longer ones the caller is told.
    pub patience: Duration,
    /// From one change to the next. GitHub asks for a second, and for one change at a time.
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
