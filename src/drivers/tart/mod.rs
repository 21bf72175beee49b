//! Tart: macOS and Linux guests on Apple Silicon, the default on macOS.
//!
//! One `tart run` per instance, in a session of its own so that it outlives us. There is no daemon and nothing is stored:
//! whether an instance runs is asked of the kernel, which knows who holds the VM's lock, and how it ended is read from what its
//! run wrote.
//!
//! ```text
//! clone      a template's files become a VM, by copy-on-write and one rename
//!   config   what Tart knows of a VM, rewritten for a clone
//! run        starting one, and seeing that it started
//!   instance finding its process
//! address    finding the guest on the network: leases, arp
//! end        stopping one, and removing it
//! list       everything there is
//!   words, fault     what Tart says, understood
//! ```
//!
//! Tart's own words for an end and for a failure are matched exactly. What it says otherwise is shown and never guessed at, and
//! nothing is destroyed because of it.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;

use self::{
    clone::{ShapeRequest, Stage},
    end::exists,
    fault::shown,
    instance::{Found, Names},
    paths::Paths,
    probe::Version,
};
use super::{
    Capabilities, Driver, DriverError, ErrorKind, InstanceSpec, Listed, Observation, Probe, Result,
    command::{Command, find_program},
};
use crate::domain::{
    Arch, Code, GuestOs, InstanceName, event::GoneCause, tart_config::Display, template::DiskFormat, vm::Endpoint,
};
use crate::drivers::failure::{self, absent_is_fine};

mod address;
mod args;
mod arp;
mod clone;
mod config;
mod end;
mod fault;
mod instance;
pub mod leases;
pub mod list;
mod paths;
pub mod probe;
mod run;
mod settings;
mod words;

pub use settings::{Network, Resolver, Settings};

const VERSION: Duration = Duration::from_secs(10);
const LIST: Duration = Duration::from_secs(10);
const IP: Duration = Duration::from_secs(5);
/// The first macOS whose guests may have a disk in Apple's sparse format, and whose hosts open one.
const ASIF_SINCE: Version = Version { major: 26, minor: 0 };
const OLDEST_MACOS: Version = Version { major: 13, minor: 0 };
/// What a stranger's VM is counted as when its configuration cannot be read: to count too much keeps every promise.
const UNKNOWN_SHAPE: (GuestOs, u32, u32) = (GuestOs::Macos, 4, 8192);

pub struct Tart {
    settings: Settings,
    names: Names,
}

impl Tart {
    pub const NAME: &str = "tart";

    /// Makes the directories. Whether Tart itself is here is for `probe` to say.
    pub fn new(mut settings: Settings) -> Result<Self> {
        settings.check()?;
        let made = |dir: &PathBuf| run::make_run_dir(dir).and_then(|()| dir.canonicalize());
        settings.run_dir = made(&settings.run_dir)
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the directory of runs cannot be made"))?;
        // Where links lead: Apple's framework has trouble with paths through them.
        settings.tart_home = std::fs::create_dir_all(&settings.tart_home)
            .and_then(|()| settings.tart_home.canonicalize())
            .map_err(|error| failure::io(error, Code::HostUnavailable, "Tart's home cannot be made"))?;
        let mut programs = vec![Self::NAME.to_owned()];
        programs.extend(settings.binary.as_ref().and_then(|b| Some(b.file_name()?.to_str()?.to_owned())));
        let names = Names { programs, launcher: settings.launcher.clone() };
        Ok(Self { settings, names })
    }

    fn paths(&self, name: &InstanceName) -> Paths {
        Paths::new(&self.settings, name)
    }

    fn arch(&self) -> Result<Arch> {
        self.settings.arch.or_else(Arch::of_this_host).ok_or_else(|| {
            let summary = "this host's processor is not one that Mayfly knows";
            DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
        })
    }

