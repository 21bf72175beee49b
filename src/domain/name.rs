//! Rules for names that callers choose: they are used in paths, labels, metrics and names of runners.

/// The rule for names, as text.
pub const NAME_RULE: &str = "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit";

pub fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    name.len() <= 63 && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(fits)
}
