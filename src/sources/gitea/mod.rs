//! A client of Gitea's API, as far as runners and jobs need it. Gitea has GitHub's events and the shape of its objects, but
//! other credentials, another registration of runners, and other rules for attempts and for removing runners.
//!
//! ```text
//! runners, jobs     one function per request, and the meaning of its refusals
//!   client          sends requests with the token, reads lists in pages
//!     refusal       the meaning of an unsuccessful answer
//! updates           turns jobs, from webhooks and from queries, into updates
//! server, model     plain types
//! ```
//!
//! Seen with Gitea 1.26 and its runner 1.0.

mod client;
mod jobs;
mod model;
mod refusal;
mod runners;
mod server;
mod updates;

pub use client::{GiteaClient, GiteaOptions};
pub use model::{AttemptRule, GiteaVersion};
pub use server::GiteaServer;
pub use updates::read_delivery;
