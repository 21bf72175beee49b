//! The rate limit budget of one credential: read from every answer, and enforced.
//!
//! GitHub may ban clients that continue while limited, so a limit that was hit blocks all requests with this
//! credential until it ends.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use reqwest::{StatusCode, header::HeaderMap};
use serde::Serialize;

use crate::platform::retry::{jittered, retry_after};

/// Tolerance for clock differences.
const SKEW: SignedDuration = SignedDuration::from_secs(2);
/// Pause for secondary limits that do not state their end.
const SECONDARY: Duration = Duration::from_secs(60);
const LONGEST_SECONDARY: Duration = Duration::from_secs(30 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GitHubLimit {
    /// The limit of requests per hour.
    Primary,
    /// Too many concurrent requests, or too fast.
    Secondary,
}

impl fmt::Display for GitHubLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GitHubLimit::Primary => "primary",
            GitHubLimit::Secondary => "secondary",
        })
    }
}

/// Registrations of runners may be counted separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    Usual,
    Registration,
    /// Requesting a token changes nothing, although its method is POST.
    Access,
    /// Requests for the limits are not limited.
    Free,
}

/// For metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetView {
    /// The identity: `app`, `installation 77`, `token`.
    pub credential: String,
    pub requests: u64,
    /// Answered from the cache: these cost nothing.
    pub not_modified: u64,
    /// Number of times that a limit was hit.
    pub limited: u64,
    /// No request is sent until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_until: Option<Timestamp>,
    pub resources: Vec<ResourceView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceView {
    pub resource: String,
    pub limit: u64,
    pub remaining: u64,
    pub used: u64,
    pub resets_at: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    state: Mutex<LimiterState>,
}

#[derive(Debug, Default)]
struct LimiterState {
    requests: u64,
    not_modified: u64,
    limited: u64,
    closed_until: Option<Timestamp>,
    /// Consecutive secondary limits that did not state their end.
    strikes: u32,
    resources: BTreeMap<String, ResourceView>,
    /// The resource under which a class of requests was last counted.
    classes: BTreeMap<Class, String>,
}

impl RateLimiter {
    /// Whether a request may be sent now.
    pub fn admit(&self, class: Class, now: Timestamp) -> Result<(), (GitHubLimit, Timestamp)> {
        let state = self.state.lock();
        if let Some(until) = state.closed_until.filter(|until| *until > now) {
            return Err((GitHubLimit::Secondary, until));
        }
        let resource = state.classes.get(&class).and_then(|name| state.resources.get(name));
        match resource {
            Some(r) if class != Class::Free && r.remaining == 0 && r.resets_at + SKEW > now => {
                Err((GitHubLimit::Primary, r.resets_at + SKEW))
            }
            _ => Ok(()),
        }
    }

    /// Updates the budget from an answer.
    pub fn note(&self, class: Class, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.state.lock();
        state.requests += 1;
        if status == StatusCode::NOT_MODIFIED {
            state.not_modified += 1;
        }
        if !matches!(status, StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
            state.strikes = 0;
        }
        let number = |name| headers.get(name).and_then(|v| v.to_str().ok()).and_then(|t| t.trim().parse::<i64>().ok());
        let whole = |name| number(name).and_then(|n| u64::try_from(n).ok());
        let (Some(limit), Some(remaining), Some(reset)) =
            (whole("x-ratelimit-limit"), whole("x-ratelimit-remaining"), number("x-ratelimit-reset"))
        else {
            // GHES has no limits unless an administrator sets some.
            return;
        };
        let Ok(resets_at) = Timestamp::from_second(reset) else { return };
        let resource = headers.get("x-ratelimit-resource").and_then(|v| v.to_str().ok()).unwrap_or("core").to_owned();
        let used = whole("x-ratelimit-used").unwrap_or(limit.saturating_sub(remaining));
        // The answer about limits names `core`, but was not counted under it.
        if class != Class::Free {
            state.classes.insert(class, resource.clone());
        }
        state.resources.insert(resource.clone(), ResourceView { resource, limit, remaining, used, resets_at });
    }

