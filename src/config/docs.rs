//! `docs/configuration.md`, from the schemas of the sections.

use std::fmt::Write;

use super::sections::SECTIONS;

/// The command that writes the page anew.
pub const REGENERATE: &str = "cargo run -q -- serve --print-config-docs > docs/configuration.md";

const HEAD: &str = "\
# Configuration

`mayfly serve` works without any configuration. Mayfly keeps all its files in the *data directory*: `--data-dir`, else
`MAYFLY_DATA_DIR`, else `~/.mayfly`. The service creates it with mode 0700, and refuses it if it belongs to another user or if
other users can read it.

Each setting is taken from the first of these places that has it:

1. the command line: `mayfly serve --set server.listen=127.0.0.1:9000`;
2. the environment: `MAYFLY_SERVER__LISTEN` (upper case, two underscores between section and key; empty counts as not set);
3. the file `mayfly.toml` in the data directory, which is optional;
4. the default.

An unknown key, section or `MAYFLY_…__…` variable stops the service at its start; the error shows its place, and a known
name if one is similar. Settings are read at the start only: after a change, run `mayfly serve --check`, which checks the whole
configuration and starts nothing, then restart the service (`sudo systemctl restart mayfly`; on a Mac `launchctl kickstart -k
gui/$(id -u)/dev.mayfly.agent`). The data directory of the package and of the systemd unit is `/var/lib/mayfly`; check as its
user: `sudo -u mayfly mayfly serve --check --data-dir /var/lib/mayfly`. The header of a table may stand in the file only once.
Relative paths are relative to the data directory.

```toml
# ~/.mayfly/mayfly.toml
[server]
listen = \"127.0.0.1:8470\"

[slots]
linux = 4

[budgets]
lifetime_seconds = 7200
```
";

const TAIL: &str = "
## Environment of the command line

| Variable | Meaning |
|---|---|
| `MAYFLY_DATA_DIR` | data directory, as `--data-dir`; without a URL it selects the service |
| `MAYFLY_URL` | URL of the service, as `--url`; needs a token |
| `MAYFLY_TOKEN` | API token |
| `MAYFLY_TOKEN_FILE` | file with an API token, as `--token-file` |
| `MAYFLY_CA_FILE` | certificates (PEM) to trust in addition to the system's, as `--ca-file` |
| `NO_COLOR` | no colours, if it is not empty |
";

/// The page.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    for section in SECTIONS {
        let description = one_line(section.schema.description);
        let _ = write!(page, "\n## `[{}]`\n\n{description}\n\n", section.path);
        page.push_str("| Key | Takes | Default | Meaning |\n|---|---|---|---|\n");
        for key in section.schema.keys {
            let (name, kind, default) = (key.name, key.kind, (key.default)());
            let _ = writeln!(page, "| `{name}` | {kind} | {default} | {} |", one_line(key.description));
        }
    }
    page.push_str(TAIL);
    let _ = write!(page, "\n<!-- Written by: {REGENERATE} -->\n");
    page
}

/// Doc comments come with the space after `///`.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
