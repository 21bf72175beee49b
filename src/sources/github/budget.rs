//! The rate limit budget of one credential: read from every answer, and enforced.
//!
//! GitHub may ban clients that continue while limited, so a limit that was hit blocks all requests with this
//! credential until it ends.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use parking_lot::Mutex;
use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap},
};
use serde::Serialize;

use crate::platform::{
    Clock,
    retry::{jittered, retry_after},
};

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

/// One moment by two clocks: pauses are measured by the uptime, which is never set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub wall: Timestamp,
    pub uptime: Duration,
}

impl Moment {
    pub fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), uptime: clock.uptime() }
    }

    /// The time of day when the uptime is `ends`, as the clock stands now. `None`: that has passed.
    fn until(self, ends: Duration) -> Option<Timestamp> {
        let left = ends.checked_sub(self.uptime).filter(|left| !left.is_zero())?;
        self.wall.checked_add(left).ok()
    }

    /// The uptime at that time of GitHub's clock, which is that of its answer: this host's may be set otherwise.
    fn ends(self, at: Timestamp, headers: &HeaderMap) -> Duration {
        let left = at.duration_since(answered_at(headers).unwrap_or(self.wall)) + SKEW;
        self.uptime + Duration::try_from(left).unwrap_or_default()
    }
}

/// When GitHub sent this answer, by its own clock.
pub(super) fn answered_at(headers: &HeaderMap) -> Option<Timestamp> {
    let date = headers.get(DATE)?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(date.trim()).ok()
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
    /// Uptime at which the secondary limit ends.
    closed: Option<Duration>,
    /// Consecutive secondary limits that did not state their end.
    strikes: u32,
    resources: BTreeMap<String, Counted>,
    /// The resource under which a class of requests was last counted.
    classes: BTreeMap<Class, String>,
}

#[derive(Debug)]
struct Counted {
    view: ResourceView,
    /// Uptime at which the limit is reset.
    ends: Duration,
}

impl RateLimiter {
    /// Whether a request may be sent now. Otherwise, the limit and the time of day when it ends.
    pub fn admit(&self, class: Class, now: Moment) -> Result<(), (GitHubLimit, Timestamp)> {
        let state = self.state.lock();
        if let Some(until) = state.closed.and_then(|ends| now.until(ends)) {
            return Err((GitHubLimit::Secondary, until));
        }
        let resource = state.classes.get(&class).and_then(|name| state.resources.get(name));
        let spent = resource.filter(|r| class != Class::Free && r.view.remaining == 0);
        match spent.and_then(|r| now.until(r.ends)) {
            Some(until) => Err((GitHubLimit::Primary, until)),
            None => Ok(()),
        }
    }

    /// Updates the budget from an answer.
    pub fn note(&self, class: Class, status: StatusCode, headers: &HeaderMap, now: Moment) {
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
        let view = ResourceView { resource: resource.clone(), limit, remaining, used, resets_at };
        state.resources.insert(resource, Counted { view, ends: now.ends(resets_at, headers) });
    }

