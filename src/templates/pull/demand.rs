//! Pulls of images that vms wait for, without a name and with the image's own settings.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    domain::{Result, Template},
    registry::oci::Reference,
};
use {
    super::{PullError, PullRequest, Puller},
    crate::templates::progress::PullProgress,
};

/// The waiting callers, and the progress of their images.
#[derive(Default)]
pub(super) struct PullDemand(Mutex<HashMap<String, watch::Receiver<PullProgress>>>);

/// A waiting caller, while this exists.
struct DemandGuard<'a> {
    waiting: &'a PullDemand,
    whom: &'a str,
}

impl Drop for DemandGuard<'_> {
    fn drop(&mut self) {
        self.waiting.0.lock().remove(self.whom);
    }
}

impl Puller {
    /// The template of an image in the catalog, without asking the registry. Only the registry knows where a tag
    /// points.
    pub async fn here(&self, image: &Reference) -> Result<Option<Template>> {
        match image.digest() {
            Some(digest) => self.shared.catalog.of_image(super::origin(image, digest)).await,
            None => Ok(None),
        }
    }

    /// The template of an image, pulled if necessary. `whom` identifies the caller for queries of the progress.
    /// Dropping the future ends the pull, unless others wait for it; its data is kept for the next one.
    pub async fn obtain(&self, image: &Reference, whom: &str) -> Result<Template, Arc<PullError>> {
        let (meter, progress) = watch::channel(PullProgress::default());
        let waiting = &self.shared.waiting;
        waiting.0.lock().insert(whom.to_owned(), progress);
        let _place = DemandGuard { waiting, whom };
        self.pull(&PullRequest::of_image(image.clone()), &meter).await
    }

    /// Progress of the image that this caller waits for. `None`: it waits for none.
    pub fn progress(&self, whom: &str) -> Option<PullProgress> {
        let waiting = self.shared.waiting.0.lock();
        waiting.get(whom).map(|progress| progress.borrow().clone())
    }
}
