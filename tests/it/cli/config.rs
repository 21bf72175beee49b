//! Configuration: what is taken from where, and how everything else is refused.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use mayfly::{
    config::{self, Config, ConfigError},
    drivers::qemu::AcceleratorChoice,
    platform::host_resources::HostResources,
    telemetry::LogFormat,
};

use super::Mayfly;

fn load(text: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    Config::from_sources(PathBuf::from("/data"), text, own(env), own(overrides))
}

#[track_caller]
fn refused(text: &str, env: &[(&str, &str)]) -> String {
    load(text, env, &[]).expect_err("it is refused").to_string()
}

#[test]
fn nothing_given_means_defaults() {
    let config = load("", &[], &[]).unwrap();
    assert_eq!(config, Config::defaults(PathBuf::from("/data")));
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8470");
    assert_eq!(config.slots.linux, HostResources::this().cpus);
    assert_eq!(config.default_budgets(), mayfly::domain::Budgets::default());
}

#[test]
fn command_line_beats_environment_beats_file() {
    let text = "[queue]\nmax_length = 1\ntimeout_seconds = 1\n[retention]\ndeleted_vms_days = 1\n[drivers.qemu]\naccelerator = \"tcg\"";
    let env =
        [("MAYFLY_QUEUE__MAX_LENGTH", "2"), ("MAYFLY_QUEUE__TIMEOUT_SECONDS", "2"), ("MAYFLY_LOG__FORMAT", "json")];
    let config = load(text, &env, &[("queue.max_length", "3")]).unwrap();
    assert_eq!((config.queue.max_length, config.queue.timeout_seconds, config.retention.deleted_vms_days), (3, 2, 1));
    assert_eq!((config.drivers.qemu.accelerator, config.log.format), (AcceleratorChoice::Tcg, LogFormat::Json));
}

#[test]
fn every_key_can_be_set_in_the_environment_and_an_empty_one_is_not_set() {
    for key in config::keys() {
        assert_eq!(load("", &[(&key.env(), "")], &[]).unwrap(), Config::defaults("/data".into()), "{}", key.path);
    }
    let open = load("", &[("MAYFLY_DRIVERS__QEMU__ISOLATED", "false")], &[]).unwrap();
    assert_eq!(open.drivers.qemu.isolated, Some(false));
    // What the documentation shows as a default is that, and can be given.
    for key in config::keys() {
        let shown = (key.key.default)();
        let plain = shown.trim_matches('`');
        if shown.bytes().all(|b| b.is_ascii_digit())
            || (!plain.contains([' ', '`', '<']) && plain.len() + 2 == shown.len())
        {
            let config = load("", &[(&key.env(), plain)], &[]).unwrap_or_else(|error| panic!("{}: {error}", key.path));
            let programs = ["binary", "qemu_img"].iter().any(|name| key.path.ends_with(&format!(".{name}")));
            if !(programs && key.path.starts_with("drivers.")) {
                assert_eq!(config, Config::defaults("/data".into()), "{}", key.path);
            }
        }
    }
}

#[test]
fn a_text_of_the_environment_has_the_type_of_its_key() {
    let env = [
        ("MAYFLY_QUEUE__MAX_LENGTH", " 7 "),
        ("MAYFLY_LOG__LEVEL", "info,mayfly=debug"),
        ("MAYFLY_GITHUB__APP_ID", "12345"),
        ("MAYFLY_DRIVERS__TART__DIRS", "a:/a:ro, /b"),
        ("MAYFLY_DRIVERS__TART__ROSETTA", "true"),
    ];
    let config = load("[github]\napp_id = 3", &env, &[]).unwrap();
    assert_eq!((config.queue.max_length, config.log.level.as_str()), (7, "info,mayfly=debug"));
    assert_eq!(config.github.app_id.map(|id| id.0).as_deref(), Some("12345"));
    assert_eq!(config.drivers.tart.dirs, ["a:/a:ro", "/b"]);
    assert_eq!(config.drivers.tart.rosetta.as_deref(), Some("true"));
    assert_eq!(load("[github]\napp_id = 3", &[], &[]).unwrap().github.app_id.map(|id| id.0).as_deref(), Some("3"));
    assert!(refused("[github]\napp_id = 0", &[]).contains("expected client id or number, found the number 0"));
}