    /// Parses a refusal: `None` if it is not about limits. Otherwise requests are blocked until the time that it
    /// states.
    pub fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        message: &str,
        now: Moment,
    ) -> Option<(GitHubLimit, Timestamp)> {
        if !matches!(status, StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
            return None;
        }
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let mut state = self.state.lock();
        let (limit, ends) = if let Some(seconds) = retry_after(headers, answered_at(headers).unwrap_or(now.wall)) {
            (GitHubLimit::Secondary, now.uptime + Duration::from_secs(seconds.into()))
        } else if text("x-ratelimit-remaining") == Some("0") {
            let reset = text("x-ratelimit-reset").and_then(|t| t.parse().ok());
            let reset = reset.and_then(|s| Timestamp::from_second(s).ok());
            (GitHubLimit::Primary, reset.map_or(now.uptime + SECONDARY, |reset| now.ends(reset, headers)))
        } else if status == StatusCode::TOO_MANY_REQUESTS || message.to_lowercase().contains("secondary rate limit") {
            let pause = SECONDARY.saturating_mul(1 << state.strikes.min(10)).min(LONGEST_SECONDARY);
            // Jitter, so that hosts that were limited together do not retry together.
            state.strikes += 1;
            (GitHubLimit::Secondary, now.uptime + jittered(pause, 1.0..1.2))
        } else {
            return None;
        };
        state.limited += 1;
        if limit == GitHubLimit::Secondary {
            state.closed = state.closed.max(Some(ends));
        }
        Some((limit, now.until(ends).unwrap_or(now.wall)))
    }

    pub fn view(&self, credential: String, now: Moment) -> BudgetView {
        let state = self.state.lock();
        BudgetView {
            credential,
            requests: state.requests,
            not_modified: state.not_modified,
            limited: state.limited,
            closed_until: state.closed.and_then(|ends| now.until(ends)),
            resources: state.resources.values().map(|counted| counted.view.clone()).collect(),
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

    /// The uptime is the same number of seconds, less a thousand.
    fn moment(seconds: i64) -> Moment {
        Moment { wall: at(seconds), uptime: Duration::from_secs(u64::try_from(1000 + seconds).unwrap()) }
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
        budget.note(Class::Registration, StatusCode::CREATED, &spent("actions_runner_registration"), moment(0));
        assert_eq!(budget.admit(Class::Registration, moment(0)), Err((GitHubLimit::Primary, at(102))));
        assert_eq!(budget.admit(Class::Usual, moment(0)), Ok(()));
        assert_eq!(budget.admit(Class::Free, moment(0)), Ok(()));
        assert_eq!(budget.admit(Class::Registration, moment(102)), Ok(()));
        let refused = budget.refused(FORBIDDEN, &spent("core"), "API rate limit exceeded", moment(0));
        assert_eq!(refused, Some((GitHubLimit::Primary, at(102))));
        let view = budget.view("token".into(), moment(0));
        assert_eq!((view.requests, view.limited, view.resources[0].used, view.closed_until), (1, 1, 5000, None));
    }

    #[test]
    fn a_secondary_limit_closes_every_door_and_grows_when_it_does_not_say() {
        let budget = RateLimiter::default();
        let refused = budget.refused(FORBIDDEN, &headers(&[("retry-after", "7")]), "", moment(0));
        assert_eq!(refused, Some((GitHubLimit::Secondary, at(7))));
        assert_eq!(budget.admit(Class::Free, moment(6)), Err((GitHubLimit::Secondary, at(7))));
        assert_eq!(budget.admit(Class::Usual, moment(7)), Ok(()));
        let said = "You have exceeded a secondary rate limit.";
        let mut least = 60;
        for _ in 0..8 {
            let (_, until) = budget.refused(FORBIDDEN, &headers(&[]), said, moment(0)).unwrap();
            let waits = until.duration_since(at(0)).as_secs_f64();
            let most = (f64::from(least) * 1.2).min(1800.0 * 1.2) + 0.001;
            assert!(waits >= f64::from(least.min(1800)) && waits <= most, "{waits} for {least}");
            least *= 2;
        }
        budget.note(Class::Usual, StatusCode::OK, &headers(&[]), moment(0));
        let (_, until) = budget.refused(StatusCode::TOO_MANY_REQUESTS, &headers(&[]), "", moment(0)).unwrap();
        assert!(until <= at(73), "a success ends the series");
    }

    #[test]
    fn a_step_of_this_hosts_clock_neither_ends_nor_prolongs_a_pause() {
        for step in [-86400, 86400] {
            let budget = RateLimiter::default();
            budget.refused(FORBIDDEN, &headers(&[("retry-after", "60")]), "", moment(0));
            let stepped = |passed| Moment { wall: at(step + passed), ..moment(passed) };
            let shown = at(step + 60);
            assert_eq!(budget.admit(Class::Usual, stepped(59)), Err((GitHubLimit::Secondary, shown)));
            assert_eq!(budget.view("token".into(), stepped(59)).closed_until, Some(shown));
            assert_eq!(budget.admit(Class::Usual, stepped(60)), Ok(()));

            // The reset is a time of GitHub's clock, which this host's clock does not show.
            let spent = headers(&[
                ("date", "Mon, 12 Jan 1970 13:46:40 GMT"),
                ("x-ratelimit-limit", "5000"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1000100"),
            ]);
            budget.note(Class::Usual, StatusCode::OK, &spent, stepped(60));
            assert_eq!(budget.admit(Class::Usual, stepped(61)), Err((GitHubLimit::Primary, at(step + 162))));
            assert_eq!(budget.admit(Class::Usual, stepped(162)), Ok(()));
        }
    }

    #[test]
    fn any_other_refusal_is_not_about_limits() {
        let budget = RateLimiter::default();
        let fine = headers(&[("x-ratelimit-remaining", "12")]);
        assert_eq!(budget.refused(FORBIDDEN, &fine, "Resource not accessible by integration", moment(0)), None);
        assert_eq!(budget.refused(StatusCode::NOT_FOUND, &headers(&[("retry-after", "7")]), "", moment(0)), None);
        assert_eq!(budget.admit(Class::Usual, moment(0)), Ok(()));
    }
}
