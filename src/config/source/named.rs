//! Keys of tables that are named by whoever writes them. A name may hold dots, so it stands in quotes: `registries."host".ca_file`.

use super::super::keys::{Key, NAMED, Named};

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

fn fields(named: &'static Named) -> impl Iterator<Item = String> {
    let last = |key: &'static Key| key.path.rsplit('.').next().unwrap_or(key.path);
    let own = named.section.keys.iter().map(move |key| last(key).to_owned());
    let inner = named.inner.iter();
    own.chain(inner.flat_map(move |i| i.section.keys.iter().map(move |key| format!("{}.{}", i.name, last(key)))))
}

/// The field that was most likely meant.
pub fn nearest(named: &'static Named, field: &str) -> Option<String> {
    fields(named)
        .map(|known| (strsim::normalized_damerau_levenshtein(field, &known), known))
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
        assert_eq!(parts("pools.\"a.b\".max_vms").as_deref(), Some("pools a.b max_vms"));
        let budget = "pools.\"macos\".budgets.idle_seconds";
        assert_eq!(parts(budget).as_deref(), Some("pools macos budgets.idle_seconds"));
        for key in ["pools.\"a\".budgets", "pools.\"a\".budgets.max_vms", "pools.\"a\".idle_seconds"] {
            assert_eq!(parts(key), None, "{key}");
        }
        for key in ["registries.\"a.io\".ca", "registries.a.ca_file", "registry.\"a\".ca_file", "registries.ca_file"] {
            assert_eq!(parts(key), None, "{key}");
        }
    }
}
