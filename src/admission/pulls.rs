//! Validates and stores pulls. `reconcile::pulls` carries them out.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    domain::{
        Code, Error, PullId, Result,
        pull::{Pull, PullSpec},
    },
    parts::Parts,
    platform::Clock,
    store::{Ledger, Vault},
    templates::{
        Catalog,
        pull::{PullRequest, Puller},
    },
};

#[derive(Clone, Debug)]
pub struct Settings {
    /// How long temporary failures are retried.
    pub deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(6 * 3600) }
    }
}

/// Creates pulls. Cheap to clone.
#[derive(Clone)]
pub struct PullAdmission {
    ledger: Ledger,
    vault: Arc<Vault>,
    catalog: Arc<Catalog>,
    puller: Puller,
    clock: Clock,
    settings: Settings,
}

impl PullAdmission {
    pub fn new(parts: &Parts, settings: Settings) -> Self {
        let Parts { ledger, vault, catalog, puller, clock, .. } = parts.clone();
        Self { ledger, vault, catalog, puller, clock, settings }
    }

    /// Stores a pull, which is then carried out in the background. Returns whether it is new: an equal unfinished
    /// pull is joined.
    pub async fn start(&self, spec: PullSpec) -> Result<(Arc<Pull>, bool)> {
        if let Some(canary) = &spec.canary {
            canary.check()?;
        }
        let request = PullRequest::of_spec(&spec, None)?;
        self.puller.check(&request).await.map_err(|error| Error::from(&error))?;
        let previous = match self.catalog.get(&spec.name).await {
            Ok(template) => Some(template.digest),
            Err(error) if error.code == Code::TemplateNotFound => None,
            Err(error) => return Err(error),
        };
        let canonical = serde_json::to_vec(&spec).map_err(Error::internal)?;
        let now = self.clock.now();
        let deadline = SignedDuration::try_from(self.settings.deadline).unwrap_or(SignedDuration::MAX);
        let deadline = now.checked_add(deadline).unwrap_or(Timestamp::MAX);
        let pull = Pull::requested(PullId::mint(), spec, previous, deadline, now);
        let (pull, new) = self.ledger.open_pull(pull, self.vault.fingerprint(&canonical)).await?;
        if new {
            tracing::info!(pull.id = %pull.id, image = pull.spec.image, template.name = pull.spec.name, "pull started");
        }
        Ok((pull, new))
    }
}
