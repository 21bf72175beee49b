//! Stores when API tokens were used. Requests only note it in memory, so that none of them writes.

use std::time::Duration;

use crate::{
    parts::Parts,
    store::{Ledger, tokens::TokenUses},
};

const EVERY: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) struct TokenUseWriter {
    ledger: Ledger,
    uses: TokenUses,
}

impl TokenUseWriter {
    pub fn new(parts: &Parts) -> Self {
        Self { ledger: parts.ledger.clone(), uses: parts.token_uses.clone() }
    }

    pub async fn write_forever(self) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.write().await;
        }
    }

    /// What cannot be stored now is stored the next time.
    pub async fn write(&self) {
        if let Err(error) = self.ledger.store_uses(&self.uses).await {
            tracing::warn!(%error, "cannot store when tokens were used");
        }
    }
}
