//! `mayfly serve`: configuration, logging, signals. `app` wires the rest.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{exit, failure::CommandFailure, output};
use crate::{
    app,
    config::{self, Config, Overrides},
    platform::process,
    telemetry,
};

/// Run the service
///
/// Works without any configuration: keeps all its files in the data directory and listens on 127.0.0.1:8470. The
/// first start writes an admin token to admin.token in the data directory, where the other commands find it.
///
/// Every setting can be given in mayfly.toml in the data directory, as an environment variable
/// (MAYFLY_SERVER__LISTEN), or with --set. docs/configuration.md lists all settings.
///
/// SIGTERM or Ctrl-C stops the service and leaves its vms running; the next start manages them again. SIGHUP is ignored.
#[derive(Args)]
pub(super) struct Serve {
    /// Address and port of the admin API; the same as --set server.listen=ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Override a setting, for example log.format=json; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    settings: Vec<(String, String)>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Print the reference of all settings as Markdown
    #[arg(long, hide = true)]
    print_config_docs: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

pub(super) fn run(args: Serve, data_dir: Option<PathBuf>) -> Result<u8, CommandFailure> {
    if args.print_config_docs {
        output::bytes(config::docs::markdown().as_bytes())?;
        return Ok(exit::OK);
    }
    // Files of this process and its child processes are only for its own user: database, logs, disks, sockets.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut overrides: Overrides = args.settings;
    overrides.extend(args.listen.map(|address| ("server.listen".to_owned(), address)));
    let config =
        Config::load(data_dir, overrides).map_err(|error| CommandFailure::Usage(format!("configuration: {error}")))?;
    if args.check {
        runtime()?.block_on(app::check(&config)).map_err(|error| CommandFailure::Usage(error.to_string()))?;
        output::note(&format!("the configuration is usable; data directory {}", config.data_dir.display()));
        return Ok(exit::OK);
    }
    let own_path = std::env::current_exe().map_err(|error| {
        CommandFailure::Other(format!("cannot start: this program's own path is not known: {error}"))
    })?;
    process::set_supervisor(&own_path);
    telemetry::start_logging(&config.log).map_err(|error| CommandFailure::Usage(error.to_string()))?;
    telemetry::start_metrics();
    if let Err(error) = process::disable_core_dumps() {
        tracing::warn!(%error, "cannot disable core dumps, which would hold secrets");
    }
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        watch_signals(shutdown.clone())
            .map_err(|error| CommandFailure::Other(format!("cannot watch for signals: {error}")))?;
        // The exit code tells service managers whether starting again can help.
        app::serve(config, shutdown).await.map_err(|error| match error.passes() {
            true => CommandFailure::Other(error.to_string()),
            false => CommandFailure::Usage(error.to_string()),
        })
    });
    // The remaining tasks must not keep the process alive.
    runtime.shutdown_background();
    served.map(|()| exit::OK)
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandFailure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| CommandFailure::Other(format!("cannot start: {error}")))
}

/// The first signal starts an orderly shutdown; the second one ends the process at once.
fn watch_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Ends a process that does not listen for it, as the end of its terminal does.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!(
                "SIGHUP is ignored: the configuration is read at the start; restart the service to change it"
            );
        }
    });
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        shutdown.cancel();
        tracing::info!(signal = name, "shutting down; vms keep running");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: exiting at once");
        std::process::exit(i32::from(exit::FAILURE));
    });
    Ok(())
}
