//! Imports point downwards only, as in the picture of ARCHITECTURE.md.

use std::{fs, path::Path};

use crate::circles::{read_modules, written_uses};

/// Module → what it may use of ours, besides itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("platform", &[]),
    ("store", &["platform", "domain"]),
    ("drivers", &["platform", "domain"]),
    ("guest", &["platform", "domain"]),
    ("gateway", &["platform", "domain"]),
    ("registry", &["platform", "domain"]),
    // Pulls and pushes move images between the catalog and a registry.
    ("templates", &["registry", "platform", "domain"]),
    ("sources", &["platform", "domain"]),
    ("parts", &["store", "drivers", "registry", "templates", "sources", "platform", "domain"]),
    ("admission", &["parts", "store", "drivers", "guest", "registry", "templates", "sources", "platform", "domain"]),
    (
        "service",
        &["admission", "parts", "store", "drivers", "guest", "registry", "templates", "sources", "platform", "domain"],
    ),
    (
        "reconcile",
        &["admission", "parts", "store", "drivers", "guest", "registry", "templates", "sources", "platform", "domain"],
    ),
    ("http", &["service", "platform", "domain"]),
    ("client", &["config", "platform", "domain"]),
    // Clients of the REST API, like the commands.
    ("adapters", &["client", "platform", "domain"]),
];

fn sources(dir: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn imports_point_downwards_only() {
    // As written: `service` passes types of lower layers on to `http` by `pub use`.
    let modules = read_modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let mut checked = 0;
    let mut wrong = Vec::new();
    for (module, used) in &written_uses(&modules) {
        let Some((layer, allowed)) = MAY_USE.iter().find(|(layer, _)| module.first().is_some_and(|top| top == layer))
        else {
            continue;
        };
        checked += 1;
        for used in used {
            let Some(top) = used.first().map(String::as_str) else { continue };
            // Macros of the crate are at its root.
            let is_module = modules.contains_key(&used[..1]);
            if is_module && top != *layer && !allowed.contains(&top) {
                wrong.push(format!("{} uses {}", module.join("::"), used.join("::")));
            }
        }
    }
    assert!(checked > 200, "the sources were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The page for contributors names files, and in its glossary the types that carry a term. Each of them exists.
#[test]
fn the_page_for_contributors_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/contributing.md")).unwrap();
    let quoted: Vec<&str> = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect();
    let file = |name: &&&str| {
        ["src/", "tests/", "docs/", "hooks/", "migrations/"].iter().any(|dir| name.starts_with(dir))
            && !name.contains(['<', '*', ' '])
    };
    let mut missing: Vec<String> = Vec::new();
    missing.extend(quoted.iter().filter(file).filter(|name| !root.join(name).exists()).map(|name| (**name).to_owned()));
    let glossary =
        page.lines().filter(|line| line.starts_with("| ")).flat_map(|line| line.split('`').skip(1).step_by(2));
    let mut paths = 0;
    for path in glossary.filter(|path| path.contains("::")) {
        paths += 1;
        let (module, items) = path.rsplit_once("::").unwrap();
        let module_dir = root.join("src").join(module.replace("::", "/"));
        for item in items.trim_matches(['{', '}']).split(", ") {
            let is_module = module_dir.join(format!("{item}.rs")).exists() || module_dir.join(item).is_dir();
            let mut files = Vec::new();
            // The item may be re-exported from any file of its layer.
            sources(&root.join("src").join(module.split("::").next().unwrap()), &mut files);
            let defines = |text: &str| {
                ["struct", "enum", "trait", "type", "fn"].iter().any(|kind| {
                    text.match_indices(&format!("{kind} {item}")).any(|(at, found)| {
                        !text[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
                })
            };
            if !is_module && !files.iter().any(|file| defines(&fs::read_to_string(file).unwrap())) {
                missing.push(path.to_owned());
            }
        }
    }
    assert!(paths > 30, "the glossary was not found");
    assert!(missing.is_empty(), "docs/contributing.md names what does not exist: {missing:?}");
}

/// One rule for module files: a module with submodules is a folder with a `mod.rs`.
#[test]
fn no_module_is_both_a_file_and_a_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&root.join(dir), &mut files);
    }
    let mixed: Vec<_> = files.iter().filter(|file| file.with_extension("").is_dir()).collect();
    assert!(mixed.is_empty(), "move these to `mod.rs` in the folder: {mixed:?}");
}

/// What a driver says of an instance has more answers than "it runs". One module of the reconciler looks at an instance, and it
/// names every answer; others ask its functions.
#[test]
fn an_instance_is_looked_at_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let looks = |file: &Path| fs::read_to_string(file).unwrap().contains("driver.inspect(");
    let found: Vec<String> = files
        .iter()
        .filter(|file| !file.starts_with(root.join("drivers")) && looks(file))
        .map(|file| file.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    assert_eq!(found, ["reconcile/vms/observe.rs"]);
}

/// What runs by itself is in `reconcile`: a verb starts no task and no loop that waits.
#[test]
fn verbs_start_no_tasks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in ["service", "admission"] {
        let mut files = Vec::new();
        sources(&root.join(module), &mut files);
        assert!(!files.is_empty(), "the sources of {module} were not found");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for forbidden in ["tokio::spawn", "spawn(", "_forever", "keep_running"] {
                assert!(!text.contains(forbidden), "{} has {forbidden}", file.display());
            }
        }
    }
}
