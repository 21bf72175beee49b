//! `mayfly guest-gateway FILE`: the gateway of one guest, until its hypervisor ends. See `crate::gateway`.

use std::path::Path;

use super::exit;
use crate::{
    domain::gateway::GatewaySpec,
    gateway,
    telemetry::{self, LogSection},
};

pub(super) fn run(file: &Path) -> u8 {
    if let Err(error) = telemetry::start_logging(&LogSection::default()) {
        eprintln!("mayfly guest-gateway: {error}");
    }
    match start(file) {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("the guest's gateway ended: {error}");
            exit::FAILURE
        }
    }
}

fn start(file: &Path) -> Result<(), String> {
    let what = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", file.display());
    let text = std::fs::read(file).map_err(|error| what(&error))?;
    let spec: GatewaySpec = serde_json::from_slice(&text).map_err(|error| what(&error))?;
    // One guest's traffic is no work for several threads.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(gateway::run(spec)).map_err(|error| error.to_string())
}
