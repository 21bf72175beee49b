//! How vms that belong to an adapter are called and labelled.

use sha2::{Digest, Sha256};

/// Which scheduler a vm was made for.
pub(super) const OWNER: &str = "owner";

/// Longest label of Mayfly, in characters.
const LONGEST_LABEL: usize = 128;
/// How much of the scheduler's name is in the vm's name, which has at most 63 characters.
const NAME_PART: usize = 50;

/// Whether labels of the user's may have this key.
pub(super) fn is_reserved(key: &str) -> bool {
    key == OWNER || key.starts_with("garm.") || key.starts_with("myshoes.")
}

/// The scheduler's name and the beginning of a hash: the next vm of a name is created while the one before is still ending.
pub(super) fn vm_name(name: &str, without_name: &str, hash: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(NAME_PART).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{}-{}", if name.is_empty() { without_name } else { name }, &hash[..8])
}

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
