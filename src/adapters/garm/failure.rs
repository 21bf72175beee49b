//! Why an operation failed. GARM stores the text as the instance's fault and shows it to administrators.

use std::fmt;

use crate::client;

#[derive(Debug)]
pub(super) enum GarmFailure {
    /// Success for GARM when it deletes.
    NotFound(String),
    Failed(String),
}

impl GarmFailure {
    pub fn exit_code(&self) -> u8 {
        match self {
            GarmFailure::NotFound(_) => 30,
            GarmFailure::Failed(_) => 1,
        }
    }
}

impl fmt::Display for GarmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // One line: GARM's log and its database show it as one text.
            GarmFailure::NotFound(text) | GarmFailure::Failed(text) => {
                f.write_str(&text.replace(|c: char| c.is_control(), " "))
            }
        }
    }
}

impl From<client::Error> for GarmFailure {
    fn from(error: client::Error) -> Self {
        GarmFailure::Failed(error.into_sentence())
    }
}