    fn binary(&self) -> Result<PathBuf> {
        let program = self.settings.binary.clone().unwrap_or_else(|| Self::NAME.into());
        find_program(&program).ok_or_else(|| {
            let summary = format!(
                "there is no {} on this host: install it with `brew install openai/tools/tart`",
                program.display()
            );
            DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary)
        })
    }

    fn command(&self, deadline: Duration) -> Result<Command> {
        Ok(args::environment(Command::new(self.binary()?, deadline), &self.settings))
    }

    async fn find(&self, paths: &Paths, name: &InstanceName) -> Result<Found> {
        instance::find(paths, name, &self.names)
            .await
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the VM's lock cannot be looked at"))
    }

    /// Whether a VM of that name was made by this Mayfly. Its directory of runs is made before the VM is, so a crash in between
    /// leaves no VM that nobody owns.
    fn is_ours(&self, name: &str) -> bool {
        InstanceName::parse(name).is_some() && self.settings.run_dir.join(name).is_dir()
    }

    async fn macos(&self) -> Result<Option<Version>> {
        probe::macos(&self.settings.sw_vers)
            .await
            .map_err(|why| DriverError::new(ErrorKind::Host, Code::HostUnavailable, why))
    }

    fn supported(&self, spec: &InstanceSpec) -> Result<()> {
        let refuse = |summary| Err(DriverError::new(ErrorKind::Permanent, Code::DriverUnsupported, summary));
        let arch = self.arch()?;
        if spec.arch != arch {
            return refuse(format!("this host runs {} guests, not {}", arch.as_str(), spec.arch.as_str()));
        }
        if spec.os == GuestOs::Macos && arch != Arch::Aarch64 {
            return refuse("Tart runs macOS guests on Apple Silicon only".to_owned());
        }
        if spec.seed.is_some() {
            return refuse("Tart hands no seed volume to its guests: use SSH or the guest agent".to_owned());
        }
        Ok(())
    }

    /// The template's configuration, if it makes a VM of what was asked for on this host.
    async fn template(&self, spec: &InstanceSpec) -> Result<Vec<u8>> {
        let refuse = |summary| Err(DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary));
        let Some(path) = &spec.files.config else {
            return refuse("the template has no configuration of Tart's: it was made for another driver".to_owned());
        };
        let bytes = match tokio::fs::read(path).await {
            Ok(bytes) => bytes,
            Err(error) => {
                return refuse(format!("the template's configuration {} cannot be read: {error}", path.display()));
            }
        };
        let config = match config::parse(&bytes) {
            Ok(config) => config,
            Err(why) => {
                return refuse(format!("the template's configuration {} was not understood: {why}", path.display()));
            }
        };
        for (what, is, asked) in [
            ("system", format!("{:?}", config.os), format!("{:?}", spec.os)),
            ("processor", config.arch.as_str().to_owned(), spec.arch.as_str().to_owned()),
            ("disk format", config.format.as_str().to_owned(), spec.disk_format.as_str().to_owned()),
        ] {
            if is != asked {
                return refuse(format!("the template's {what} is {is} by its own configuration, not {asked}"));
            }
        }
        if spec.files.disk.file_name().is_some_and(|name| name == "overlay.asif") {
            return refuse(
                "the template's disk is a layer on another one: only templates with a whole disk can be cloned"
                    .to_owned(),
            );
        }
        if config.format == DiskFormat::Asif {
            let macos = self.macos().await?;
            if macos.is_none_or(|version| version < ASIF_SINCE) {
                let here = macos.map_or_else(|| "no macOS".to_owned(), |version| format!("macOS {version}"));
                return refuse(format!(
                    "the template's disk is in the format asif, which needs macOS {ASIF_SINCE}; this is {here}"
                ));
            }
        }
        match config.too_small(spec.cpus, spec.memory_mib) {
            Some(why) => Err(DriverError::new(ErrorKind::Permanent, Code::SizeImpossible, why)),
            None => Ok(bytes),
        }
    }

    /// Where the guest's SSH port is. Its Ethernet address is read each time: Tart changes it when it starts a VM beside
    /// another one that has the same.
    async fn endpoint(&self, paths: &Paths, name: &InstanceName) -> Result<Option<Endpoint>> {
        let mac = run::read_config(paths)?.mac;
        let ip = address::find(&self.settings, paths, name, mac, || self.command(IP)).await?;
        Ok(ip.map(|ip| Endpoint { host: ip.to_string(), port: self.settings.ssh_port }))
    }

    /// System, cores and memory of a VM that Tart lists. `None`: it is gone.
    fn shape(&self, name: &str, ours: bool) -> Result<Option<(GuestOs, u32, u32)>> {
        let dir = paths::vms(&self.settings.tart_home).join(name);
        // A name that leads elsewhere is nothing that Tart would have made.
        let inside = dir.parent() == Some(&paths::vms(&self.settings.tart_home)) && name != "..";
        let read =
            if inside { std::fs::read(dir.join(paths::CONFIG)) } else { Err(std::io::ErrorKind::InvalidInput.into()) };
        let parsed = match read {
            Ok(bytes) => config::parse(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error.to_string()),
        };
        match parsed {
            Ok(config) => Ok(Some((config.os, config.cpus, config.memory_mib()))),
            Err(why) if ours => {
                let summary = format!("the configuration of {name} was not understood: {why}");
                Err(DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary))
            }
            Err(why) => {
                tracing::debug!(vm = name, why, "a VM that is not Mayfly's cannot be read: it counts as a macOS guest");
                Ok(Some(UNKNOWN_SHAPE))
            }
        }
    }

    /// Instances of ours that Tart does not list: it passes over a directory without one of a VM's files.
    async fn unlisted(&self, listed: &[list::Entry]) -> Result<Vec<Listed>> {
        let unreadable = |error| failure::io(error, Code::HostUnavailable, "the directory of runs cannot be read");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.settings.run_dir).map_err(unreadable)? {
            let Ok(file) = entry.map_err(unreadable)?.file_name().into_string() else { continue };
            let Some(id) = InstanceName::parse(&file).filter(|_| !listed.iter().any(|l| l.name == file)) else {
                continue;
            };
            let name = id.instance();
            let paths = self.paths(&name);
            if exists(&paths)? {
                let running = matches!(self.find(&paths, &name).await?, Found::Running(_));
                let (os, cpus, memory_mib) = UNKNOWN_SHAPE;
                found.push(Listed { name: file, ours: true, running, os, cpus, memory_mib });
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Driver for Tart {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            guests: vec![GuestOs::Macos, GuestOs::Linux],
            graceful_stop: true,
            console: false,
            seed: false,
            agent: true,
        }
    }

    async fn probe(&self, _fresh: bool) -> Result<Probe> {
        let refuse = |summary| DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary);
        let arch = self.arch()?;
        let macos = self.macos().await?;
        if let Some(version) = macos
            && version < OLDEST_MACOS
        {
            return Err(refuse(format!("macOS {version} is too old: Tart needs {OLDEST_MACOS} or later")));
        }
        let output = self
            .command(VERSION)?
            .arg("--version")
            .run()
            .await
            .map_err(|error| failure::command(error, Code::HostUnavailable))?;
        if !output.status.success() {
            let said = shown(output.stderr_tail.as_bytes());
            return Err(refuse(format!("`tart --version` ended with {}; it said: {said}", output.status)));
        }
        let tart = probe::tart(&output.stdout).map_err(refuse)?;
        let version = match macos {
            Some(macos) => format!("Tart {tart} on macOS {macos}"),
            None => format!("Tart {tart}"),
        };
        let note = (arch != Arch::Aarch64).then(|| "on this processor Tart runs Linux guests only".to_owned());
        Ok(Probe { version, arch, accelerator: "vz".to_owned(), note })
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        let config = self.template(spec).await?;
        let (name, paths) = (&spec.name, self.paths(&spec.name));
        match self.find(&paths, name).await? {
            Found::Running(_) => return Ok(()),
            Found::Busy { holder } => return Err(run::busy(name, holder)),
            Found::Nothing => {}
        }
        let failed = |error| failure::io(error, Code::CloneFailed, "the instance cannot be prepared");
        let home = &self.settings.tart_home;
        clone::clear(home, name).map_err(failed)?;
        // What an interrupted attempt or an earlier run left is not worth telling apart from a good clone: a new one is cheap.
        self.remove(name).await?;
        absent_is_fine(tokio::fs::remove_dir_all(&paths.run).await).map_err(failed)?;
        // From here on the VM is ours, should it come to be.
        run::make_run_dir(&paths.run).map_err(failed)?;
        let stage = Stage::new(home, name).map_err(failed)?;
        let shape = ShapeRequest {
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            display: self.settings.display.as_deref().and_then(Display::parse),
        };
        // Only macOS has a file system that can be counted on to clone.
        let copy = self.settings.copy_across_volumes || !cfg!(target_os = "macos");
        stage.fill(&spec.files, config, shape, paths::vms(home), copy).await?;
        stage.publish(home, name).await
    }

    async fn start(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        self.run(spec).await
    }

    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        self.halt(name, grace).await
    }

    async fn destroy(&self, name: &InstanceName) -> Result<()> {
        let failed =
            |error| failure::io(error, Code::HostUnavailable, "what is left of the instance cannot be removed");
        self.halt(name, Duration::ZERO).await?;
        // First what may still become a VM, then the VM, and at last the sign that it is ours.
        clone::clear(&self.settings.tart_home, name).map_err(failed)?;
        self.remove(name).await?;
        absent_is_fine(tokio::fs::remove_dir_all(self.paths(name).run).await).map_err(failed)
    }

    async fn inspect(&self, name: &InstanceName) -> Result<Observation> {
        let paths = self.paths(name);
        if let Found::Running(process) = self.find(&paths, name).await? {
            if !exists(&paths)? || !self.holds(&paths, process.pid())? {
                return Ok(Observation::Running { ssh: None, agent: None });
            }
            let agent = Some(paths.control_sock()).filter(|socket| socket.exists());
            return Ok(Observation::Running { ssh: self.endpoint(&paths, name).await?, agent });
        }
        if !exists(&paths)? {
            return Ok(Observation::Absent);
        }
        Ok(match paths.missing() {
            None => Observation::Stopped,
            Some(file) => Observation::Broken { detail: format!("its directory is there and its {file} is not") },
        })
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let paths = self.paths(name);
        while let Found::Running(process) = self.find(&paths, name).await? {
            process.ended().await;
        }
        let (out, err) = run::said(&paths);
        if let Some(cause) = words::cause(&out, &err) {
            return Ok(cause);
        }
        let ours = |name: &str| self.is_ours(name);
        if let Some(fault) = fault::never_ran(&err, ours) {
            return Err(fault);
        }
        if let Some(fault) = fault::host(&err, ours) {
            tracing::warn!(instance = %name, error = %fault, "tart gave its guest up");
            return Ok(GoneCause::HypervisorError);
        }
        if !err.trim().is_empty() {
            tracing::warn!(instance = %name, said = shown(err.trim().as_bytes()), "tart ended with words that say nothing of its guest");
        }
        Ok(GoneCause::Unknown)
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let output = self
            .command(LIST)?
            .args(["list", "--source", "local", "--format", "json"])
            .run()
            .await
            .map_err(|error| failure::command(error, Code::HostUnavailable))?;
        let failed = |why| DriverError::new(ErrorKind::Retry, Code::HostUnavailable, why);
        if !output.status.success() {
            let said = shown(output.stderr_tail.as_bytes());
            return Err(
                failed(format!("`tart list` ended with {}; it said: {said}", output.status)).tail(output.stderr_tail)
            );
        }
        let entries = list::parse(&output.stdout).map_err(failed)?;
        let mut found = self.unlisted(&entries).await?;
        for list::Entry { name, running } in entries {
            let ours = self.is_ours(&name);
            if let Some((os, cpus, memory_mib)) = self.shape(&name, ours)? {
                found.push(Listed { name, ours, running, os, cpus, memory_mib });
            }
        }
        Ok(found)
    }

    /// The guest's console goes to nobody; what `tart run` says is not the guest's.
    fn console_log(&self, _name: &InstanceName) -> Option<PathBuf> {
        None
    }

    fn hypervisor_logs(&self, name: &InstanceName) -> Vec<PathBuf> {
        let paths = self.paths(name);
        vec![paths.out(), paths.err()]
    }
}
