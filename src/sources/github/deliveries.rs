//! Lists and redelivers webhook deliveries of the App: GitHub does not retry by itself, so missed ones are found
//! here.

use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GitHubClient, GitHubError, client::As, pages::MOST_PAGES};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub id: u64,
    /// The same for every attempt, and in the webhook's header.
    pub guid: String,
    pub delivered_at: Timestamp,
    #[serde(default)]
    pub redelivery: bool,
    #[serde(default)]
    pub status: Option<String>,
    /// The status of the receiver's answer; 0 if there was none.
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

/// A delivery with its content.
#[derive(Debug, Deserialize)]
pub struct DeliveryContent {
    #[serde(flatten)]
    pub delivery: Delivery,
    pub request: SentRequest,
}

#[derive(Debug, Deserialize)]
pub struct SentRequest {
    /// The payload of the webhook.
    pub payload: Value,
}

impl GitHubClient {
    /// Deliveries that were sent at or after this time, newest first.
    pub async fn hook_deliveries(&self, since: Timestamp) -> Result<Vec<Delivery>, GitHubError> {
        let path = ["app", "hook", "deliveries"].map(str::to_owned).to_vec();
        let mut call = self.request(Method::GET, path, &[("per_page", "100".to_owned())], "the webhook's deliveries");
        let mut found = Vec::new();
        // The newest come first, so reading ends at the first page with an older one.
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

    /// Redelivers it under the same guid. A repetition is harmless, because receivers know the guid.
    pub async fn redeliver(&self, id: u64) -> Result<(), GitHubError> {
        let path = ["app", "hook", "deliveries", &id.to_string(), "attempts"].map(str::to_owned).to_vec();
        let mut call = self.request(Method::POST, path, &[], &format!("sending the delivery {id} again"));
        call.repeatable = true;
        self.expect(As::App, &call, StatusCode::ACCEPTED).await.map(|_| ())
    }
}
