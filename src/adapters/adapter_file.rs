//! The configuration file of an adapter (TOML), and the keys in it that name the service.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::client::{OptionNames, ServiceOptions};

/// Errors name the file and the line.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
        wrong(match line {
            Some(line) => format!("line {line}: {}", error.message()),
            None => error.message().to_owned(),
        })
    })
}

pub(super) struct ServiceKeys<'a> {
    pub url: &'a Option<String>,
    pub token_file: &'a Option<PathBuf>,
    pub ca_file: &'a Option<PathBuf>,
    pub data_dir: &'a Option<PathBuf>,
}

impl ServiceKeys<'_> {
    /// Which service to ask. What was given as an option or in the environment has priority. `place` names the file.
    pub fn options(&self, given: ServiceOptions, place: &str) -> ServiceOptions {
        let called = |key: &str| format!("`{key}` in {place}");
        ServiceOptions {
            // One of the two names the service.
            url: given.url.clone().or_else(|| self.url.clone().filter(|_| given.data_dir.is_none())),
            data_dir: given.data_dir.or_else(|| self.data_dir.clone().filter(|_| given.url.is_none())),
            token_file: given.token_file.or_else(|| self.token_file.clone()),
            ca_file: given.ca_file.or_else(|| self.ca_file.clone()),
            names: OptionNames {
                url: called("url"),
                token_file: called("token_file"),
                ca_file: called("ca_file"),
                data_dir: called("data_dir"),
            },
        }
    }
}
