//! SHA-256 digests as registries write them: `sha256:<64 lower case hex digits>`.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest, expected sha256: and 64 lower case hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    pub fn finish(hasher: Sha256) -> Digest {
        Digest(hasher.finalize().into())
    }

    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let parse = || {
            let digits = text.strip_prefix("sha256:")?;
            // Registries compare digests as text, so only the lower case form is valid.
            if digits.bytes().any(|b| b.is_ascii_uppercase()) {
                return None;
            }
            let mut bytes = [0; 32];
            hex::decode_to_slice(digits, &mut bytes).ok()?;
            Some(Digest(bytes))
        };
        parse().ok_or_else(|| DigestError(text.chars().take(200).collect()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_way_to_write_a_digest() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(Digest::of(b"abc")));
        let long = format!("{abc}0");
        for wrong in [
            "",
            "sha256:",
            &abc[7..],
            &abc[..70],
            &long,
            &abc.to_uppercase(),
            &abc.replace("sha256", "sha512"),
            "sha256:é",
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }
}