#[test]
fn relative_paths_start_at_the_data_directory_and_programs_are_looked_up() {
    let config = load("[drivers.qemu]\nbinary = \"qemu-kvm\"\nqemu_img = \"bin/qemu-img\"", &[], &[]).unwrap();
    assert_eq!(config.drivers.qemu.binary, Some("qemu-kvm".into()));
    assert_eq!(config.drivers.qemu.qemu_img, Some("/data/bin/qemu-img".into()));
    assert!(refused("[drivers.qemu]\nbinary = \"~/qemu\"", &[]).contains("`~` is not expanded"));
    assert!(refused("[github]\ntoken_file = \"\"", &[]).contains("expected path, found the text \"\""));
    let config = load("[drivers.tart]\nlease_file = \"leases\"", &[], &[]).unwrap();
    assert_eq!(config.drivers.tart.lease_file, PathBuf::from("/data/leases"));
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_one() {
    assert_eq!(
        refused("[server]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n", &[]),
        "/data/mayfly.toml:3: unknown key `server.lisen`; did you mean `server.listen`?"
    );
    assert_eq!(
        refused("[sever]\nlisten = \"127.0.0.1:1\"\n", &[]),
        "/data/mayfly.toml:1: unknown section `sever`; did you mean `server`?"
    );
    // The right key in no section, and in the wrong one.
    assert!(refused("listen = \"127.0.0.1:1\"", &[]).contains("did you mean `server.listen`?"));
    assert!(refused("[server]\nmax_attempts = 1", &[]).contains("did you mean `budgets.max_attempts`?"));
    assert!(refused("[drivers.qemuu]\nenabled = true", &[]).contains("did you mean `drivers.qemu`?"));
    assert!(refused("zzz = 1", &[]).contains("unknown key `zzz`; "));
}

#[test]
fn an_unknown_variable_is_refused_and_its_value_is_not_repeated() {
    let message = refused("", &[("MAYFLY_SEVER__LISTEN", "hush-hush")]);
    assert!(message.contains("environment variable MAYFLY_SEVER__LISTEN"), "{message}");
    assert!(message.contains("did you mean `MAYFLY_SERVER__LISTEN`?"), "{message}");
    assert!(!message.contains("hush-hush"), "{message}");
    assert!(refused("", &[("MAYFLY_SERVER_LISTEN", "x")]).contains("did you mean `MAYFLY_SERVER__LISTEN`?"));
    // Variables of the command line, and strangers that happen to share the prefix.
    load("", &[("MAYFLY_URL", "x"), ("MAYFLY_TOKEN", "x"), ("MAYFLY_PORT", "x"), ("PATH", "x")], &[]).unwrap();
}

#[test]
fn a_wrong_type_says_key_expected_and_found() {
    for (text, message) in [
        (
            "[queue]\nmax_length = \"many\"",
            "mayfly.toml:2: `queue.max_length`: expected whole number, found the text \"many\"",
        ),
        ("[queue]\nmax_length = \"5\"", "expected whole number, found the text \"5\""),
        ("[queue]\nmax_length = -5", "expected whole number, found the number -5"),
        ("[queue]\nmax_length = 1.5", "expected whole number, found a number with a fraction"),
        ("[server]\nlisten = 8470", "expected address and port such as 127.0.0.1:8470, found the number 8470"),
        ("[server]\nlisten = \"localhost\"", "found the text \"localhost\""),
        ("[server]\nbehind_proxy = \"yes\"", "expected `true` or `false`, found the text \"yes\""),
        ("[log]\nformat = \"xml\"", "expected `text` or `json`, found the text \"xml\""),
        ("[log]\nlevel = { mayfly = \"debug\" }", "`log.level`: expected text, found a table"),
        ("server = 5", "`server`: expected a table of settings, found a single value"),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(message), "{text}: {said}");
    }
    let said = refused("", &[("MAYFLY_QUEUE__MAX_LENGTH", "many")]);
    assert_eq!(
        said,
        "environment variable MAYFLY_QUEUE__MAX_LENGTH: `queue.max_length`: expected whole number, found \"many\""
    );
}

#[test]
fn destinations_are_read_and_their_rule_is_said_with_the_place() {
    let shown = |config: Config| config.network.allow.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = "[network]\nallow = [\"10.1.2.3/16\", \"gitea.corp:3000\"]";
    assert_eq!(shown(load(text, &[], &[]).unwrap()), ["10.1.0.0/16", "gitea.corp:3000"]);
    let env = [("MAYFLY_NETWORK__ALLOW", "10.1.0.0/16, [fd12::1]:443")];
    assert_eq!(shown(load(text, &env, &[]).unwrap()), ["10.1.0.0/16", "[fd12::1/128]:443"]);
    for (list, message) in [
        ("[\"10.1.0.0/16\", \"http://x\"]", "expected an address, a network or a name, each with an optional port"),
        ("[\"127.0.0.1:22\"]", "127.0.0.1:22 cannot be allowed: it is the loopback interface of this host"),
        ("[1]", "expected list of addresses, networks and names, found a list that holds more than texts"),
        ("\"10.1.0.0/16\"", "expected list of addresses, networks and names, found the text \"10.1.0.0/16\""),
    ] {
        let said = refused(&format!("[network]\nallow = {list}"), &[]);
        assert!(said.starts_with("/data/mayfly.toml:2: `network.allow`: ") && said.contains(message), "{list}: {said}");
    }
    let said = refused("", &[("MAYFLY_NETWORK__ALLOW", "gitea.corp,10.0.0.0/33")]);
    assert!(said.contains("`network.allow`: expected an address") && said.contains("10.0.0.0/33"), "{said}");
}

