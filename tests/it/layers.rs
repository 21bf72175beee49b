//! Imports point downwards only. Reads the `crate::` paths of every source file and holds them against the picture in
//! ARCHITECTURE.md, so that the rule cannot rot.

use std::{fs, path::Path};

/// Module → what it may use of ours, besides itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("platform", &[]),
    ("store", &["platform", "domain"]),
    ("drivers", &["platform", "domain"]),
    ("guest", &["platform", "domain"]),
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

/// Every path that begins with `crate::`, with braces resolved: `crate::{a::B, c}` gives `a::B` and `c`.
fn uses(text: &str) -> Vec<String> {
    let text: String = text.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        expand(&text[at + "crate::".len()..], "", &mut found);
    }
    found
}

fn expand(rest: &str, prefix: &str, found: &mut Vec<String>) {
    let rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    expand(&inner[start..i], prefix, found);
                    return;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&inner[start..i], prefix, found);
                    start = i + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return;
    }
    let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}::{name}") };
    match rest[name.len()..].strip_prefix("::") {
        Some(more) if path.matches("::").count() < 1 => expand(more, &path, found),
        _ => found.push(path),
    }
}

#[test]
fn imports_point_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let top = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = top.trim_end_matches(".rs");
        let Some((_, allowed)) = MAY_USE.iter().find(|(m, _)| *m == module) else { continue };
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            let target = used.split("::").next().unwrap();
            let ok = target == module || allowed.iter().any(|a| *a == target || *a == used);
            // Macros of the crate root and tests' helpers are no modules of ours.
            let ours =
                MAY_USE.iter().any(|(m, _)| *m == target) || ["cli", "app", "config", "telemetry"].contains(&target);
            if ours && !ok {
                wrong.push(format!("{} uses crate::{used}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_reads_imports() {
    let text = "use crate::{\n    domain::{Vm, State},\n    store::logs::LogSource,\n    http,\n};\nlet x = crate::platform::Clock::system();";
    assert_eq!(uses(text), ["domain::Vm", "domain::State", "store::logs", "http", "platform::Clock"]);
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
