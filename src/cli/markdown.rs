//! Generates `docs/cli.md` from the command line's definition.

use std::fmt::Write;

use clap::Command;

/// The command that regenerates the page.
pub const REGENERATE: &str = "cargo run -q -- markdown > docs/cli.md";

const HEAD: &str = "\
# Command line

`mayfly serve` runs the service; `mayfly doctor` and `mayfly github check` check the machine and the access to GitHub, and
`mayfly template lint` the files of a template. Every other command talks to a service over HTTP. Results go to standard output, everything else to standard error. `--json` prints the API's
answer. With `--json`, `vm list --watch`, and `vm events` and `vm logs` with `--follow`, print one JSON object per line, and
`vm create --follow` prints the vm once it is deleted. The global options can be used with every command.
";

const GLOBAL_HEADING: &str = "Global options:";

/// The page.
pub fn reference() -> String {
    let mut page = String::from(HEAD);
    let mut root = super::command();
    root.build();
    describe(&mut root, "mayfly", &mut page);
    let _ = write!(page, "\n<!-- Written by: {REGENERATE} -->\n");
    page
}

fn describe(command: &mut Command, path: &str, page: &mut String) {
    // A fixed width, because the output must not depend on the terminal.
    let mut shown = command.clone().term_width(100);
    let help = shown.render_long_help().to_string();
    let mut help: Vec<&str> = help.lines().map(str::trim_end).collect();
    // It is the same for all commands, so it is printed once.
    if path != "mayfly"
        && let Some(end) = help.iter().position(|line| *line == GLOBAL_HEADING)
    {
        help.truncate(end);
    }
    let _ = write!(page, "\n## `{path}`\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for sub in command.get_subcommands_mut().filter(|s| !s.is_hide_set()) {
        let path = format!("{path} {}", sub.get_name());
        describe(sub, &path, page);
    }
}
