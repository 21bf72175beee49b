//! Queries credential sources in order, and caches the results.
//!
//! The tasks of a pull need credentials at the same time, and a query may run a helper program or send two requests.
//! So there is one query per registry at a time, and concurrent callers share its result, success or failure.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;

use super::{CredentialError, CredentialSource, RegistryCredential, host};
use crate::platform::Clock;

/// A cached result is dropped this long before it expires, so that a request with it arrives in time …
const MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// … or, with a short lifetime, after a part of it.
const MARGIN_PART: i32 = 10;
/// How long a result without an expiry is cached, so that a changed login takes effect soon.
const UNSAID: SignedDuration = SignedDuration::from_mins(5);

type CredentialResult = Result<Option<RegistryCredential>, CredentialError>;

pub struct Chain {
    sources: Vec<Box<dyn CredentialSource>>,
    slots: SyncMutex<HashMap<String, Arc<CachedCredential>>>,
    clock: Clock,
}

#[derive(Default)]
struct CachedCredential {
    /// Number of queries that have ended.
    asked: AtomicU64,
    /// The result of the latest query. Locked while the next query runs.
    last: Mutex<Option<CachedAnswer>>,
}

struct CachedAnswer {
    answer: CredentialResult,
    /// `None`: the result is only for the callers that wait for it.
    until: Option<Timestamp>,
}

