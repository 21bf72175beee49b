//! References of images: `HOST[:PORT]/NAMESPACE[:TAG|@sha256:HEX]`.
//!
//! The rules are those of Tart, so that names that work here work there. They are narrower than those of container
//! engines: the host is required, because there is no default registry. One is wider: the host may be an IPv6 address in
//! brackets.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use super::Digest;

const LONGEST: usize = 512;
const LONGEST_TAG: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    target: ReferenceTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReferenceTarget {
    Tag(String),
    Digest(Digest),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no image reference: {what}; expected host[:port]/namespace[:tag] or host[:port]/namespace@sha256:…"
)]
pub struct ReferenceError {
    text: String,
    what: &'static str,
}

impl Reference {
    /// `host[:port]`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn target(&self) -> &ReferenceTarget {
        &self.target
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        match &self.target {
            ReferenceTarget::Digest(digest) => Some(*digest),
            ReferenceTarget::Tag(_) => None,
        }
    }

    /// The same repository, at this digest, which does not change when a tag moves.
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference { target: ReferenceTarget::Digest(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let fault = |what| ReferenceError { text: text.chars().take(200).collect(), what };
        if text.len() > LONGEST {
            return Err(fault("it is too long"));
        }
        let (registry, rest) = text.split_once('/').ok_or_else(|| fault("it names no registry"))?;
        if !is_registry(registry) {
            return Err(fault("what is before the first / is no host"));
        }
        let (repository, target) = match rest.split_once('@') {
            Some((repository, digest)) => (
                repository,
                ReferenceTarget::Digest(digest.parse().map_err(|_| fault("the text after the @ is not a digest"))?),
            ),
            None => {
                let (repository, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
                if tag.len() > LONGEST_TAG || !is_word(tag, &['.', '-', '_'], false) {
                    return Err(fault("the tag is none"));
                }
                (repository, ReferenceTarget::Tag(tag.to_owned()))
            }
        };
        if !repository.split('/').all(|part| is_word(part, &['.', '-', '_'], true)) {
            return Err(fault("the namespace is none"));
        }
        Ok(Reference { registry: registry.to_owned(), repository: repository.to_owned(), target })
    }
}

fn is_registry(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            let port = match port {
                "" => None,
                port => match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None => return false,
                },
            };
            (address.parse::<Ipv6Addr>().is_ok(), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (host.len() <= 253 && host.split('.').all(|label| is_word(label, &['-'], false)), port)
        }
    };
    is_host && port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p != 0))
}

/// Letters and digits, joined by single separators; with `may_end` the last character may be a separator.
fn is_word(text: &str, separators: &[char], may_end: bool) -> bool {
    let mut after_separator = true;
    for c in text.chars() {
        let separator = separators.contains(&c);
        if !separator && !c.is_ascii_alphanumeric() || separator && after_separator {
            return false;
        }
        after_separator = separator;
    }
    !text.is_empty() && (may_end || !after_separator)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { registry, repository, target } = self;
        match target {
            ReferenceTarget::Tag(tag) => write!(f, "{registry}/{repository}:{tag}"),
            ReferenceTarget::Digest(digest) => write!(f, "{registry}/{repository}@{digest}"),
        }
    }
}

impl fmt::Display for ReferenceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReferenceTarget::Tag(tag) => f.write_str(tag),
            ReferenceTarget::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written() {
        let digest = Digest::of(b"abc");
        let pinned = format!("registry.example.com/acme/macos@{digest}");
        for (text, registry, repository, written) in [
            ("registry.example.com/macos", "registry.example.com", "macos", "registry.example.com/macos:latest"),
            ("localhost:5000/a/b/c:1.2_3-x", "localhost:5000", "a/b/c", "localhost:5000/a/b/c:1.2_3-x"),
            ("a-b.example/Acme_/x.y:T", "a-b.example", "Acme_/x.y", "a-b.example/Acme_/x.y:T"),
            (&pinned, "registry.example.com", "acme/macos", &pinned),
            ("[::1]/macos:1", "[::1]", "macos", "[::1]/macos:1"),
            ("[2001:db8::5]:5000/a/b", "[2001:db8::5]:5000", "a/b", "[2001:db8::5]:5000/a/b:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.registry(), reference.repository()), (registry, repository));
            assert_eq!(reference.to_string(), written);
            assert_eq!(written.parse(), Ok(reference));
        }
        let reference: Reference = pinned.parse().unwrap();
        assert_eq!(reference.digest(), Some(digest));
        let tagged: Reference = "registry.example.com/acme/macos:1".parse().unwrap();
        assert_eq!((tagged.digest(), tagged.pinned(digest)), (None, reference));
    }

    #[test]
    fn what_tart_would_not_take_is_refused() {
        let digest = Digest::of(b"abc");
        let with_both = format!("host/a:1@{digest}");
        let long = format!("host/{}", "a".repeat(600));
        for wrong in [
            "",
            "macos",
            "/macos",
            "host/",
            "host//a",
            "host/a/",
            "host/a:",
            "host/a@",
            "host/a@sha256:00",
            "host/a:b--c",
            "host/a:b__c",
            "host/a:b-",
            "host/../a",
            "host/a..b",
            "host/a:b:c",
            "host:0/a",
            "host:/a",
            "host:99999/a",
            "host:+1/a",
            "ho_st/a",
            "-host/a",
            "host-/a",
            "ho--st/a",
            "host./a",
            "host/a b",
            "host/é",
            "[::1/a",
            "[::1]x/a",
            "[::1]:/a",
            "[::1]:0/a",
            "[fe80::1%25eth0]/a",
            "[127.0.0.1]/a",
            "::1/a",
            "https://host/a",
            "user@host/a",
            "host/a?x",
            "host/a#x",
            &with_both,
            &long,
        ] {
            let error = wrong.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("expected host"), "{error}");
            assert!(error.len() < 450, "{error}");
        }
    }
}
