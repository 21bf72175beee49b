//! `mayfly gitlab-executor`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{
    adapters::gitlab::{self, ExecutorStage},
    client::ServiceOptions,
};

#[derive(Args)]
pub(super) struct GitlabExecutor {
    /// Configuration of the executor (TOML)
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        required = false,
        default_value = "/etc/gitlab-runner/mayfly.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    stage: StageCommand,
}

#[derive(Subcommand)]
enum StageCommand {
    /// Print what GitLab Runner has to know of the job (config_exec)
    Config,
    /// Create the job's vm and wait for it (prepare_exec)
    Prepare,
    /// Run a script of the job in its vm (run_exec)
    Run {
        /// File with the script
        script: PathBuf,
        /// Name of the script
        name: String,
    },
    /// End the job's vm (cleanup_exec)
    Cleanup,
}

pub(super) fn run(args: GitlabExecutor, options: ServiceOptions) -> u8 {
    let stage = match args.stage {
        StageCommand::Config => ExecutorStage::Config,
        StageCommand::Prepare => ExecutorStage::Prepare,
        StageCommand::Run { script, name } => ExecutorStage::Run { script, name },
        StageCommand::Cleanup => ExecutorStage::Cleanup,
    };
    gitlab::run(options, args.config, stage)
}
