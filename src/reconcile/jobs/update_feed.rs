//! Interface of feeds of job updates: webhooks and polls.

use futures_util::future::BoxFuture;

use crate::domain::{Result, job::JobUpdate};

/// An update, with the receipt by which its feed identifies it.
pub(super) struct ReceivedUpdate {
    pub receipt: Option<i64>,
    pub update: JobUpdate,
}

/// The consumer of updates does not depend on the kind of feed.
pub(super) trait JobUpdateFeed: Send {
    fn name(&self) -> &'static str;

    /// Waits for updates. Updates that were returned but not confirmed with `applied` are returned again.
    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>>;

    /// Confirms that the update was applied.
    fn applied(&mut self, received: ReceivedUpdate) -> BoxFuture<'_, Result<()>>;
}
