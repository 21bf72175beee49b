//! Builds the configuration from file, environment and command line.

use std::path::PathBuf;

use serde::Deserialize as _;

use super::{
    check,
    data_dir::{data_dir_or_default, prepare_data_dir},
    error::ConfigError,
    given::{FILE, GivenSettings},
    sections::Config,
};

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
        let mut given = GivenSettings::default();
        given.add_file(&data_dir.join(FILE), text)?;
        given.add_env(env);
        given.add_overrides(overrides);
        let table = given.table(&data_dir);
        let config = Config::deserialize(table).expect("every value was accepted by the type of its key");
        let config = check::complete(Config { data_dir, ..config }, &mut given);
        match given.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(ConfigError::Settings(problems)),
        }
    }
}
