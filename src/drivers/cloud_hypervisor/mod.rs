//! The driver for Cloud Hypervisor: Linux guests under KVM.
//!
//! Three processes per instance, in sessions of their own so that they outlive the service: the supervisor, its hypervisor, and the
//! gateway of the guest's network. Supervisor and hypervisor are in a user and network namespace of their own, which has a tap and
//! nothing else. All state of an instance is in its directory and its processes:
//!
//! ```text
//! <cloud-hypervisor>/mayfly-<vm id>/   0700; of a later attempt mayfly-<vm id>-<attempt>/
//!     disk.qcow2                the clone: an overlay on the template's disk
//!     seed.img                  0600, holds secrets; written at every start
//!     vm.json                   the guest's machine: the body of vm.create
//!     api.sock                  the hypervisor's REST API
//!     supervisor.json, .lock    what the supervisor is started with, its lock while it lives
//!     hypervisor.process        identity of the hypervisor's process: its pid and start time
//!     events.log                the hypervisor's events
//!     console.log               the guest's serial line
//!     hypervisor.log            standard error of supervisor and hypervisor
//!     started                   the guest was started: it is not started again
//!     stopped-by-host           Mayfly ended the hypervisor
//!     ended.json                how the hypervisor ended
//!     net.sock, gateway.…       the guest's network, see `drivers::gateway`
//! ```

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, time::timeout};

use self::{
    paths::VmmPaths,
    presence::{VmmPresence, presence},
    supervisor::VmmEnd,
};
use super::{
    Capabilities, Driver, DriverError, DriverProbe, ErrorKind, InstanceSpec, Listed, Observation, Result, failure,
    gateway, instances, last_resort, overlay,
    process::{self, Process},
};
use crate::{
    domain::{Arch, Code, GuestOs, InstanceName, endpoint::Endpoint, event::GoneCause},
    platform::{
        files::{self, ignore_not_found},
        process::{Command, find_program},
    },
};

pub mod api;
mod config;
mod events;
mod fault;
mod launch;
mod list;
pub mod namespace;
pub mod paths;
mod presence;
pub mod probe;
mod section;
mod settings;
pub mod supervisor;
pub mod version;

pub use section::CloudHypervisorSection;
pub use settings::Settings;

const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two presses of the power button.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A hypervisor that has not ended this long after `vmm.shutdown` hangs.
const QUIT: Duration = Duration::from_secs(3);
/// A supervisor that has not ended this long after its hypervisor hangs.
const RECORD: Duration = Duration::from_secs(2);

pub struct CloudHypervisor {
    settings: Settings,
    /// The result of this process's latest probe.
    probed: Mutex<Option<DriverProbe>>,
}

impl CloudHypervisor {
    pub const NAME: &str = "cloud-hypervisor";

    /// Creates the instances directory. `probe` finds out whether the hypervisor is installed.
    pub fn new(mut settings: Settings) -> Result<Self> {
        let dir = &settings.instances_dir;
        paths::check(dir)?;
        let made = files::ensure_private_dir(dir).and_then(|()| dir.canonicalize());
        settings.instances_dir =
            made.map_err(|error| failure::io(error, Code::HostUnavailable, "the instances directory cannot be made"))?;
        // Resolves links, because the sockets' paths are built from this path.
        paths::check(&settings.instances_dir)?;
        Ok(Self { settings, probed: Mutex::new(None) })
    }

    fn paths(&self, name: &InstanceName) -> VmmPaths {
        VmmPaths::new(&self.settings.instances_dir, name)
    }

    fn binary(&self) -> Result<PathBuf> {
        program(
            self.settings.binary.as_deref(),
            Self::NAME,
            "from https://github.com/cloud-hypervisor/cloud-hypervisor/releases",
        )
    }

    fn qemu_img(&self) -> Result<PathBuf> {
        program(
            self.settings.qemu_img.as_deref(),
            "qemu-img",
            "with `apt-get install --no-install-recommends qemu-utils`",
        )
    }

