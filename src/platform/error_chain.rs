//! An error and its causes as one line of text.

use std::error::Error;

/// The error's text, followed by the text of each cause, separated by `": "`.
///
/// Libraries differ in whether an error's text repeats that of its cause. A cause whose text the line already ends with is left out.
pub fn error_chain(error: &dyn Error) -> String {
    let mut line = one_line(error);
    let mut next = error.source();
    while let Some(cause) = next {
        let text = one_line(cause);
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

fn one_line(error: &dyn Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("dispatch\nfailure")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("io: {0}")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn causes_are_listed_once_and_on_one_line() {
        let error = Outer(Inner(std::io::Error::other("refused")));
        assert_eq!(error_chain(&error), "dispatch failure: io: refused");
    }

    #[test]
    fn an_error_without_a_cause_is_its_own_text() {
        assert_eq!(error_chain(&std::io::Error::other("refused")), "refused");
    }
}
