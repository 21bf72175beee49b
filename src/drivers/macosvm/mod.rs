//! The macosvm driver: macOS guests on Apple Silicon.
//!
//! One `macosvm` per instance, in its own session so that it outlives the service. There is no daemon: the process
//! *is* the VM, and its pid and start time are recorded before it runs. macosvm validates nothing, lists no VMs and
//! takes no commands for a running one. So the driver validates the description before a start and finds the guest's
//! address in the host's tables. Only the error output shows whether a guest runs and how it ended, because exit
//! status 0 means a power-off, a crash, or a refused configuration.
//!
//! ```text
//! clone        makes an instance: clones by copy-on-write, and one rename
//!   description  vm.json, written and checked
//! run          starts a VM, and confirms that its guest runs
//! end          stops a VM, and finds out how it ended
//!   messages   interprets macosvm's error output
//! list         foreign guests
//! version      what the installed version supports
//! ```
//!
//! macosvm cannot ask its guest to power down: only a program in the guest can do that. Ending the process cuts the
//! guest's power.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;

use self::{description::VmDescription, paths::MacosvmPaths, settings::network_support, version::MacosvmVersion};
use super::{
    Capabilities, Driver, DriverError, DriverProbe, ErrorKind, InstanceSpec, Listed, Observation, Result, failure,
    failure::shown,
    guest_address::{GuestLeases, by_arp, by_scan},
    instances,
    nat_scan::{self, NatScan},
    process::{self, Process},
    record::{self, RecordedProcesses},
    run_output, stage_dir,
};
use crate::{
    domain::{Arch, Code, GuestOs, InstanceName, endpoint::Endpoint, event::GoneCause, mac::Mac},
    platform::{
        clock, files,
        process::{Command, find_program},
    },
};

mod clone;
mod description;
mod end;
mod list;
mod messages;
mod paths;
mod run;
mod section;
mod settings;
pub mod version;

pub use list::{is_guest, programs};
pub use section::{IdentityChoice, MacosvmNetworkKind, MacosvmSection};
pub use settings::{MacosvmNetwork, Settings};

const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Macosvm {
    settings: Settings,
    programs: Vec<String>,
    scan: NatScan,
}

impl Macosvm {
    pub const NAME: &str = "macosvm";

    /// Creates the directory of instances. `probe` finds out whether macosvm is installed.
    pub fn new(mut settings: Settings) -> Result<Self> {
        settings.check()?;
        // Resolves links, because Apple's framework does not work with paths through them.
        settings.instances_dir = files::ensure_private_dir(&settings.instances_dir)
            .and_then(|()| settings.instances_dir.canonicalize())
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the directory of instances cannot be made"))?;
        settings.check()?;
        let programs = list::programs(settings.binary.as_deref());
        Ok(Self { settings, programs, scan: NatScan::default() })
    }

    fn paths(&self, name: &InstanceName) -> MacosvmPaths {
        MacosvmPaths::new(&self.settings.instances_dir, name)
    }

    fn binary(&self) -> Result<PathBuf> {
        let program = self.settings.binary.clone().unwrap_or_else(|| Self::NAME.into());
        find_program(&program).ok_or_else(|| {
            let summary = format!(
                "there is no {} on this host: install it from https://github.com/s-u/macosvm/releases, or set \
                 drivers.macosvm.binary",
                program.display()
            );
            DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
        })
    }