impl CachedAnswer {
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Chain {
    pub fn new(sources: Vec<Box<dyn CredentialSource>>) -> Self {
        Self { sources, slots: SyncMutex::default(), clock: Clock::system() }
    }

    /// Drops the cached result for this registry.
    pub fn forget(&self, registry: &str) {
        if let Some(registry) = host::normal(registry) {
            let mut slots = self.slots.lock();
            slots.remove(&registry);
        }
    }

    fn slot(&self, registry: &str) -> Arc<CachedCredential> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(registry) {
            return slot.clone();
        }
        // Callers name registries, so entries without a result are not kept.
        let now = self.clock.now();
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.last.try_lock().map_or(true, |last| last.as_ref().is_some_and(|k| k.is_fresh(now)))
        });
        slots.entry(registry.to_owned()).or_default().clone()
    }

    /// The first source with credentials wins. A failing source does not end the query, but if no source has
    /// credentials, its failure is the result: a caller may continue without credentials, and report it when that is
    /// refused.
    async fn ask(&self, registry: &str, renew: bool) -> CredentialResult {
        let mut failure: Option<CredentialError> = None;
        for source in &self.sources {
            match source.get(registry, renew).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        registry.host = registry,
                        source = error.source_name,
                        "no credentials: {}",
                        error.what
                    );
                    // A source of which it is not known what it has decides: it may have some later.
                    if failure.as_ref().is_none_or(|first| error.temporary && !first.temporary) {
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn until(&self, answer: &CredentialResult) -> Option<Timestamp> {
        let Ok(Some(credential)) = answer else { return None };
        let now = self.clock.now();
        let Some(end) = credential.expires_at else { return now.checked_add(UNSAID).ok() };
        // An expired result is returned once and not cached: the repeated queries are expensive but correct.
        let left = end.duration_since(now);
        end.checked_sub(MARGIN.min(left / MARGIN_PART)).ok().filter(|until| now < *until)
    }
}

#[async_trait]
impl CredentialSource for Chain {
    async fn get(&self, registry: &str, renew: bool) -> CredentialResult {
        let Some(registry) = host::normal(registry) else {
            let shown: String = registry.chars().take(200).collect();
            return Err(CredentialError::new(&format!("{shown:?}"), "chain", "this is not a registry's host[:port]"));
        };
        let slot = self.slot(&registry);
        let seen = slot.asked.load(Ordering::Acquire);
        let mut last = slot.last.lock().await;
        if let Some(kept) = &*last {
            // A waiting caller shares the result of a query that was started during its wait, even if it wanted a
            // renewal: the refused credential was an older one.
            let joined = slot.asked.load(Ordering::Acquire) != seen;
            if joined || (!renew && kept.is_fresh(self.clock.now())) {
                return kept.answer.clone();
            }
        }
        // Before the query: if this caller is cancelled, the refused credential must not be given to the next one.
        *last = None;
        let answer = self.ask(&registry, renew).await;
        *last = Some(CachedAnswer { answer: answer.clone(), until: self.until(&answer) });
        slot.asked.fetch_add(1, Ordering::AcqRel);
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use secrecy::ExposeSecret;
    use tokio::sync::Semaphore;

    use super::*;

    /// Returns `answers` in turn, with the number of the query as the secret. Waits at a gate, if there is one.
    #[derive(Clone, Default)]
    struct Source(Arc<Inner>);

    #[derive(Default)]
    struct Inner {
        name: &'static str,
        asked: AtomicUsize,
        renewals: AtomicUsize,
        gate: Option<Semaphore>,
        life: Option<SignedDuration>,
        fails: bool,
        knows: Option<&'static str>,
    }

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[async_trait]
    impl CredentialSource for Source {
        async fn get(&self, registry: &str, renew: bool) -> CredentialResult {
            let inner = &self.0;
            let number = inner.asked.fetch_add(1, Ordering::SeqCst) + 1;
            inner.renewals.fetch_add(usize::from(renew), Ordering::SeqCst);
            if let Some(gate) = &inner.gate {
                gate.acquire().await.unwrap().forget();
            }
            if inner.fails {
                return Err(CredentialError::new(registry, inner.name, format!("broken {number}")));
            }
            if inner.knows.is_some_and(|k| k != registry) {
                return Ok(None);
            }
            Ok(Some(RegistryCredential {
                username: inner.name.into(),
                secret: number.to_string().into(),
                expires_at: inner.life.map(|l| start() + l),
            }))
        }
    }

    /// A chain with a manual clock.
    fn chain(sources: &[&Source]) -> (Arc<Chain>, Clock) {
        let clock = Clock::manual(start());
        let mut chain =
            Chain::new(sources.iter().map(|s| Box::new((*s).clone()) as Box<dyn CredentialSource>).collect());
        chain.clock = clock.clone();
        (Arc::new(chain), clock)
    }

    fn set(clock: &Clock, at: Timestamp) {
        clock.shift(at.duration_since(clock.now()));
    }

    fn source(inner: Inner) -> Source {
        Source(Arc::new(inner))
    }

    async fn secret(chain: &Chain, renew: bool) -> String {
        let given = chain.get("ghcr.io", renew).await.unwrap().expect("a credential");
        format!("{} {}", given.username, given.secret.expose_secret())
    }

    #[tokio::test]
    async fn the_first_that_knows_wins_and_one_that_fails_is_passed_over() {
        let broken = source(Inner { name: "broken", fails: true, ..Inner::default() });
        let other = source(Inner { name: "other", knows: Some("quay.io"), ..Inner::default() });
        let knows = source(Inner { name: "knows", ..Inner::default() });
        let never = source(Inner { name: "never", ..Inner::default() });
        let (chain, _) = chain(&[&broken, &other, &knows, &never]);
        assert_eq!(secret(&chain, false).await, "knows 1");
        assert_eq!(never.0.asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn without_credentials_the_first_failure_is_returned_and_not_cached() {
        let broken = source(Inner { name: "broken", fails: true, ..Inner::default() });
        let other = source(Inner { name: "other", knows: Some("quay.io"), ..Inner::default() });
        let (with, _) = chain(&[&other, &broken]);
        assert_eq!(with.get("ghcr.io", false).await.unwrap_err().what, "broken 1");
        assert_eq!(with.get("ghcr.io", false).await.unwrap_err().what, "broken 2");
        let (without, _) = chain(&[&other]);
        assert!(without.get("ghcr.io", false).await.unwrap().is_none());
        assert!(without.get("GHCR.io", false).await.unwrap().is_none());
        assert!(without.get("QUAY.io", false).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn an_answer_is_kept_until_shortly_before_its_end() {
        let source = source(Inner { name: "s", life: Some(SignedDuration::from_hours(12)), ..Inner::default() });
        let (chain, clock) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_mins(12 * 60 - 6));
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_mins(12 * 60 - 5));
        assert_eq!(secret(&chain, false).await, "s 2");
    }

    #[tokio::test]
    async fn a_short_life_is_used_for_the_most_of_it() {
        let source = source(Inner { name: "s", life: Some(SignedDuration::from_secs(60)), ..Inner::default() });
        let (chain, clock) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_secs(53));
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_secs(54));
        assert_eq!(secret(&chain, false).await, "s 2");
    }

    #[tokio::test]
    async fn what_has_ended_when_it_comes_is_given_once_and_not_kept() {
        let source = source(Inner { name: "s", life: Some(SignedDuration::from_hours(-1)), ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        assert_eq!(secret(&chain, false).await, "s 2");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_kept_for_minutes() {
        let source = source(Inner { name: "s", ..Inner::default() });
        let (chain, clock) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_secs(299));
        assert_eq!(secret(&chain, false).await, "s 1");
        set(&clock, start() + SignedDuration::from_secs(300));
        assert_eq!(secret(&chain, false).await, "s 2");
    }

    #[tokio::test]
    async fn a_dropped_result_is_queried_again() {
        let source = source(Inner { name: "s", ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        chain.forget("quay.io");
        assert_eq!(secret(&chain, false).await, "s 1");
        chain.forget("GHCR.io");
        assert_eq!(secret(&chain, false).await, "s 2");
    }

    #[tokio::test]
    async fn a_refused_answer_is_renewed() {
        let source = source(Inner { name: "s", life: Some(SignedDuration::from_hours(12)), ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        assert_eq!(secret(&chain, false).await, "s 1");
        assert_eq!(secret(&chain, true).await, "s 2");
        assert_eq!(secret(&chain, false).await, "s 2");
        assert_eq!(source.0.renewals.load(Ordering::SeqCst), 1);
    }

    async fn all_join(source: Source, renew: bool) -> Vec<CredentialResult> {
        let (chain, _) = chain(&[&source]);
        let callers: Vec<_> = (0..16)
            .map(|_| {
                let chain = chain.clone();
                tokio::spawn(async move { chain.get("ghcr.io", renew).await })
            })
            .collect();
        // A task runs on this thread until it waits, at the gate or for the task there.
        while source.0.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..callers.len() {
            tokio::task::yield_now().await;
        }
        source.0.gate.as_ref().unwrap().add_permits(16);
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap());
        }
        assert_eq!(source.0.asked.load(Ordering::SeqCst), 1, "one question for all");
        answers
    }

    #[tokio::test]
    async fn callers_at_the_same_time_join() {
        for renew in [false, true] {
            let gated = source(Inner { name: "s", gate: Some(Semaphore::new(0)), ..Inner::default() });
            for answer in all_join(gated, renew).await {
                assert_eq!(answer.unwrap().unwrap().secret.expose_secret(), "1");
            }
        }
    }

    #[tokio::test]
    async fn callers_at_the_same_time_fail_together() {
        let gated = source(Inner { name: "s", fails: true, gate: Some(Semaphore::new(0)), ..Inner::default() });
        for answer in all_join(gated, false).await {
            assert_eq!(answer.unwrap_err().what, "broken 1");
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_the_question_to_the_next() {
        let source = source(Inner { name: "s", gate: Some(Semaphore::new(0)), ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        let first = tokio::spawn({
            let chain = chain.clone();
            async move { chain.get("ghcr.io", false).await }
        });
        while source.0.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let chain = chain.clone();
            async move { secret(&chain, false).await }
        });
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        source.0.gate.as_ref().unwrap().add_permits(1);
        assert_eq!(second.await.unwrap(), "s 2");
    }

    #[tokio::test]
    async fn registries_without_credentials_are_forgotten() {
        let source = source(Inner { name: "s", knows: Some("quay.io"), ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        chain.get("quay.io", false).await.unwrap().unwrap();
        for i in 0..100 {
            assert!(chain.get(&format!("r{i}.example"), false).await.unwrap().is_none());
        }
        assert_eq!(chain.slots.lock().len(), 2, "the known one and the last");
    }

    #[tokio::test]
    async fn what_is_no_registry_reaches_no_source() {
        let source = source(Inner { name: "s", ..Inner::default() });
        let (chain, _) = chain(&[&source]);
        assert!(chain.get("ghcr.io\nevil", false).await.unwrap_err().to_string().contains("not a registry's host"));
        assert_eq!(source.0.asked.load(Ordering::SeqCst), 0);
    }
}
