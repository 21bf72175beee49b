//! Receives webhooks of sources of jobs: verifies the sender and stores the delivery before it answers. `reconcile::jobs`
//! interprets it later.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::hmac;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use crate::store::deliveries::DeliveryRow;
use crate::{
    domain::{Code, Error, Result, SourceName},
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader, deliveries::NewDelivery},
};

/// GitHub's limit for payloads.
pub const LARGEST_BODY: usize = 25 * 1000 * 1000;
/// The only event about jobs.
const WORKFLOW_JOB: &str = "workflow_job";
/// A delivery whose job last changed before that is refused: GitHub itself redelivers for three days only, and the
/// content of older deliveries is not known any more (see `reconcile::retention`).
const REPLAY_AFTER: SignedDuration = SignedDuration::from_hours(4 * 24);
/// GitHub's delivery ids are UUIDs.
const LONGEST_GUID: usize = 100;

/// A webhook request.
pub struct Webhook<'a> {
    /// `X-GitHub-Event`
    pub event: Option<&'a str>,
    /// `X-GitHub-Delivery`
    pub guid: Option<&'a str>,
    pub signature: Signature,
    /// Whether the body is a form with the field `payload`, GitHub's default content type.
    pub form: bool,
    pub body: &'a [u8],
}

/// An HMAC that is not verified yet, and the source that is said to have made it.
pub struct Signature {
    source: SourceName,
    hmac: [u8; 32],
}

/// The general fields of a payload.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    workflow_job: Option<Times>,
}

/// When a job changed. Text, because a time that cannot be parsed is no reason to refuse the delivery.
#[derive(Deserialize)]
struct Times {
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    started_at: Option<String>,
    #[serde(default)]
    completed_at: Option<String>,
}

impl Times {
    fn last_change(&self) -> Option<Timestamp> {
        let times = [&self.created_at, &self.started_at, &self.completed_at];
        times.into_iter().flatten().filter_map(|text| text.parse().ok()).max()
    }
}

#[derive(Clone)]
pub struct Webhooks {
    ledger: Ledger,
    reader: Reader,
    clock: Clock,
    secrets: Arc<WebhookSecrets>,
}

/// What each source signs its webhooks with. Several secrets, so that one can be replaced without a gap.
pub type WebhookSecrets = BTreeMap<SourceName, Vec<SecretString>>;

impl Webhooks {
    pub fn new(parts: &Parts, secrets: WebhookSecrets) -> Self {
        let Parts { ledger, reader, clock, .. } = parts.clone();
        Self { ledger, reader, clock, secrets: Arc::new(secrets) }
    }

    /// Refuses what cannot be verified, before its body is read: without a secret there is nothing to receive, and
    /// every sender that knows one signs.
    pub fn check_signature_header(&self, source: &str, header: Option<&str>) -> Result<Signature> {
        let known = self.secrets.keys().find(|name| name.as_str() == source);
        let checked = match known {
            Some(name) => signature(header).map(|hmac| Signature { source: name.clone(), hmac }),
            None => Err(Error::new(
                Code::WebhookNotConfigured,
                "no source of jobs with this name and a secret for its webhook is configured",
            )),
        };
        if let Err(error) = &checked {
            metrics::counter!("mayfly_webhooks_total", "event" => "(other)", "result" => error.code.slug())
                .increment(1);
        }
        checked
    }

    /// Receives a delivery: `Ok` means that it is stored, was stored before, or is ignored.
    pub async fn receive(&self, webhook: Webhook<'_>) -> Result<()> {
        let taken = self.take(&webhook).await;
        let known = matches!(webhook.event, Some(WORKFLOW_JOB | "ping"));
        // Only known and authenticated events become labels: each label value is a permanent time series.
        let event = match (&taken, webhook.event) {
            (Ok(_), Some(event)) if known => event.to_owned(),
            _ => "(other)".to_owned(),
        };
        let result = match &taken {
            Ok(result) => *result,
            Err(error) => error.code.slug(),
        };
        metrics::counter!("mayfly_webhooks_total", "event" => event, "result" => result).increment(1);
        taken.map(drop)
    }

