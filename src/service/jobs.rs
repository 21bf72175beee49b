//! Shows GitHub's jobs. `reconcile::jobs` follows them.

pub use crate::store::jobs::JobFilter;
use crate::{
    domain::{Result, job::Job},
    store::Reader,
};

#[derive(Clone)]
pub struct Jobs {
    reader: Reader,
}

impl Jobs {
    pub fn new(reader: Reader) -> Self {
        Self { reader }
    }

    /// Newest first, by GitHub's ids.
    pub async fn list(&self, filter: &JobFilter) -> Result<Vec<Job>> {
        Ok(self.reader.jobs(filter).await?)
    }
}