    async fn look(&self) -> Result<DriverProbe> {
        let unavailable = |summary: String| DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary);
        let arch = arch()?;
        let binary = self.binary()?;
        self.qemu_img()?;
        let output = Command::new(&binary, VERSION_TIMEOUT)
            .arg("--version")
            .run()
            .await
            .map_err(|error| failure::command(error, Code::HostUnavailable))?;
        let version = version::check(&output.stdout_text())
            .map_err(|why| unavailable(format!("{}: {why}", binary.display())).tail(output.stderr_tail))?;
        namespace::check().await.map_err(unavailable)?;
        probe::run(&binary, arch, &self.settings.instances_dir)
            .await
            .map_err(|why| unavailable(format!("Cloud Hypervisor is installed and runs no guest: {why}")))?;
        Ok(DriverProbe { version, arch, accelerator: "kvm".to_owned(), note: None, unconfined: None })
    }

    fn supported(spec: &InstanceSpec) -> Result<()> {
        let refuse = |code, summary: String| Err(DriverError::new(ErrorKind::Permanent, code, summary));
        if spec.os != GuestOs::Linux {
            return refuse(Code::DriverUnsupported, "Cloud Hypervisor runs Linux guests only".to_owned());
        }
        let arch = arch()?;
        if spec.arch != arch {
            let summary = format!("this host runs {} guests, not {}", arch.as_str(), spec.arch.as_str());
            return refuse(Code::DriverUnsupported, summary);
        }
        if spec.files.kernel.is_none() && spec.files.firmware.is_none() {
            let summary = "Cloud Hypervisor has no BIOS, so a template needs a kernel (`kernel`, `initramfs`, `cmdline`) or a \
                           firmware (`firmware`): `mayfly template add --help` says how to name them";
            return refuse(Code::TemplateInvalid, summary.to_owned());
        }
        Ok(())
    }
}

fn arch() -> Result<Arch> {
    Arch::of_this_host().ok_or_else(|| {
        DriverError::new(ErrorKind::Host, Code::HostUnavailable, "this host's processor is not one that Mayfly knows")
    })
}

fn program(configured: Option<&Path>, usual: &str, how: &str) -> Result<PathBuf> {
    let name = configured.unwrap_or(Path::new(usual));
    find_program(name).ok_or_else(|| {
        let summary = format!("there is no {} on this host: install it {how}", name.display());
        DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
    })
}

