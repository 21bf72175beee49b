//! File and environment into typed settings, checked once.
//!
//! Every key is declared once, in `keys.rs`: its type, its default and what it means. The structs, the reader, the check for
//! unknown keys and `docs/configuration.md` all come from that one list. A setting is taken from the command line, else from
//! the environment, else from `<data-dir>/mayfly.toml`, else it has its default. What is not understood is refused, with the
//! place where it stands: a setting that is silently ignored is found out on the worst day.
//!
//! No setting is a secret: tokens and keys live in files of their own under the data directory.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use source::GivenSettings;

use crate::{
    domain::{self, capacity::MACOS_GUESTS_PER_HOST},
    platform::files,
    registry::{
        credentials::{password_in, registry_name},
        pace::LEAST as LEAST_RATE,
    },
    sources::github::runner_archives::PLATFORMS,
};

pub mod docs;
mod github;
pub mod host;
pub mod keys;
mod pools;
mod source;

pub use host::HostResources;
pub use keys::{
    Accelerator, AppId, Budgets, Drivers, FakeDriver, GitHub, Guest, GuestArch, Key, Log, LogFormat, Pulls, QemuDriver,
    Queue, Registry, RegistryHost, Retention, RunnerArchive, Section, Server, Slots, TartDriver, TartNetwork,
    TartResolver, Templates,
};

/// Name of the optional file in the data directory.
pub const FILE: &str = "mayfly.toml";
/// Name of the file in the data directory that holds the first admin token.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Port of the guest API where nobody chose one.
pub const GUEST_PORT: u16 = 8471;
/// Longest time that a setting may ask for: more is a mistake of units.
const MAX_SECONDS: u64 = 30 * 24 * 3600;

/// The whole configuration: defaults filled in, values checked, paths absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where everything that Mayfly keeps is kept; exists, mode 0700, ours.
    pub data_dir: PathBuf,
    pub server: Server,
    pub guest: Guest,
    pub slots: Slots,
    pub queue: Queue,
    pub budgets: Budgets,
    pub retention: Retention,
    pub templates: Templates,
    pub registry: Registry,
    pub pulls: Pulls,
    pub github: GitHub,
    /// By the one spelling of their names.
    pub registries: BTreeMap<String, RegistryHost>,
    /// By platform, as written.
    pub runners: BTreeMap<String, RunnerArchive>,
    /// Each name once.
    pub pools: Vec<domain::Pool>,
    pub drivers: Drivers,
    pub log: Log,
}

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// Where it stands: a file and line, a variable, an option.
    pub place: String,
    pub message: String,
}

/// Why there is no configuration to start with. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no data directory: HOME is not set; give one with --data-dir or MAYFLY_DATA_DIR")]
    NoHome,
    #[error("cannot create the data directory {path}: {cause}; make it, or name another with --data-dir")]
    CannotCreate { path: String, cause: std::io::Error },
    #[error("cannot use the data directory {path}: {cause}; name another with --data-dir")]
    CannotUse { path: String, cause: std::io::Error },
    #[error("the data directory {path} is not a directory; move it away, or name another with --data-dir")]
    NotADirectory { path: String },
    #[error(
        "the data directory {path} belongs to user {owner} and Mayfly runs as user {me}; start it as its owner, or name \
         another with --data-dir"
    )]
    NotOurs { path: String, owner: u32, me: u32 },
    #[error("the data directory {path} is open to other users (mode {mode:04o}); close it with: chmod 700 {path}")]
    Open { path: String, mode: u32 },
    #[error(
        "the data directory {path} cannot be written to: {cause}; give its owner write access, or name another with --data-dir"
    )]
    NotWritable { path: String, cause: std::io::Error },
    #[error("cannot read {path}: {cause}; mend it, or move it away to start with defaults")]
    Unreadable { path: String, cause: std::io::Error },
    #[error("{path}:{line}:{column}: not TOML: {message}")]
    Syntax { path: String, line: usize, column: usize, message: String },
    #[error("{}", Lines(.0))]
    Settings(Vec<SettingProblem>),
}

