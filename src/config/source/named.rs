//! Keys of tables that are named by whoever writes them. A name may hold dots, so it stands in quotes: `registries."host".ca_file`.

use super::super::keys::{NAMED, Named};

/// The path of the table with this name.
pub fn path(root: &str, name: &str) -> String {
    format!("{root}.\"{name}\"")
}

pub fn of_root(root: &str) -> Option<&'static Named> {
    NAMED.iter().find(|n| n.root == root)
}

/// Kind, name and field of a key; the field is empty for the table itself. `None`: it is no such key, or has no such field.
pub fn split(key: &str) -> Option<(&'static Named, String, &str)> {
    let (root, rest) = key.split_once(".\"")?;
    let named = of_root(root)?;
    let (name, field) = rest.rsplit_once("\".")?;
    (field.is_empty() || fields(named).any(|f| f == field)).then(|| (named, name.to_owned(), field))
}

fn fields(named: &'static Named) -> impl Iterator<Item = &'static str> {
    named.section.keys.iter().filter_map(|key| key.path.rsplit('.').next())
}

/// The field that was most likely meant.
pub fn nearest(named: &'static Named, field: &str) -> Option<&'static str> {
    fields(named)
        .map(|known| (strsim::normalized_damerau_levenshtein(field, known), known))
        .filter(|(score, _)| *score >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_split_at_its_quotes() {
        let parts = |key: &str| split(key).map(|(named, name, field)| format!("{} {name} {field}", named.root));
        assert_eq!(parts("registries.\"a.io:5000\".ca_file").as_deref(), Some("registries a.io:5000 ca_file"));
        assert_eq!(parts("registries.\"a.io\".").as_deref(), Some("registries a.io "));
        for key in ["registries.\"a.io\".ca", "registries.a.ca_file", "registry.\"a\".ca_file", "registries.ca_file"] {
            assert_eq!(parts(key), None, "{key}");
        }
    }
}
