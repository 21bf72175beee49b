//! Arguments for the settings of a template of any origin, and for the test of a new version.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    super::{
        failure::CommandFailure,
        text::{NETWORK_MODES, parse_seconds},
    },
    ready::Ready,
};

#[derive(Args, Default)]
pub(super) struct Settings {
    /// Default number of cores of vms [default: that of the image or Tart VM, else 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// Default memory of vms, in MiB [default: that of the image or Tart VM, else 2048]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    pub memory_mib: Option<u32>,
    /// How guests are provisioned: by a NoCloud volume read at boot, over SSH, or through Tart's guest agent
    /// [default: agent for Tart, else seed]
    #[arg(long, value_parser = ["seed", "ssh", "agent"])]
    pub handover: Option<String>,
    /// User that runs the runner in the guest, also for the SSH login [default: admin for Tart, else runner]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// What guests may reach: the guest API only, the internet, or everything that the host reaches [default: the
    /// strictest that the host can enforce and in which a vm's runner can work]
    #[arg(long, value_name = "MODE", value_parser = NETWORK_MODES)]
    pub network: Option<String>,
    #[command(flatten)]
    pub ready: Ready,
    /// File with the private key for the SSH login
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Option<PathBuf>,
    /// File with the password for the SSH login, if there is no key; must be readable by its owner only
    #[arg(long, value_name = "FILE")]
    pub ssh_password_file: Option<PathBuf>,
}

impl Settings {
    /// In the API's form. Options that are not given are left to the service, which knows its host.
    pub fn put(self, body: &mut Map<String, Value>) {
        let path = |p: Option<PathBuf>| p.map(absolute);
        let fields = [
            ("cpus", self.cpus.map(Value::from)),
            ("memory_mib", self.memory_mib.map(Value::from)),
            ("handover", self.handover.map(Value::from)),
            ("user", self.user.map(Value::from)),
            ("network", self.network.map(Value::from)),
            ("ready", self.ready.value()),
            ("ssh_key", path(self.ssh_key)),
            ("ssh_password_file", path(self.ssh_password_file)),
        ];
        body.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
}

/// Absolute, because the service reads the files and has another working directory.
pub(super) fn absolute(path: PathBuf) -> Value {
    Value::from(std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned())
}

#[derive(Args)]
pub(super) struct Smoke {
    /// Script that must succeed in a vm of the new version before the name moves to it
    #[arg(long, value_name = "FILE")]
    smoke: Option<PathBuf>,
    /// Longest time for that script, as seconds or a duration such as 15m [default: 15m]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, requires = "smoke")]
    smoke_timeout: Option<u32>,
}

impl Smoke {
    pub fn put(self, body: &mut Map<String, Value>) -> Result<(), CommandFailure> {
        let Some(file) = self.smoke else { return Ok(()) };
        let command = std::fs::read_to_string(&file)
            .map_err(|error| CommandFailure::Usage(format!("--smoke: {}: {error}", file.display())))?;
        let mut canary = json!({ "command": command });
        if let Some(seconds) = self.smoke_timeout {
            canary["timeout_seconds"] = seconds.into();
        }
        body.insert("canary".to_owned(), canary);
        Ok(())
    }
}
