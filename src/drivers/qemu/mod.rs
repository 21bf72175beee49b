//! The QEMU driver: the default on Linux (KVM, or emulation), and on macOS for Linux guests (HVF).
//!
//! Two processes per instance, in sessions of their own so that they outlive the service: QEMU, and the gateway of the
//! guest's network. All state of an instance is in its directory and its processes:
//!
//! ```text
//! <instances>/mayfly-<vm id>/   0700; of a later attempt mayfly-<vm id>-<attempt>/
//!     disk.qcow2                the clone: an overlay on the template's disk
//!     seed.img                  0600, holds secrets; written at every start
//!     qemu.pid                  locked by QEMU while it lives
//!     qemu.process              0600, identity of the process: its pid and start time
//!     net.sock                  the guest's network card; its gateway connects to it
//!     gateway.json, .lock, .log what the gateway is started with, its lock while it lives, its log
//!     ssh.sock                  the guest's SSH port, through the gateway
//!     qmp.sock                  commands, one short connection each
//!     live.sock                 events, for the listener that waits for a stop
//!     watch.sock, watch.log     events: the socket is opened once, so that QEMU writes them to the log
//!     console.log               the guest's serial line
//!     qemu.log                  QEMU's standard error
//!     started                   the guest was started: it is not started again
//! ```

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, time::timeout};

use self::{
    accelerator_trial::Trials,
    args::{Accelerator, MachineSpec},
    instance::QemuPresence,
    launch::Launch,
    paths::QemuPaths,
    stops::Condition,
};
use super::{
    Capabilities, Driver, DriverError, DriverProbe, ErrorKind, InstanceSpec, Listed, Observation, Result,
    process::{self, Process},
};
use crate::{
    domain::{Arch, Code, GuestOs, InstanceName, endpoint::Endpoint, event::GoneCause},
    drivers::{failure, gateway, instances, last_resort, overlay},
    platform::{
        files,
        process::{Command, find_program},
    },
};

pub mod accelerator_trial;
pub mod args;
mod fault;
mod instance;
mod launch;
pub mod list;
pub mod paths;
pub mod probe;
mod qmp;
pub mod sandbox;
mod section;
mod settings;
mod stops;
mod usernet;
pub mod version;

pub use section::{AcceleratorChoice, QemuSection};
pub use settings::Settings;

const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two presses of the power button.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A QEMU that has not ended this long after `quit` hangs.
const QUIT: Duration = Duration::from_secs(3);
/// Free space that a guest needs to be resumed after the host's disk was full, in bytes.
const ROOM_TO_RESUME: u64 = 64 << 20;

/// What a probe found.
struct ProbedMachine {
    machine: MachineSpec,
    probe: DriverProbe,
}

pub struct Qemu {
    settings: Settings,
    /// The result of this process's latest probe.
    probed: Mutex<Option<ProbedMachine>>,
    trials: Trials,
}

impl Qemu {
    pub const NAME: &str = "qemu";

    /// Creates the instances directory. `probe` finds out whether QEMU is installed.
    pub fn new(mut settings: Settings) -> Result<Self> {
        let dir = &settings.instances_dir;
        paths::check(dir)?;
        let made = files::ensure_private_dir(dir).and_then(|()| dir.canonicalize());
        settings.instances_dir =
            made.map_err(|error| failure::io(error, Code::HostUnavailable, "the instances directory cannot be made"))?;
        // Resolves links, because the sockets' paths are built from this path.
        paths::check(&settings.instances_dir)?;
        let trials = Trials::new(&settings.probe_file, settings.first_guest);
        Ok(Self { settings, probed: Mutex::new(None), trials })
    }

    fn paths(&self, name: &InstanceName) -> QemuPaths {
        QemuPaths::new(&self.settings.instances_dir, name)
    }

    fn arch(&self) -> Result<Arch> {
        self.settings.arch.or_else(Arch::of_this_host).ok_or_else(|| {
            DriverError::new(
                ErrorKind::Host,
                Code::HostUnavailable,
                "this host's processor is not one that Mayfly knows",
            )
        })
    }

    fn binary(&self) -> Result<PathBuf> {
        let arch = self.arch()?;
        if let Some(binary) = &self.settings.binary {
            return find_program(binary).ok_or_else(|| missing(&binary.display().to_string(), arch));
        }
        let usual = format!("qemu-system-{}", arch.as_str());
        find_program(Path::new(&usual)).ok_or_else(|| missing(&usual, arch))
    }

