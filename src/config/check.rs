//! Checks that involve several keys, table names or files.

use std::{collections::BTreeMap, fs::File, net::IpAddr, path::Path};

use super::{
    given::GivenSettings,
    pools,
    sections::{Config, GUEST_PORT},
    sources::{self, is_version},
};
use crate::{
    adapters::nesting::NestingSection,
    domain::{SourceName, capacity::MACOS_GUESTS_PER_HOST},
    drivers::{
        macosvm::{MacosvmNetworkKind, MacosvmSection},
        tart::{NetworkKind, TartSection},
    },
    http::ServerSection,
    reconcile::NetworkSection,
    registry::{
        RegistryHostSection, RegistrySection,
        credentials::{password_in, registry_name},
        pace::LEAST as LEAST_RATE,
    },
    sources::github::{
        RunnerArchiveSection,
        runner_archives::{PLATFORMS, at_least},
    },
};

/// The configuration with its pools and the normal names of registries. What is wrong with it is noted.
pub(super) fn complete(mut config: Config, given: &mut GivenSettings) -> Config {
    config.registries = registries(config.registries, given);
    config.pools = pools::complete(std::mem::take(&mut config.pool_tables), given);
    server(&config.server, given);
    if let Some(url) = &config.guest.advertise_url {
        let plain = reqwest::Url::parse(url)
            .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host() && u.username().is_empty());
        if !plain {
            given.refuse(
                "guest.advertise_url",
                format!("expected a URL such as http://192.168.64.1:8471, found {url:?}"),
            );
        }
    }
    if config.slots.macos > MACOS_GUESTS_PER_HOST {
        given.refuse(
            "slots.macos",
            format!(
                "{} is more than {MACOS_GUESTS_PER_HOST}: Apple's licence (macOS Software License Agreement, section \
                 2B(iii)) allows {MACOS_GUESTS_PER_HOST} macOS guests per host, and its kernel enforces that",
                config.slots.macos
            ),
        );
    }
    registry(&config.registry, given);
    network(&config.network, given);
    sources::check_github("github", &config.github, given);
    for (name, source) in &config.sources {
        sources::check(name, source, given);
    }
    for (platform, archive) in &config.runners {
        runner(platform, archive, &config.github.runner_minimum_version, given);
    }
    let kind_of = |name: &SourceName| sources::kind_of(&config.sources, name);
    pools::check(&config.pools, kind_of, &config.default_budgets(), &config.slots.capacity(), given);
    nesting(&config.nesting, given);
    tart(&config.drivers.tart, given);
    macosvm(&config.drivers.macosvm, given);
    if let Err(cause) = tracing_subscriber::EnvFilter::try_new(&config.log.level) {
        given.refuse("log.level", format!("expected a level or filter such as `info` or `mayfly=debug,info`: {cause}"));
    }
    config
}

fn server(s: &ServerSection, given: &mut GivenSettings) {
    match (&s.tls_cert, &s.tls_key) {
        (Some(cert), Some(key)) => {
            readable("server.tls_cert", cert, given);
            readable("server.tls_key", key, given);
        }
        (None, None) => {}
        (Some(_), None) => given.refuse("server.tls_cert", "needs `server.tls_key` beside it: give both or none"),
        (None, Some(_)) => given.refuse("server.tls_key", "needs `server.tls_cert` beside it: give both or none"),
    }
    if !s.listen.ip().is_loopback() && s.tls_cert.is_none() && !s.behind_proxy {
        given.refuse(
            "server.listen",
            format!(
                "{} is reachable from other machines, and tokens would travel in clear; set `server.tls_cert` and \
                 `server.tls_key`, or `server.behind_proxy = true` if a proxy in front of it does TLS",
                s.listen
            ),
        );
    }
}

fn nesting(section: &NestingSection, given: &mut GivenSettings) {
    if section.socket.is_some() && section.templates.is_empty() {
        given.refuse(
            "nesting.socket",
            "needs `nesting.templates` beside it: the templates that jobs may name as their image",
        );
    }
}

fn readable(key: &str, path: &Path, given: &mut GivenSettings) {
    if let Err(cause) = File::open(path) {
        given.refuse(key, format!("cannot read {}: {cause}", path.display()));
    }
}

fn registry(section: &RegistrySection, given: &mut GivenSettings) {
    for (key, value) in [
        ("registry.bytes_per_second", section.bytes_per_second),
        ("registry.background_bytes_per_second", section.background_bytes_per_second),
    ] {
        if (1..LEAST_RATE).contains(&value) {
            given.refuse(key, format!("expected 0 (no limit) or {LEAST_RATE} and more, found {value}"));
        }
    }
}

