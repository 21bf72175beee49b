//! The custom executor of GitLab Runner: one process per stage of a job.
//!
//! GitLab Runner may kill a stage at any time, and be killed itself, so nothing is kept between two stages: the job's vm is found
//! again by its labels (see `job`). No stage starts another process. The environment of a stage holds the job's secrets
//! (`CUSTOM_ENV_…`, set by the authors of jobs); only `environment` reads it.

use std::path::PathBuf;

use super::parent::ParentProcess;
use crate::client::ServiceOptions;

mod cleanup;
mod config_stage;
mod environment;
mod failure;
mod guest_script;
mod job;
mod job_file;
mod output;
mod prepare;
mod service;
mod settings;

use environment::ExecutorEnvironment;
use failure::ExecutorFailure;
use job::GitLabJob;
use service::ExecutorService;
use settings::ExecutorSettings;

/// What GitLab Runner starts this program for.
pub enum ExecutorStage {
    Config,
    Prepare,
    /// One script of the job: its file, and the name of the script.
    Run {
        script: PathBuf,
        name: String,
    },
    Cleanup,
}

/// Performs the stage. The exit code; what GitLab Runner or the job's log reads is on standard output.
pub fn run(options: ServiceOptions, config: PathBuf, stage: ExecutorStage) -> u8 {
    // First of all: it is compared with the parent at later moments.
    let parent = ParentProcess::now();
    let environment = match ExecutorEnvironment::read(|name| std::env::var_os(name)) {
        Ok(environment) => environment,
        Err(started_by_hand) => {
            output::note(&started_by_hand);
            return 2;
        }
    };
    match perform(options, config, stage, &environment, parent) {
        Ok(()) => 0,
        Err(failure) => environment.exit_code(&failure),
    }
}

fn perform(
    options: ServiceOptions,
    config: PathBuf,
    stage: ExecutorStage,
    environment: &ExecutorEnvironment,
    parent: ParentProcess,
) -> Result<(), ExecutorFailure> {
    let settings = ExecutorSettings::read(config)?;
    let image = environment.image();
    let file = job_file::read(environment.job_file())?;
    if let ExecutorStage::Config = stage {
        return config_stage::run(&settings, file.image(image));
    }
    let service = ExecutorService::new(settings.service_options(options)?, settings.timeout(), parent)?;
    if let Some(warning) = service.warning() {
        output::note(&format!("warning: {warning}"));
    }
    let job = GitLabJob::new(&file, environment.attempt());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ExecutorFailure::System(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        match stage {
            ExecutorStage::Config => Ok(()),
            ExecutorStage::Prepare => prepare::run(&job, &file, file.image(image), &settings, &service).await,
            ExecutorStage::Run { script, name } => {
                let shell = settings.of_image(file.image(image))?.shell();
                guest_script::run(&job, &script, &name, &shell, &service).await
            }
            ExecutorStage::Cleanup => cleanup::run(&job, &service).await,
        }
    })
}
