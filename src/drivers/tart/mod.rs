//! The Tart driver: macOS and Linux guests on Apple Silicon, the default on macOS.
//!
//! One `tart run` per instance, in its own session so that it outlives the service. There is no daemon and no stored
//! state: the kernel shows by the VM's lock whether an instance runs, and the output of its run shows how it ended.
//!
//! ```text
//! clone      clones a template's files into a VM, by copy-on-write and one rename
//!   config   Tart's configuration of a VM, rewritten for a clone
//! run        starts a VM, and confirms that it started
//!   instance finds its process
//!   softnet  network modes as rules of Tart's packet filter
//! address    finds the guest on the network
//! end        stops a VM, and removes it
//! list       lists all VMs
//!   words, fault     interpret Tart's output
//! ```
//!
//! Tart's messages about an end or a failure are matched exactly. Other messages are shown and never guessed at, and
//! nothing is destroyed because of them.

use std::{io, path::PathBuf, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::{
    clone::{CloneStage, ShapeRequest},
    end::exists,
    fault::VmsOfHost,
    instance::{Names, TartPresence},
    paths::TartPaths,
    probe::Version,
};
use super::{Capabilities, Driver, DriverError, DriverProbe, ErrorKind, InstanceSpec, Listed, Observation, Result};
use crate::{
    domain::{
        Arch, Code, GuestOs, InstanceName,
        endpoint::Endpoint,
        event::GoneCause,
        tart_config::{Display, TartConfig},
        template::DiskFormat,
    },
    drivers::{
        failure::{self, shown},
        file_clone::WithoutClones,
        lock::{self, LockHolder},
        nat_scan::NatScan,
        run_output,
    },
    platform::{
        clock,
        files::ignore_not_found,
        process::{Command, find_program},
    },
};

mod address;
mod args;
mod clone;
mod config;
mod end;
mod fault;
mod instance;
pub mod list;
mod paths;
pub mod probe;
mod run;
mod section;
mod settings;
mod softnet;
mod words;

pub use section::{NetworkKind, Resolver, TartSection};
pub use settings::{Network, Settings};
pub use softnet::expressible;

const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const LIST: Duration = Duration::from_secs(10);
/// Minimum interval after a failed list: one that hangs would delay every inspection of the host.
const ASK_AGAIN: Duration = Duration::from_secs(60);
const IP: Duration = Duration::from_secs(5);
/// How often the directory of an instance is removed, if a launcher writes into it meanwhile.
const REMOVALS: u32 = 3;
/// The first macOS whose guests may have a disk in Apple's sparse format, and whose hosts can open it.
const ASIF_SINCE: Version = Version { major: 26, minor: 0 };
const OLDEST_MACOS: Version = Version { major: 13, minor: 0 };
type ReservedResources = (GuestOs, u32, u32);
/// The assumed size of a VM whose configuration cannot be read.
const UNKNOWN_SHAPE: ReservedResources = (GuestOs::Macos, 4, 8192);

pub struct Tart {
    settings: Settings,
    names: Names,
    /// State while `tart list` fails.
    list_fails: Mutex<Option<ListFails>>,
    scan: NatScan,
}

#[derive(Clone)]
struct ListFails {
    since_asked: Instant,
    why: String,
}

impl Tart {
    pub const NAME: &str = "tart";

    /// Creates the directories. `probe` finds out whether Tart is installed.
    pub fn new(mut settings: Settings) -> Result<Self> {
        settings.check()?;
        let made = |dir: &PathBuf| run::make_run_dir(dir).and_then(|()| dir.canonicalize());
        settings.run_dir = made(&settings.run_dir)
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the directory of runs cannot be made"))?;
        // Resolves links, because Apple's framework does not work with paths through them.
        settings.tart_home = std::fs::create_dir_all(&settings.tart_home)
            .and_then(|()| settings.tart_home.canonicalize())
            .map_err(|error| failure::io(error, Code::HostUnavailable, "Tart's home cannot be made"))?;
        let mut programs = vec![Self::NAME.to_owned()];
        programs.extend(settings.binary.as_ref().and_then(|b| Some(b.file_name()?.to_str()?.to_owned())));
        let names = Names { programs, launcher: settings.launcher.clone() };
        Ok(Self { settings, names, list_fails: Mutex::default(), scan: NatScan::default() })
    }

    fn paths(&self, name: &InstanceName) -> TartPaths {
        TartPaths::new(&self.settings, name)
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

    async fn find(&self, paths: &TartPaths, name: &InstanceName) -> Result<TartPresence> {
        instance::find(paths, name, &self.names).await.map_err(|error| failure::unseen(error, "the VM's lock"))
    }

    /// Whether this Mayfly created the VM of that name. Its directory of runs is created before the VM, so a crash in
    /// between leaves no VM without an owner.
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

    /// The template's configuration, if a VM of this spec can be created from it on this host.
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

    /// The address of the guest's SSH port. Its Ethernet address is read each time, because Tart changes it when it
    /// starts a VM beside another one with the same address.
    async fn endpoint(&self, paths: &TartPaths, name: &InstanceName) -> Result<Option<Endpoint>> {
        let mac = run::read_config(paths)?.mac;
        let ip = address::find(&self.settings, paths, name, mac, &self.scan, || self.command(IP)).await?;
        Ok(ip.map(|ip| Endpoint::address(ip.to_string(), self.settings.ssh_port)))
    }

    /// The VMs that are not in `own`, from `tart list`. If it fails or hangs, which one broken VM of any user may
    /// cause, the VMs in Tart's home are inspected one by one, as Tart itself would do.
    async fn foreign(&self, own: &[InstanceName]) -> Result<Vec<Listed>> {
        let is_own = |name: &str| own.iter().any(|own| own.as_str() == name);
        let known = self.list_fails.lock().clone();
        if known.as_ref().is_none_or(|fails| clock::elapsed(fails.since_asked) >= ASK_AGAIN) {
            match self.ask_for_list().await {
                Ok(entries) => {
                    if self.list_fails.lock().take().is_some() {
                        tracing::info!("`tart list` succeeds again");
                    }
                    let foreign = entries.into_iter().filter(|entry| !is_own(&entry.name));
                    let listed =
                        foreign.filter_map(|list::TartListEntry { name, running }| self.stranger(name, running));
                    return Ok(listed.collect());
                }
                Err(error) => {
                    if known.is_none() {
                        tracing::warn!(%error, tail = error.tail.as_deref().unwrap_or_default(), "`tart list` failed; inspecting VMs one by one");
                    }
                    let fails = ListFails { since_asked: clock::monotonic(), why: error.summary };
                    *self.list_fails.lock() = Some(fails);
                }
            }
        }
        let unseen = |error| failure::unseen(error, "the VMs of Tart's home");
        let mut listed = Vec::new();
        let entries = match std::fs::read_dir(paths::vms(&self.settings.tart_home)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(listed),
            Err(error) => return Err(unseen(error)),
        };
        for entry in entries {
            let entry = entry.map_err(unseen)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_own(&name) {
                continue;
            }
            // A VM that cannot be inspected counts as running.
            let running =
                lock::holder(&entry.path().join(paths::CONFIG)).map_or(true, |holder| holder != LockHolder::Free);
            listed.extend(self.stranger(name, running));
        }
        Ok(listed)
    }

    async fn ask_for_list(&self) -> Result<Vec<list::TartListEntry>> {
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
        list::parse(&output.stdout).map_err(failed)
    }

    /// `None`: it no longer exists.
    fn stranger(&self, name: String, running: bool) -> Option<Listed> {
        let dir = paths::vms(&self.settings.tart_home).join(&name);
        // Tart does not create names that lead outside the directory.
        let inside = dir.parent() == Some(&paths::vms(&self.settings.tart_home)) && name != "..";
        let read =
            if inside { std::fs::read(dir.join(paths::CONFIG)) } else { Err(std::io::ErrorKind::InvalidInput.into()) };
        let config = match read {
            Ok(bytes) => config::parse(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        let (os, cpus, memory_mib) = shape_of(&name, config);
        Some(Listed { name, ours: false, running, os, cpus, memory_mib })
    }

    /// The names of the instances that this Mayfly created.
    fn own_names(&self) -> Result<Vec<InstanceName>> {
        let unseen = |error| failure::unseen(error, "the directory of runs");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.settings.run_dir).map_err(unseen)? {
            names.extend(entry.map_err(unseen)?.file_name().to_str().and_then(InstanceName::read));
        }
        Ok(names)
    }

    /// One instance of ours, as far as it can be inspected: an error does not affect others, and an instance that
    /// cannot be inspected counts as running. `None`: there is neither a VM nor a run of it.
    async fn own(&self, name: &InstanceName) -> Option<Listed> {
        let paths = self.paths(name);
        let looked = async {
            let running = !matches!(self.find(&paths, name).await?, TartPresence::Nothing);
            Ok::<_, DriverError>((running, exists(&paths)?))
        };
        let running = match looked.await {
            Ok((false, false)) => return None,
            Ok((running, _)) => running,
            Err(error) => {
                tracing::debug!(instance = %name, %error, "cannot inspect an instance; it counts as running");
                true
            }
        };
        let config = std::fs::read(paths.config()).map_err(|error| error.to_string());
        let (os, cpus, memory_mib) = shape_of(name.as_str(), config.and_then(|bytes| config::parse(&bytes)));
        Some(Listed { name: name.to_string(), ours: true, running, os, cpus, memory_mib })
    }
}

impl VmsOfHost for Tart {
    fn is_ours(&self, name: &str) -> bool {
        Tart::is_ours(self, name)
    }

    fn os(&self, name: &str) -> Option<GuestOs> {
        let vms = paths::vms(&self.settings.tart_home);
        let dir = vms.join(name);
        // Tart does not create names that lead outside the directory.
        if dir.parent() != Some(&vms) || name == ".." {
            return None;
        }
        Some(config::parse(&std::fs::read(dir.join(paths::CONFIG)).ok()?).ok()?.os)
    }

    fn unreadable(&self) -> Vec<String> {
        let entries = std::fs::read_dir(paths::vms(&self.settings.tart_home)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| {
                std::fs::read(entry.path().join(paths::CONFIG)).is_ok_and(|bytes| config::parse(&bytes).is_err())
            })
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Overestimates an unknown VM, so that the host is never overcommitted.
fn shape_of(name: &str, config: std::result::Result<TartConfig, String>) -> ReservedResources {
    match config {
        Ok(config) => (config.os, config.cpus, config.memory_mib()),
        Err(why) => {
            tracing::debug!(vm = name, why, "cannot read a VM's configuration; it counts as a macOS guest");
            UNKNOWN_SHAPE
        }
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
            network: self.settings.network.support(),
        }
    }

    async fn probe(&self, _fresh: bool) -> Result<DriverProbe> {
        let refuse = |summary| DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary);
        let arch = self.arch()?;
        let macos = self.macos().await?;
        if let Some(version) = macos
            && version < OLDEST_MACOS
        {
            return Err(refuse(format!("macOS {version} is too old: Tart needs {OLDEST_MACOS} or later")));
        }
        let output = self
            .command(VERSION_TIMEOUT)?
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
        let mut notes = Vec::new();
        if arch != Arch::Aarch64 {
            notes.push("on this processor Tart runs Linux guests only".to_owned());
        }
        if let Some(fails) = &*self.list_fails.lock() {
            notes.push(format!("VMs are counted by their locks, because Tart does not list them: {}", fails.why));
        }
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        Ok(DriverProbe { version, arch, accelerator: "vz".to_owned(), note, unconfined: None })
    }

    async fn create(&self, spec: &InstanceSpec) -> Result<()> {
        self.supported(spec)?;
        let config = self.template(spec).await?;
        let (name, paths) = (&spec.name, self.paths(&spec.name));
        match self.find(&paths, name).await? {
            TartPresence::Running(_) => return Ok(()),
            TartPresence::Busy { holder } => return Err(run::busy(name, holder)),
            TartPresence::Nothing => {}
        }
        let failed = |error| failure::io(error, Code::CloneFailed, "the instance cannot be prepared");
        let home = &self.settings.tart_home;
        clone::clear(home, name).map_err(failed)?;
        // An interrupted attempt or an earlier run may have left a VM. A new clone is cheap, so nothing is reused.
        self.remove(name).await?;
        ignore_not_found(tokio::fs::remove_dir_all(&paths.run).await).map_err(failed)?;
        // From here on the VM is marked as ours, in case it comes to exist.
        run::make_run_dir(&paths.run).map_err(failed)?;
        let stage = CloneStage::new(home, name).map_err(failed)?;
        let shape = ShapeRequest {
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            display: self.settings.display.as_deref().and_then(Display::parse),
        };
        // Only on macOS can the file system be expected to support clones.
        let without = match self.settings.copy_across_volumes || !cfg!(target_os = "macos") {
            true => WithoutClones::Copy,
            false => WithoutClones::Refuse {
                remedy: "put the data directory and Tart's home on one APFS volume, or allow full copies with \
                         `drivers.tart.copy_across_volumes`",
            },
        };
        stage.fill(&spec.files, config, shape, paths::vms(home), without).await?;
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
        // Removes first what may still become a VM, then the VM, and last the mark that it is ours.
        clone::clear(&self.settings.tart_home, name).map_err(failed)?;
        self.remove(name).await?;
        let paths = self.paths(name);
        for _ in 0..REMOVALS {
            // An interrupted start may have come up meanwhile.
            self.halt(name, Duration::ZERO).await?;
            // The records of its runs are removed last, after it is certain that none of them is left.
            match self.find(&paths, name).await? {
                TartPresence::Nothing => {}
                TartPresence::Running(process) => return Err(run::busy(name, Some(process.pid()))),
                TartPresence::Busy { holder } => return Err(run::busy(name, holder)),
            }
            match ignore_not_found(tokio::fs::remove_dir_all(&paths.run).await) {
                // An interrupted start has recorded its process in it since.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => return removed.map_err(failed),
            }
        }
        Err(failed(io::ErrorKind::DirectoryNotEmpty.into()))
    }

    async fn inspect(&self, name: &InstanceName) -> Result<Observation> {
        let paths = self.paths(name);
        if let TartPresence::Running(process) = self.find(&paths, name).await? {
            if !exists(&paths)? || !self.holds(&paths, process.pid())? {
                return Ok(Observation::Running { ssh: None, agent: None, ssh_unseen: None });
            }
            let agent = Some(paths.control_sock()).filter(|socket| socket.exists());
            // The agent is reached without an address.
            let (ssh, ssh_unseen) = match self.endpoint(&paths, name).await {
                Ok(ssh) => (ssh, None),
                Err(error) => (None, Some((error.code, error.summary))),
            };
            return Ok(Observation::Running { ssh, agent, ssh_unseen });
        }
        if !exists(&paths)? {
            return Ok(Observation::Absent);
        }
        Ok(match paths.missing().map_err(|error| failure::unseen(error, "the VM"))? {
            None => Observation::Stopped,
            Some(file) => Observation::Broken { detail: format!("its directory is there and its {file} is not") },
        })
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause> {
        let paths = self.paths(name);
        let output = [paths.out(), paths.err()];
        while let TartPresence::Running(process) = self.find(&paths, name).await? {
            tokio::select! {
                () = process.ended() => {}
                never = run_output::keep_bounded("tart run", &output) => match never {},
            }
        }
        let (out, err) = run::said(&paths)?;
        if let Some(cause) = words::cause(&out, &err) {
            return Ok(cause);
        }
        // A guest that was reached ran: what Tart said about its start is not about its end.
        let reached =
            failure::exists(&paths.reached()).map_err(|error| failure::unseen(error, "the record of the guest"))?;
        if !reached && let Some(fault) = fault::never_ran(&err, self) {
            return Err(fault);
        }
        // The message that ended it is the last one, unless that is about a start.
        let last = err.trim().lines().next_back().unwrap_or_default();
        if fault::never_ran(last, self).is_none()
            && let Some(fault) = fault::host(last, self)
        {
            tracing::warn!(instance = %name, error = %fault, "tart ended because of an error on the host");
            return Ok(GoneCause::HypervisorError);
        }
        if !err.trim().is_empty() {
            tracing::warn!(instance = %name, stderr = shown(err.trim().as_bytes()), "tart ended with an unknown message on stderr");
        }
        Ok(GoneCause::Unknown)
    }

    async fn reached(&self, name: &InstanceName) {
        let path = self.paths(name).reached();
        // Without this record, an old message about a failed start may hide the reason of the guest's end.
        if let Err(error) = std::fs::write(&path, b"") {
            tracing::warn!(instance = %name, %error, "cannot record that the guest was reached");
        }
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        let names = self.own_names()?;
        let mut listed = Vec::new();
        for name in &names {
            listed.extend(self.own(name).await);
        }
        listed.extend(self.foreign(&names).await?);
        Ok(listed)
    }

    /// The guest's console is not recorded; the output of `tart run` is not the guest's.
    fn console_log(&self, _name: &InstanceName) -> Option<PathBuf> {
        None
    }

    fn hypervisor_logs(&self, name: &InstanceName) -> Vec<PathBuf> {
        let paths = self.paths(name);
        vec![paths.out(), paths.err()]
    }
}
