//! Sets, shows and removes watches of tags. `reconcile::pulls::watches` resolves the tags.

use crate::{
    domain::{
        Code, Error, Result,
        pull::{Canary, Watch},
    },
    parts::Parts,
    platform::Clock,
    registry::oci::{Reference, reference::ReferenceError},
    store::{Ledger, Reader},
    templates::pull::{PullRequest, Puller},
};

pub const MOST_OFTEN: u32 = 60;
pub const LEAST_OFTEN: u32 = 30 * 24 * 3600;

#[derive(Clone)]
pub struct Watches {
    ledger: Ledger,
    reader: Reader,
    puller: Puller,
    clock: Clock,
}

impl Watches {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, puller, clock, .. } = parts.clone();
        Self { ledger, reader, puller, clock }
    }

    /// Sets a watch. If the template does not exist, it is pulled.
    pub async fn set(
        &self,
        template: String,
        image: String,
        every_seconds: u32,
        canary: Option<Canary>,
    ) -> Result<Watch> {
        let invalid = |pointer: &str, what: String| {
            Error::new(Code::RequestInvalid, "the request is not acceptable").field(pointer, what)
        };
        let reference: Reference = image.parse().map_err(|e: ReferenceError| invalid("/image", e.to_string()))?;
        if reference.digest().is_some() {
            return Err(invalid("/image", "must be a tag, because a digest never moves".into()));
        }
        if !(MOST_OFTEN..=LEAST_OFTEN).contains(&every_seconds) {
            return Err(invalid("/every_seconds", format!("{MOST_OFTEN} to {LEAST_OFTEN}")));
        }
        if let Some(canary) = &canary {
            canary.check()?;
        }
        let request = PullRequest::new(reference, template.clone());
        self.puller.check(&request).await.map_err(|error| Error::from(&error))?;
        let now = self.clock.now();
        let watch = Watch {
            template,
            image,
            every_seconds,
            canary,
            created_at: now,
            looked_at: None,
            next_look_at: now,
            image_digest: None,
            pull: None,
            failures: 0,
            fault: None,
        };
        self.ledger.put_watch(watch.clone(), now).await?;
        Ok(watch)
    }

    pub async fn get(&self, template: &str) -> Result<Watch> {
        self.reader.watch(template).await?.ok_or_else(|| no_watch(template))
    }

    pub async fn remove(&self, template: &str) -> Result<()> {
        if !self.ledger.remove_watch(template, self.clock.now()).await? {
            return Err(no_watch(template));
        }
        Ok(())
    }
}

fn no_watch(template: &str) -> Error {
    Error::new(Code::WatchNotFound, format!("the template {template} follows no tag"))
}
