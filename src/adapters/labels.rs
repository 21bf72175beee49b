//! Labels of vms by which an adapter finds its own: it has no state of its own.

use sha2::{Digest, Sha256};

/// Whose vm it is.
pub(super) const OWNER: &str = "owner";
/// Longest label of Mayfly, in characters.
const LONGEST_LABEL: usize = 128;

/// The text itself if it can be a label's value, else a hash of it: names of scale sets are free text.
pub(super) fn label(text: &str) -> String {
    const HASHED: &str = "sha256:";
    let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
    if text.chars().count() <= LONGEST_LABEL && text.chars().all(plain) && !text.starts_with(HASHED) {
        text.to_owned()
    } else {
        format!("{HASHED}{}", hash_of(&[text]))
    }
}

/// Of the parts, whose limits count: `a`, `bc` is not `ab`, `c`.
pub(super) fn hash_of(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_label_is_hashed() {
        for text in ["", "my set ü/x-0d2f", &"x".repeat(128)] {
            assert_eq!(label(text), text);
        }
        for text in ["a\"b", "a\\b", "a\nb", &"x".repeat(129), &format!("sha256:{}", hash_of(&["a\"b"]))] {
            assert!(label(text).starts_with("sha256:") && label(text).len() <= LONGEST_LABEL, "{text}");
            assert_ne!(label(text), text);
        }
    }
}