    fn qemu_img(&self) -> Result<PathBuf> {
        let program = self.settings.qemu_img.clone().unwrap_or_else(|| "qemu-img".into());
        match find_program(&program) {
            Some(program) => Ok(program),
            None => Err(missing(&program.display().to_string(), self.arch()?)),
        }
    }

    async fn machine(&self) -> Result<MachineSpec> {
        let mut probed = self.probed.lock().await;
        if let Some(ProbedMachine { machine, .. }) = &*probed {
            return Ok(*machine);
        }
        let found = self.look(false).await?;
        let machine = found.machine;
        *probed = Some(found);
        Ok(machine)
    }

    async fn look(&self, fresh: bool) -> Result<ProbedMachine> {
        let arch = self.arch()?;
        let binary = self.binary()?;
        self.qemu_img()?;
        let output = Command::new(&binary, VERSION_TIMEOUT)
            .arg("--version")
            .run()
            .await
            .map_err(|error| failure::command(error, Code::HostUnavailable))?;
        let version = output.stdout_text().lines().next().unwrap_or_default().trim().to_owned();
        if !output.status.success() || !version.contains("QEMU") {
            let summary = format!("{} does not say its version: it may be broken", binary.display());
            return Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary).tail(output.stderr_tail));
        }
        version::check(&version)
            .map_err(|too_old| DriverError::new(ErrorKind::Host, Code::HostUnavailable, too_old))?;
        let unconfined = sandbox::check(&binary).await.err();
        let sandbox = unconfined.is_none();
        let (accelerator, note) = match self.settings.accelerator {
            AcceleratorChoice::Kvm => (Accelerator::Kvm, None),
            AcceleratorChoice::Hvf => (Accelerator::Hvf, None),
            AcceleratorChoice::Tcg => {
                let note = probe::note("drivers.qemu.accelerator is set to tcg", "set it to auto");
                (Accelerator::Tcg, Some(note))
            }
            AcceleratorChoice::Auto => {
                let (found, note) = self.prove(&binary, &version, arch, sandbox, fresh).await?;
                match self.trials.begin(probe::ProbeInputs::now(&binary, &version, arch), found, fresh) {
                    Some(why) => (Accelerator::Tcg, Some(why)),
                    None => (found, note),
                }
            }
        };
        let probe = DriverProbe { version, arch, accelerator: accelerator.as_str().to_owned(), note, unconfined };
        Ok(ProbedMachine { machine: MachineSpec { arch, accelerator, sandbox }, probe })
    }

    async fn prove(
        &self,
        binary: &Path,
        version: &str,
        arch: Arch,
        sandbox: bool,
        fresh: bool,
    ) -> Result<(Accelerator, Option<String>)> {
        let basis = probe::ProbeInputs::now(binary, version, arch);
        if !fresh && let Some(known) = probe::recall(&self.settings.probe_file, &basis) {
            return Ok((known.accelerator, known.note));
        }
        let scratch = self.settings.probe_file.parent().unwrap_or(&self.settings.instances_dir);
        let (accelerator, note) = probe::find(binary, arch, sandbox, scratch).await.map_err(|why| {
            let summary = format!("QEMU is installed and runs no guest: {why}");
            DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
        })?;
        let remembered = probe::Remembered { basis, accelerator, note: note.clone() };
        probe::remember(&self.settings.probe_file, &remembered);
        Ok((accelerator, note))
    }

    fn supported(&self, spec: &InstanceSpec) -> Result<()> {
        let refuse = |summary| Err(DriverError::new(ErrorKind::Permanent, Code::DriverUnsupported, summary));
        if spec.os != GuestOs::Linux {
            return refuse("QEMU runs Linux guests only".to_owned());
        }
        let arch = self.arch()?;
        if spec.arch != arch {
            return refuse(format!("this host runs {} guests, not {}", arch.as_str(), spec.arch.as_str()));
        }
        Ok(())
    }

    /// The cause of a guest's end, after it is known whether its accelerator was on trial and is to blame.
    async fn laid_at(&self, paths: &QemuPaths, cause: GoneCause) -> GoneCause {
        let said = stops::words(paths);
        let blamed = match cause {
            GoneCause::HypervisorError => true,
            // QEMU ended with only a few words, or was killed.
            GoneCause::Unknown => said.as_deref().is_some_and(fault::is_accelerators),
            GoneCause::GuestPowerOff
            | GoneCause::GuestReset
            | GoneCause::GuestPanic
            | GoneCause::HostStop
            | GoneCause::GuestWatchdog
            | GoneCause::HostPause
            | GoneCause::HostDiskFull
            | GoneCause::AcceleratorFailed => false,
        };
        let why = || format!("its first guest ended with {:?}", said.as_deref().unwrap_or("no reason given"));
        if blamed && self.trials.failed(paths, &why()) {
            self.probe_again().await;
            return GoneCause::AcceleratorFailed;
        }
        cause
    }

    /// The next start and the next probe use what is known by then.
    async fn probe_again(&self) {
        *self.probed.lock().await = None;
    }
}

