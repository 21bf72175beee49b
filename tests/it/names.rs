//! A type name has one meaning in the crate, so that a reader who meets it need not look up its module.

use std::{collections::BTreeMap, path::Path};

use crate::circles::read_modules;

/// Always used with their module, and always the same idea: `store::Result`, `qemu::Settings`.
const WITH_THEIR_MODULE: [&str; 3] = ["Error", "Result", "Settings"];

#[test]
fn a_type_name_has_one_meaning() {
    let modules = read_modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let mut meanings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (module, text) in &modules {
        for item in syn::parse_file(text).unwrap().items {
            let name = match item {
                syn::Item::Struct(item) => item.ident,
                syn::Item::Enum(item) => item.ident,
                syn::Item::Trait(item) => item.ident,
                syn::Item::Type(item) => item.ident,
                syn::Item::Union(item) => item.ident,
                _ => continue,
            };
            meanings.entry(name.to_string()).or_default().push(module.join("::"));
        }
    }
    assert!(meanings.len() > 500, "the types were not found");
    meanings.retain(|name, modules| modules.len() > 1 && !WITH_THEIR_MODULE.contains(&name.as_str()));
    assert!(meanings.is_empty(), "type names with several meanings: {meanings:#?}");
}
