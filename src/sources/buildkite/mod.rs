//! A client of Buildkite's stacks API. A stack is a service that lists the scheduled jobs of a queue, reserves those that it
//! will run, and starts an agent for each. So a job is bound to its vm from the beginning, and a runner is an agent for one
//! particular job: its id is the id of the job.
//!
//! ```text
//! stack             one function per request, and what its answer means
//!   client          sends requests with the token, registers the stack
//!     refusal       the meaning of an unsuccessful answer
//! updates           turns jobs and states of jobs into updates
//! queue, model      plain types
//! ```
//!
//! Written from the vendor's documents and its Go client (1.0). The vendor's agent runs jobs with it; not tried with Buildkite
//! itself.

mod client;
mod model;
mod queue;
mod refusal;
mod stack;
mod updates;

pub use client::{BuildkiteClient, BuildkiteOptions};
pub use queue::BuildkiteQueue;
