//! Which sections there are, and where. Each belongs to the part that uses it; see `platform::settings`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::domain_sections::{BUDGETS, POOL_BUDGETS, PoolSection, PoolTable};
use crate::{
    adapters::nesting::NestingSection,
    admission::{PullsSection, QueueSection},
    domain,
    drivers::{
        FakeSection, SlotsSection, cloud_hypervisor::CloudHypervisorSection, macosvm::MacosvmSection,
        qemu::QemuSection, tart::TartSection,
    },
    http::{GuestSection, ServerSection},
    platform::{
        database::DatabaseSection,
        settings::{Key, Schema},
    },
    reconcile::{NetworkSection, RetentionSection},
    registry::{RegistryHostSection, RegistrySection},
    sources::{
        SourceSection,
        github::{
            GitHubSection, RunnerArchiveSection,
            runner_archives::{PLATFORMS, RunnerArchive},
        },
    },
    telemetry::LogSection,
    templates::TemplatesSection,
};

/// Port of the guest API if the configuration does not name one.
pub const GUEST_PORT: u16 = 8471;
pub const ENV_PREFIX: &str = "MAYFLY_";

/// The whole configuration: defaults filled in, values checked, paths absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Mayfly keeps its files; exists, mode 0700, owned by this user.
    #[serde(skip)]
    pub data_dir: PathBuf,
    pub server: ServerSection,
    pub guest: GuestSection,
    pub slots: SlotsSection,
    pub queue: QueueSection,
    pub budgets: domain::Budgets,
    pub network: NetworkSection,
    pub retention: RetentionSection,
    pub database: DatabaseSection,
    pub templates: TemplatesSection,
    pub registry: RegistrySection,
    /// By the normal spelling of their names.
    pub registries: BTreeMap<String, RegistryHostSection>,
    pub pulls: PullsSection,
    pub github: GitHubSection,
    /// By name.
    pub sources: BTreeMap<String, SourceSection>,
    /// By platform.
    pub runners: BTreeMap<String, RunnerArchiveSection>,
    /// Each name once.
    #[serde(skip)]
    pub pools: Vec<domain::Pool>,
    #[serde(rename = "pools")]
    pub(super) pool_tables: BTreeMap<String, PoolTable>,
    pub nesting: NestingSection,
    pub drivers: Drivers,
    pub log: LogSection,
}

/// The hypervisors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drivers {
    pub qemu: QemuSection,
    pub cloud_hypervisor: CloudHypervisorSection,
    pub tart: TartSection,
    pub macosvm: MacosvmSection,
    pub fake: FakeSection,
}

impl Config {
    /// Every default, for this data directory. Touches nothing.
    pub fn defaults(data_dir: PathBuf) -> Config {
        Config { data_dir, ..Config::default() }
    }

    /// The budgets of a template that does not set its own.
    pub fn default_budgets(&self) -> domain::Budgets {
        domain::Budgets { queue_seconds: self.queue.timeout_seconds, ..self.budgets.clone() }
    }

    /// Where the guest API listens for guests without a forwarded address.
    pub fn guest_listen(&self) -> Option<SocketAddr> {
        let direct = self.drivers.tart.enabled || self.drivers.macosvm.enabled;
        self.guest.listen.or(direct.then_some(SocketAddr::from(([0, 0, 0, 0], GUEST_PORT))))
    }

    /// Where Tart keeps its VMs.
    pub fn tart_home(&self) -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = || set("TART_HOME").or_else(|| set("HOME").map(|home| home.join(".tart")));
        self.drivers.tart.home.clone().or_else(usual).unwrap_or_else(|| self.data_dir.join("tart"))
    }

    /// The runner programs that guests may download, by platform.
    pub fn runner_archives(&self) -> BTreeMap<String, RunnerArchive> {
        self.runners.iter().filter_map(|(platform, section)| Some((platform.clone(), section.archive()?))).collect()
    }
}

/// A section and where it is. A part of the path in `<…>` stands for any name: there are as many such tables as the user
/// writes.
#[derive(Debug)]
pub struct Section {
    pub path: &'static str,
    pub schema: Schema,
    /// A name for such a part.
    example: &'static str,
}

const fn section(path: &'static str, schema: Schema) -> Section {
    Section { path, schema, example: "" }
}

/// Every section, in the order of the documentation.
pub const SECTIONS: &[Section] = &[
    section("server", ServerSection::SCHEMA),
    section("guest", GuestSection::SCHEMA),
    section("slots", SlotsSection::SCHEMA),
    section("queue", QueueSection::SCHEMA),
    section("budgets", BUDGETS),
    section("network", NetworkSection::SCHEMA),
    section("retention", RetentionSection::SCHEMA),
    section("database", DatabaseSection::SCHEMA),
    section("templates", TemplatesSection::SCHEMA),
    section("registry", RegistrySection::SCHEMA),
    Section { path: "registries.\"<host>\"", schema: RegistryHostSection::SCHEMA, example: "registry.example.com" },
    section("pulls", PullsSection::SCHEMA),
    section("github", GitHubSection::SCHEMA),
    Section { path: "sources.\"<name>\"", schema: SourceSection::SCHEMA, example: "forge" },
    Section { path: "pools.\"<name>\"", schema: PoolSection::SCHEMA, example: "macos" },
    Section { path: "pools.\"<name>\".budgets", schema: POOL_BUDGETS, example: "macos" },
    Section { path: "runners.\"<platform>\"", schema: RunnerArchiveSection::SCHEMA, example: PLATFORMS[3] },
    section("nesting", NestingSection::SCHEMA),
    section("drivers.qemu", QemuSection::SCHEMA),
    section("drivers.cloud_hypervisor", CloudHypervisorSection::SCHEMA),
    section("drivers.tart", TartSection::SCHEMA),
    section("drivers.macosvm", MacosvmSection::SCHEMA),
    section("drivers.fake", FakeSection::SCHEMA),
    section("log", LogSection::SCHEMA),
];