    async fn take(&self, webhook: &Webhook<'_>) -> Result<&'static str> {
        self.proven(webhook)?;
        let header = |name: &str, value: Option<&str>| {
            value.map(str::to_owned).ok_or_else(|| {
                Error::new(Code::RequestInvalid, format!("the header {name} is missing"))
                    .field(format!("header:{name}"), "is missing")
            })
        };
        let event = header("X-GitHub-Event", webhook.event)?;
        let guid = header("X-GitHub-Delivery", webhook.guid)?;
        if guid.is_empty() || guid.len() > LONGEST_GUID || !guid.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::new(Code::RequestInvalid, "the header X-GitHub-Delivery is invalid")
                .field("header:X-GitHub-Delivery", "expected a UUID"));
        }
        if event != WORKFLOW_JOB && event != "ping" {
            return Ok("ignored");
        }
        let payload = payload(webhook)?;
        let outline: Outline = serde_json::from_slice(&payload).map_err(|error| {
            Error::new(Code::RequestInvalid, "the payload is not a JSON object").field("", error.to_string())
        })?;
        let now = self.clock.now();
        if let Some(last) = outline.workflow_job.as_ref().and_then(Times::last_change)
            && last + REPLAY_AFTER < now
        {
            let detail = format!("the job last changed at {last}, more than {} hours ago", REPLAY_AFTER.as_hours());
            return Err(Error::new(Code::WebhookOutdated, detail));
        }
        let ping = event == "ping";
        let new = NewDelivery {
            source: webhook.signature.source.clone(),
            guid,
            action: outline.action.map(|action| action.chars().take(50).collect()),
            content: (!ping).then(|| Sha256::digest(&payload).into()),
            body: (!ping).then_some(payload),
            detail: ping.then(|| "the source tests whether this address answers".to_owned()),
            event,
        };
        if !self.ledger.take_delivery(new, now).await? {
            return Ok("known");
        }
        Ok(if ping { "ignored" } else { "stored" })
    }

    /// Verifies that the sender knows one of the secrets. The whole body is hashed as received, before any of it is
    /// parsed.
    fn proven(&self, webhook: &Webhook<'_>) -> Result<()> {
        // Each comparison takes constant time. The number of secrets is not confidential.
        let fits = |secret: &SecretString| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
            hmac::verify(&key, webhook.body, &webhook.signature.hmac).is_ok()
        };
        if self.secrets.get(&webhook.signature.source).into_iter().flatten().any(fits) {
            Ok(())
        } else {
            let detail = "the signature does not match this body with any configured secret";
            Err(Error::new(Code::WebhookUnproven, detail))
        }
    }

    /// Newest first.
    pub async fn list_deliveries(&self, source: &SourceName, limit: u32) -> Result<Vec<DeliveryRow>> {
        Ok(self.reader.deliveries(source, limit).await?)
    }
}

/// The value of `X-Hub-Signature-256`.
fn signature(header: Option<&str>) -> Result<[u8; 32]> {
    let wrong = |what: &str| Error::new(Code::WebhookUnproven, what.to_owned());
    let header = header.ok_or_else(|| wrong("there is no X-Hub-Signature-256"))?;
    let mut bytes = [0; 32];
    match header.strip_prefix("sha256=").map(|digits| hex::decode_to_slice(digits, &mut bytes)) {
        Some(Ok(())) => Ok(bytes),
        _ => Err(wrong("X-Hub-Signature-256 is not sha256= and 64 hexadecimal digits")),
    }
}

/// The JSON in the body.
fn payload(webhook: &Webhook<'_>) -> Result<Vec<u8>> {
    if !webhook.form {
        return Ok(webhook.body.to_vec());
    }
    let missing = || {
        Error::new(Code::RequestInvalid, "the form has no payload").field("/payload", "expected the payload as JSON")
    };
    let found = form_urlencoded::parse(webhook.body).find(|(name, _)| name == "payload");
    Ok(found.ok_or_else(missing)?.1.into_owned().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_read_and_nothing_else() {
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"It's a Secret to Everybody");
        assert!(hmac::verify(&key, b"Hello, World!", &signature(Some(good)).unwrap()).is_ok());
        assert!(hmac::verify(&key, b"Hello, World?", &signature(Some(good)).unwrap()).is_err());
        let long = format!("{good}0");
        for bad in ["", "sha256=", &good[..70], &good[7..], &long, &good.replace('7', "g"), &"é".repeat(32)] {
            assert!(signature(Some(bad)).is_err(), "{bad}");
        }
        assert!(signature(None).is_err());
    }

    #[test]
    fn a_form_holds_its_payload() {
        let of = |body: &'static str| Webhook {
            event: None,
            guid: None,
            signature: Signature { source: SourceName::github(), hmac: [0; 32] },
            form: true,
            body: body.as_bytes(),
        };
        assert_eq!(payload(&of("a=b&payload=%7B%22action%22%3A+%22queued%22%7D")).unwrap(), br#"{"action": "queued"}"#);
        assert!(payload(&of("a=b")).is_err());
    }
}
