//! The job as GitLab sent it, which GitLab Runner writes to a private file. Unlike the variables of the job, its author cannot
//! set its id.

use std::{io::Read, path::Path};

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::failure::ExecutorFailure;
use crate::platform::files::open_regular;

/// A job has its scripts and all variables in it.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct JobFile {
    pub id: i64,
    /// Only of this job, and accepted as long as it runs.
    pub token: SecretString,
    #[serde(default)]
    job_info: JobFileInfo,
    #[serde(default)]
    git_info: JobFileRepository,
    #[serde(default)]
    runner_info: JobFileRunner,
    #[serde(default)]
    image: JobFileImage,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobFileInfo {
    project_id: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobFileRepository {
    /// With the job's token in it.
    repo_url: SecretString,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobFileRunner {
    timeout: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobFileImage {
    name: String,
}

impl JobFile {
    /// The server and the project, as people call them.
    pub fn place(&self) -> (Option<String>, String) {
        let url = Url::parse(self.git_info.repo_url.expose_secret()).ok();
        let server = url.as_ref().and_then(|url| {
            let host = url.host_str()?;
            Some(url.port().map_or(host.to_owned(), |port| format!("{host}:{port}")))
        });
        let path = url.as_ref().map(|url| url.path().trim_matches('/').trim_end_matches(".git").to_owned());
        let project = path.filter(|path| !path.is_empty()).unwrap_or_else(|| self.job_info.project_id.to_string());
        (server, project)
    }

    pub fn project_id(&self) -> i64 {
        self.job_info.project_id
    }

    /// How long the job may take, in seconds.
    pub fn timeout(&self) -> Option<u32> {
        u32::try_from(self.runner_info.timeout).ok().filter(|seconds| *seconds > 0)
    }

    /// The job's `image:`; empty if it names none. `expanded`: the same with the job's variables, as the runner has it.
    pub fn image<'a>(&'a self, expanded: Option<&'a str>) -> &'a str {
        expanded.unwrap_or(&self.image.name)
    }
}

pub(super) fn read(path: &Path) -> Result<JobFile, ExecutorFailure> {
    let wrong = |what: String| ExecutorFailure::System(format!("JOB_RESPONSE_FILE: {}: {what}", path.display()));
    let file = open_regular(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(wrong(format!("the job is larger than {LARGEST} bytes")));
    }
    parse(&text).map_err(wrong)
}

/// Errors name the place and never the value, which may be a secret.
fn parse(text: &[u8]) -> Result<JobFile, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let job: JobFile = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let what =
            if error.inner().is_data() { "is missing or not of the type that GitLab sends" } else { "is not JSON" };
        format!("{} {what} (line {}, column {})", error.path(), error.inner().line(), error.inner().column())
    })?;
    if job.token.expose_secret().is_empty() {
        return Err("`token` is empty".to_owned());
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_has_a_place_a_time_and_an_image() {
        let job = json!({
            "id": 7, "token": "hush", "job_info": {"project_id": 3, "project_name": "app"},
            "git_info": {"repo_url": "https://gitlab-ci-token:hush@gitlab.example:8443/acme/tools/app.git", "sha": "ab"},
            "runner_info": {"timeout": 3600}, "image": {"name": "$IMAGE", "entrypoint": null}, "variables": [],
        });
        let job = parse(job.to_string().as_bytes()).unwrap();
        assert_eq!(job.place(), (Some("gitlab.example:8443".to_owned()), "acme/tools/app".to_owned()));
        assert_eq!((job.timeout(), job.image(None), job.image(Some("mac"))), (Some(3600), "$IMAGE", "mac"));
        assert!(!format!("{job:?}").contains("hush"));
        let bare = parse(br#"{"id": 7, "token": "hush"}"#).unwrap();
        assert_eq!((bare.place(), bare.timeout(), bare.image(None)), ((None, "0".to_owned()), None, ""));
    }

    #[test]
    fn errors_name_the_place_and_not_the_value() {
        for (text, named) in [
            (r#"{"id": "hush", "token": "hush"}"#, "id is missing or not of the type"),
            (r#"{"id": 1, "token": {"hush": 1}}"#, "token is missing or not"),
            (r#"{"id": 1, "token": "hush", "image": {"name": ["hush"]}}"#, "image.name is missing or not"),
            (r#"{"id": 1, "token": "hush"#, "is not JSON (line 1"),
            (r#"{"id": 1, "token": ""}"#, "`token` is empty"),
            ("", "is not JSON"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(named) && !error.contains("hush"), "{error}");
        }
    }
}
