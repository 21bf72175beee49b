//! Limits of requests: of each stack, for each endpoint, in a sliding window of one second.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::reply::Reply;

const WINDOW: Duration = Duration::from_secs(1);

pub struct Limits {
    /// By scope, as documented.
    pub most: BTreeMap<&'static str, usize>,
    seen: BTreeMap<(String, &'static str), VecDeque<Instant>>,
}

impl Default for Limits {
    fn default() -> Self {
        let most = [
            ("list-scheduled-jobs", 10),
            ("batch-reserve", 10),
            ("batch-load-job-states", 20),
            ("finish-job", 100),
            // Registering, and acquisition tokens, whose limit is not documented.
            ("default", 10),
        ];
        Limits { most: most.into(), seen: BTreeMap::new() }
    }
}

impl Limits {
    /// Counts a request. The error refuses it.
    pub fn count(&mut self, stack: &str, scope: &'static str) -> Result<Vec<(&'static str, String)>, Box<Reply>> {
        let now = Instant::now();
        let most = self.most[scope];
        let seen = self.seen.entry((stack.to_owned(), scope)).or_default();
        while seen.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            seen.pop_front();
        }
        let headers = |left: usize| {
            vec![
                ("RateLimit-Scope", scope.to_owned()),
                ("RateLimit-Limit", most.to_string()),
                ("RateLimit-Remaining", left.to_string()),
                ("RateLimit-Reset", "1".to_owned()),
            ]
        };
        if seen.len() >= most {
            let message = "You have exceeded your API rate limit. Please wait 1 seconds before making more requests.";
            let body = json!({
                "message": message, "scope": scope, "limit": most, "current": seen.len() + 1, "reset": 1,
            });
            let reply = headers(0).iter().fold(Reply::new(429, body), |reply, (name, value)| reply.with(name, value));
            return Err(Box::new(reply));
        }
        seen.push_back(now);
        Ok(headers(most - seen.len()))
    }
}
