//! Records the end of a pull, or its next retry: the row and its events, in one transaction.

use jiff::SignedDuration;

use super::settings::Settings;
use crate::{
    domain::{
        Code, Error, Fault, Result, TemplateEvent,
        pull::{Pull, PullState},
    },
    parts::Parts,
    platform::Clock,
    store::Ledger,
};

#[derive(Clone)]
pub(super) struct PullResults {
    ledger: Ledger,
    clock: Clock,
    settings: Settings,
}

impl PullResults {
    pub fn new(parts: &Parts, settings: Settings) -> Self {
        let Parts { ledger, clock, .. } = parts.clone();
        Self { ledger, clock, settings }
    }

    /// After a failure: schedules a retry if the failure may be temporary and the deadline allows it. The pause is at least
    /// the one that the registry has asked for.
    pub async fn retry_later(&self, mut pull: Pull, error: Error) -> Result<()> {
        let now = self.clock.now();
        let asked = SignedDuration::from_secs(error.retry_after.unwrap_or(0).into());
        let pause = self.pause(pull.failures).max(asked);
        let at = now.checked_add(pause).ok().filter(|at| passes(error.code) && *at < pull.deadline);
        pull.fault = Some(Fault { code: error.code, detail: error.detail, at: now });
        match at {
            Some(at) => {
                pull.failures += 1;
                pull.retry_at = Some(at);
                self.ledger.save_pull(pull, Vec::new(), now).await?;
                Ok(())
            }
            None => self.failed(pull, None).await,
        }
    }

    fn pause(&self, failures: u32) -> SignedDuration {
        let settings = &self.settings;
        let pause = settings.first_pause.saturating_mul(1 << failures.min(16)).min(settings.longest_pause);
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)
    }

    /// `why`: the reason for the move of the name, if it moved.
    pub async fn done(&self, mut pull: Pull, why: &str) -> Result<()> {
        let now = self.clock.now();
        let name = pull.spec.name.clone();
        let digest = pull.digest.clone().unwrap_or_default();
        let mut events = Vec::new();
        if pull.previous.as_ref() != Some(&digest) {
            let moved = TemplateEvent::NameMoved {
                name: name.clone(),
                from: pull.previous.clone(),
                to: Some(digest.clone()),
                why: why.to_owned(),
            };
            events.push((name.clone(), moved));
        }
        let pulled = TemplateEvent::Pulled {
            pull: pull.id,
            image: pull.spec.image.clone(),
            digest,
            bytes: pull.fetched.bytes_done,
            seconds: now.duration_since(pull.created_at).as_secs().max(0).unsigned_abs(),
        };
        events.push((name, pulled));
        pull.ended(PullState::Done, now);
        self.ledger.save_pull(pull, events, now).await?;
        Ok(())
    }

    /// Records the pull's fault, and `more`, another event about it.
    pub async fn failed(&self, mut pull: Pull, more: Option<TemplateEvent>) -> Result<()> {
        let now = self.clock.now();
        let name = pull.spec.name.clone();
        let Some(fault) = pull.fault.clone() else {
            return Err(Error::internal("a pull failed without a fault"));
        };
        let failed = TemplateEvent::PullFailed {
            pull: pull.id,
            image: pull.spec.image.clone(),
            code: fault.code,
            detail: fault.detail,
        };
        let events = more.into_iter().chain([failed]).map(|event| (name.clone(), event)).collect();
        pull.ended(PullState::Failed, now);
        self.ledger.save_pull(pull, events, now).await?;
        Ok(())
    }
}

/// Whether a pull that failed with this code is tried again. Of a registry's failures, those are unavailable whose verdict
/// is temporary.
pub(super) fn passes(code: Code) -> bool {
    matches!(code, Code::ImageUnavailable | Code::HostUnavailable | Code::QueueFull | Code::StoreUnavailable)
}
