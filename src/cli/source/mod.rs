//! `mayfly source …`: needs the configuration but no service. It asks the CI server and changes nothing there, except that a
//! Gitea makes the registration token of the scope, if there is none, and that the stack is registered at Buildkite.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    failure::CommandFailure,
    github::{self, check::examine},
    vm::parse_scope,
};
use crate::{
    domain::{Scope, SourceKind},
    sources::{buildkite::BuildkiteOptions, gitea::GiteaOptions},
};

mod buildkite;
mod gitea;

#[derive(Subcommand)]
pub(super) enum SourceCommand {
    Check(SourceCheckArgs),
}

/// Check whether a source of jobs can be used with the configured credentials, and show what is missing
///
/// Tests the section `[sources.<name>]` of the configuration: whether the credentials are safe and accepted, whether jobs are
/// visible, and whether runners may be registered. Needs neither a running service nor a Mayfly token. Run it as the user
/// that the service runs as, and with the same --data-dir. `mayfly github check` does the same for `[github]`.
///
/// Exit code 0: nothing failed (there may be warnings). 1: something failed. 2: the configuration is not usable. 7:
/// no check failed, but at least one was not possible.
#[derive(Args)]
pub(super) struct SourceCheckArgs {
    /// Name of the source in the configuration
    name: String,
    /// Where runners will be registered: owner/name, an organisation, enterprises/slug (GitHub), or * for the whole server (Gitea). Not needed for Buildkite
    #[arg(long, value_name = "SCOPE", value_parser = parse_scope)]
    scope: Option<Scope>,
}

pub(super) fn run(command: SourceCommand, data_dir: Option<PathBuf>, json: bool) -> Result<u8, CommandFailure> {
    let SourceCommand::Check(SourceCheckArgs { name, scope }) = command;
    let usage = |why: String| CommandFailure::Usage(format!("configuration: {why}"));
    let config = github::configuration(data_dir).map_err(usage)?;
    let Some(section) = config.sources.get(&name) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let known =
            if known.is_empty() { "there are none".to_owned() } else { format!("there are: {}", known.join(", ")) };
        return Err(usage(format!("no source has the name {name}; {known}. `mayfly github check` checks `[github]`")));
    };
    let (report, server) = match section.kind.map(|kind| kind.0) {
        Some(SourceKind::GitHub) => {
            let section = section.github();
            let options = section.options().map_err(usage)?;
            let server = options.server.name();
            (github::block_on(examine(options, section.source(|_| None), scope.as_ref()))?, server)
        }
        Some(SourceKind::Buildkite) => {
            let queue = section.buildkite_queue().map_err(|(setting, why)| usage(format!("`{setting}`: {why}")))?;
            let server = queue.name();
            let token_file = section.token_file.clone().unwrap_or_default();
            let options =
                BuildkiteOptions { ca_file: section.ca_file.clone(), ..BuildkiteOptions::new(queue, token_file) };
            (github::block_on(buildkite::examine(options))?, server)
        }
        Some(SourceKind::Gitea) | None => {
            let server = section.gitea_server().map_err(usage)?;
            let token_file = section.token_file.clone().unwrap_or_default();
            let options =
                GiteaOptions { ca_file: section.ca_file.clone(), ..GiteaOptions::new(server.clone(), token_file) };
            (github::block_on(gitea::examine(options, section, scope.as_ref()))?, server.name())
        }
    };
    github::print(&report, &server, scope.as_ref(), json)
}