/// The sections of single registries, by the normal spelling of their names. Two spellings of one name would hide each other.
fn registries(
    written: BTreeMap<String, RegistryHostSection>,
    given: &mut GivenSettings,
) -> BTreeMap<String, RegistryHostSection> {
    let mut registries = BTreeMap::new();
    for (name, host) in written {
        let path = format!("registries.\"{name}\"");
        registry_host(&path, &host, given);
        match registry_name(&name) {
            None => given.refuse(&path, "expected a registry's host[:port] as in image references"),
            Some(normal) if registries.contains_key(&normal) => {
                given.refuse(&path, format!("is another spelling of {normal}, which has a table already"));
            }
            Some(normal) => {
                registries.insert(normal, host);
            }
        }
    }
    registries
}

fn registry_host(path: &str, host: &RegistryHostSection, given: &mut GivenSettings) {
    let key = |field: &str| format!("{path}.{field}");
    if let Some(path) = &host.ca_file {
        readable(&key("ca_file"), path, given);
    }
    match (&host.username, &host.password_file) {
        (Some(username), Some(path)) => {
            if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
                given
                    .refuse(&key("username"), "a user's name is not empty and has no colon or control character in it");
            }
            if let Err(what) = password_in(path) {
                given.refuse(&key("password_file"), what);
            }
        }
        (None, None) => {}
        (Some(_), None) => given.refuse(&key("username"), "needs `password_file` beside it: give both or none"),
        (None, Some(_)) => given.refuse(&key("password_file"), "needs `username` beside it: give both or none"),
    }
}

fn network(section: &NetworkSection, given: &mut GivenSettings) {
    // The environment is that of the service; other commands load the configuration too.
    for fault in [section.proxies(|_| None).err(), section.certificates().err()].into_iter().flatten() {
        given.refuse(fault.key, fault.message);
    }
}

fn runner(platform: &str, archive: &RunnerArchiveSection, minimum: &str, given: &mut GivenSettings) {
    let path = format!("runners.\"{platform}\"");
    let key = |field: &str| format!("{path}.{field}");
    if !PLATFORMS.contains(&platform) {
        given.refuse(&path, format!("expected one of {}", PLATFORMS.join(", ")));
    }
    let (Some(url), Some(sha256), Some(version)) = (&archive.url, &archive.sha256, &archive.version) else {
        return given.refuse(&path, "needs `url`, `sha256` and `version`");
    };
    if !url.parse::<reqwest::Url>().is_ok_and(|url| matches!(url.scheme(), "https" | "http")) {
        given.refuse(&key("url"), "expected an address that begins with https://");
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        given.refuse(&key("sha256"), "expected 64 hexadecimal digits");
    }
    if !is_version(version) {
        given.refuse(&key("version"), "expected a version such as 2.336.0");
    } else if !at_least(version, minimum) {
        given.refuse(&key("version"), format!("is older than `github.runner_minimum_version` ({minimum})"));
    }
}

fn nat_scan(key: &str, enabled: bool, bridged: bool, gateway: IpAddr, given: &mut GivenSettings) {
    if enabled && bridged {
        given.refuse(key, "has no meaning with `network = \"bridged\"`");
    }
    if enabled && !gateway.is_ipv4() {
        given.refuse(key, "needs an IPv4 address as `gateway`");
    }
}

/// The default gateway is the host's address in macOS's own network only.
fn bridged_guests(section: &str, given: &mut GivenSettings) {
    if !given.given("guest.advertise_url") && !given.given(&format!("{section}.gateway")) {
        given.refuse(
            &format!("{section}.network"),
            format!(
                "bridged guests reach this host at an address of the local network, such as 192.0.2.10: set it as \
                 `{section}.gateway`; or, if all drivers' guests reach it there, set it as `guest.advertise_url` \
                 (\"http://192.0.2.10:{GUEST_PORT}\")"
            ),
        );
    }
}

fn macosvm(m: &MacosvmSection, given: &mut GivenSettings) {
    let bridged = m.network == MacosvmNetworkKind::Bridged;
    if m.enabled && bridged {
        bridged_guests("drivers.macosvm", given);
    }
    if bridged && m.bridged_interface.is_none() {
        given.refuse("drivers.macosvm.bridged_interface", "`network = \"bridged\"` needs an interface such as \"en0\"");
    }
    if !bridged && m.bridged_interface.is_some() {
        given.refuse("drivers.macosvm.bridged_interface", "has a meaning only with `network = \"bridged\"`");
    }
    nat_scan("drivers.macosvm.nat_scan", m.nat_scan, bridged, m.gateway, given);
}

fn tart(t: &TartSection, given: &mut GivenSettings) {
    if t.enabled && t.network == NetworkKind::Bridged {
        bridged_guests("drivers.tart", given);
    }
    if t.network == NetworkKind::Bridged && t.bridged_interfaces.is_empty() {
        given.refuse("drivers.tart.bridged_interfaces", "`network = \"bridged\"` needs an interface such as [\"en0\"]");
    }
    nat_scan("drivers.tart.nat_scan", t.nat_scan, t.network == NetworkKind::Bridged, t.gateway, given);
    if t.network != NetworkKind::Softnet && !(t.softnet_allow.is_empty() && t.softnet_block.is_empty()) {
        given.refuse("drivers.tart.softnet_allow", "has a meaning only with `network = \"softnet\"`");
    }
}
