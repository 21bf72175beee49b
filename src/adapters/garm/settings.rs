//! The provider's configuration file, which GARM names in `config_file`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    super::{adapter_file, vm_settings::VmSettings},
    extra_specs,
    failure::GarmFailure,
};
use crate::client::ServiceOptions;

/// The flavor that leaves everything to `defaults` and the template.
const DEFAULT_FLAVOR: &str = "default";
const TIMEOUT_SECONDS: u32 = 120;

/// The configuration of Mayfly's provider for GARM (TOML).
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ProviderFile {
    /// URL of the service. Either this or `data_dir`.
    #[schema(example = "https://mac-1.example.com:8470")]
    url: Option<String>,
    /// File with an API token of the scope `create`.
    #[schema(value_type = Option<String>)]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust in addition to the system's.
    #[schema(value_type = Option<String>)]
    ca_file: Option<PathBuf>,
    /// Data directory of a service on this machine, which is reached over the socket in it.
    #[schema(value_type = Option<String>)]
    data_dir: Option<PathBuf>,
    /// How long one operation may take, in seconds, while the service does not answer; default: 120.
    #[schema(minimum = 1, maximum = 3600)]
    timeout_seconds: Option<u32>,
    /// For all vms; a flavor and extra specs have priority.
    #[schema(inline)]
    defaults: VmSettings,
    /// What the flavors of pools mean. The flavor `default` is always known.
    #[schema(inline)]
    flavors: BTreeMap<String, VmSettings>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ProviderSettings {
    /// `None`: GARM names no file.
    path: Option<PathBuf>,
    file: ProviderFile,
}

impl ProviderSettings {
    pub fn read(path: Option<&Path>) -> Result<Self, GarmFailure> {
        let Some(path) = path else { return Ok(Self::default()) };
        let wrong = |what: String| GarmFailure::Failed(format!("{}: {what}", path.display()));
        let file: ProviderFile = adapter_file::read(path).map_err(GarmFailure::Failed)?;
        if file.url.is_some() && file.data_dir.is_some() {
            return Err(wrong("`url` and `data_dir` name two services: leave one out".to_owned()));
        }
        if let Some(seconds) = file.timeout_seconds.filter(|seconds| !(1..=3600).contains(seconds)) {
            return Err(wrong(format!("`timeout_seconds`: expected 1 to 3600, found {seconds}")));
        }
        file.defaults.check().map_err(|what| wrong(format!("`defaults`: {what}")))?;
        for (name, flavor) in &file.flavors {
            flavor.check().map_err(|what| wrong(format!("`flavors.{name}`: {what}")))?;
        }
        Ok(Self { path: Some(path.to_owned()), file })
    }

    /// Which service to ask. What was given as an option or in the environment has priority.
    pub fn service_options(&self, given: ServiceOptions) -> Result<ServiceOptions, GarmFailure> {
        let place = match &self.path {
            Some(path) => path.display().to_string(),
            None => "the file that GARM's `config_file` names".to_owned(),
        };
        let file = &self.file;
        let options = adapter_file::ServiceKeys {
            url: &file.url,
            token_file: &file.token_file,
            ca_file: &file.ca_file,
            data_dir: &file.data_dir,
        }
        .options(given, &place);
        // GARM passes no HOME, so there is no usual data directory.
        if options.url.is_none() && options.data_dir.is_none() && std::env::var_os("HOME").is_none() {
            return Err(GarmFailure::Failed(format!(
                "no service is named: set `url` and `token_file`, or `data_dir`, in {place}"
            )));
        }
        Ok(options)
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.file.timeout_seconds.unwrap_or(TIMEOUT_SECONDS).into())
    }

    /// For a vm of a pool with this flavor and these extra specs.
    pub fn vm_settings(&self, flavor: Option<&str>, extra_specs: &Value) -> Result<VmSettings, GarmFailure> {
        let specs = extra_specs::of_extra_specs(extra_specs)?;
        let named = flavor.filter(|name| !name.is_empty());
        let flavor = match named.map(|name| (name, self.file.flavors.get(name))) {
            Some((_, Some(flavor))) => flavor.clone(),
            None | Some((DEFAULT_FLAVOR, None)) => VmSettings::default(),
            Some((name, None)) => {
                let mut known: Vec<&str> = self.file.flavors.keys().map(String::as_str).collect();
                if !known.contains(&DEFAULT_FLAVOR) {
                    known.push(DEFAULT_FLAVOR);
                }
                let place = match &self.path {
                    Some(path) => format!("`[flavors]` of {}", path.display()),
                    None => "a configuration file of this provider".to_owned(),
                };
                return Err(GarmFailure::Failed(format!(
                    "flavor: {name:.60?} is not known, only {}; add it to {place}",
                    known.join(", ")
                )));
            }
        };
        Ok(specs.or(&flavor.or(&self.file.defaults)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(text: &str) -> Result<ProviderSettings, GarmFailure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mayfly.toml");
        std::fs::write(&path, text).unwrap();
        ProviderSettings::read(Some(&path))
    }

    #[test]
    fn extra_specs_precede_the_flavor_and_the_flavor_the_defaults() {
        let settings = settings(
            "url = 'https://m'\n[defaults]\ncpus = 1\nmemory_mib = 64\nnetwork = 'host'\n[flavors.big]\ncpus = 8\nmemory_mib = 128",
        )
        .unwrap();
        let of = |flavor, specs| settings.vm_settings(flavor, &specs).unwrap();
        let big = of(Some("big"), json!({"memory_mib": 256}));
        assert_eq!((big.cpus, big.memory_mib, big.network.unwrap().as_str()), (Some(8), Some(256), "host"));
        for flavor in [None, Some(""), Some("default")] {
            assert_eq!(of(flavor, json!(null)).cpus, Some(1));
        }
        let error = settings.vm_settings(Some("huge"), &json!(null)).unwrap_err().to_string();
        assert!(error.contains("\"huge\" is not known, only big, default"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, named) in [
            ("url = 'x'\nurll = 'y'", "line 2: unknown field `urll`"),
            ("[defaults]\ncpus = 'many'", "line 2: invalid type"),
            ("url = 'x'\ndata_dir = 'y'", "`url` and `data_dir`"),
            ("timeout_seconds = 0", "`timeout_seconds`"),
            ("[flavors.a.labels]\nowner = 'me'", "`flavors.a`: labels: \"owner\""),
            ("[defaults.budgets]\nboot_seconds = 0", "`defaults`: budgets.boot_seconds"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains("mayfly.toml: ") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_given_precedes_the_file() {
        let settings = settings("url = 'https://file'\ntoken_file = '/t'").unwrap();
        let given = ServiceOptions { data_dir: Some("/data".into()), ..ServiceOptions::default() };
        let options = settings.service_options(given).unwrap();
        assert_eq!(
            (options.url, options.data_dir, options.token_file),
            (None, Some("/data".into()), Some("/t".into()))
        );
        let options = settings.service_options(ServiceOptions::default()).unwrap();
        assert_eq!(options.url.as_deref(), Some("https://file"));
        assert!(options.names.url.starts_with("`url` in /"));
    }
}