#[async_trait]
impl Driver for CloudHypervisor {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guests: vec![GuestOs::Linux],
            graceful_stop: true,
            console: true,
            seed: true,
            agent: false,
            network: self.settings.network.clone(),
        }
    }

    async fn probe(&self, fresh: bool) -> Result<DriverProbe> {
        // Held during a trial guest, so that concurrent calls wait for its result instead of starting one each.
        let mut probed = self.probed.lock().await;
        if !fresh && let Some(probe) = &*probed {
            return Ok(probe.clone());
        }
        let probe = self.look().await?;
        *probed = Some(probe.clone());
        Ok(probe)
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        Self::supported(spec)?;
        let qemu_img = self.qemu_img()?;
        let paths = self.paths(&spec.name);
        if presence::running(&paths, &spec.name).await?.is_some() {
            return Ok(());
        }
        instances::renew(&paths.dir).await?;
        overlay::clone(&qemu_img, &spec.files.disk, spec.disk_format, &paths.unfinished_disk(), &paths.disk()).await
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<()> {
        Self::supported(spec)?;
        let name = &spec.name;
        let paths = self.paths(name);
        let config = config::config(spec, &paths).ok_or_else(|| {
            let summary = "a path of the template is not valid UTF-8";
            DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary)
        })?;
        let program = &self.settings.program;
        let mut running = launch::wait_until_responsive(&paths, name).await?.is_some();
        if running && launch::has_refused(&paths).await? {
            // Left by a start that was interrupted.
            end_without_guest(&paths, name).await?;
            running = false;
        }
        if !running {
            if instances::exists(&paths.started())? {
                return Ok(());
            }
            if !instances::exists(&paths.disk())? {
                let summary = format!("{name} has no disk: it was never created, or its disk was removed");
                return Err(DriverError::new(ErrorKind::Permanent, Code::BootFailed, summary));
            }
            let binary = self.binary()?;
            prepare(spec, &config, &paths, self.settings.console_limit).await?;
            launch::launch(program, &binary, &paths, name).await?;
        }
        let booted = launch::boot(program, &config, &paths, name).await;
        if booted.is_err() && !instances::exists(&paths.started())? {
            end_without_guest(&paths, name).await?;
        }
        booted
    }

    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        let paths = self.paths(name);
        // An interrupted start may have left more than one process.
        while let Some(process) = presence::running(&paths, name).await? {
            if !grace.is_zero() && timeout(grace, ask_to_power_down(&paths, &process)).await.is_ok() {
                continue;
            }
            force(&paths, name, &process).await?;
        }
        Ok(())
    }

    async fn destroy(&self, name: &InstanceName) -> Result<()> {
        self.stop(name, Duration::ZERO).await?;
        let paths = self.paths(name);
        gateway::end(&paths.gateway(), name).await?;
        instances::remove(&paths.dir).await?;
        instances::confirm_absence(name, self.inspect(name).await?)
    }

    async fn inspect(&self, name: &InstanceName) -> Result<Observation> {
        let paths = self.paths(name);
        let broken = |detail: String| Ok(Observation::Broken { detail });
        match presence(&paths).await? {
            VmmPresence::Stranger(pid) => broken(format!("process {pid} of another user holds its lock")),
            VmmPresence::Ours(_) => {
                let ssh = Some(Endpoint::Socket { socket: paths.gateway().ssh() });
                Ok(Observation::Running { ssh, agent: None, ssh_unseen: None })
            }
            VmmPresence::Nothing if !instances::exists(&paths.dir)? => Ok(Observation::Absent),
            VmmPresence::Nothing if instances::exists(&paths.disk())? => Ok(Observation::Stopped),
            VmmPresence::Nothing => {
                broken("its directory is there and its disk is not: cloning was interrupted".to_owned())
            }
        }
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let paths = self.paths(name);
        let network = paths.gateway();
        while let Some(process) = presence::running(&paths, name).await? {
            tokio::select! {
                () = process.ended() => {}
                never = gateway::keep(&self.settings.program, &network, name) => match never {},
            }
        }
        recorded_cause(&paths)
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let unseen = |error| failure::unseen(error, "the processes of this host");
        let dir = &self.settings.instances_dir;
        let names = instances::names(dir).await?;
        let processes = process::all().await.map_err(unseen)?;
        let mut listed = list::own(dir, names, &processes).await.map_err(unseen)?;
        if self.settings.count_foreign {
            listed.extend(list::foreign(dir, &processes).await.map_err(unseen)?);
        }
        Ok(listed)
    }

    fn console_log(&self, name: &InstanceName) -> Option<PathBuf> {
        Some(self.paths(name).console())
    }

    fn hypervisor_logs(&self, name: &InstanceName) -> Vec<PathBuf> {
        let paths = self.paths(name);
        vec![paths.messages(), paths.gateway().log()]
    }
}

/// Writes what the hypervisor and the gateway are started with.
async fn prepare(spec: &InstanceSpec, config: &config::VmConfig, paths: &VmmPaths, console_limit: u64) -> Result<()> {
    let config = serde_json::to_vec(config).map_err(std::io::Error::other);
    config
        .and_then(|config| files::replace_unsynced(&paths.config(), &config))
        .map_err(|error| failure::io(error, Code::BootFailed, "the guest's machine cannot be described"))?;
    instances::write_seed(paths.seed(), spec.seed.as_ref()).await?;
    gateway::prepare(&spec.network, paths.log_limits(console_limit), &paths.gateway())
}

/// Returns when the process has ended. A guest that is still booting ignores the first press of its power button.
async fn ask_to_power_down(paths: &VmmPaths, process: &Process) {
    loop {
        if let Err(error) = api::power_button(&paths.api()).await {
            tracing::debug!(%error, pid = process.pid(), "cannot ask the guest to power down");
        }
        if timeout(ASK_AGAIN, process.ended()).await.is_ok() {
            return;
        }
    }
}

