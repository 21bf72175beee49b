//! The executor's configuration file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::failure::ExecutorFailure;
use crate::{
    adapters::adapter_file,
    client::ServiceOptions,
    domain::{BudgetsPatch, NetworkMode, budgets::MAX_BUDGET_SECONDS},
};

const TIMEOUT_SECONDS: u32 = 120;
/// Ten minutes less than GitLab Runner waits for the preparation unless its configuration says otherwise.
const WAIT_SECONDS: u32 = 3000;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ExecutorFile {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    timeout_seconds: Option<u32>,
    wait_seconds: Option<u32>,
    default_image: Option<String>,
    defaults: JobVmSettings,
    images: BTreeMap<String, JobVmSettings>,
}

/// For the vms of jobs with one `image:`, or for all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct JobVmSettings {
    pub template: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub network: Option<NetworkMode>,
    pub budgets: BudgetsPatch,
    pub builds_dir: Option<String>,
    pub cache_dir: Option<String>,
    shell: Option<Vec<String>>,
}

impl JobVmSettings {
    fn check(&self) -> Result<(), String> {
        if self.shell.as_ref().is_some_and(Vec::is_empty) {
            return Err("shell: expected a program and its arguments, found an empty list".to_owned());
        }
        match self.budgets.wrong() {
            Some((name, least, most)) => Err(format!("budgets.{name}: expected {least} to {most}")),
            None => Ok(()),
        }
    }

    /// These, and what is not set here as in `others`.
    fn or(&self, others: &JobVmSettings) -> JobVmSettings {
        JobVmSettings {
            template: self.template.clone().or_else(|| others.template.clone()),
            cpus: self.cpus.or(others.cpus),
            memory_mib: self.memory_mib.or(others.memory_mib),
            network: self.network.or(others.network),
            budgets: self.budgets.or(&others.budgets),
            builds_dir: self.builds_dir.clone().or_else(|| others.builds_dir.clone()),
            cache_dir: self.cache_dir.clone().or_else(|| others.cache_dir.clone()),
            shell: self.shell.clone().or_else(|| others.shell.clone()),
        }
    }

    /// What runs the scripts in the guest: they are its standard input.
    pub fn shell(&self) -> Vec<String> {
        self.shell.clone().unwrap_or_else(|| vec!["bash".to_owned(), "--login".to_owned()])
    }
}

pub(super) struct ExecutorSettings {
    path: PathBuf,
    file: ExecutorFile,
}

impl ExecutorSettings {
    pub fn read(path: PathBuf) -> Result<Self, ExecutorFailure> {
        let wrong = |what: String| ExecutorFailure::System(format!("{}: {what}", path.display()));
        let file: ExecutorFile = adapter_file::read(&path).map_err(ExecutorFailure::System)?;
        if file.url.is_some() && file.data_dir.is_some() {
            return Err(wrong("`url` and `data_dir` name two services: leave one out".to_owned()));
        }
        for (key, value, most) in
            [("timeout_seconds", file.timeout_seconds, 3600), ("wait_seconds", file.wait_seconds, MAX_BUDGET_SECONDS)]
        {
            if let Some(seconds) = value.filter(|seconds| !(1..=most).contains(seconds)) {
                return Err(wrong(format!("`{key}`: expected 1 to {most}, found {seconds}")));
            }
        }
        file.defaults.check().map_err(|what| wrong(format!("`defaults`: {what}")))?;
        for (name, image) in &file.images {
            image.check().map_err(|what| wrong(format!("`images.\"{name}\"`: {what}")))?;
        }
        if file.images.is_empty() {
            return Err(wrong("`images` names no image, so no job could run; add one as [images.\"NAME\"]".to_owned()));
        }
        if let Some(image) = file.default_image.as_ref().filter(|image| !file.images.contains_key(*image)) {
            return Err(wrong(format!("`default_image`: {image:.100?} is not one of `images`")));
        }
        Ok(Self { path, file })
    }

    /// Which service to ask. What was given as an option or in the environment has priority.
    pub fn service_options(&self, given: ServiceOptions) -> Result<ServiceOptions, ExecutorFailure> {
        let (file, place) = (&self.file, self.path.display().to_string());
        let options = adapter_file::ServiceKeys {
            url: &file.url,
            token_file: &file.token_file,
            ca_file: &file.ca_file,
            data_dir: &file.data_dir,
        }
        .options(given, &place);
        if options.url.is_none() && options.data_dir.is_none() {
            return Err(ExecutorFailure::System(format!(
                "no service is named: set `url` and `token_file`, or `data_dir`, in {place}"
            )));
        }
        Ok(options)
    }