    /// Parses a refusal: `None` if it is not about limits. Otherwise requests are blocked until the time that it
    /// states.
    pub fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        message: &str,
        now: Timestamp,
    ) -> Option<(GitHubLimit, Timestamp)> {
        if !matches!(status, StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
            return None;
        }
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let mut state = self.state.lock();
        let (limit, until) = if let Some(seconds) = retry_after(headers, now) {
            (GitHubLimit::Secondary, now + SignedDuration::from_secs(i64::from(seconds)))
        } else if text("x-ratelimit-remaining") == Some("0") {
            let reset = text("x-ratelimit-reset").and_then(|t| t.parse().ok());
            let reset = reset.and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(now + SECONDARY);
            (GitHubLimit::Primary, reset + SKEW)
        } else if status == StatusCode::TOO_MANY_REQUESTS || message.to_lowercase().contains("secondary rate limit") {
            let pause = SECONDARY.saturating_mul(1 << state.strikes.min(10)).min(LONGEST_SECONDARY);
            // Jitter, so that hosts that were limited together do not retry together.
            state.strikes += 1;
            (GitHubLimit::Secondary, now + jittered(pause, 1.0..1.2))
        } else {
            return None;
        };
        state.limited += 1;
        if limit == GitHubLimit::Secondary {
            state.closed_until = state.closed_until.max(Some(until));
        }
        Some((limit, until))
    }

    pub fn view(&self, credential: String, now: Timestamp) -> BudgetView {
        let state = self.state.lock();
        BudgetView {
            credential,
            requests: state.requests,
            not_modified: state.not_modified,
            limited: state.limited,
            closed_until: state.closed_until.filter(|until| *until > now),
            resources: state.resources.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (reqwest::header::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;

    #[test]
    fn a_spent_primary_limit_closes_its_own_door_until_the_reset() {
        let budget = RateLimiter::default();
        let spent = |resource| {
            headers(&[
                ("x-ratelimit-limit", "5000"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1000100"),
                ("x-ratelimit-resource", resource),
            ])
        };
        budget.note(Class::Registration, StatusCode::CREATED, &spent("actions_runner_registration"));
        assert_eq!(budget.admit(Class::Registration, at(0)), Err((GitHubLimit::Primary, at(102))));
        assert_eq!(budget.admit(Class::Usual, at(0)), Ok(()));
        assert_eq!(budget.admit(Class::Free, at(0)), Ok(()));
        assert_eq!(budget.admit(Class::Registration, at(102)), Ok(()));
        let refused = budget.refused(FORBIDDEN, &spent("core"), "API rate limit exceeded", at(0));
        assert_eq!(refused, Some((GitHubLimit::Primary, at(102))));
        let view = budget.view("token".into(), at(0));
        assert_eq!((view.requests, view.limited, view.resources[0].used, view.closed_until), (1, 1, 5000, None));
    }

    #[test]
    fn a_secondary_limit_closes_every_door_and_grows_when_it_does_not_say() {
        let budget = RateLimiter::default();
        let refused = budget.refused(FORBIDDEN, &headers(&[("retry-after", "7")]), "", at(0));
        assert_eq!(refused, Some((GitHubLimit::Secondary, at(7))));
        assert_eq!(budget.admit(Class::Free, at(6)), Err((GitHubLimit::Secondary, at(7))));
        assert_eq!(budget.admit(Class::Usual, at(7)), Ok(()));
        let said = "You have exceeded a secondary rate limit.";
        let mut least = 60;
        for _ in 0..8 {
            let (_, until) = budget.refused(FORBIDDEN, &headers(&[]), said, at(0)).unwrap();
            let waits = until.duration_since(at(0)).as_secs_f64();
            let most = (f64::from(least) * 1.2).min(1800.0 * 1.2) + 0.001;
            assert!(waits >= f64::from(least.min(1800)) && waits <= most, "{waits} for {least}");
            least *= 2;
        }
        budget.note(Class::Usual, StatusCode::OK, &headers(&[]));
        let (_, until) = budget.refused(StatusCode::TOO_MANY_REQUESTS, &headers(&[]), "", at(0)).unwrap();
        assert!(until <= at(73), "a success ends the series");
    }

    #[test]
    fn any_other_refusal_is_not_about_limits() {
        let budget = RateLimiter::default();
        let fine = headers(&[("x-ratelimit-remaining", "12")]);
        assert_eq!(budget.refused(FORBIDDEN, &fine, "Resource not accessible by integration", at(0)), None);
        assert_eq!(budget.refused(StatusCode::NOT_FOUND, &headers(&[("retry-after", "7")]), "", at(0)), None);
        assert_eq!(budget.admit(Class::Usual, at(0)), Ok(()));
    }
}
