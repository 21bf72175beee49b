//! The external provider of GARM: one process per operation, told what to do by environment variables.
//!
//! GARM retries, kills and forgets its providers at any time, so nothing is kept between two operations. What belongs together
//! is found again by labels of the vms: see `identity`.

use std::path::PathBuf;

use super::parent::ParentProcess;
use crate::client::ServiceOptions;

mod bootstrap;
mod create;
mod delete;
mod environment;
mod extra_specs;
mod failure;
mod guest;
mod identity;
mod instance;
mod instance_token;
mod list;
mod schema;
mod service;
mod settings;

use environment::{GarmCommand, GarmEnvironment};
use failure::GarmFailure;
use service::ProviderService;
use settings::ProviderSettings;

/// The subcommand of `mayfly`.
pub const COMMAND_NAME: &str = "garm-provider";
/// A link of this name to the program is the provider, without arguments.
pub const LINK_NAME: &str = "garm-provider-mayfly";
/// Which operation GARM wants.
pub const COMMAND_VARIABLE: &str = "GARM_COMMAND";

/// Performs the operation that GARM asks for. The exit code; what GARM reads is on standard output.
pub fn run(options: ServiceOptions, config: Option<PathBuf>) -> u8 {
    // First of all: it is compared with the parent at later moments.
    let parent = ParentProcess::now();
    match perform(options, config, parent) {
        Ok(answer) => write_answer(&answer),
        Err(failure) => {
            note(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn perform(options: ServiceOptions, config: Option<PathBuf>, parent: ParentProcess) -> Result<String, GarmFailure> {
    let environment = GarmEnvironment::read(|name| std::env::var_os(name))?;
    match environment.command {
        GarmCommand::GetVersion => return Ok(env!("CARGO_PKG_VERSION").to_owned()),
        GarmCommand::GetSupportedInterfaceVersions => return Ok(environment::supported_versions()),
        GarmCommand::GetConfigJsonSchema => return Ok(schema::of_settings()),
        GarmCommand::GetExtraSpecsJsonSchema => return Ok(schema::of_extra_specs()),
        GarmCommand::StopInstance => {
            return Err(GarmFailure::Failed(
                "a vm of Mayfly runs once and cannot be stopped and started again: delete it".to_owned(),
            ));
        }
        _ => {}
    }
    let settings = ProviderSettings::read(config.or_else(|| environment.config_file.clone()).as_deref())?;
    if environment.command == GarmCommand::ValidatePoolInfo {
        return settings.vm_settings(None, &environment.extra_specs()?).map(|_| String::new());
    }
    // Before anything else is done: GARM's standard input ends with the request.
    let request = match environment.command {
        GarmCommand::CreateInstance => Some(bootstrap::read(std::io::stdin().lock())?),
        _ => None,
    };
    let service = ProviderService::new(settings.service_options(options)?, settings.timeout(), parent)?;
    if let Some(warning) = service.warning() {
        note(&format!("warning: {warning}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| GarmFailure::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        match (environment.command, request) {
            (GarmCommand::CreateInstance, Some(request)) => {
                create::run(&environment, request, &settings, &service).await
            }
            (GarmCommand::ListInstances, _) => list::run(&environment, &service).await,
            (GarmCommand::GetInstance, _) => list::get(&environment, &service).await,
            (GarmCommand::StartInstance, _) => list::get(&environment, &service).await.map(|_| String::new()),
            (GarmCommand::DeleteInstance, _) => delete::run(&environment, &service).await.map(|()| String::new()),
            (GarmCommand::RemoveAllInstances, _) => delete::all(&environment, &service).await.map(|()| String::new()),
            (command, _) => Err(GarmFailure::Failed(format!("{command} needs no service"))),
        }
    })
}

/// GARM parses all of standard output, so nothing else is written to it.
fn write_answer(answer: &str) -> u8 {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(answer.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(error) => {
            note(&format!("cannot write the answer: {error}"));
            1
        }
    }
}

/// Errors are ignored: standard error may be closed.
fn note(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