struct Lines<'a>(&'a [SettingProblem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", problem.place, problem.message)?;
        }
        Ok(())
    }
}

/// Settings from the command line, as (key, value).
pub type Overrides = Vec<(String, String)>;

impl Config {
    /// Reads, merges and checks everything, and makes the data directory if there is none.
    pub fn load(data_dir: Option<PathBuf>, overrides: Overrides) -> Result<Config, ConfigError> {
        let data_dir = data_dir_or_default(data_dir)?;
        prepare_data_dir(&data_dir)?;
        let path = data_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(cause) => return Err(ConfigError::Unreadable { path: path.display().to_string(), cause }),
        };
        let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::from_sources(data_dir, &text, env, overrides)
    }

    /// The same from given sources: reads no file of its own and no environment.
    pub fn from_sources(
        data_dir: PathBuf,
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: Overrides,
    ) -> Result<Config, ConfigError> {
        let mut found = GivenSettings::default();
        found.add_file(&data_dir.join(FILE), text)?;
        found.add_env(env);
        found.add_overrides(overrides);
        let mut config = Config {
            server: Server::read(Server::SECTION.path, &mut found),
            guest: Guest::read(Guest::SECTION.path, &mut found),
            slots: Slots::read(Slots::SECTION.path, &mut found),
            queue: Queue::read(Queue::SECTION.path, &mut found),
            budgets: Budgets::read(Budgets::SECTION.path, &mut found),
            retention: Retention::read(Retention::SECTION.path, &mut found),
            templates: Templates::read(Templates::SECTION.path, &mut found),
            registry: Registry::read(Registry::SECTION.path, &mut found),
            registries: registries(&mut found),
            runners: runners(&mut found),
            pulls: Pulls::read(Pulls::SECTION.path, &mut found),
            github: GitHub::read(GitHub::SECTION.path, &mut found),
            pools: pools::read(&mut found),
            drivers: Drivers {
                qemu: QemuDriver::read(QemuDriver::SECTION.path, &mut found),
                tart: TartDriver::read(TartDriver::SECTION.path, &mut found),
                fake: FakeDriver::read(FakeDriver::SECTION.path, &mut found),
            },
            log: Log::read(Log::SECTION.path, &mut found),
            data_dir,
        };
        config.resolve_paths(&mut found);
        config.check(&mut found);
        match found.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ConfigError::Settings(problems)),
        }
    }

    /// Every default, for this data directory. Touches nothing.
    pub fn defaults(data_dir: PathBuf) -> Config {
        Config {
            data_dir,
            server: Server::default(),
            guest: Guest::default(),
            slots: Slots::default(),
            queue: Queue::default(),
            budgets: Budgets::default(),
            retention: Retention::default(),
            templates: Templates::default(),
            registry: Registry::default(),
            pulls: Pulls::default(),
            github: GitHub::default(),
            pools: Vec::new(),
            registries: BTreeMap::new(),
            runners: BTreeMap::new(),
            drivers: Drivers::default(),
            log: Log::default(),
        }
    }

    /// What a template gets when it does not say otherwise.
    pub fn default_budgets(&self) -> domain::Budgets {
        let b = &self.budgets;
        domain::Budgets {
            queue_seconds: self.queue.timeout_seconds,
            clone_seconds: b.clone_seconds,
            boot_seconds: b.boot_seconds,
            configure_seconds: b.configure_seconds,
            registration_seconds: b.registration_seconds,
            idle_seconds: b.idle_seconds,
            lifetime_seconds: b.lifetime_seconds,
            drain_seconds: b.drain_seconds,
            drain_cap_seconds: b.drain_cap_seconds,
            settle_seconds: b.settle_seconds,
            stop_grace_seconds: b.stop_grace_seconds,
            max_attempts: b.max_attempts,
        }
    }

    /// The limits of this host.
    pub fn capacity(&self) -> domain::capacity::Capacity {
        domain::capacity::Capacity {
            macos_slots: self.slots.macos,
            linux_slots: self.slots.linux,
            cpus: self.slots.cpus,
            memory_mib: self.slots.memory_mib,
        }
    }

    /// Where the guest API listens for guests that have no forward of their own.
    pub fn guest_listen(&self) -> Option<SocketAddr> {
        let tart = self.drivers.tart.enabled.then_some(SocketAddr::from(([0, 0, 0, 0], GUEST_PORT)));
        self.guest.listen.or(tart)
    }

    /// Where Tart keeps its VMs.
    pub fn tart_home(&self) -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = || set("TART_HOME").or_else(|| set("HOME").map(|home| home.join(".tart")));
        self.drivers.tart.home.clone().or_else(usual).unwrap_or_else(|| self.data_dir.join("tart"))
    }

    pub fn admin_token_file(&self) -> PathBuf {
        self.data_dir.join(ADMIN_TOKEN_FILE)
    }

    /// How the tables of single registries are written, in their order.
    fn registry_paths(&self, found: &GivenSettings) -> Vec<String> {
        let written: BTreeMap<String, String> = found
            .names("registries")
            .into_iter()
            .rev()
            .filter_map(|(name, path)| Some((registry_name(&name)?, path)))
            .collect();
        self.registries.keys().filter_map(|name| written.get(name).cloned()).collect()
    }

    fn resolve_paths(&mut self, found: &mut GivenSettings) {
        let dir = self.data_dir.clone();
        let registry_paths = self.registry_paths(found);
        let mut resolve = |key: &str, path: &mut Option<PathBuf>, program: bool| {
            let Some(given) = path else { return };
            if given.starts_with("~") {
                found.refuse(key, "`~` is not expanded here; write the whole path");
            } else if !(program && given.components().count() == 1) {
                // A bare program name is looked up in PATH by whoever starts it.
                *given = dir.join(&*given);
            }
        };
        resolve("server.tls_cert", &mut self.server.tls_cert, false);
        resolve("server.tls_key", &mut self.server.tls_key, false);
        resolve("registry.ca_file", &mut self.registry.ca_file, false);
        resolve("github.private_key_file", &mut self.github.private_key_file, false);
        resolve("github.token_file", &mut self.github.token_file, false);
        resolve("github.ca_file", &mut self.github.ca_file, false);
        for file in &mut self.github.webhook_secret_files {
            let mut path = Some(std::mem::take(file));
            resolve("github.webhook_secret_files", &mut path, false);
            *file = path.unwrap_or_default();
        }
        for (path, host) in registry_paths.iter().zip(self.registries.values_mut()) {
            resolve(&format!("{path}.ca_file"), &mut host.ca_file, false);
            resolve(&format!("{path}.password_file"), &mut host.password_file, false);
        }
        resolve("drivers.qemu.binary", &mut self.drivers.qemu.binary, true);
        resolve("drivers.qemu.qemu_img", &mut self.drivers.qemu.qemu_img, true);
        resolve("drivers.tart.binary", &mut self.drivers.tart.binary, true);
        resolve("drivers.tart.home", &mut self.drivers.tart.home, false);
    }

    fn check(&self, found: &mut GivenSettings) {
        let s = &self.server;
        match (&s.tls_cert, &s.tls_key) {
            (Some(cert), Some(key)) => {
                for (name, path) in [("server.tls_cert", cert), ("server.tls_key", key)] {
                    if let Err(cause) = std::fs::File::open(path) {
                        found.refuse(name, format!("cannot read {}: {cause}", path.display()));
                    }
                }
            }
            (None, None) => {}
            (Some(_), None) => found.refuse("server.tls_cert", "needs `server.tls_key` beside it: give both or none"),
            (None, Some(_)) => found.refuse("server.tls_key", "needs `server.tls_cert` beside it: give both or none"),
        }
        if !s.listen.ip().is_loopback() && s.tls_cert.is_none() && !s.behind_proxy {
            found.refuse(
                "server.listen",
                format!(
                    "{} is reachable from other machines, and tokens would travel in clear; set `server.tls_cert` and \
                     `server.tls_key`, or `server.behind_proxy = true` if a proxy in front of it does TLS",
                    s.listen
                ),
            );
        }
        found.in_range("server.max_body_bytes", s.max_body_bytes, 1024, 64 * 1024 * 1024);
        found.in_range("server.request_timeout_seconds", s.request_timeout_seconds, 1, 3600);
        found.in_range("server.max_concurrent_requests", s.max_concurrent_requests, 1, 65_536);
        if let Some(url) = &self.guest.advertise_url {
            let plain = reqwest::Url::parse(url)
                .is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host() && u.username().is_empty());
            if !plain {
                found.refuse(
                    "guest.advertise_url",
                    format!("expected a URL such as http://192.168.64.1:8471, found {url:?}"),
                );
            }
        }
        if self.slots.macos > MACOS_GUESTS_PER_HOST {
            found.refuse(
                "slots.macos",
                format!(
                    "{} is more than {MACOS_GUESTS_PER_HOST}: Apple's licence (macOS Software License Agreement, section \
                     2B(iii)) allows {MACOS_GUESTS_PER_HOST} macOS guests per host, and its kernel enforces that",
                    self.slots.macos
                ),
            );
        }
        for (key, value) in [
            ("registry.bytes_per_second", self.registry.bytes_per_second),
            ("registry.background_bytes_per_second", self.registry.background_bytes_per_second),
        ] {
            if (1..LEAST_RATE).contains(&value) {
                found.refuse(key, format!("expected 0 (no limit) or {LEAST_RATE} and more, found {value}"));
            }
        }
        self.github.check(found);
        self.check_runners(found);
        self.check_pools(found);
        for (path, host) in self.registry_paths(found).iter().zip(self.registries.values()) {
            let key = |field: &str| format!("{path}.{field}");
            if let Some(path) = &host.ca_file
                && let Err(cause) = std::fs::File::open(path)
            {
                found.refuse(&key("ca_file"), format!("cannot read {}: {cause}", path.display()));
            }
            match (&host.username, &host.password_file) {
                (Some(username), Some(path)) => {
                    if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
                        found.refuse(
                            &key("username"),
                            "a user's name is not empty and has no colon or control character in it",
                        );
                    }
                    if let Err(what) = password_in(path) {
                        found.refuse(&key("password_file"), what);
                    }
                }
                (None, None) => {}
                (Some(_), None) => found.refuse(&key("username"), "needs `password_file` beside it: give both or none"),
                (None, Some(_)) => found.refuse(&key("password_file"), "needs `username` beside it: give both or none"),
            }
        }
        let t = &self.drivers.tart;
        if t.network == TartNetwork::Bridged && t.bridged_interfaces.is_empty() {
            found.refuse(
                "drivers.tart.bridged_interfaces",
                "`network = \"bridged\"` needs an interface such as [\"en0\"]",
            );
        }
        if t.network != TartNetwork::Softnet && !(t.softnet_allow.is_empty() && t.softnet_block.is_empty()) {
            found.refuse("drivers.tart.softnet_allow", "has a meaning only with `network = \"softnet\"`");
        }
        found.in_range("drivers.tart.ssh_port", t.ssh_port, 1, 65_535);
        found.in_range("drivers.qemu.first_guest_seconds", self.drivers.qemu.first_guest_seconds, 5, 600);
        found.in_range("drivers.qemu.disk_full_seconds", self.drivers.qemu.disk_full_seconds, 1, 3600);
        found.in_range("slots.linux", self.slots.linux, 0, 4096);
        found.in_range("slots.cpus", self.slots.cpus, 1, 65_536);
        found.in_range("slots.memory_mib", self.slots.memory_mib, 32, u64::from(u32::MAX));
        found.in_range("queue.max_length", self.queue.max_length, 0, 1_000_000);
        found.in_range("queue.timeout_seconds", self.queue.timeout_seconds, 0, MAX_SECONDS);
        let b = &self.budgets;
        for (key, value) in [
            ("budgets.clone_seconds", b.clone_seconds),
            ("budgets.boot_seconds", b.boot_seconds),
            ("budgets.configure_seconds", b.configure_seconds),
            ("budgets.registration_seconds", b.registration_seconds),
            ("budgets.idle_seconds", b.idle_seconds),
            ("budgets.lifetime_seconds", b.lifetime_seconds),
            ("budgets.drain_seconds", b.drain_seconds),
            ("budgets.drain_cap_seconds", b.drain_cap_seconds),
            ("budgets.settle_seconds", b.settle_seconds),
        ] {
            found.in_range(key, value, 1, MAX_SECONDS);
        }
        found.in_range("budgets.stop_grace_seconds", b.stop_grace_seconds, 0, 600);
        found.in_range("budgets.max_attempts", b.max_attempts, 1, 10);
        found.in_range("pulls.deadline_seconds", self.pulls.deadline_seconds, 0, MAX_SECONDS);
        found.in_range("retention.deleted_vms_days", self.retention.deleted_vms_days, 0, 3650);
        found.in_range("templates.keep_unused_days", self.templates.keep_unused_days, 0, 3650);
        if let Err(cause) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            found.refuse(
                "log.level",
                format!("expected a level or filter such as `info` or `mayfly=debug,info`: {cause}"),
            );
        }
    }
}

