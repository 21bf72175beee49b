//! An error and its causes: as one line of text, or one of them by its type.

use std::{error::Error, io};

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

/// The first error of this type among the error and its causes.
pub fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` hides the error that it was made of from `source`.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
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
    fn a_cause_is_found_within_io_errors_too() {
        let hidden = std::io::Error::other(Outer(Inner(std::io::ErrorKind::NotFound.into())));
        let outer = std::io::Error::other(hidden);
        assert!(matches!(cause::<Inner>(&outer), Some(Inner(inner)) if inner.kind() == std::io::ErrorKind::NotFound));
        assert!(cause::<std::fmt::Error>(&outer).is_none());
    }

    #[test]
    fn an_error_without_a_cause_is_its_own_text() {
        assert_eq!(error_chain(&std::io::Error::other("refused")), "refused");
    }
}
