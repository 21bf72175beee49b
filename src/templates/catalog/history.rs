//! The history of a name: the version that it points at, and those that it pointed at before.

use jiff::Timestamp;

use crate::{domain::version::AliasTarget, templates::manifest};

/// Limit of the previous versions of a name.
const REMEMBERED: usize = 10;

/// Limit of a reason, in characters.
const LONGEST_WHY: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    pub now: AliasTarget,
    /// Newest first, each digest once.
    pub before: Vec<AliasTarget>,
}

impl History {
    pub fn parse(text: &str) -> History {
        let mut lines = text.lines().map(target);
        let now = lines.next().unwrap_or_else(|| target(""));
        // An invalid digest in an older line is ignored, and removed with the next move.
        let before = lines.filter(|t| manifest::directory(&t.digest).is_some()).collect();
        History { now, before }
    }

    pub fn to_text(&self) -> String {
        let line = |t: &AliasTarget| {
            let since = t.since.map(|at| format!(" {at:.3}")).unwrap_or_default();
            // A reason is written only with a time, so that the two cannot be confused.
            let why = t.why.as_deref().filter(|_| t.since.is_some()).map(|w| format!(" {w}")).unwrap_or_default();
            format!("{}{since}{why}\n", t.digest)
        };
        std::iter::once(&self.now).chain(&self.before).map(line).collect()
    }

    /// The same name, pointing at another version.
    pub fn moved(old: Option<History>, to: AliasTarget) -> History {
        let Some(old) = old else { return History { now: to, before: Vec::new() } };
        let mut before = vec![old.now];
        before.extend(old.before);
        before.retain(|t| t.digest != to.digest);
        before.truncate(REMEMBERED);
        History { now: to, before }
    }
}

fn target(line: &str) -> AliasTarget {
    let (digest, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let (since, why) = rest.split_once(' ').unwrap_or((rest, ""));
    let since: Option<Timestamp> = since.parse().ok();
    let why = (since.is_some() && !why.is_empty()).then(|| why.to_owned());
    AliasTarget { digest: digest.to_owned(), since, why }
}

/// One line, and not a long one.
pub(super) fn plain(why: &str) -> String {
    let words: Vec<&str> = why.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(LONGEST_WHY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> String {
        manifest::digest(&[n])
    }

    fn at(n: u8, why: &str) -> AliasTarget {
        let since = Timestamp::from_second(1_700_000_000 + i64::from(n)).unwrap();
        AliasTarget { digest: digest(n), since: Some(since), why: (!why.is_empty()).then(|| why.to_owned()) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let history =
            History { now: at(3, "pulled registry.example.com/a/b"), before: vec![at(2, ""), at(1, "by hand")] };
        assert_eq!(History::parse(&history.to_text()), history);
        let old = AliasTarget { digest: digest(1), since: None, why: None };
        // As written by a version without history, by an editor, and by a later version.
        for text in [format!("{}\n", digest(1)), digest(1), format!("  {} \n", digest(1))] {
            assert_eq!(History::parse(&text), History { now: old.clone(), before: vec![] }, "{text:?}");
        }
        let mixed = format!("{} yesterday because\n\nnonsense\n{}\n", digest(1), digest(2));
        let before = vec![AliasTarget { digest: digest(2), since: None, why: None }];
        assert_eq!(History::parse(&mixed), History { now: old, before });
        assert_eq!(History::parse("").now.digest, "");
    }

    #[test]
    fn a_move_and_back_is_a_swap_and_the_oldest_are_forgotten() {
        let digests = |h: &History| -> Vec<String> {
            std::iter::once(&h.now).chain(&h.before).map(|t| t.digest.clone()).collect()
        };
        let mut history = History::moved(None, at(0, ""));
        for n in 1..=2 {
            history = History::moved(Some(history), at(n, ""));
        }
        assert_eq!(digests(&history), [digest(2), digest(1), digest(0)]);
        let back = History::moved(Some(history), at(1, ""));
        assert_eq!(digests(&back), [digest(1), digest(2), digest(0)]);
        let mut history = History::moved(Some(back), at(2, ""));
        assert_eq!(digests(&history), [digest(2), digest(1), digest(0)]);
        for n in 3..40 {
            history = History::moved(Some(history), at(n, ""));
        }
        assert_eq!(history.before.len(), REMEMBERED);
        assert_eq!((digests(&history)[0].clone(), digests(&history)[10].clone()), (digest(39), digest(29)));
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(plain(" because\n of\tthat \u{1b}[31m "), "because of that [31m");
        assert_eq!(plain(&"x".repeat(1000)).len(), LONGEST_WHY);
        let odd = History { now: AliasTarget { why: Some(plain("a\nb")), ..at(1, "") }, before: vec![] };
        assert_eq!(History::parse(&odd.to_text()), odd);
    }
}