fn runners(found: &mut GivenSettings) -> BTreeMap<String, RunnerArchive> {
    let mut runners = BTreeMap::new();
    for (name, path) in found.names("runners") {
        let settings = RunnerArchive::read(&path, found);
        if !PLATFORMS.contains(&name.as_str()) {
            found.refuse_table(&path, format!("expected one of {}", PLATFORMS.join(", ")));
        }
        runners.insert(name, settings);
    }
    runners
}

/// The tables of single registries. Two spellings of one registry would hide each other.
fn registries(found: &mut GivenSettings) -> BTreeMap<String, RegistryHost> {
    let mut registries = BTreeMap::new();
    for (name, path) in found.names("registries") {
        let settings = RegistryHost::read(&path, found);
        match registry_name(&name) {
            None => found.refuse_table(&path, "expected a registry's host[:port] as in image references"),
            Some(normal) if registries.contains_key(&normal) => {
                found.refuse_table(&path, format!("is another spelling of {normal}, which has a table already"));
            }
            Some(normal) => {
                registries.insert(normal, settings);
            }
        }
    }
    registries
}

/// The data directory as given, else `~/.mayfly`.
pub fn data_dir_or_default(given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let dir = match given.filter(|d| !d.as_os_str().is_empty()) {
        Some(dir) => dir,
        None => {
            let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).ok_or(ConfigError::NoHome)?;
            PathBuf::from(home).join(".mayfly")
        }
    };
    std::path::absolute(&dir).map_err(|cause| ConfigError::CannotUse { path: dir.display().to_string(), cause })
}

/// Makes the directory if there is none, and refuses one that others could read or plant files in: it holds the vault's key,
/// the admin token and every guest's disk.
fn prepare_data_dir(dir: &Path) -> Result<(), ConfigError> {
    let path = dir.display().to_string();
    let meta = match std::fs::metadata(dir) {
        Ok(meta) => meta,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            files::ensure_private_dir(dir).map_err(|cause| ConfigError::CannotCreate { path: path.clone(), cause })?;
            std::fs::metadata(dir).map_err(|cause| ConfigError::CannotUse { path: path.clone(), cause })?
        }
        Err(cause) => return Err(ConfigError::CannotUse { path, cause }),
    };
    if !meta.is_dir() {
        return Err(ConfigError::NotADirectory { path });
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(ConfigError::NotOurs { path, owner: meta.uid(), me });
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::Open { path, mode });
    }
    use rustix::fs::Access;
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|cause| ConfigError::NotWritable { path, cause: cause.into() })
}
