//! Records for each scope of a source whether its server can be reached, from the results of requests.

use std::{collections::HashMap, future::pending};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    domain::source_runner::SourceScope,
    sources::{SourceError, SourceErrorKind},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// `until`: when the rate limit that was hit ends. Other requests have limits of their own and may succeed before
    /// that.
    Away {
        until: Option<Timestamp>,
    },
}

pub(super) type Links = HashMap<SourceScope, Link>;

/// The results of the latest requests by source and scope: limits, permissions and repositories differ between scopes.
#[derive(Clone, Debug, Default)]
pub(in crate::reconcile) struct Reach {
    links: watch::Sender<Links>,
}

impl Reach {
    /// Records the result of a request.
    pub(super) fn note<T>(&self, at: &SourceScope, result: &Result<T, SourceError>, now: Timestamp) {
        let link = match result.as_ref().map_err(|error| error.kind) {
            Err(SourceErrorKind::RateLimited { until }) => Link::Away { until: Some(until) },
            // An unparsable answer came from something in front of the server, such as a proxy.
            Err(SourceErrorKind::Unavailable { .. } | SourceErrorKind::Unparsable) => Link::Away { until: None },
            // No request was sent.
            Err(SourceErrorKind::Settings) => return,
            // A refusal shows that the server answers.
            Ok(_) | Err(SourceErrorKind::RunnerBusy | SourceErrorKind::NameTaken | SourceErrorKind::Refused) => {
                Link::Up
            }
        };
        self.links.send_if_modified(|links| {
            let known = links.get(at).copied();
            let next = match (known, link) {
                (Some(Link::Away { until: Some(until) }), Link::Up) if until > now => return false,
                (Some(Link::Away { until: old }), Link::Away { until: new }) => Link::Away { until: old.max(new) },
                (_, next) => next,
            };
            if known == Some(next) {
                return false;
            }
            let (source, scope) = (&at.source, at.scope.slug());
            match (known, next, result) {
                (Some(Link::Away { .. }), Link::Up, _) => tracing::info!(job.source = %source, scope, "the CI server can be reached again"),
                (None | Some(Link::Up), Link::Away { .. }, Err(error)) => {
                    tracing::warn!(job.source = %source, scope, error = %error, "cannot reach the CI server; budgets that wait for it are paused");
                }
                _ => {}
            }
            links.insert(at.clone(), next);
            true
        });
    }

    /// Treats the scope as unreachable until its server answers. For budgets that were paused when the service ended.
    pub(super) fn doubt(&self, at: &SourceScope) {
        self.links.send_if_modified(|links| {
            let new = !links.contains_key(at);
            if new {
                links.insert(at.clone(), Link::Away { until: None });
            }
            new
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    pub(super) fn is_away(&self, at: &SourceScope) -> bool {
        matches!(self.links.borrow().get(at), Some(Link::Away { .. }))
    }

    /// Returns once the server can be reached for this scope, according to the latest requests.
    pub(super) async fn back(&self, at: &SourceScope) {
        let mut links = self.subscribe();
        let answers = |links: &Links| !matches!(links.get(at), Some(Link::Away { .. }));
        if links.wait_for(answers).await.is_err() {
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Scope, SourceKind, SourceName};

    fn at(source: &str, scope: &str) -> SourceScope {
        SourceScope { source: SourceName::new(source).unwrap(), scope: Scope::organization(scope).unwrap() }
    }

    #[test]
    fn a_limit_is_not_over_because_other_calls_go_well() {
        let (reach, acme) = (Reach::default(), at("github", "acme"));
        let second = |second| Timestamp::from_second(second).unwrap();
        let failed = |kind| SourceError::new(SourceKind::GitHub, kind, "x");
        let limited = |until| failed(SourceErrorKind::RateLimited { until: second(until) });
        assert!(!reach.is_away(&acme));
        reach.note::<()>(&acme, &Err(limited(50)), second(0));
        let broken = || failed(SourceErrorKind::Unavailable { sent: true });
        reach.note::<()>(&acme, &Err(broken()), second(1));
        reach.note(&acme, &Ok(()), second(49));
        assert!(reach.is_away(&acme) && !reach.is_away(&at("github", "other")));
        assert!(!reach.is_away(&at("forge", "acme")), "another server has its own limits");
        reach.note(&acme, &Ok(()), second(50));
        assert!(!reach.is_away(&acme));
        reach.note::<()>(&acme, &Err(broken()), second(60));
        assert!(reach.is_away(&acme));
        reach.note::<()>(&acme, &Err(failed(SourceErrorKind::RunnerBusy)), second(61));
        assert!(!reach.is_away(&acme), "a refusal is an answer");
    }
}
