//! The variables in which GitLab Runner says how to end, and where the job is.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{failure::ExecutorFailure, output};

/// Set by the stage `config` for the following stages: one try of the preparation.
pub(super) const ATTEMPT_VARIABLE: &str = "MAYFLY_GITLAB_ATTEMPT";
const BUILD_FAILURE: &str = "BUILD_FAILURE_EXIT_CODE";
const SYSTEM_FAILURE: &str = "SYSTEM_FAILURE_EXIT_CODE";
const JOB_FILE: &str = "JOB_RESPONSE_FILE";
/// Not set by old versions of GitLab Runner.
const EXIT_CODE_FILE: &str = "BUILD_EXIT_CODE_FILE";
/// The job's `image:` with its variables expanded.
const IMAGE: &str = "CUSTOM_ENV_CI_JOB_IMAGE";

#[derive(Debug)]
pub(super) struct ExecutorEnvironment {
    build_failure: u8,
    system_failure: u8,
    job_file: PathBuf,
    exit_code_file: Option<PathBuf>,
    image: Option<String>,
    attempt: Option<String>,
}

impl ExecutorEnvironment {
    /// The error is for a user: GitLab Runner sets all of it.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let required = |name: &str| {
            given(name).ok_or_else(|| {
                format!(
                    "this is the custom executor of GitLab Runner, and `gitlab-runner` starts it: {name} is not set; name this \
                     program in [runners.custom] of the runner's config.toml (docs/gitlab.md)"
                )
            })
        };
        let exit_code = |name: &str| {
            let value = required(name)?;
            let code = value.to_str().and_then(|text| text.parse::<u8>().ok()).filter(|code| *code != 0);
            code.ok_or_else(|| {
                format!("{name}: expected an exit code from 1 to 255, found {:.40?}", value.to_string_lossy())
            })
        };
        Ok(Self {
            build_failure: exit_code(BUILD_FAILURE)?,
            system_failure: exit_code(SYSTEM_FAILURE)?,
            job_file: required(JOB_FILE)?.into(),
            exit_code_file: given(EXIT_CODE_FILE).map(PathBuf::from),
            image: given(IMAGE).and_then(|image| image.into_string().ok()),
            attempt: given(ATTEMPT_VARIABLE).and_then(|attempt| attempt.into_string().ok()),
        })
    }

    /// Where the job is, as GitLab sent it.
    pub fn job_file(&self) -> &Path {
        &self.job_file
    }

    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    pub fn attempt(&self) -> Option<&str> {
        self.attempt.as_deref()
    }

    /// Tells the failure, and how GitLab Runner knows whose fault it is.
    pub fn exit_code(&self, failure: &ExecutorFailure) -> u8 {
        match failure {
            ExecutorFailure::Job(text) => {
                output::note(&format!("ERROR: {text}"));
                self.build_failure
            }
            ExecutorFailure::Script(code) => {
                // Without the file, the runner reports the exit code of this process.
                if let Some(file) = &self.exit_code_file
                    && let Err(error) = std::fs::write(file, code.to_string())
                {
                    output::note(&format!(
                        "ERROR: the job's exit code {code} cannot be written to {}: {error}",
                        file.display()
                    ));
                    return self.system_failure;
                }
                self.build_failure
            }
            ExecutorFailure::System(text) => {
                output::note(&format!("ERROR: {text}"));
                self.system_failure
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<ExecutorEnvironment, String> {
        ExecutorEnvironment::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    const USUAL: [(&str, &str); 3] =
        [("BUILD_FAILURE_EXIT_CODE", "1"), ("SYSTEM_FAILURE_EXIT_CODE", "2"), ("JOB_RESPONSE_FILE", "/j")];

    #[test]
    fn what_the_runner_sets_is_required() {
        for (missing, _) in USUAL {
            let given: Vec<_> = USUAL.into_iter().filter(|(name, _)| *name != missing).collect();
            let error = read(&given).unwrap_err();
            assert!(error.contains(missing) && error.contains("docs/gitlab.md"), "{error}");
        }
        for code in ["0", "256", "one", "-1"] {
            let error = read(&[USUAL[1], USUAL[2], ("BUILD_FAILURE_EXIT_CODE", code)]).unwrap_err();
            assert!(error.contains("from 1 to 255"), "{error}");
        }
        assert!(read(&USUAL).unwrap().image().is_none());
    }

    #[test]
    fn failures_have_the_exit_codes_that_the_runner_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("code");
        let [build, system, job] = USUAL;
        let environment = read(&[build, system, job, ("BUILD_EXIT_CODE_FILE", file.to_str().unwrap())]).unwrap();
        assert_eq!(environment.exit_code(&ExecutorFailure::Script(42)), 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "42");
        assert_eq!(environment.exit_code(&ExecutorFailure::Job("no".into())), 1);
        assert_eq!(environment.exit_code(&ExecutorFailure::System("no".into())), 2);
        let environment = read(&[build, system, job, ("BUILD_EXIT_CODE_FILE", "/nowhere/code")]).unwrap();
        assert_eq!(environment.exit_code(&ExecutorFailure::Script(42)), 2);
        assert_eq!(read(&USUAL).unwrap().exit_code(&ExecutorFailure::Script(42)), 1);
    }
}
