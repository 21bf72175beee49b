//! Shows jobs of CI systems. `reconcile::jobs` follows them.

pub use crate::store::jobs::{JobFilter, JobRow};
use crate::{domain::Result, store::Reader};

#[derive(Clone)]
pub struct Jobs {
    reader: Reader,
}

impl Jobs {
    pub fn new(reader: Reader) -> Self {
        Self { reader }
    }

    /// Newest first, by when they were first reported.
    pub async fn list(&self, filter: &JobFilter) -> Result<Vec<JobRow>> {
        Ok(self.reader.jobs(filter).await?)
    }
}
