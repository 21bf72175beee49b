//! The plugin's configuration file, which `MAYFLY_SHOES_CONFIG` names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    super::{adapter_file, vm_settings::VmSettings},
    failure::ShoesFailure,
    messages::ResourceType,
};
use crate::client::ServiceOptions;

/// myshoes passes no arguments and perhaps no variable of ours.
const USUAL_PATH: &str = "/etc/mayfly/shoes.toml";
pub const PATH_VARIABLE: &str = "MAYFLY_SHOES_CONFIG";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShoesFile {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    /// Of every job whose labels are not in `templates`.
    template: String,
    /// Templates by a label of the job.
    #[serde(default)]
    templates: BTreeMap<String, String>,
    #[serde(default)]
    defaults: VmSettings,
    /// What the resource types of targets mean. One that is not here is `defaults`.
    #[serde(default)]
    resource_types: BTreeMap<SizeName, VmSettings>,
}

/// A resource type as myshoes writes it in its own API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum SizeName {
    #[serde(rename = "nano")]
    Nano,
    #[serde(rename = "micro")]
    Micro,
    #[serde(rename = "small")]
    Small,
    #[serde(rename = "medium")]
    Medium,
    #[serde(rename = "large")]
    Large,
    #[serde(rename = "xlarge")]
    XLarge,
    #[serde(rename = "2xlarge")]
    XLarge2,
    #[serde(rename = "3xlarge")]
    XLarge3,
    #[serde(rename = "4xlarge")]
    XLarge4,
}

impl SizeName {
    fn of(resource_type: ResourceType) -> Option<Self> {
        Some(match resource_type {
            ResourceType::Unknown => return None,
            ResourceType::Nano => SizeName::Nano,
            ResourceType::Micro => SizeName::Micro,
            ResourceType::Small => SizeName::Small,
            ResourceType::Medium => SizeName::Medium,
            ResourceType::Large => SizeName::Large,
            ResourceType::XLarge => SizeName::XLarge,
            ResourceType::XLarge2 => SizeName::XLarge2,
            ResourceType::XLarge3 => SizeName::XLarge3,
            ResourceType::XLarge4 => SizeName::XLarge4,
        })
    }
}

#[derive(Debug)]
pub(super) struct ShoesSettings {
    path: PathBuf,
    file: ShoesFile,
}

impl ShoesSettings {
    pub fn read(path: Option<PathBuf>) -> Result<Self, ShoesFailure> {
        let path = path.unwrap_or_else(|| USUAL_PATH.into());
        let file = read(&path).map_err(|error| {
            ShoesFailure::settings(format!("{error}; {PATH_VARIABLE} in the environment of myshoes names this file"))
        })?;
        Ok(Self { path, file })
    }

    /// Which service to ask. What was given as an option or in the environment has priority.
    pub fn service_options(&self, given: ServiceOptions) -> Result<ServiceOptions, ShoesFailure> {
        let (file, place) = (&self.file, self.path.display().to_string());
        let options = adapter_file::ServiceKeys {
            url: &file.url,
            token_file: &file.token_file,
            ca_file: &file.ca_file,
            data_dir: &file.data_dir,
        }
        .options(given, &place);
        // The usual data directory belongs to the user of the service, which myshoes is hardly run as.
        if options.url.is_none() && options.data_dir.is_none() {
            return Err(ShoesFailure::settings(format!(
                "no service is named: set `url` and `token_file`, or `data_dir`, in {place}"
            )));
        }
        Ok(options)
    }

    /// By the first label of the job that has one. GitHub does not distinguish upper and lower case in labels.
    pub fn template(&self, job_labels: &[String]) -> &str {
        let of_label = |label: &String| {
            self.file
                .templates
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(label))
                .map(|(_, template)| template)
        };
        job_labels.iter().find_map(of_label).unwrap_or(&self.file.template)
    }

    pub fn vm_settings(&self, resource_type: ResourceType) -> VmSettings {
        let of_type = SizeName::of(resource_type).and_then(|name| self.file.resource_types.get(&name)).cloned();
        of_type.unwrap_or_default().or(&self.file.defaults)
    }
}

fn read(path: &Path) -> Result<ShoesFile, String> {
    let file: ShoesFile = adapter_file::read(path)?;
    let wrong = |what: String| Err(format!("{}: {what}", path.display()));
    if file.url.is_some() && file.data_dir.is_some() {
        return wrong("`url` and `data_dir` name two services: leave one out".to_owned());
    }
    if file.template.is_empty() || file.templates.values().any(String::is_empty) {
        return wrong("`template`: expected the name of a template, or an image as host/namespace:tag".to_owned());
    }
    if let Err(what) = file.defaults.check() {
        return wrong(format!("`defaults`: {what}"));
    }
    for settings in file.resource_types.values() {
        if let Err(what) = settings.check() {
            return wrong(format!("`resource_types`: {what}"));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<ShoesSettings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoes.toml");
        std::fs::write(&path, text).unwrap();
        Ok(ShoesSettings { file: read(&path)?, path })
    }

    #[test]
    fn a_resource_type_is_a_size_and_a_label_a_template() {
        let settings = settings(
            "url = 'https://m'\ntemplate = 'debian-13'\n[templates]\nmacOS = 'macos-15'\n[defaults]\ncpus = 2\nmemory_mib = 64\n\
             [resource_types.2xlarge]\ncpus = 8\n[resource_types.nano]\nmemory_mib = 32",
        )
        .unwrap();
        let size = |of| {
            let settings = settings.vm_settings(of);
            (settings.cpus, settings.memory_mib)
        };
        assert_eq!(size(ResourceType::XLarge2), (Some(8), Some(64)));
        assert_eq!(size(ResourceType::Nano), (Some(2), Some(32)));
        for other in [ResourceType::Unknown, ResourceType::XLarge] {
            assert_eq!(size(other), (Some(2), Some(64)));
        }
        let template =
            |labels: &[&str]| settings.template(&labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>()).to_owned();
        assert_eq!(template(&["self-hosted", "macos"]), "macos-15");
        assert_eq!(template(&["self-hosted", "linux"]), "debian-13");
        assert_eq!(template(&[]), "debian-13");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, named) in [
            ("template = 'a'\nurll = 'y'", "line 2: unknown field `urll`"),
            ("url = 'x'", "missing field `template`"),
            ("template = ''", "`template`: expected"),
            ("template = 'a'\nurl = 'x'\ndata_dir = 'y'", "`url` and `data_dir`"),
            ("template = 'a'\n[resource_types.huge]\ncpus = 1", "line 2: unknown variant `huge`"),
            ("template = 'a'\n[resource_types.nano.labels]\n'myshoes.runner' = 'me'", "labels: \"myshoes.runner\""),
            ("template = 'a'\n[defaults.budgets]\nboot_seconds = 0", "`defaults`: budgets.boot_seconds"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains("shoes.toml: ") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_service_has_to_be_named() {
        let made = settings("template = 'a'\ntoken_file = '/t'").unwrap();
        assert!(made.service_options(ServiceOptions::default()).is_err());
        let given = ServiceOptions { url: Some("https://given".into()), ..ServiceOptions::default() };
        let options = made.service_options(given).unwrap();
        assert_eq!((options.url.as_deref(), options.token_file), (Some("https://given"), Some("/t".into())));
        assert!(options.names.url.starts_with("`url` in /"));
    }
}