#[test]
fn a_proxy_is_refused_with_its_place_and_without_its_password() {
    let text = "[network]\nhttps_proxy = \"http://proxy.corp:3128\"\nno_proxy = [\".corp\", \"10.0.0.0/8\"]";
    let network = load(text, &[("MAYFLY_NETWORK__HTTP_PROXY", "http://10.1.2.3:80")], &[]).unwrap().network;
    let shown = |proxy: &Option<_>| proxy.as_ref().map(ToString::to_string);
    assert_eq!(shown(&network.https_proxy).as_deref(), Some("http://proxy.corp:3128"));
    assert_eq!(shown(&network.http_proxy).as_deref(), Some("http://10.1.2.3:80"));
    for (value, message) in [
        ("http://robot:hunter2@proxy.corp:3128", "set `network.proxy_credentials_file`"),
        ("http://127.0.0.1:3128", "let the proxy listen on another address"),
        ("robot:hunter2@proxy.corp", "expected a URL with a port such as"),
    ] {
        let said = refused(&format!("[network]\nhttps_proxy = \"{value}\""), &[]);
        assert!(said.starts_with("/data/mayfly.toml:2: `network.https_proxy`: ") && said.contains(message), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
        let said = refused("", &[("MAYFLY_NETWORK__HTTP_PROXY", value)]);
        assert!(
            said.starts_with("environment variable MAYFLY_NETWORK__HTTP_PROXY: ") && said.contains(message),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
    let said = refused("[network]\nno_proxy = [\".corp\"]", &[]);
    assert_eq!(
        said,
        "/data/mayfly.toml:2: `network.no_proxy`: needs `network.https_proxy` or `network.http_proxy` beside it"
    );
    let said = refused("[network]\nca_bundle_file = \"no/ca.pem\"", &[]);
    assert!(said.contains("`network.ca_bundle_file`: the certificates in /data/no/ca.pem: "), "{said}");
    let both = "[network]\nproxy_from_environment = true\nhttp_proxy = \"http://a.b:1\"";
    assert!(
        refused(both, &[]).contains("`network.proxy_from_environment`: the section has settings of a proxy besides it")
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let said = refused("[queue]\nmax_length = true\n[slots]\nmacos = 3\nlinx = 1\n", &[("MAYFLY_LOG__FORMAT", "xml")]);
    assert_eq!(said.lines().count(), 4, "{said}");
}

const MACOSVM_BRIDGED: &str = "[drivers.macosvm]\nenabled = true\nnetwork = \"bridged\"\nbridged_interface = \"en0\"\n";
const TART_BRIDGED: &str = "[drivers.tart]\nenabled = true\nnetwork = \"bridged\"\nbridged_interfaces = [\"en0\"]\n";

#[test]
fn what_cannot_be_meant_is_refused() {
    for (text, message) in [
        ("[slots]\nmacos = 3", "Apple's licence"),
        ("[slots]\ncpus = 0", "expected 1 to 65536, found 0"),
        ("[budgets]\nboot_seconds = 0", "expected 1 to 2592000, found 0"),
        ("[budgets]\nmax_attempts = 11", "expected 1 to 10"),
        ("[server]\nlisten = \"0.0.0.0:8470\"", "reachable from other machines"),
        ("[server]\nlisten = \"[::]:8470\"", "server.behind_proxy = true"),
        ("[server]\ntls_cert = \"cert.pem\"", "needs `server.tls_key` beside it"),
        ("[server]\ntls_key = \"key.pem\"", "needs `server.tls_cert` beside it"),
        ("[server]\ntls_key = \"key.pem\"\ntls_cert = \"cert.pem\"", "cannot read /data/key.pem"),
        ("[guest]\nadvertise_url = \"192.168.64.1:8471\"", "expected a URL"),
        ("[log]\nlevel = \"mayfly=loud\"", "expected a level or filter"),
        (
            MACOSVM_BRIDGED,
            "`drivers.macosvm.network`: bridged guests reach this host at an address of the local network",
        ),
        (TART_BRIDGED, "set it as `guest.advertise_url`"),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(message), "{text}: {said}");
    }
    load("[server]\nlisten = \"0.0.0.0:8470\"\nbehind_proxy = true", &[], &[]).unwrap();
    load("[slots]\nmacos = 0\nlinux = 0", &[], &[]).unwrap();
    for bridged in [MACOSVM_BRIDGED, TART_BRIDGED] {
        load(&format!("{bridged}gateway = \"10.1.0.5\""), &[], &[]).unwrap();
        load(bridged, &[("MAYFLY_GUEST__ADVERTISE_URL", "http://10.1.0.5:8471")], &[]).unwrap();
        load(&bridged.replace("true", "false"), &[], &[]).unwrap();
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_line_and_column() {
    let said = refused("[server]\nlisten = 127.0.0.1:8470\n", &[]);
    assert!(said.starts_with("/data/mayfly.toml:2:"), "{said}");
    assert!(refused("[server]\n[server]\n", &[]).starts_with("/data/mayfly.toml:2:"));
}

#[test]
fn the_data_directory_is_made_closed_and_refused_open() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a/b");
    let config = Config::load(Some(dir.clone()), vec![]).unwrap();
    assert_eq!(config.data_dir, dir);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    let said = Config::load(Some(dir.clone()), vec![]).unwrap_err().to_string();
    assert!(said.contains("(mode 0750)") && said.contains("chmod 700"), "{said}");

    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(Config::load(Some(file), vec![]), Err(ConfigError::NotADirectory { .. })));
}

#[test]
fn a_data_directory_of_another_user_is_refused() {
    // Only root can give a directory away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(home.path(), Some(12345), None).unwrap();
    let said = Config::load(Some(home.path().to_owned()), vec![]).unwrap_err().to_string();
    assert!(said.contains("belongs to user 12345"), "{said}");
}

#[tokio::test]
async fn serve_says_what_is_wrong_and_exits_with_2() {
    let mayfly = Mayfly::new();
    mayfly.run(&["serve", "--check"]).await.ends(0);
    mayfly.write(".mayfly/mayfly.toml", "[server]\nlisen = 1\n");
    let ran = mayfly.run(&["serve"]).await.ends(2);
    assert!(
        ran.err.contains("mayfly.toml:2: unknown key `server.lisen`; did you mean `server.listen`?"),
        "{}",
        ran.err
    );
    assert!(ran.out.is_empty());
    let ran = mayfly.run(&["serve", "--check", "--set", "server.lsten=x"]).await.ends(2);
    assert!(ran.err.contains("command line: unknown key `server.lsten`"), "{}", ran.err);
}

#[test]
fn a_queue_of_buildkite_needs_its_settings_and_has_no_others() {
    let whole =
        "kind = \"buildkite\"\norganization = \"acme\"\nqueue = \"macs\"\nstack = \"host-1\"\ntoken_file = \"t\"\n";
    let section = |text: &str| format!("[sources.kite]\n{text}");
    let config = load(&section(whole), &[], &[]).unwrap();
    let destinations: Vec<String> = config.sources["kite"].destinations().iter().map(ToString::to_string).collect();
    assert_eq!(destinations, ["agent.buildkite.com:443"]);
    let said = refused(&section("kind = \"buildkite\""), &[]);
    for key in ["organization", "queue", "stack", "token_file"] {
        assert!(said.contains(&format!("needs `{key}`")), "{key}: {said}");
    }
    for (more, message) in [
        ("app_id = 7", "`sources.\"kite\".app_id`: has a meaning only with `kind = \"github\"`"),
        ("webhook_secret_files = [\"w\"]", "its webhooks are not used"),
        ("poll_seconds = 0", "jobs of Buildkite come by the poll alone"),
        ("url = \"http://agent.example.com/v3\"", "over plain http tokens would travel in clear"),
    ] {
        let said = refused(&section(&format!("{whole}{more}")), &[]);
        assert!(said.contains(message), "{more}: {said}");
    }
    let said = refused(&section(&whole.replace("host-1", "host.1")), &[]);
    assert!(said.contains("`sources.\"kite\".stack`: expected 1 to 80 letters"), "{said}");
    let said =
        refused("[sources.forge]\nkind = \"gitea\"\nurl = \"https://x\"\ntoken_file = \"t\"\nqueue = \"q\"", &[]);
    assert!(said.contains("has a meaning only with `kind = \"buildkite\"`"), "{said}");
}