    /// Not cached, because another version may be installed while the service runs.
    async fn version(&self) -> Result<MacosvmVersion> {
        let refuse = |summary| DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary);
        let output = Command::new(self.binary()?, VERSION_TIMEOUT)
            .arg("--version")
            .run()
            .await
            .map_err(|error| failure::command(error, Code::HostUnavailable))?;
        if !output.status.success() {
            let said = shown(output.stderr_tail.as_bytes());
            return Err(refuse(format!("`macosvm --version` ended with {}; it said: {said}", output.status)));
        }
        version::usable(&output.stdout).map_err(refuse)
    }

    /// The process of this instance. macosvm locks nothing, so the record is the only evidence.
    async fn process(&self, paths: &MacosvmPaths) -> Result<Option<Process>> {
        let recorded = record::recorded_in(&paths.dir).await;
        let recorded = recorded.map_err(|error| failure::unseen(error, "the records of the instance"))?;
        Ok(recorded.running.into_iter().next())
    }

    fn supported(&self, spec: &InstanceSpec) -> Result<()> {
        let refuse = |summary: &str| Err(DriverError::new(ErrorKind::Permanent, Code::DriverUnsupported, summary));
        if spec.os != GuestOs::Macos {
            return refuse("the driver macosvm runs macOS guests only");
        }
        if spec.arch != Arch::Aarch64 {
            return refuse("macosvm runs macOS guests on Apple Silicon only");
        }
        if spec.seed.is_some() {
            return refuse("the driver macosvm supports no seed volume: use the provisioning `ssh`");
        }
        Ok(())
    }

    /// The guest's leases of the host's DHCP server.
    fn leases(&self, paths: &MacosvmPaths, mac: Mac) -> GuestLeases<'_> {
        GuestLeases { file: &self.settings.lease_file, before: paths.leases_before(), mac }
    }

    /// The address of the guest's SSH port.
    async fn endpoint(&self, paths: &MacosvmPaths) -> Result<Option<Endpoint>> {
        let mac = run::read_description(paths)?.mac().map_err(|why| {
            DriverError::new(ErrorKind::Retry, Code::HostUnavailable, format!("the VM's description {why}"))
        })?;
        let ip = match self.settings.network {
            MacosvmNetwork::Nat => match (self.leases(paths, mac).address()?, self.settings.scan) {
                (None, Some(gateway)) if self.scan_is_due(paths) => {
                    by_scan(&self.scan, (gateway, self.settings.ssh_port), &self.settings.arp, mac).await?
                }
                (found, _) => found,
            },
            // A bridged guest gets its lease from a server of the local network.
            MacosvmNetwork::Bridged { .. } => by_arp(&self.settings.arp, mac).await?,
        };
        Ok(ip.map(|ip| Endpoint::address(ip.to_string(), self.settings.ssh_port)))
    }

    fn scan_is_due(&self, paths: &MacosvmPaths) -> bool {
        let started = paths.started().metadata().and_then(|record| record.modified());
        started.is_ok_and(|started| nat_scan::is_due(clock::age(started), self.settings.scan_after))
    }

    /// One instance of ours. An instance whose records cannot be read counts as running.
    fn own(&self, name: &InstanceName, recorded: &io::Result<RecordedProcesses>) -> Listed {
        let running = match recorded {
            Ok(recorded) => !recorded.running.is_empty(),
            Err(error) => {
                tracing::debug!(instance = %name, %error, "cannot inspect an instance; it counts as running");
                true
            }
        };
        let description = run::read_description(&self.paths(name));
        // Without a description nothing can run.
        let (cpus, memory_mib) = description.map(|d: VmDescription| (d.cpus, d.memory_mib())).unwrap_or_default();
        Listed { name: name.to_string(), ours: true, running, os: GuestOs::Macos, cpus, memory_mib }
    }

    /// Own instances, and foreign guests of macosvm.
    async fn all_running(&self) -> Result<Vec<Listed>> {
        // Read before the records: each process of ours in this list is recorded by then.
        let processes = match self.settings.count_foreign {
            true => process::all().await.map_err(|error| failure::unseen(error, "the host's processes"))?,
            false => Vec::new(),
        };
        let (mut listed, mut own_pids) = (Vec::new(), Vec::new());
        for name in instances::names(&self.settings.instances_dir).await? {
            let recorded = record::recorded_in(&self.paths(&name).dir).await;
            listed.push(self.own(&name, &recorded));
            own_pids.extend(recorded.into_iter().flat_map(|recorded| recorded.running).map(|process| process.pid()));
        }
        for (pid, guest) in list::foreign(&processes, &self.programs, |pid| own_pids.contains(&pid)) {
            // One of ours that ended since the processes were read has no running record, and is not foreign.
            if !matches!(Process::find(pid).await, Ok(None)) {
                listed.push(guest);
            }
        }
        Ok(listed)
    }
}

