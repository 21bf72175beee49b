//! The plugin of myshoes (`shoes-provider`): one process per call, which speaks gRPC over a Unix socket by the conventions of
//! go-plugin.
//!
//! myshoes repeats and kills at any time, so nothing is kept between two calls. What belongs together is found again by labels
//! of the vms: see `identity`. A host that is killed leaves its plugins running, so the process ends with its connection.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::client::ServiceOptions;

mod add;
mod call_time;
mod calls;
mod delete;
mod failure;
mod guest;
mod handshake;
mod identity;
mod log;
mod messages;
mod service;
mod settings;

use calls::PluginCalls;
pub use handshake::COOKIE_VARIABLE;
use handshake::PluginSocket;
use log::note;
pub use settings::PATH_VARIABLE;

/// The subcommand of `mayfly`.
pub const COMMAND_NAME: &str = "shoes-provider";
/// A copy of the program with this name is the plugin, without arguments.
pub const COPY_NAME: &str = "shoes-mayfly";

/// A host that has started this process connects at once.
const FIRST_CONNECTION: Duration = Duration::from_secs(60);
/// The answer to `Shutdown` may still be on its way. Each call of the host pays for this.
const LAST_ANSWER: Duration = Duration::from_millis(50);
/// After `Shutdown`, for what has to be taken back: the host kills this process after two seconds.
const LAST_WORK: Duration = Duration::from_millis(1500);

/// Serves one host until it is done. The exit code.
pub fn run(options: ServiceOptions, config: Option<PathBuf>) -> u8 {
    let config = config.filter(|path| !path.as_os_str().is_empty());
    let result = handshake::check(|name| std::env::var_os(name)).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let served = runtime.block_on(serve(PluginCalls::new(options, config)));
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        served.map_err(|error| format!("cannot serve the host: {error}"))
    });
    match result {
        Ok(()) => 0,
        Err(text) => {
            note("ERROR", &text);
            1
        }
    }
}

async fn serve(calls: PluginCalls) -> io::Result<()> {
    // A terminal sends it to the host and to this process; the host decides when this process ends.
    let _ignored = signal(SignalKind::interrupt())?;
    let socket = PluginSocket::bind(std::env::var_os("PLUGIN_UNIX_SOCKET_DIR"))?;
    socket.announce()?;
    let Ok(accepted) = timeout(FIRST_CONNECTION, socket.listener.accept()).await else {
        return Err(io::Error::other("no host has connected"));
    };
    let (stream, _) = accepted?;
    // There is one connection, and a process that is killed later leaves no file.
    drop(socket);
    serve_host(stream, Arc::new(calls)).await;
    Ok(())
}

async fn serve_host(stream: UnixStream, calls: Arc<PluginCalls>) {
    let answering = Arc::clone(&calls);
    let connection = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service_fn(move |request| Arc::clone(&answering).answer(request)));
    {
        tokio::pin!(connection);
        tokio::select! {
            // However it ended, the host is gone.
            _ = &mut connection => {}
            () = calls.shutdown.cancelled() => {
                let _ = timeout(LAST_ANSWER, &mut connection).await;
            }
        }
    }
    calls.work.close();
    if calls.shutdown.is_cancelled() {
        let _ = timeout(LAST_WORK, calls.work.wait()).await;
    } else {
        calls.work.wait().await;
    }
}
