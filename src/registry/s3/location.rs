//! `s3://bucket/key`, and `s3://bucket/key#sha256=…`.

use std::{fmt, str::FromStr};

use crate::registry::oci::Digest;

/// The location of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    bucket: String,
    key: String,
    /// The expected digest of its content.
    digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no object in S3: {what} (expected s3://bucket/key, and #sha256=<64 hexadecimal digits> if it is known)"
)]
pub struct LocationError {
    given: String,
    what: &'static str,
}

impl Location {
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The object with this suffix appended to its key.
    pub fn beside(&self, suffix: &str) -> Location {
        Location { bucket: self.bucket.clone(), key: format!("{}{suffix}", self.key), digest: None }
    }

    /// Whether a text refers to S3, valid or not.
    pub fn is_meant(text: &str) -> bool {
        text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("s3://"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Location, LocationError> {
        let wrong = |what| LocationError { given: text.chars().take(200).collect(), what };
        if !Location::is_meant(text) {
            return Err(wrong("it does not begin with s3://"));
        }
        let rest = &text["s3://".len()..];
        // A key may contain `#`; the part after the last one counts if it is a digest.
        let (rest, digest) = match rest.rsplit_once('#') {
            Some((rest, fragment)) if fragment.starts_with("sha256") => {
                let hex = fragment.strip_prefix("sha256=").or(fragment.strip_prefix("sha256:"));
                let digest = hex.and_then(|hex| format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok());
                (rest, Some(digest.ok_or_else(|| wrong("what follows # is no SHA-256"))?))
            }
            _ => (rest, None),
        };
        let (bucket, key) = rest.split_once('/').ok_or_else(|| wrong("it has no key"))?;
        let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
        let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let good = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(usual)
            && ends(bucket.bytes().next())
            && ends(bucket.bytes().last());
        if !good {
            return Err(wrong("the bucket's name has 3 to 63 lower case letters, digits, dots and dashes"));
        }
        if key.is_empty() || key.ends_with('/') {
            return Err(wrong("it names no object, but everything below a prefix"));
        }
        if key.len() > 1024 || key.chars().any(char::is_control) {
            return Err(wrong("a key has at most 1024 bytes, and no control characters here"));
        }
        Ok(Location { bucket: bucket.to_owned(), key: key.to_owned(), digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_bucket_and_a_key_and_perhaps_a_digest() {
        let digest = Digest::of(b"x");
        for (text, bucket, key, known) in [
            ("s3://images/base.img".to_owned(), "images", "base.img", None),
            ("S3://my.images-1/a/b c#1/ü.qcow2".to_owned(), "my.images-1", "a/b c#1/ü.qcow2", None),
            (format!("s3://images/a#sha256={}", digest.hex()), "images", "a", Some(digest)),
            (format!("s3://images/a#b#sha256={}", digest.hex().to_uppercase()), "images", "a#b", Some(digest)),
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!((location.bucket(), location.key(), location.digest()), (bucket, key, known));
            assert_eq!(location.to_string(), format!("s3://{bucket}/{key}"));
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let long = format!("s3://images/{}", "a".repeat(1025));
        for text in [
            "",
            "images/a",
            "https://images.s3.amazonaws.com/a",
            "s3://images",
            "s3://images/",
            "s3://images/a/",
            "s3:///a",
            "s3://ab/a",
            "s3://Images/a",
            "s3://-images/a",
            "s3://images./a",
            "s3://user:password@images/a",
            "s3://images/a\n",
            "s3://images/a#sha256=12",
            "s3://images/a#sha256",
            long.as_str(),
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
