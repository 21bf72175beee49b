//! Plays `cloud-hypervisor` on machines without a usable KVM, for tests: the same options, REST API, event monitor, messages and exit
//! codes as version 54, the ugly parts included; `tests/it/drivers/cloud_hypervisor/compared` has a recording of the program, to which
//! this double is held. Its guests are real: they run under QEMU, on the tap that it is given.
//!
//! It shares no code with the service, so that the two cannot share a mistake. `control.rs` says how a test orders faults, in a file
//! beside the program.
//!
//! Not simulated: hot-plug, snapshots, migration, firmware, `virtio-device` events.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod api;
mod args;
mod config;
mod control;
mod events;
mod guest;
mod image;
mod vmm;

use std::{os::unix::fs::PermissionsExt as _, process::ExitCode, sync::Arc};

use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    args::{Options, Refusal},
    control::Control,
    events::Monitor,
    vmm::{Exit, Vmm},
};

/// The chain of errors, outermost first.
type Chain = Vec<String>;

fn main() -> ExitCode {
    let control = Control::read();
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let options = match args::parse(&args) {
        Ok(Some(options)) => options,
        Ok(None) => {
            let version = format!("cloud-hypervisor {}\nMigration Protocol Versions: 0\n", control.version());
            let printed = std::io::Write::write_all(&mut std::io::stdout(), version.as_bytes());
            return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Err(Refusal::Usage(usage)) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
        Err(Refusal::Chain(chain)) => return failed(&chain),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&[error.to_string()]),
    };
    let ended = runtime.block_on(run(options, control));
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(chain) => failed(&chain),
    }
}

async fn run(options: Options, control: Control) -> Result<(), Chain> {
    let one = |error: std::io::Error| vec![error.to_string()];
    if control.no_hypervisor {
        return Err(vec![
            "Failed to open hypervisor interface (is hypervisor interface available?)".to_owned(),
            "Failed to create the hypervisor".to_owned(),
            "no supported hypervisor".to_owned(),
        ]);
    }
    let events = Monitor::open(options.event_monitor.as_ref())
        .map_err(|error| vec!["Error doing event monitor I/O".to_owned(), error.to_string()])?;
    let events = Arc::new(events);
    let (exit, mut exits) = mpsc::unbounded_channel();
    events.event("vmm", "starting", None);
    if let Some(described) = &options.described {
        return guest::run_described(described).await.map_err(|chain| {
            let outer = ["Error booting VM", "The VM could not boot"].map(str::to_owned);
            outer.into_iter().chain(chain).collect()
        });
    }
    let Some(socket) = options.api_socket else { return Err(vec!["No API socket and no payload".to_owned()]) };
    // A stale one is replaced; a live one is refused.
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        let text = format!("API socket {socket:?} is already in use by another running instance");
        return Err(vec!["Failed to start the VMM thread".to_owned(), text]);
    }
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(|error| {
        let texts = ["Failed to start the VMM thread", "Error creation API server's socket"].map(str::to_owned);
        texts.into_iter().chain([error.to_string()]).collect::<Chain>()
    })?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o700)).map_err(one)?;
    let vmm = Arc::new(tokio::sync::Mutex::new(Vmm::new(events, control.clone(), exit)));
    let serving = tokio::spawn(api::serve(listener, vmm.clone(), control));
    let mut term = signal(SignalKind::terminate()).map_err(one)?;
    let mut int = signal(SignalKind::interrupt()).map_err(one)?;
    loop {
        tokio::select! {
            exit = exits.recv() => match exit {
                Some(Exit::Requested) => break,
                Some(Exit::GuestShutdown) => {
                    let _ = vmm.lock().await.shut_down_vmm().await;
                    break;
                }
                Some(Exit::GuestReset) => {
                    vmm.lock().await.reboot().await?;
                }
                None => break,
            },
            _ = term.recv() => {
                let _ = vmm.lock().await.shut_down_vmm().await;
                break;
            }
            _ = int.recv() => {
                let _ = vmm.lock().await.shut_down_vmm().await;
                break;
            }
        }
    }
    // The answer to the request that ended it is sent first.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), api::idle(&vmm)).await;
    serving.abort();
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// As the program prints errors since version 47.
fn failed(chain: &[String]) -> ExitCode {
    match chain {
        [only] => eprintln!("Error: Cloud Hypervisor exited with the following error:\n  {only}"),
        chain => {
            eprintln!("Error: Cloud Hypervisor exited with the following chain of errors:");
            for (depth, text) in chain.iter().enumerate() {
                eprintln!("  {depth}: {text}");
            }
        }
    }
    ExitCode::FAILURE
}