/// Ends a hypervisor that may not cooperate. Returns when it has ended.
async fn force(paths: &VmmPaths, name: &InstanceName, process: &Process) -> Result<()> {
    if let Err(error) = files::replace_unsynced(&paths.stopped_by_host(), b"") {
        // The directory may be gone. Only the cause of the end is lost.
        tracing::debug!(%error, instance = %name, "cannot record that the guest is ended");
    }
    match api::shut_down(&paths.api()).await {
        Ok(()) if timeout(QUIT, process.ended()).await.is_ok() => return Ok(()),
        Ok(()) => tracing::warn!(instance = %name, "Cloud Hypervisor did not end; killing it"),
        Err(error) => tracing::warn!(%error, instance = %name, "Cloud Hypervisor does not answer; killing it"),
    }
    // Before its supervisor, which then records its end.
    if let Some(hypervisor) = presence::hypervisor(paths).await? {
        last_resort::kill(&hypervisor, name).await?;
        if timeout(RECORD, process.ended()).await.is_ok() {
            return Ok(());
        }
    }
    last_resort::kill(process, name).await
}

/// Ends a hypervisor that has no guest. Left alone, it would look like one that runs.
async fn end_without_guest(paths: &VmmPaths, name: &InstanceName) -> Result<()> {
    while let Some(process) = presence::running(paths, name).await? {
        force(paths, name, &process).await?;
    }
    for mark in [paths.started(), paths.stopped_by_host()] {
        let unmarked = ignore_not_found(tokio::fs::remove_file(mark).await);
        unmarked.map_err(|error| failure::unseen(error, "the instance"))?;
    }
    Ok(())
}

/// The cause of the latest end.
fn recorded_cause(paths: &VmmPaths) -> Result<GoneCause> {
    let unseen = |error| failure::unseen(error, "how the guest ended");
    let end: Option<VmmEnd> = match std::fs::read(paths.ended()) {
        // Written at once, or not at all.
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(unseen(error)),
    };
    let by_host = instances::exists(&paths.stopped_by_host())?;
    Ok(match end {
        Some(VmmEnd { cause: Some(cause), .. }) if !by_host => cause,
        _ if by_host => GoneCause::HostStop,
        Some(VmmEnd { code: Some(0), .. }) if !launch::words(paths).contains(fault::PROCESSOR_FAILED) => {
            GoneCause::GuestPowerOff
        }
        Some(VmmEnd { code: Some(_), .. }) => GoneCause::HypervisorError,
        Some(VmmEnd { signal: Some(SIGSYS), .. }) => GoneCause::HypervisorError,
        Some(VmmEnd { .. }) | None => GoneCause::Unknown,
    })
}

/// Its own filter of system calls has ended it.
const SIGSYS: i32 = 31;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VmId;

    #[test]
    fn the_cause_of_an_end_is_read_from_what_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let paths = VmmPaths::new(dir.path(), &VmId::mint().instance());
        std::fs::create_dir(&paths.dir).unwrap();
        let recorded = |end: VmmEnd| {
            std::fs::write(paths.ended(), serde_json::to_vec(&end).unwrap()).unwrap();
            recorded_cause(&paths).unwrap()
        };
        let end = |cause, code, signal| VmmEnd { cause, code, signal };
        assert_eq!(recorded_cause(&paths).unwrap(), GoneCause::Unknown);
        assert_eq!(recorded(end(None, Some(0), None)), GoneCause::GuestPowerOff);
        assert_eq!(recorded(end(None, Some(1), None)), GoneCause::HypervisorError);
        assert_eq!(recorded(end(None, None, Some(9))), GoneCause::Unknown);
        assert_eq!(recorded(end(None, None, Some(31))), GoneCause::HypervisorError);
        assert_eq!(recorded(end(Some(GoneCause::GuestReset), None, Some(9))), GoneCause::GuestReset);
        std::fs::write(paths.messages(), "VCPU generated error: VcpuRun(…)\n").unwrap();
        assert_eq!(recorded(end(None, Some(0), None)), GoneCause::HypervisorError);
        std::fs::write(paths.stopped_by_host(), "").unwrap();
        assert_eq!(recorded(end(None, Some(0), None)), GoneCause::HostStop);
        std::fs::write(paths.ended(), "{ half").unwrap();
        assert_eq!(recorded_cause(&paths).unwrap(), GoneCause::HostStop);
    }
}
