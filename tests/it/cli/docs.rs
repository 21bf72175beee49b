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
