//! What a failure of a registry means: whether another attempt may succeed, and who has to act if none does.
//!
//! This is the only place that decides it. Loops that retry, error codes and messages follow from [`RegistryError::verdict`].

use std::time::Duration;

use super::error::RegistryError;

/// The meaning of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureVerdict {
    pub prospect: Prospect,
    pub party: Party,
}

/// Whether another attempt may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// It may, but not before this time has passed.
    Temporary(Duration),
    /// The answer may have been damaged or outdated. It is believed when it comes twice.
    Repeat,
    Final,
}

/// Who has to act before another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The configuration, the clock or the network of this host.
    Host,
    /// The operator of the registry.
    Registry,
    /// The user who configures the credentials of this host.
    Credentials,
    /// The user who named the image, or who pushed it.
    Image,
}

impl RegistryError {
    /// The table: one row per kind of failure, and per status of an answer.
    pub fn verdict(&self) -> FailureVerdict {
        use Prospect::{Final, Repeat, Temporary};
        let now = Temporary(Duration::ZERO);
        let (prospect, party) = match self {
            // A setting is missing or wrong, or the server is not in reach: the next attempt uses the same settings.
            RegistryError::Settings { .. } => (Final, Party::Host),
            // The source of credentials knows whether its failure may pass.
            RegistryError::Credentials(error) if error.temporary => (now, Party::Credentials),
            RegistryError::Credentials(_) => (Final, Party::Credentials),
            // Renewed credentials were refused, too, or there are none.
            RegistryError::Denied { .. } => (Final, Party::Credentials),
            // A replica of the registry may not have it yet.
            RegistryError::NotFound { .. } => (Repeat, Party::Image),
            // No connection, no answer, or one that broke off. A name that is not known, too: this host may just have no
            // network.
            RegistryError::Unreachable { .. } => (now, Party::Registry),
            // The certificate, or no TLS at all.
            RegistryError::Untrusted { .. } => (Final, Party::Host),
            RegistryError::Refused { status, retry_after, .. } => {
                (status_prospect(*status, *retry_after), Party::Registry)
            }
            // It was restarted, or has another part of the blob.
            RegistryError::UploadLost { .. } => (now, Party::Registry),
            RegistryError::Answer { .. } => (Repeat, Party::Registry),
            RegistryError::Unusable { .. } => (Final, Party::Registry),
        };
        FailureVerdict { prospect, party }
    }

    pub fn is_temporary(&self) -> bool {
        matches!(self.verdict().prospect, Prospect::Temporary(_))
    }

    /// The pause that the server has asked for, in seconds.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            RegistryError::Refused { retry_after, .. } if self.is_temporary() => *retry_after,
            _ => None,
        }
    }
}

/// Of an answer with an unexpected status, other than 401, 403 and 404.
fn status_prospect(status: u16, retry_after: Option<u32>) -> Prospect {
    let temporary = Prospect::Temporary(Duration::from_secs(retry_after.unwrap_or(0).into()));
    match status {
        // Success, but not the expected one.
        200..=299 => Prospect::Repeat,
        // 408 Request Timeout, 425 Too Early, 429 Too Many Requests
        408 | 425 | 429 => temporary,
        // 501 Not Implemented, 505 HTTP Version Not Supported
        501 | 505 => Prospect::Final,
        500.. => temporary,
        // The request itself is refused, or redirected to nowhere.
        _ => Prospect::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::credentials::CredentialError;

    #[test]
    fn each_failure_has_one_meaning() {
        let text = || "x".to_owned();
        let now = Prospect::Temporary(Duration::ZERO);
        let credentials =
            |temporary| CredentialError { registry: text(), source_name: text(), what: text(), temporary };
        for (error, prospect, party) in [
            (RegistryError::Settings { registry: text(), what: text() }, Prospect::Final, Party::Host),
            (credentials(true).into(), now, Party::Credentials),
            (credentials(false).into(), Prospect::Final, Party::Credentials),
            (RegistryError::Denied { registry: text(), what: text() }, Prospect::Final, Party::Credentials),
            (RegistryError::NotFound { registry: text(), what: text() }, Prospect::Repeat, Party::Image),
            (RegistryError::Unreachable { registry: text(), what: text() }, now, Party::Registry),
            (RegistryError::Untrusted { registry: text(), what: text() }, Prospect::Final, Party::Host),
            (
                RegistryError::Answer { registry: text(), what: text(), found: text() },
                Prospect::Repeat,
                Party::Registry,
            ),
            (
                RegistryError::Unusable { registry: text(), what: text(), found: text() },
                Prospect::Final,
                Party::Registry,
            ),
        ] {
            assert_eq!(error.verdict(), FailureVerdict { prospect, party }, "{error}");
        }
    }

    #[test]
    fn a_status_decides_whether_an_attempt_may_follow() {
        let refused = |status, retry_after| RegistryError::Refused {
            registry: "r".into(),
            status,
            what: "it".into(),
            said: String::new(),
            retry_after,
        };
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert!(refused(status, None).is_temporary(), "{status}");
            let after = Prospect::Temporary(Duration::from_secs(7));
            assert_eq!(refused(status, Some(7)).verdict().prospect, after, "{status}");
            assert_eq!(refused(status, Some(7)).retry_after(), Some(7), "{status}");
        }
        for status in [301, 307, 400, 405, 407, 410, 413, 416, 418, 451, 501, 505] {
            assert_eq!(refused(status, Some(7)).verdict().prospect, Prospect::Final, "{status}");
            assert_eq!(refused(status, Some(7)).retry_after(), None, "{status}");
        }
        assert_eq!(refused(202, None).verdict().prospect, Prospect::Repeat);
    }
}
