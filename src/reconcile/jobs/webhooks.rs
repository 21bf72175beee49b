//! Job source that reads stored webhooks.

use futures_util::future::BoxFuture;

use super::update_feed::{JobUpdateFeed, ReceivedUpdate};
use crate::{
    domain::{Result, job::DeliveryResult},
    parts::Parts,
    platform::Clock,
    sources::{Sources, deliveries::ParsedDelivery},
    store::{Ledger, Reader},
};

/// Deliveries per batch: few enough that other writes are not delayed.
const BATCH: u32 = 64;

/// Processes the rows that `POST /webhooks/{source}` wrote, in the order in which they came.
pub(super) struct Deliveries {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    clock: Clock,
}

impl Deliveries {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, clock }
    }

    async fn processed(&self, seq: i64, result: DeliveryResult, detail: Option<String>) -> Result<()> {
        metrics::counter!("mayfly_webhooks_worked_total", "result" => result.as_str()).increment(1);
        Ok(self.ledger.delivery_worked(seq, result, detail, self.clock.now()).await?)
    }
}

impl JobUpdateFeed for Deliveries {
    fn name(&self) -> &'static str {
        "webhooks"
    }

    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>> {
        Box::pin(async move {
            loop {
                let pending = self.reader.pending_deliveries(BATCH).await?;
                if pending.is_empty() {
                    self.ledger.changes().delivery_stored().await;
                    continue;
                }
                let mut received = Vec::new();
                for delivery in pending {
                    let parsed = match self.sources.get(&delivery.source) {
                        Some(source) => source.read_delivery(&delivery.source, &delivery.body),
                        None => ParsedDelivery::Ignored("its source is not configured any more".to_owned()),
                    };
                    match parsed {
                        ParsedDelivery::Update(update) => {
                            received.push(ReceivedUpdate { receipt: Some(delivery.seq), update: *update });
                        }
                        ParsedDelivery::Ignored(why) => {
                            self.processed(delivery.seq, DeliveryResult::Ignored, Some(why)).await?;
                        }
                        ParsedDelivery::Refused(why) => {
                            tracing::warn!(delivery.guid = delivery.guid, why, "cannot parse a webhook");
                            self.processed(delivery.seq, DeliveryResult::Refused, Some(why)).await?;
                        }
                    }
                }
                if !received.is_empty() {
                    return Ok(received);
                }
            }
        })
    }

    fn applied(&mut self, received: ReceivedUpdate) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match received.receipt {
                Some(seq) => self.processed(seq, DeliveryResult::Worked, None).await,
                None => Ok(()),
            }
        })
    }
}
