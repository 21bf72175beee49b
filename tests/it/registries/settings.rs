//! Tables of single registries in the configuration.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use mayfly::config::{Config, ConfigError};

fn load(text: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let own = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    Config::from_sources(PathBuf::from("/data"), text, own(env), own(overrides))
}

#[track_caller]
fn refused(text: &str, env: &[(&str, &str)]) -> String {
    load(text, env, &[]).expect_err("it is refused").to_string()
}

#[test]
fn a_table_says_what_differs_for_one_registry() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let (ca, password) = (file("ca.pem", "x"), file("password", "hunter2\n"));
    let text = format!(
        "[registry]\nplain_http = true\n[registries.\"GHCR.io\"]\nplain_http = false\nusername = \"ci\"\npassword_file = {password:?}\n\
         [registries.\"10.0.0.5:5000\"]\nca_file = {ca:?}\n[registries.plain]\n"
    );
    let config = load(&text, &[], &[("registries.\"plain\".plain_http", "true")]).unwrap();
    assert_eq!(config.registries.keys().collect::<Vec<_>>(), ["10.0.0.5:5000", "ghcr.io", "plain"]);
    let ghcr = &config.registries["ghcr.io"];
    assert_eq!((ghcr.plain_http, ghcr.username.as_deref(), &ghcr.ca_file), (Some(false), Some("ci"), &None));
    assert_eq!(ghcr.password_file, Some(password.into()));
    assert_eq!(config.registries["10.0.0.5:5000"].ca_file, Some(ca.into()));
    assert_eq!(config.registries["plain"].plain_http, Some(true));
    assert!(config.registry.plain_http);
    assert_eq!(load("[registries]", &[], &[]).unwrap(), Config::defaults("/data".into()));
}

#[test]
fn faults_of_a_table_are_reported_with_their_position() {
    let at = |line: usize, what: &str| format!("/data/mayfly.toml:{line}: {what}");
    assert_eq!(
        refused("[registries.\"ghcr.io\"]\n\nca_fil = \"x\"", &[]),
        at(3, "unknown key `registries.\"ghcr.io\".ca_fil`; did you mean `ca_file`?")
    );
    assert_eq!(
        refused("[registries.\"ghcr.io\"]\nplain_http = \"yes\"", &[]),
        at(2, "`registries.\"ghcr.io\".plain_http`: expected `true` or `false`, found the text \"yes\"")
    );
    // The dots of a host that is not quoted are tables in tables.
    let unquoted = refused("[registries.ghcr.io]\nplain_http = true", &[]);
    assert!(
        unquoted.starts_with("/data/mayfly.toml:1: unknown section `registries.\"ghcr\".io`; a host with dots"),
        "{unquoted}"
    );
    let host = refused("[registry]\n[registries.\"https://ghcr.io\"]", &[]);
    assert!(host.starts_with(&at(2, "`registries.\"https://ghcr.io\"`: expected a registry's host[:port]")), "{host}");
    let twice = refused("[registries.\"ghcr.io\"]\n[registries.\"GHCR.io\"]", &[]);
    assert!(twice.contains("is another spelling of ghcr.io"), "{twice}");
    for (text, expected) in [
        ("registries = 1", "`registries`: expected tables such as `[registries.\"registry.example.com\"]`"),
        ("[registries]\nca_file = \"x\"", "expected a table of settings, found a single value"),
        ("[registries.\"a.io\"]\nusername = \"ci\"", "needs `password_file` beside it"),
        ("[registries.\"a.io\"]\npassword_file = \"x\"", "needs `username` beside it"),
        ("[registries.\"a.io\"]\nusername = \"ci\"\npassword_file = \"none\"", "there is no /data/none"),
        ("[registries.\"a.io\"]\nca_file = \"none\"", "cannot read /data/none"),
        ("[registry]\nbytes_per_second = 1000", "expected 0 (no limit) or 65536 and more, found 1000"),
        ("[registrys.\"a.io\"]", "unknown section `registrys`; did you mean `registr"),
    ] {
        let message = refused(text, &[]);
        assert!(message.contains(expected), "{text}: {message}");
    }
    let variable = refused("", &[("MAYFLY_REGISTRIES__GHCR_IO__USERNAME", "hush-hush")]);
    assert!(variable.contains("stand in mayfly.toml only") && !variable.contains("hush-hush"), "{variable}");
}

#[test]
fn a_password_that_others_may_read_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    fs::write(&path, "hunter2\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let text = format!("[registries.\"a.io\"]\nusername = \"ci\"\npassword_file = {path:?}");
    let message = refused(&text, &[]);
    assert!(message.contains("chmod 600") && !message.contains("hunter2"), "{message}");
}