fn missing(program: &str, arch: Arch) -> DriverError {
    let debian = match arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    };
    let how = if cfg!(target_os = "macos") {
        "`brew install qemu`".to_owned()
    } else {
        format!("`apt-get install --no-install-recommends {debian} qemu-utils`")
    };
    let summary = format!("there is no {program} on this host: install it with {how}");
    DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
}

#[async_trait]
impl Driver for Qemu {
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
        // Held during a trial guest, so that concurrent starts wait for its result instead of starting one each.
        let mut probed = self.probed.lock().await;
        if !fresh && let Some(ProbedMachine { probe, .. }) = &*probed {
            return Ok(probe.clone());
        }
        let found = self.look(fresh).await?;
        let probe = found.probe.clone();
        *probed = Some(found);
        Ok(probe)
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        let qemu_img = self.qemu_img()?;
        let paths = self.paths(&spec.name);
        if instance::running(&paths, &spec.name).await?.is_some() {
            return Ok(());
        }
        instances::renew(&paths.dir).await?;
        overlay::clone(&qemu_img, &spec.files.disk, spec.disk_format, &paths.unfinished_disk(), &paths.disk()).await
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        let name = &spec.name;
        let paths = self.paths(name);
        if launch::wait_until_responsive(&paths, name).await? {
            return launch::let_run(&self.settings.program, &paths, name).await;
        }
        if instances::exists(&paths.started())? {
            return Ok(());
        }
        if !instances::exists(&paths.disk())? {
            let summary = format!("{name} has no disk: it was never created, or its disk was removed");
            return Err(DriverError::new(ErrorKind::Permanent, Code::BootFailed, summary));
        }
        let on = self.machine().await?;
        self.trials
            .mark(&paths, on.accelerator)
            .map_err(|error| failure::io(error, Code::BootFailed, "the instance's directory cannot be written"))?;
        let arguments = args::instance(spec, &paths, on).ok_or_else(|| {
            let summary = "a path of the template is not valid UTF-8";
            DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary)
        })?;
        instances::write_seed(paths.seed(), spec.seed.as_ref()).await?;
        gateway::prepare(&spec.network, paths.log_limits(self.settings.console_limit), &paths.gateway())?;
        let program = &self.settings.program;
        let command = Launch { program, binary: &self.binary()?, arguments: &arguments };
        launch::launch(&command, &paths, name).await?;
        launch::let_run(program, &paths, name).await
    }

    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        let paths = self.paths(name);
        // An interrupted start may have left more than one starting process.
        while let Some(process) = instance::running(&paths, name).await? {
            if !grace.is_zero()
                && hears_its_button(&paths).await
                && timeout(grace, ask_to_power_down(&paths, &process)).await.is_ok()
            {
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
        match instance::presence(&paths).await? {
            QemuPresence::Stranger(pid) => broken(format!("process {pid} of another user holds its pid file")),
            QemuPresence::Starting(_) => Ok(Observation::Running { ssh: None, agent: None, ssh_unseen: None }),
            QemuPresence::Ours(_) => {
                stops::keep_bounded(&paths, self.settings.console_limit);
                match instance::status(&paths).await {
                    Ok(status) => match stops::condition(&status.state) {
                        Condition::Stopped(cause) => Ok(Observation::Halted { cause }),
                        Condition::UnderWay | Condition::Leaving => {
                            let ssh = match gateway::is_used(&paths.gateway())? {
                                true => Some(Endpoint::Socket { socket: paths.gateway().ssh() }),
                                false => status.ssh_port.map(|port| Endpoint::address("127.0.0.1", port)),
                            };
                            Ok(Observation::Running { ssh, agent: None, ssh_unseen: None })
                        }
                    },
                    // It is starting, ending, or busy; it certainly runs.
                    Err(error) => {
                        tracing::debug!(%error, instance = %name, "QEMU is running but does not answer");
                        Ok(Observation::Running { ssh: None, agent: None, ssh_unseen: None })
                    }
                }
            }
            QemuPresence::Nothing => {
                if !instances::exists(&paths.dir)? {
                    Ok(Observation::Absent)
                } else if instances::exists(&paths.disk())? {
                    Ok(Observation::Stopped)
                } else {
                    broken("its directory is there and its disk is not: cloning was interrupted".to_owned())
                }
            }
        }
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let paths = self.paths(name);
        let network = paths.gateway();
        while let Some(process) = instance::running(&paths, name).await? {
            tokio::select! {
                () = process.ended() => {}
                // Needed for guests that an older version started, or that lost the setup when the service died.
                never = keep_armed(&paths, name) => match never {},
                never = gateway::keep(&self.settings.program, &network, name) => match never {},
                cause = stops::stopped(&paths, self.settings.console_limit) => return Ok(self.laid_at(&paths, cause).await),
                () = self.trials.over(&paths) => {
                    self.probe_again().await;
                    return Ok(GoneCause::AcceleratorFailed);
                }
            }
        }
        let cause = instance::recorded_cause(&paths).map_err(|error| failure::unseen(error, "how the guest ended"))?;
        Ok(self.laid_at(&paths, cause.unwrap_or(GoneCause::Unknown)).await)
    }

    async fn reached(&self, name: &InstanceName) {
        self.trials.reached(&self.paths(name));
    }

    async fn resume(&self, name: &InstanceName) -> Result<()> {
        let paths = self.paths(name);
        let unknown =
            |error| failure::io(error, Code::HostUnavailable, "the room for the guest's disk cannot be measured");
        let free = files::free(&paths.dir).map_err(unknown)?;
        if free < ROOM_TO_RESUME {
            let summary =
                format!("{} MiB are free where the guest's disk is, and it needs {}", free >> 20, ROOM_TO_RESUME >> 20);
            return Err(DriverError::new(ErrorKind::Host, Code::HostFull, summary));
        }
        instance::resume(&paths).await.map_err(|error| fault::qmp(error, "QEMU cannot resume its guest"))
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
        vec![paths.errors(), paths.gateway().log()]
    }
}

