//! `mayfly guest-hypervisor FILE`: runs one hypervisor with a tap, to its end. See `crate::drivers::cloud_hypervisor::supervisor`.

use std::path::Path;

use super::exit;

#[cfg(target_os = "linux")]
pub(super) fn run(file: &Path) -> u8 {
    use crate::telemetry::{self, LogSection};

    if let Err(error) = telemetry::start_logging(&LogSection::default()) {
        eprintln!("mayfly guest-hypervisor: {error}");
    }
    match start(file) {
        Ok(()) => exit::OK,
        Err(error) => {
            eprintln!("mayfly guest-hypervisor: {error}");
            exit::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn run(_: &Path) -> u8 {
    eprintln!("mayfly guest-hypervisor: taps are used on Linux only");
    exit::FAILURE
}

#[cfg(target_os = "linux")]
fn start(file: &Path) -> Result<(), String> {
    use crate::{
        drivers::cloud_hypervisor::{
            namespace,
            supervisor::{self, SupervisorSpec},
        },
        gateway::tap::TapLink,
        platform::files,
    };

    let what = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", file.display());
    let text = std::fs::read(file).map_err(|error| what(&error))?;
    let spec: SupervisorSpec = serde_json::from_slice(&text).map_err(|error| what(&error))?;
    let _lock = files::take_lock(&spec.lock).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => format!("another process holds {}", spec.lock.display()),
        _ => format!("cannot lock {}: {error}", spec.lock.display()),
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        namespace::make_tap().await.map_err(|error| format!("the tap cannot be made: {error}"))?;
        let link = TapLink::open(namespace::TAP, &spec.link)
            .map_err(|error| format!("cannot open the tap with {}: {error}", spec.link.display()))?;
        tokio::select! {
            ended = supervisor::run(&spec) => ended.map_err(|error| format!("the hypervisor cannot be run: {error}")),
            // The hypervisor is killed with this process.
            error = link.serve() => Err(format!("the tap failed: {error}")),
        }
    })
}
