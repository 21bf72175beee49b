//! Images that somebody waits for, without a name of their own and whatever their settings are.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    domain::{Budgets, Result, Template},
    registry::oci::Reference,
};
use {
    super::{PullError, PullRequest, Puller},
    crate::templates::progress::PullProgress,
};

/// Who waits, and how far their image is.
#[derive(Default)]
pub(super) struct PullDemand(Mutex<HashMap<String, watch::Receiver<PullProgress>>>);

/// One who waits, for as long as this lives.
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
    /// The template of an image that is here, found without asking anybody. What a tag stands for only its registry knows.
    pub async fn here(&self, image: &Reference) -> Result<Option<Template>> {
        match image.digest() {
            Some(digest) => self.shared.catalog.of_image(super::origin(image, digest)).await,
            None => Ok(None),
        }
    }

    /// The template of an image, pulled where it is not here. `whom` is for asking how far it is. Dropping the future ends the
    /// pull, unless others wait for it, too; what it got is kept for the next one.
    pub async fn obtain(&self, image: &Reference, whom: &str, budgets: &Budgets) -> Result<Template, Arc<PullError>> {
        let (meter, progress) = watch::channel(PullProgress::default());
        let waiting = &self.shared.waiting;
        waiting.0.lock().insert(whom.to_owned(), progress);
        let _place = DemandGuard { waiting, whom };
        self.pull(&PullRequest::of_image(image.clone(), budgets.clone()), &meter).await
    }

    /// How far the image is that somebody waits for. `None`: they wait for none.
    pub fn progress(&self, whom: &str) -> Option<PullProgress> {
        let waiting = self.shared.waiting.0.lock();
        waiting.get(whom).map(|progress| progress.borrow().clone())
    }
}