    /// How long a request is repeated while the service does not answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.file.timeout_seconds.unwrap_or(TIMEOUT_SECONDS).into())
    }

    /// Longest wait for a slot.
    pub fn wait_seconds(&self) -> u32 {
        self.file.wait_seconds.unwrap_or(WAIT_SECONDS)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What jobs with this `image:` get. Only images of the file are allowed.
    pub fn of_image(&self, image: &str) -> Result<JobVmSettings, ExecutorFailure> {
        let name = if image.is_empty() {
            let default = self.file.default_image.as_deref();
            default.ok_or_else(|| {
                ExecutorFailure::Job(format!("the job names no image: set `image:` to {}", self.allowed()))
            })?
        } else {
            image
        };
        let Some(settings) = self.file.images.get(name) else {
            return Err(ExecutorFailure::Job(format!(
                "image: {name:.100?} is not allowed on this runner: use {}",
                self.allowed()
            )));
        };
        let mut settings = settings.or(&self.file.defaults);
        settings.template.get_or_insert_with(|| name.to_owned());
        Ok(settings)
    }

    fn allowed(&self) -> String {
        let names: Vec<&str> = self.file.images.keys().map(String::as_str).collect();
        match names.as_slice() {
            [name] => (*name).to_owned(),
            _ => format!("one of {}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<ExecutorSettings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mayfly.toml");
        std::fs::write(&path, text).unwrap();
        ExecutorSettings::read(path).map_err(text_of)
    }

    fn text_of(failure: ExecutorFailure) -> String {
        match failure {
            ExecutorFailure::System(text) => text,
            ExecutorFailure::Job(text) => format!("job: {text}"),
            ExecutorFailure::Script(code) => format!("script: {code}"),
        }
    }

    #[test]
    fn an_image_names_a_template_and_precedes_the_defaults() {
        let settings = settings(
            "url = 'https://m'\ndefault_image = 'mac'\n[defaults]\ncpus = 1\nmemory_mib = 64\n\
             [images.mac]\ntemplate = 'macos-15'\ncpus = 4\nshell = ['zsh', '-l']\n[images.'linux/x']",
        )
        .unwrap();
        let mac = settings.of_image("mac").unwrap();
        assert_eq!((mac.template.as_deref(), mac.cpus, mac.memory_mib), (Some("macos-15"), Some(4), Some(64)));
        assert_eq!(mac.shell(), ["zsh", "-l"]);
        assert_eq!(settings.of_image("").unwrap().cpus, Some(4));
        let linux = settings.of_image("linux/x").unwrap();
        assert_eq!((linux.template.as_deref(), linux.cpus), (Some("linux/x"), Some(1)));
        assert_eq!(linux.shell(), ["bash", "--login"]);
        let error = text_of(settings.of_image("macos-15").unwrap_err());
        assert_eq!(error, "job: image: \"macos-15\" is not allowed on this runner: use one of linux/x, mac");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, named) in [
            ("urll = 'y'", "line 1: unknown field `urll`"),
            ("url = 'x'\ndata_dir = 'y'", "`url` and `data_dir`"),
            ("wait_seconds = 0", "`wait_seconds`: expected 1 to"),
            ("[images.a]\nshell = []", "`images.\"a\"`: shell"),
            ("[images.a]\ncpus = 'x'", "line 2: invalid type"),
            ("[defaults.budgets]\nboot_seconds = 0", "`defaults`: budgets.boot_seconds"),
            ("url = 'x'", "`images` names no image"),
            ("default_image = 'b'\n[images.a]", "`default_image`: \"b\""),
        ] {
            let error = settings(text).err().unwrap_or_default();
            assert!(error.contains("mayfly.toml: ") && error.contains(named), "{named}: {error}");
        }
        let none = settings("[images.a]").unwrap();
        let error = text_of(none.service_options(ServiceOptions::default()).unwrap_err());
        assert!(error.starts_with("no service is named: set `url`"), "{error}");
        let error = text_of(none.of_image("").unwrap_err());
        assert_eq!(error, "job: the job names no image: set `image:` to a");
    }
}
