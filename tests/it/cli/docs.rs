//! Pages that are written by the program are what the program would write.

#[track_caller]
fn in_step(file: &str, written: &str, regenerate: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == written, "{file} is not what the program says; write it anew with:\n\n    {regenerate}\n");
}

#[test]
fn configuration_page_is_in_step() {
    use mayfly::config::docs::{REGENERATE, markdown};
    in_step("docs/configuration.md", &markdown(), REGENERATE);
}

#[test]
fn command_line_page_is_in_step() {
    use mayfly::cli::markdown::{REGENERATE, reference};
    in_step("docs/cli.md", &reference(), REGENERATE);
}

/// Each limit on the page names its setting and a test that shows it. Both exist.
#[test]
fn the_limits_on_the_security_page_have_settings_and_tests() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let (page, settings) = (read("docs/security.md"), read("docs/configuration.md"));
    let files = sources(&root.join("src")).into_iter().chain(sources(&root.join("tests/it")));
    let files: Vec<(std::path::PathBuf, String)> =
        files.map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect();
    // By the function's name, or by the module's.
    let exists = |test: &str| {
        let segments: Vec<&str> = test.split("::").collect();
        let (name, parents) = segments.split_last().unwrap();
        let within = |file: &std::path::Path, parents: &[&str]| {
            let path = file.strip_prefix(root).unwrap().with_extension("");
            let path: Vec<_> = path.iter().filter_map(|part| part.to_str()).filter(|part| *part != "mod").collect();
            path.ends_with(parents)
        };
        files.iter().any(|(file, text)| {
            within(file, parents) && text.contains(&format!("fn {name}(")) || within(file, &segments)
        })
    };
    let rows = page.lines().skip_while(|line| !line.starts_with("| What | Limit")).skip(2);
    let mut checked = 0;
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [what, _, setting, tests] = cells[..] else { panic!("four columns: {row}") };
        for test in tests.split(", ").map(|test| test.trim_matches('`')).filter(|test| !test.is_empty()) {
            assert!(exists(test), "{what}: there is no test {test}");
            checked += 1;
        }
        if let Some(setting) = setting.strip_prefix('`').and_then(|setting| setting.strip_suffix('`')) {
            let key = setting.rsplit('.').next().unwrap();
            assert!(settings.contains(&format!("| `{key}` |")), "{what}: there is no setting {setting}");
        }
    }
    assert!(checked > 20, "the table was not found");
}

fn sources(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
    found
}

#[test]
fn the_command_line_holds_together() {
    mayfly::cli::command().debug_assert();
}

#[tokio::test]
async fn completions_are_written_for_every_shell() {
    let mayfly = super::Mayfly::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = mayfly.run(&["completions", shell]).await.ends(0);
        assert!(ran.out.contains("mayfly") && ran.out.contains("template"), "{shell}");
    }
}
