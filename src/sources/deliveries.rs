//! What a webhook says, and what a query for one job found.

use crate::domain::job::JobUpdate;

/// The content of a webhook.
#[derive(Debug)]
pub enum ParsedDelivery {
    Update(Box<JobUpdate>),
    Ignored(String),
    Refused(String),
}

/// The answer to a query for one job.
#[derive(Debug)]
pub enum FoundJob {
    Here(Box<JobUpdate>),
    /// It exists, and its status is not known to this program.
    Unclear,
    /// The server shows no such job.
    Missing,
}
