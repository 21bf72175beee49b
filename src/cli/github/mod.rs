//! `mayfly github …`: needs the configuration but no service. It queries GitHub and changes nothing there.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    doctor::{
        self,
        finding::{Report, Severity},
    },
    failure::CommandFailure,
    output,
};
use crate::{
    config::{self, Config},
    sources::github::Scope,
};

pub mod check;

#[derive(Subcommand)]
pub(super) enum GithubCommand {
    Check(GitHubCheckArgs),
}

/// Check whether GitHub can be used with the configured credentials, and show what is missing
///
/// Tests the credentials in the section `github` of the configuration: whether the key or token is safe and
/// accepted, which permissions it has, whether runners may be registered, and how much of the rate limit is left.
/// Needs neither a running service nor a Mayfly token, and changes nothing at GitHub. Run it as the user that the
/// service runs as, and with the same --data-dir.
///
/// Exit code 0: nothing failed (there may be warnings). 1: something failed. 2: the configuration is not usable. 7:
/// no check failed, but at least one was not possible.
#[derive(Args)]
#[group(multiple = false)]
pub(super) struct GitHubCheckArgs {
    /// Repository whose jobs will run here
    #[arg(long, value_name = "OWNER/NAME", value_parser = Scope::repository)]
    repo: Option<Scope>,
    /// Organisation whose jobs will run here
    #[arg(long, value_name = "NAME", value_parser = Scope::organization)]
    org: Option<Scope>,
    /// Enterprise whose jobs will run here
    #[arg(long, value_name = "NAME", value_parser = Scope::enterprise)]
    enterprise: Option<Scope>,
}

pub(super) fn run(command: GithubCommand, data_dir: Option<PathBuf>, json: bool) -> Result<u8, CommandFailure> {
    let GithubCommand::Check(args) = command;
    let usage = |why: String| CommandFailure::Usage(format!("configuration: {why}"));
    let config = configuration(data_dir).map_err(usage)?;
    let scope = args.repo.or(args.org).or(args.enterprise);
    let options = config.github.options().map_err(usage)?;
    let server = options.server.name();
    let source = config.github.source(|name| std::env::var(name).ok());
    let report = block_on(check::examine(options, source, scope.as_ref()))?;
    print(&report, &server, scope.as_ref(), json)
}

/// Runs checks, which need no service.
pub(super) fn block_on(examine: impl Future<Output = Report>) -> Result<Report, CommandFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandFailure::Other(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(examine))
}

/// Prints what was found, and returns the exit code.
pub(super) fn print(report: &Report, server: &str, scope: Option<&Scope>, json: bool) -> Result<u8, CommandFailure> {
    if json {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "server": server,
            "scope": scope.map(ToString::to_string),
            "counts": {
                "fail": report.count(Severity::Fail),
                "warn": report.count(Severity::Warn),
                "ok": report.count(Severity::Ok),
                "skip": report.count(Severity::Skip),
            },
            "complete": !report.is_incomplete(),
            "findings": report.findings,
        }))?;
    } else {
        doctor::print(report)?;
    }
    Ok(doctor::exit_code(report))
}

/// Read as by `serve`, but without creating any file.
pub(super) fn configuration(data_dir: Option<PathBuf>) -> Result<Config, String> {
    let data_dir = config::data_dir_or_default(data_dir).map_err(|error| error.to_string())?;
    let path = data_dir.join(config::FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(cause) => return Err(format!("cannot read {}: {cause}", path.display())),
    };
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Config::from_sources(data_dir, &text, env, Vec::new()).map_err(|error| error.to_string())
}
