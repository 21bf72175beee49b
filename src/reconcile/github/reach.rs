//! Records for each scope whether GitHub can be reached, from the results of requests.

use std::{collections::HashMap, future::pending};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{domain::Scope, sources::github::GitHubError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// `until`: when the rate limit that was hit ends. Other requests have limits of their own and may succeed before
    /// that.
    Away {
        until: Option<Timestamp>,
    },
}

pub(super) type Links = HashMap<Scope, Link>;

/// The results of the latest requests by scope: limits, permissions and repositories differ between scopes.
#[derive(Clone, Debug, Default)]
pub(in crate::reconcile) struct Reach {
    links: watch::Sender<Links>,
}

impl Reach {
    /// Records the result of a request.
    pub(super) fn note<T>(&self, scope: &Scope, result: &Result<T, GitHubError>, now: Timestamp) {
        let link = match result {
            Err(GitHubError::RateLimited { until, .. }) => Link::Away { until: Some(*until) },
            // An unparsable answer came from something in front of GitHub, such as a proxy.
            Err(GitHubError::Unavailable { .. } | GitHubError::Unparsable { .. }) => Link::Away { until: None },
            // No request was sent.
            Err(GitHubError::Settings { .. }) => return,
            // A refusal shows that GitHub answers.
            Ok(_)
            | Err(
                GitHubError::BadCredentials { .. }
                | GitHubError::MissingPermission { .. }
                | GitHubError::NotVisible { .. }
                | GitHubError::RunnerBusy { .. }
                | GitHubError::NameTaken { .. }
                | GitHubError::Refused { .. },
            ) => Link::Up,
        };
        self.links.send_if_modified(|links| {
            let known = links.get(scope).copied();
            let next = match (known, link) {
                (Some(Link::Away { until: Some(until) }), Link::Up) if until > now => return false,
                (Some(Link::Away { until: old }), Link::Away { until: new }) => Link::Away { until: old.max(new) },
                (_, next) => next,
            };
            if known == Some(next) {
                return false;
            }
            let scope_name = scope.slug();
            match (known, next, result) {
                (Some(Link::Away { .. }), Link::Up, _) => tracing::info!(scope = %scope_name, "GitHub can be reached again"),
                (None | Some(Link::Up), Link::Away { .. }, Err(error)) => {
                    tracing::warn!(scope = %scope_name, error = %error, "cannot reach GitHub; budgets that wait for it are paused");
                }
                _ => {}
            }
            links.insert(scope.clone(), next);
            true
        });
    }

    /// Treats the scope as unreachable until GitHub answers. For budgets that were paused when the service ended.
    pub(super) fn doubt(&self, scope: &Scope) {
        self.links.send_if_modified(|links| {
            let new = !links.contains_key(scope);
            if new {
                links.insert(scope.clone(), Link::Away { until: None });
            }
            new
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    pub(super) fn is_away(&self, scope: &Scope) -> bool {
        matches!(self.links.borrow().get(scope), Some(Link::Away { .. }))
    }

    /// Returns once GitHub can be reached for this scope, according to the latest requests.
    pub(super) async fn back(&self, scope: &Scope) {
        let mut links = self.subscribe();
        let answers = |links: &Links| !matches!(links.get(scope), Some(Link::Away { .. }));
        if links.wait_for(answers).await.is_err() {
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::github::GitHubLimit;

    #[test]
    fn a_limit_is_not_over_because_other_calls_go_well() {
        let (reach, scope) = (Reach::default(), Scope::organization("acme").unwrap());
        let at = |second| Timestamp::from_second(second).unwrap();
        let limited = |until| GitHubError::RateLimited {
            server: "x".into(),
            what: "x".into(),
            limit: GitHubLimit::Primary,
            until: at(until),
        };
        assert!(!reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(limited(50)), at(0));
        let broken =
            || GitHubError::Unavailable { server: "x".into(), what: "x".into(), cause: "x".into(), sent: true };
        reach.note::<()>(&scope, &Err(broken()), at(1));
        reach.note(&scope, &Ok(()), at(49));
        assert!(reach.is_away(&scope) && !reach.is_away(&Scope::organization("other").unwrap()));
        reach.note(&scope, &Ok(()), at(50));
        assert!(!reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(broken()), at(60));
        assert!(reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(GitHubError::RunnerBusy { server: "x".into(), runner: 1 }), at(61));
        assert!(!reach.is_away(&scope), "a refusal is an answer");
    }
}
