//! What GitHub sent to the App's webhook, or tried to: nothing is sent again by itself, so what was missed is found here.

use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GitHubClient, GitHubError, client::As, pages::MOST_PAGES};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub id: u64,
    /// The same for every attempt, and in the webhook's own header.
    pub guid: String,
    pub delivered_at: Timestamp,
    #[serde(default)]
    pub redelivery: bool,
    #[serde(default)]
    pub status: Option<String>,
    /// What the receiver answered; 0 when it did not.
    #[serde(default)]
    pub status_code: Option<u16>,
    pub event: String,
    #[serde(default)]
    pub action: Option<String>,
}

impl Delivery {
    pub fn arrived(&self) -> bool {
        self.status_code.is_some_and(|status| (200..300).contains(&status))
    }
}

/// One delivery with what was sent.
#[derive(Debug, Deserialize)]
pub struct DeliveryContent {
    #[serde(flatten)]
    pub delivery: Delivery,
    pub request: SentRequest,
}

#[derive(Debug, Deserialize)]
pub struct SentRequest {
    /// The payload, as the webhook got it.
    pub payload: Value,
}

impl GitHubClient {
    /// Those that were sent at or after this time, newest first.
    pub async fn hook_deliveries(&self, since: Timestamp) -> Result<Vec<Delivery>, GitHubError> {
        let path = ["app", "hook", "deliveries"].map(str::to_owned).to_vec();
        let mut call = self.request(Method::GET, path, &[("per_page", "100".to_owned())], "the webhook's deliveries");
        let mut found = Vec::new();
        // The newest come first, so the pages that matter end where they are older.
        for _ in 0..MOST_PAGES {
            let (page, next): (Vec<Delivery>, _) = self.page(As::App, &mut call).await?;
            let old = page.iter().any(|delivery| delivery.delivered_at < since);
            found.extend(page.into_iter().filter(|delivery| delivery.delivered_at >= since));
            match next {
                Some(next) if !old && next != call.url => call.url = next,
                _ => return Ok(found),
            }
        }
        Err(self.unparsable(&call, "pages without an end".to_owned()))
    }

    pub async fn hook_delivery(&self, id: u64) -> Result<DeliveryContent, GitHubError> {
        let path = ["app", "hook", "deliveries", &id.to_string()].map(str::to_owned).to_vec();
        self.get(As::App, &self.request(Method::GET, path, &[], &format!("the delivery {id}"))).await
    }

    /// Has it sent again, under the same guid. Twice is harmless, because receivers know the guid.
    pub async fn redeliver(&self, id: u64) -> Result<(), GitHubError> {
        let path = ["app", "hook", "deliveries", &id.to_string(), "attempts"].map(str::to_owned).to_vec();
        let mut call = self.request(Method::POST, path, &[], &format!("sending the delivery {id} again"));
        call.repeatable = true;
        self.expect(As::App, &call, StatusCode::ACCEPTED).await.map(|_| ())
    }
}