/// A stopped guest ignores its power button. One whose state is unknown may be starting.
async fn hears_its_button(paths: &QemuPaths) -> bool {
    match instance::status(paths).await {
        Ok(status) => !matches!(stops::condition(&status.state), Condition::Stopped(_)),
        Err(_) => true,
    }
}

/// Ensures that the guest's end will be recorded.
async fn keep_armed(paths: &QemuPaths, name: &InstanceName) -> std::convert::Infallible {
    while let Err(error) = instance::arm_watch(paths).await {
        tracing::debug!(%error, instance = %name, "cannot connect to the QMP socket for events yet");
        tokio::time::sleep(ASK_AGAIN).await;
    }
    std::future::pending().await
}

/// Ends a hypervisor that may not cooperate. Returns when it has ended.
async fn force(paths: &QemuPaths, name: &InstanceName, process: &Process) -> Result<()> {
    match instance::quit(paths).await {
        Ok(()) if timeout(QUIT, process.ended()).await.is_ok() => return Ok(()),
        Ok(()) => tracing::warn!(instance = %name, pid = process.pid(), "QEMU did not quit; killing it"),
        Err(error) => {
            tracing::warn!(%error, instance = %name, pid = process.pid(), "QEMU does not answer on QMP; killing it")
        }
    }
    last_resort::kill(process, name).await
}

/// Returns when the process has ended. A guest that is still booting ignores the first press of its power button.
async fn ask_to_power_down(paths: &QemuPaths, process: &Process) {
    loop {
        if let Err(error) = instance::power_down(paths).await {
            tracing::debug!(%error, pid = process.pid(), "cannot ask the guest to power down");
        }
        if timeout(ASK_AGAIN, process.ended()).await.is_ok() {
            return;
        }
    }
}
