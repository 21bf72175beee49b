//! Reads and checks the configuration as `serve` would, without creating files.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{
    finding::{Check, Finding},
    probe::{HostProbe, Unseen},
};
use crate::{
    app,
    config::{self, Config},
    drivers::tart::NetworkKind,
};

/// A configuration larger than this is none, in bytes.
const FILE_LIMIT: usize = 1 << 20;

const USABLE: Check =
    Check::new("config.usable", "Configuration", "mayfly.toml and MAYFLY_ variables that `mayfly serve` accepts");

/// Where Tart is and how guests are reached through it.
#[derive(Clone, Debug)]
pub struct TartSetup {
    pub enabled: bool,
    pub binary: PathBuf,
    /// Tart's own storage; `None` when nothing says where.
    pub home: Option<PathBuf>,
    pub softnet: bool,
}

/// What a template asks of its host.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TemplateNeeds {
    pub driver: String,
    pub handover: String,
    pub disk_format: String,
}

#[derive(Clone, Debug)]
pub struct DoctorSetup {
    pub data_dir: PathBuf,
    /// The defaults, where what was given cannot be used.
    pub config: Config,
    pub tart: TartSetup,
    /// Every template there is, named or not.
    pub templates: Vec<TemplateNeeds>,
    /// Start a guest to see which accelerator works.
    pub boot_guest: bool,
}

impl DoctorSetup {
    /// The settings, and what is to be said of them.
    pub async fn read(probe: &dyn HostProbe, data_dir: PathBuf, boot_guest: bool) -> (DoctorSetup, Finding) {
        let file = data_dir.join(config::FILE);
        let text = probe.read(&file, FILE_LIMIT + 1).await;
        let (config, finding) = judge(&data_dir, &file, text, probe.env()).await;
        let tart = tart(&config, &probe.env());
        let templates = templates(probe, &data_dir.join("templates")).await;
        (DoctorSetup { data_dir, config, tart, templates, boot_guest }, finding)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }
}

async fn judge(
    data_dir: &Path,
    file: &Path,
    text: Result<Vec<u8>, Unseen>,
    env: Vec<(String, String)>,
) -> (Config, Finding) {
    const DEFAULTS: &str = "the other checks use the defaults";
    let defaults = || Config::defaults(data_dir.to_owned());
    let (text, given) = match text {
        Ok(bytes) if bytes.len() > FILE_LIMIT => {
            let finding = USABLE.fail(format!("{} is larger than 1 MiB", file.display()), "move it away");
            return (defaults(), finding);
        }
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => (text, true),
            Err(_) => {
                let found = format!("{} is not UTF-8; {DEFAULTS}", file.display());
                return (defaults(), USABLE.fail(found, "save it as UTF-8"));
            }
        },
        Err(Unseen::Absent) => (String::new(), false),
        Err(why) => {
            return (defaults(), USABLE.could_not_look(format!("{}: {why}; {DEFAULTS}", file.display())));
        }
    };
    match Config::from_sources(data_dir.to_owned(), &text, env, Vec::new()) {
        Err(error) => {
            let found = format!("{}; {DEFAULTS}", error.to_string().replace('\n', "; "));
            (defaults(), USABLE.fail(found, "correct it; docs/configuration.md lists every setting"))
        }
        Ok(config) => {
            let finding = match app::check(&config).await {
                Ok(()) if given => USABLE.ok(format!("{} is usable", file.display())),
                Ok(()) => USABLE.ok("no mayfly.toml: defaults"),
                Err(error) => USABLE.fail(error.to_string(), "correct it, then run: mayfly serve --check"),
            };
            (config, finding)
        }
    }
}

/// What the configuration says of Tart.
fn tart(config: &Config, env: &[(String, String)]) -> TartSetup {
    let var = |name: &str| env.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| PathBuf::from(v));
    let tart = &config.drivers.tart;
    TartSetup {
        enabled: tart.enabled,
        binary: tart.binary.clone().unwrap_or_else(|| "tart".into()),
        home: tart.home.clone().or_else(|| var("TART_HOME")).or_else(|| var("HOME").map(|home| home.join(".tart"))),
        softnet: tart.network == NetworkKind::Softnet,
    }
}

/// One that cannot be read asks for nothing: the service leaves it out, and says so in its log.
async fn templates(probe: &dyn HostProbe, dir: &Path) -> Vec<TemplateNeeds> {
    let mut templates = Vec::new();
    for name in probe.names(dir).await.unwrap_or_default().iter().filter(|name| name.starts_with("sha256-")) {
        let manifest = probe.read(&dir.join(name).join("manifest.json"), 1 << 20).await.unwrap_or_default();
        templates.extend(serde_json::from_slice::<TemplateNeeds>(&manifest));
    }
    templates
}