#[async_trait]
impl Driver for Macosvm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guests: vec![GuestOs::Macos],
            graceful_stop: false,
            console: false,
            seed: false,
            agent: false,
            network: network_support(),
        }
    }

    async fn probe(&self, _fresh: bool) -> Result<DriverProbe> {
        let version = self.version().await?;
        let note = (!version.has_pid_file()).then(|| {
            format!(
                "macosvm {version} flushes guests' writes to the host's disk; version 0.2-3 and later can omit that"
            )
        });
        Ok(DriverProbe {
            version: format!("macosvm {version}"),
            arch: Arch::Aarch64,
            accelerator: "vz".to_owned(),
            note,
            unconfined: None,
        })
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        let config = clone::template(spec).await?;
        let (name, paths) = (&spec.name, self.paths(&spec.name));
        if self.process(&paths).await?.is_some() {
            return Ok(());
        }
        let failed = |error| failure::io(error, Code::CloneFailed, "the instance cannot be prepared");
        stage_dir::clear(&self.settings.staging(), name).map_err(failed)?;
        // An interrupted attempt or an earlier run may have left a clone. A new clone is cheap, so nothing is reused.
        self.remove(name).await?;
        clone::make(&self.settings, spec, config, &paths).await
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        self.run(spec).await
    }

    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        self.halt(name, grace).await
    }

    async fn destroy(&self, name: &InstanceName) -> Result<()> {
        // Clones under construction first, because they may still become an instance.
        stage_dir::clear(&self.settings.staging(), name)
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the instance's clones cannot be removed"))?;
        self.remove(name).await?;
        instances::confirm_absence(name, self.inspect(name).await?)
    }

    async fn inspect(&self, name: &InstanceName) -> Result<Observation> {
        let paths = self.paths(name);
        if self.process(&paths).await?.is_some() {
            let (ssh, ssh_unseen) = match self.endpoint(&paths).await {
                Ok(ssh) => (ssh, None),
                Err(error) => (None, Some((error.code, error.summary))),
            };
            return Ok(Observation::Running { ssh, agent: None, ssh_unseen });
        }
        if !instances::exists(&paths.dir)? {
            return Ok(Observation::Absent);
        }
        Ok(match paths.missing().map_err(|error| failure::unseen(error, "the instance"))? {
            None => Observation::Stopped,
            Some(file) => Observation::Broken { detail: format!("its directory is there and its {file} is not") },
        })
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let paths = self.paths(name);
        let output = [paths.out(), paths.err()];
        while let Some(process) = self.process(&paths).await? {
            tokio::select! {
                () = process.ended() => {}
                never = run_output::keep_bounded(Self::NAME, &output) => match never {},
            }
        }
        self.cause(name, &paths).await
    }

    async fn reached(&self, name: &InstanceName) {
        // Without this record, an old message about a failed start may hide the reason of the guest's end.
        if let Err(error) = std::fs::write(self.paths(name).reached(), b"") {
            tracing::warn!(instance = %name, %error, "cannot record that the guest was reached");
        }
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        self.all_running().await
    }

    /// The guest has no serial line: macOS writes nothing to it.
    fn console_log(&self, _name: &InstanceName) -> Option<PathBuf> {
        None
    }

    fn hypervisor_logs(&self, name: &InstanceName) -> Vec<PathBuf> {
        let paths = self.paths(name);
        vec![paths.out(), paths.err()]
    }
}
