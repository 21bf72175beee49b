//! What goes wrong, and with which requests.

use std::{
    ops::{Bound, RangeBounds},
    sync::Mutex,
};

#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends without an answer.
    Hangup,
    /// The connection ends after this many bytes of the request's body, and the registry gets no more of it either.
    CutRequest { after: u64 },
    /// The registry does what it was asked for, and the connection ends without its answer.
    LoseAnswer,
    /// The connection ends after this many bytes of the body; the headers promised all of it.
    Cut { after: u64 },
    /// Nothing more comes after this many bytes of the body, until [`Proxy::release`](super::Proxy::release).
    Hold { after: u64 },
    /// No faster than this.
    Slow { bytes_per_second: u64 },
    /// The byte at this offset of the blob (not of the answer, where that is a part of the blob) has all its bits turned.
    Flip { at: u64 },
    /// A well-formed answer that ends after this many bytes, and says that this is all.
    Truncate { to: u64 },
    /// `Content-Length` says this, whatever follows.
    ContentLength(u64),
    /// `Content-Range` says this, whatever follows.
    ContentRange(String),
    /// The whole blob with 200, whatever part was asked for.
    IgnoreRange,
    /// An answer that never reaches the registry. 401 comes with the challenge that the proxy would give anyway.
    Answer { status: u16, headers: Vec<(String, String)> },
    /// 307 to the same path at another base URL.
    Redirect { base: String },
}

impl Fault {
    pub fn status(status: u16) -> Fault {
        Fault::Answer { status, headers: Vec::new() }
    }

    pub fn retry_after(status: u16, after: &str) -> Fault {
        Fault::Answer { status, headers: vec![("retry-after".to_owned(), after.to_owned())] }
    }
}

/// Faults for the requests of one method whose path matches. Only requests that are let in count.
pub struct Rule {
    method: String,
    path: String,
    from: u64,
    to: Option<u64>,
    faults: Vec<Fault>,
}

impl Rule {
    /// `*` in the path stands for any text, also for none.
    pub fn new(method: &str, path: &str, fault: Fault) -> Rule {
        Rule { method: method.to_owned(), path: path.to_owned(), from: 1, to: None, faults: vec![fault] }
    }

    pub fn get(path: &str, fault: Fault) -> Rule {
        Self::new("GET", path, fault)
    }

    /// Which of the requests that match, counted from 1.
    pub fn nth(mut self, which: impl RangeBounds<u64>) -> Rule {
        self.from = match which.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n + 1,
            Bound::Unbounded => 1,
        };
        self.to = match which.end_bound() {
            Bound::Included(n) => Some(*n),
            Bound::Excluded(n) => Some(n - 1),
            Bound::Unbounded => None,
        };
        self
    }

    pub fn first(self) -> Rule {
        self.nth(1..=1)
    }

    pub fn and(mut self, fault: Fault) -> Rule {
        self.faults.push(fault);
        self
    }
}

#[derive(Default)]
pub(super) struct Script(Mutex<Vec<(Rule, u64)>>);

impl Script {
    pub(super) fn add(&self, rule: Rule) {
        self.0.lock().unwrap().push((rule, 0));
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Counts the request, and says what goes wrong with it: what the first rule says whose turn it is.
    pub(super) fn faults(&self, method: &str, path: &str) -> Vec<Fault> {
        let mut turn = None;
        for (rule, count) in self.0.lock().unwrap().iter_mut() {
            if rule.method != method || !matches(&rule.path, path) {
                continue;
            }
            *count += 1;
            if turn.is_none() && *count >= rule.from && rule.to.is_none_or(|to| *count <= to) {
                turn = Some(rule.faults.clone());
            }
        }
        turn.unwrap_or_default()
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().expect("split gives at least one part");
    for part in parts {
        // The leftmost place leaves the most for what follows.
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}