impl Section {
    /// The parts of its path.
    pub fn parts(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('.').map(|part| part.trim_matches('"'))
    }

    /// What the name in its path is, in words; `None`: there is one table at a fixed path.
    pub fn named_by(&self) -> Option<&'static str> {
        self.parts().nth(1)?.strip_prefix('<')?.strip_suffix('>')
    }

    /// One of its tables, as in `registries."registry.example.com"`.
    pub fn example(&self) -> String {
        self.path.replace(&format!("<{}>", self.named_by().unwrap_or_default()), self.example)
    }

    /// Whether its path begins with this one.
    fn begins_with(&self, path: &[String]) -> bool {
        let mut parts = self.parts();
        path.iter().all(|given| parts.next().is_some_and(|part| part.starts_with('<') || part == given))
    }
}

/// What may be at a path.
pub enum Node {
    Key(&'static Key),
    Table,
}

pub fn find(path: &[String]) -> Option<Node> {
    let (name, table) = path.split_last()?;
    let here = |section: &&Section| section.parts().count() == table.len() && section.begins_with(table);
    let key = SECTIONS.iter().filter(here).flat_map(|section| section.schema.keys).find(|key| key.name == name);
    match key {
        Some(key) => Some(Node::Key(key)),
        None => SECTIONS.iter().any(|section| section.begins_with(path)).then_some(Node::Table),
    }
}

/// The first section of the tables with names below this root.
pub fn named(root: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.named_by().is_some() && section.parts().next() == Some(root))
}

/// A path as it is written: names, which may hold dots, in quotes.
pub fn written(path: &[String]) -> String {
    match path {
        [root, name, rest @ ..] if named(root).is_some() => {
            [format!("{root}.\"{name}\"")].iter().chain(rest).cloned().collect::<Vec<_>>().join(".")
        }
        _ => path.join("."),
    }
}

/// A key of a section at a fixed path.
#[derive(Debug)]
pub struct FixedKey {
    /// As in `server.listen`.
    pub path: String,
    pub key: &'static Key,
}

impl FixedKey {
    /// The environment variable that sets it.
    pub fn env(&self) -> String {
        env_name(&self.path)
    }
}

pub fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', "__").to_uppercase())
}

/// Every key of the sections at fixed paths: those that the environment can set.
pub fn keys() -> impl Iterator<Item = FixedKey> {
    let fixed = SECTIONS.iter().filter(|section| section.named_by().is_none());
    fixed.flat_map(|section| {
        section.schema.keys.iter().map(|key| FixedKey { path: format!("{}.{}", section.path, key.name), key })
    })
}

#[cfg(test)]
mod tests {
    use toml::Value;

    use super::*;
    use crate::domain::BudgetsPatch;

    fn path(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_path_leads_to_a_key_or_a_table() {
        for key in
            ["server listen", "registries a.io:5000 ca_file", "pools a.b max_vms", "pools macos budgets idle_seconds"]
        {
            assert!(matches!(find(&path(key)), Some(Node::Key(_))), "{key}");
        }
        for table in ["server", "drivers", "drivers qemu", "registries", "registries a.io", "pools a budgets"] {
            assert!(matches!(find(&path(table)), Some(Node::Table)), "{table}");
        }
        for unknown in ["listen", "pools a idle_seconds", "pools a budgets max_vms", "registries ca_file x", "qemu"] {
            assert!(find(&path(unknown)).is_none(), "{unknown}");
        }
        assert_eq!(written(&path("pools a.b budgets idle_seconds")), "pools.\"a.b\".budgets.idle_seconds");
        assert_eq!(written(&path("drivers qemu enabled")), "drivers.qemu.enabled");
    }

    /// A budget that the domain gets must get a key here.
    #[test]
    fn every_budget_can_be_configured() {
        for schema in [BUDGETS, POOL_BUDGETS] {
            assert_eq!(schema.keys.iter().map(|key| key.name).collect::<Vec<_>>(), BudgetsPatch::NAMES);
        }
    }

    /// The words for kinds and ranges are written by hand.
    #[test]
    fn kinds_and_ranges_are_what_the_documentation_says() {
        let range = regex::Regex::new(r"\((\d+) to (\d+)\)").unwrap();
        for key in SECTIONS.iter().flat_map(|section| section.schema.keys) {
            let bool = key.kind.contains("`true`");
            for word in key.kind.split('`').skip(1).step_by(2) {
                let value = if bool { Value::Boolean(word == "true") } else { Value::from(word) };
                assert!((key.accepts)(&value), "{}: {word}", key.name);
            }
            if let (Some(said), Some(range)) = (range.captures(key.description), &key.range) {
                assert_eq!(
                    (&said[1], &said[2]),
                    (&*range.start().to_string(), &*range.end().to_string()),
                    "{}",
                    key.name
                );
            }
        }
    }
}
