//! The tart driver over the strict double of `tart`. Guests are inert: what is tested is what the driver makes of Tart.
//!
//! Nothing here is skipped: without the double these tests fail and say what is missing.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use mayfly::{
    domain::{
        Arch, Code, GuestOs, InstanceName, VmId,
        endpoint::Endpoint,
        event::GoneCause,
        machine_identity::MachineIdentity,
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        Driver, DriverError, ErrorKind, GuestNetwork, InstanceSpec, Observation,
        tart::{Network, Resolver, Settings, Tart},
    },
};
use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process};
use serde_json::{Map, Value, json};

use super::conformance::{self, Rig};

mod identity;
mod networks;

const SOON: Duration = Duration::from_secs(20);

struct TartRig {
    dir: tempfile::TempDir,
    settings: Settings,
    driver: Arc<Tart>,
    control: Mutex<Map<String, Value>>,
}

fn double() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/tart-double");
    assert!(double.exists(), "there is no {}: `cargo build --example tart-double`", double.display());
    double
}

fn host() -> Arch {
    Arch::of_this_host().expect("a processor that Mayfly knows")
}

fn word(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "arm64",
        Arch::X86_64 => "amd64",
    }
}

fn settings(dir: &Path) -> Settings {
    let launcher = [env!("CARGO_BIN_EXE_mayfly"), "detach", "--"].map(str::to_owned);
    let mut settings = Settings::new(dir.join("tart"), dir.join("runs"), launcher.into());
    settings.binary = Some(double());
    settings.lease_file = dir.join("tart/dhcpd_leases");
    settings.sw_vers = dir.join("sw_vers");
    settings
}

impl TartRig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::Builder::new().prefix("mayfly-it-").tempdir_in("/tmp").unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings);
        let driver = Arc::new(Tart::new(settings.clone()).unwrap());
        let rig = Self { dir, settings, driver, control: Mutex::default() };
        let template = rig.dir.path().join("template");
        std::fs::create_dir(&template).unwrap();
        let disk = std::fs::File::create(template.join("disk")).unwrap();
        disk.set_len(8 << 20).unwrap();
        std::fs::write(template.join("nvram"), "nvram").unwrap();
        rig
    }

    /// A rig whose host is an Apple Silicon Mac, as far as processors go.
    fn apple() -> Self {
        let rig = Self::with(|settings| settings.arch = Some(Arch::Aarch64));
        rig.set("arch", json!("arm64"));
        rig
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("tart")
    }

    fn vm(&self, name: &InstanceName) -> PathBuf {
        self.home().join("vms").join(name.as_str())
    }

    /// Tells the double something.
    fn set(&self, key: &str, value: Value) {
        let mut control = self.control.lock().unwrap();
        control.insert(key.to_owned(), value);
        let file = self.home().join("double.new");
        std::fs::write(&file, serde_json::to_vec(&*control).unwrap()).unwrap();
        std::fs::rename(file, self.home().join("double.json")).unwrap();
    }

    fn rule(&self, rule: Value) {
        let mut rules = match self.control.lock().unwrap().get("rules") {
            Some(Value::Array(rules)) => rules.clone(),
            _ => Vec::new(),
        };
        rules.push(rule);
        self.set("rules", Value::Array(rules));
    }

    /// Bends every run of this VM.
    fn bend(&self, name: &InstanceName, then: Value) {
        self.rule(json!({ "vm": name.as_str(), "then": then }));
    }

    fn spec_of(&self, os: GuestOs, arch: Arch) -> InstanceSpec {
        let template = self.dir.path().join("template");
        let config = template.join(format!("config-{}", word(arch)));
        let mut text = json!({
            "version": 1, "os": "linux", "arch": word(arch), "cpuCountMin": 2, "cpuCount": 4, "memorySizeMin": 1 << 30,
            "memorySize": 4_u64 << 30, "macAddress": "7a:65:e4:3f:b2:51", "diskFormat": "raw"
        });
        if os == GuestOs::Macos {
            text["os"] = json!("darwin");
            text["ecid"] = json!("ZWNpZA==");
            text["hardwareModel"] = json!("bW9kZWw=");
        }
        std::fs::write(&config, text.to_string()).unwrap();
        InstanceSpec {
            name: VmId::mint().instance(),
            os,
            arch,
            cpus: 3,
            memory_mib: 1536,
            disk_format: DiskFormat::Raw,
            files: TemplateFiles {
                disk: template.join("disk"),
                config: Some(config),
                nvram: Some(template.join("nvram")),
                ..TemplateFiles::default()
            },
            cmdline: None,
            seed: None,
            network: GuestNetwork {
                policy: mayfly::domain::NetworkPolicy { mode: mayfly::domain::NetworkMode::Host, allow: Vec::new() },
                guest_api: "/none".into(),
            },
        }
    }

    fn linux(&self) -> InstanceSpec {
        self.spec_of(GuestOs::Linux, host())
    }

    fn macos(&self) -> InstanceSpec {
        self.spec_of(GuestOs::Macos, Arch::Aarch64)
    }

    async fn created(&self, spec: InstanceSpec) -> InstanceSpec {
        self.driver.create(&spec).await.unwrap();
        spec
    }

    async fn started(&self, spec: InstanceSpec) -> InstanceSpec {
        let spec = self.created(spec).await;
        self.driver.start(&spec).await.unwrap();
        spec
    }

    async fn refused(&self, spec: &InstanceSpec) -> DriverError {
        self.driver.start(spec).await.unwrap_err()
    }

    async fn ended(&self, name: &InstanceName) -> Result<GoneCause, DriverError> {
        tokio::time::timeout(SOON, self.driver.ended(name)).await.expect("the end is told")
    }

    async fn inspect(&self, name: &InstanceName) -> Observation {
        self.driver.inspect(name).await.unwrap()
    }

    /// Waits until the guest's address is known: its host and port.
    async fn address(&self, name: &InstanceName) -> (String, u16) {
        let began = Instant::now();
        loop {
            match self.inspect(name).await {
                Observation::Running { ssh: Some(Endpoint::Address { host, port }), .. } => return (host, port),
                Observation::Running { ssh: None, .. } => {}
                other => panic!("{name} is {other:?}"),
            }
            assert!(began.elapsed() < SOON, "{name} has no address");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn config(&self, name: &InstanceName) -> Value {
        serde_json::from_slice(&std::fs::read(self.vm(name).join("config.json")).unwrap()).unwrap()
    }

    fn pid(&self, name: &InstanceName) -> Pid {
        let holder = holder(&self.vm(name).join("config.json")).expect("it runs");
        Pid::from_raw(holder.cast_signed()).unwrap()
    }

    /// Adds a lease to the host's file.
    fn lease(&self, mac: &str, ip: &str, expires_in: i64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed();
        let file = self.home().join("dhcpd_leases");
        let mut text = std::fs::read_to_string(&file).unwrap_or_default();
        text.push_str(&format!(
            "{{\n\tname=x\n\tip_address={ip}\n\thw_address=1,{mac}\n\tidentifier=1,{mac}\n\tlease=0x{:x}\n}}\n",
            now + expires_in
        ));
        std::fs::write(file, text).unwrap();
    }

    /// A program of the host's, as a script.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        file
    }

    /// Runs a stranger's VM, made from `config`.
    async fn stranger(&self, name: &str, make_config: impl FnOnce(&Path)) -> Stranger {
        let dir = self.home().join("vms").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["disk.img", "nvram.bin"] {
            std::fs::write(dir.join(file), "x").unwrap();
        }
        let config = dir.join("config.json");
        if !config.exists() {
            make_config(&config);
        }
        let child = std::process::Command::new(double())
            .args(["run", name, "--no-graphics"])
            .env("TART_HOME", self.home())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let stranger = Stranger(child);
        let began = Instant::now();
        while holder(&config) != Some(stranger.0.id()) {
            assert!(began.elapsed() < SOON, "{name} does not run");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stranger
    }
}

/// The process that holds a VM's lock.
fn holder(config: &Path) -> Option<u32> {
    let config = std::fs::File::open(config).unwrap();
    let lock = fcntl_getlk(&config, &Flock::from(FlockType::ReadLock)).unwrap()?;
    Some(lock.pid.unwrap().as_raw_nonzero().get().cast_unsigned())
}

struct Stranger(std::process::Child);

impl Stranger {
    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for TartRig {
    /// A failed test leaves no guests behind.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.home().join("double.json"));
        let Ok(dirs) = std::fs::read_dir(self.dir.path().join("runs")) else { return };
        for dir in dirs.flatten() {
            if let Some(name) = InstanceName::read(&dir.file_name().into_string().unwrap_or_default()) {
                let driver = self.driver.clone();
                let destroy = async move { driver.destroy(&name).await };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                // A runtime cannot be started inside another one, so it gets a thread of its own.
                let _ = std::thread::spawn(move || runtime.map(|r| r.block_on(destroy).is_ok())).join();
            }
        }
    }
}

impl Rig for TartRig {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn restarted(&self) -> Arc<dyn Driver> {
        Arc::new(Tart::new(self.settings.clone()).unwrap())
    }

    fn spec(&self, id: VmId) -> InstanceSpec {
        InstanceSpec { name: id.instance(), ..self.linux() }
    }

    fn deaf(&self, id: VmId) -> InstanceSpec {
        let spec = self.spec(id);
        self.bend(&spec.name, json!({ "guest": "deaf" }));
        spec
    }

    async fn up(&self, _name: &InstanceName) {}

    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn power_off(&self, name: &InstanceName) -> bool {
        kill_process(self.pid(name), Signal::USR2).unwrap();
        true
    }

    async fn foreign(&self) -> (String, Box<dyn std::any::Any + Send>) {
        let config = self.linux().files.config.unwrap();
        let stranger = self.stranger("web server", |to| assert!(std::fs::copy(config, to).unwrap() > 0)).await;
        ("web server".to_owned(), Box::new(stranger))
    }
}

#[tokio::test]
async fn tart_conforms() {
    assert_eq!(conformance::all(&TartRig::new()).await, 17);
}

#[tokio::test]
async fn tart_before_macos_14_conforms() {
    // No control socket: only its living on tells that a guest started.
    let rig = TartRig::with(|settings| settings.settle = Duration::from_millis(150));
    rig.set("control_socket", json!(false));
    rig.set("version", json!("2.33.1"));
    assert_eq!(conformance::all(&rig).await, 17);
}

#[tokio::test]
async fn a_refused_slot_is_a_fault_of_the_host_and_names_the_holders() {
    let rig = TartRig::apple();
    let spec = rig.created(rig.macos()).await;
    for (names, says) in [
        (json!([]), "there is none of them to be seen"),
        (json!(["xcode", "other build"]), "other VMs run beside Mayfly's (xcode, other build)"),
        (json!([spec.name.as_str()]), "there is only 1"),
    ] {
        rig.rule(json!({ "id": names.to_string(), "vm": spec.name.as_str(), "times": 1, "then": { "limit": { "names": names } } }));
        let error = rig.refused(&spec).await;
        assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit));
        assert!(error.summary.contains(says), "{error}");
        assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
    }
    // The slot is back.
    rig.driver.start(&spec).await.unwrap();
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn the_third_macos_guest_is_refused_and_a_linux_guest_is_not() {
    let rig = TartRig::apple();
    let (one, two) = (rig.started(rig.macos()).await, rig.started(rig.macos()).await);
    let three = rig.created(rig.macos()).await;
    let error = rig.refused(&three).await;
    assert_eq!(error.code, Code::HostLimit);
    assert!(error.summary.contains("2 of them are Mayfly's"), "{error}");
    let linux = rig.started(rig.spec_of(GuestOs::Linux, Arch::Aarch64)).await;
    rig.driver.destroy(&one.name).await.unwrap();
    rig.driver.start(&three).await.unwrap();
    let listed = rig.driver.list().await.unwrap();
    let macos = listed.iter().filter(|l| l.ours && l.running && l.os == GuestOs::Macos).count();
    assert_eq!((listed.len(), macos), (3, 2), "{listed:?}");
    for spec in [two, three, linux] {
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_slot_that_is_refused_late_is_not_the_vms_fault() {
    let rig = TartRig::with(|settings| settings.settle = Duration::from_millis(100));
    let spec = rig.linux();
    rig.bend(&spec.name, json!({ "start_after_ms": 800, "limit": { "names": [] } }));
    let spec = rig.started(spec).await;
    let error = rig.ended(&spec.name).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit));
    assert_eq!(rig.restarted().ended(&spec.name).await.unwrap_err().code, Code::HostLimit, "it is on record");
    rig.driver.create(&spec).await.unwrap();
    assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::Unknown, "and no longer once there is a new clone");
}

/// What Tart says while a guest starts is about its start, and not about the end of a guest that was reached.
#[tokio::test]
async fn what_was_said_of_the_start_does_not_hide_a_later_end() {
    let rig = TartRig::new();
    for said in [
        "Error Domain=VZErrorDomain Code=1 \"The virtual machine failed to start.\"\n",
        "The number of VMs exceeds the system limit\n",
        "Too many open files\nand something that nobody knows\n",
    ] {
        let spec = rig.started(rig.linux()).await;
        let err = rig.dir.path().join("runs").join(spec.name.as_str()).join("run.err");
        std::fs::write(&err, said).unwrap();
        rig.driver.reached(&spec.name).await;
        kill_process(rig.pid(&spec.name), Signal::KILL).unwrap();
        assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::Unknown, "{said}");
        assert_eq!(rig.restarted().ended(&spec.name).await.unwrap(), GoneCause::Unknown, "{said}");
        // A new clone has not been reached.
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

/// A fresh clone may run where this one was removed by a human, or by `tart prune`.
#[tokio::test]
async fn a_clone_that_another_program_removed_is_not_the_templates_fault() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    std::fs::remove_file(rig.vm(&spec.name).join("nvram.bin")).unwrap();
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Instance, Code::BootFailed), "{error}");
    std::fs::remove_dir_all(rig.vm(&spec.name)).unwrap();
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Instance, Code::BootFailed), "{error}");
    // It vanishes between our look and Tart's.
    rig.driver.create(&spec).await.unwrap();
    let said = format!("Error: the specified VM \"{}\" does not exist", spec.name);
    rig.rule(json!({ "vm": spec.name.as_str(), "times": 1, "then": { "start_fails": { "stderr": said, "exit": 1 } } }));
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Instance, Code::BootFailed), "{error}");
    rig.driver.start(&spec).await.unwrap();
}

/// `tart run` reads the configurations of all running VMs, and fails on one that it does not understand.
#[tokio::test]
async fn a_broken_vm_of_another_user_is_the_hosts_fault_and_is_named() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    let theirs = rig.home().join("vms/my build");
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::write(theirs.join("config.json"), "{\"version\": 2}").unwrap();
    let said = "Error: The data couldn’t be read because it is missing.";
    let fails = json!({ "start_fails": { "stderr": said, "exit": 1 } });
    rig.rule(json!({ "vm": spec.name.as_str(), "times": 1, "then": fails }));
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused), "{error}");
    assert!(error.summary.contains("my build"), "{error}");
    std::fs::remove_dir_all(theirs).unwrap();
    rig.driver.start(&spec).await.unwrap();
}

#[tokio::test]
async fn clones_of_one_mac_are_different_machines() {
    let rig = TartRig::apple();
    let (one, two) = (rig.created(rig.macos()).await, rig.created(rig.macos()).await);
    let ecid = |spec: &InstanceSpec| {
        let text = rig.config(&spec.name)["ecid"].as_str().unwrap().to_owned();
        MachineIdentity::from_base64(&text).expect("an identity as Apple writes it").ecid()
    };
    assert_ne!(ecid(&one), ecid(&two));
    for key in ["hardwareModel", "diskFormat", "version"] {
        assert_eq!(rig.config(&one.name)[key], rig.config(&two.name)[key], "{key}");
    }
}

#[tokio::test]
async fn what_tart_says_of_a_failed_start_is_understood_or_shown() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    for (said, exit, kind, code, shows) in [
        (
            "Error Domain=VZErrorDomain Code=1 \"Internal Virtualization error. The virtual machine failed to start.\"",
            1,
            ErrorKind::Host,
            Code::HostRefused,
            "unlock-keychain",
        ),
        (
            "disk /d/disk.img seems to be already in use, unmount it first in Finder",
            1,
            ErrorKind::Permanent,
            Code::TemplateInvalid,
            "Finder",
        ),
        (
            "Error: something that nobody has seen",
            1,
            ErrorKind::Retry,
            Code::BootFailed,
            "something that nobody has seen",
        ),
        ("", 5, ErrorKind::Retry, Code::BootFailed, "exit status: 5"),
    ] {
        rig.rule(json!({ "vm": spec.name.as_str(), "times": 1, "then": { "start_fails": { "stderr": said, "exit": exit } } }));
        let error = rig.refused(&spec).await;
        assert_eq!((error.kind, error.code), (kind, code), "{error}");
        assert!(error.summary.contains(shows), "{error}");
        assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped, "a refused start leaves no trace");
    }
}

#[tokio::test]
async fn an_interrupt_that_is_lost_is_sent_again() {
    let rig = TartRig::new();
    let spec = rig.linux();
    rig.bend(&spec.name, json!({ "guest": "deaf", "sigint_window_ms": 1500, "lost_sigints": 1 }));
    let spec = rig.started(spec).await;
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
    assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::HostStop, "it was heard, and not killed");
}

#[tokio::test]
async fn what_no_interrupt_ends_is_killed() {
    let rig = TartRig::new();
    let spec = rig.linux();
    rig.bend(&spec.name, json!({ "lost_sigints": 1000 }));
    let spec = rig.started(spec).await;
    let began = Instant::now();
    rig.driver.destroy(&spec.name).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
}

#[tokio::test]
async fn a_macos_guest_is_not_asked_what_it_asks_its_user() {
    let rig = TartRig::apple();
    let spec = rig.started(rig.macos()).await;
    let began = Instant::now();
    rig.driver.stop(&spec.name, Duration::from_secs(60)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::HostStop);
}

#[tokio::test]
async fn an_exit_status_of_zero_is_not_believed() {
    let rig = TartRig::new();
    for (then, cause) in [
        (json!({ "crash_after_ms": 300 }), GoneCause::HypervisorError),
        (json!({ "network_lost_after_ms": 300 }), GoneCause::HypervisorError),
        (json!({ "power_off_after_ms": 300 }), GoneCause::GuestPowerOff),
        // It is over before anybody could see it run.
        (json!({ "crash_after_ms": 0, "socket_after_ms": 5000 }), GoneCause::HypervisorError),
    ] {
        let spec = rig.linux();
        rig.bend(&spec.name, then);
        let spec = rig.started(spec).await;
        assert_eq!(rig.ended(&spec.name).await.unwrap(), cause);
        assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
        assert_eq!(rig.restarted().ended(&spec.name).await.unwrap(), cause, "it is on record");
    }
}

#[tokio::test]
async fn what_a_kill_leaves_behind_hinders_nothing() {
    let rig = TartRig::new();
    let spec = rig.linux();
    let spec = rig.started(spec).await;
    kill_process(rig.pid(&spec.name), Signal::KILL).unwrap();
    assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::Unknown);
    assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
    assert!(rig.vm(&spec.name).join("control.sock").exists(), "a stale one");
    // It is not taken for the sign that the next run is up. There is a next run of the same clone only where the service died
    // before it recorded that the guest was started.
    std::fs::remove_file(rig.dir.path().join("runs").join(spec.name.as_str()).join("started")).unwrap();
    rig.rule(json!({ "vm": spec.name.as_str(), "times": 1, "then": { "start_after_ms": 300, "start_fails": { "stderr": "late", "exit": 1 } } }));
    assert_eq!(rig.refused(&spec).await.code, Code::BootFailed);
    rig.driver.start(&spec).await.unwrap();
    assert!(matches!(rig.inspect(&spec.name).await, Observation::Running { agent: Some(_), .. }));
}

#[tokio::test]
async fn without_tarts_list_vms_are_looked_at_one_by_one() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    let config = rig.linux().files.config.unwrap();
    let stranger = rig.stranger("mine", |to| assert!(std::fs::copy(config, to).unwrap() > 0)).await;
    let sorted = |mut list: Vec<mayfly::drivers::Listed>| {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    };
    let expected = sorted(rig.driver.list().await.unwrap());
    assert_eq!(expected.iter().filter(|l| l.running).count(), 2);
    for (stdout, exit, shows) in [
        ("Source Name Disk Size Accessed State\n", 0, "Source Name Disk"),
        ("", 0, "found: nothing"),
        ("[{\"Name\":\"x\"}]", 0, "nothing says whether \\\"x\\\" runs"),
        ("[]", 1, "ended with exit status: 1"),
    ] {
        rig.rule(json!({ "command": "list", "times": 1, "then": { "garbage": { "stdout": stdout, "exit": exit } } }));
        let driver = rig.restarted();
        assert_eq!(sorted(driver.list().await.unwrap()), expected, "{stdout}");
        let note = driver.probe(true).await.unwrap().note.unwrap();
        assert!(note.replace('\\', "").contains(&shows.replace('\\', "")), "{note}");
        // It is not asked again at once.
        assert_eq!(sorted(driver.list().await.unwrap()), expected, "{stdout}");
    }
    assert!(matches!(rig.inspect(&spec.name).await, Observation::Running { .. }));
    drop(stranger);
    let running = rig.driver.list().await.unwrap().into_iter().filter(|l| l.running);
    assert_eq!(running.map(|l| l.name).collect::<Vec<_>>(), [spec.name.to_string()]);
}

#[tokio::test]
async fn a_list_that_hangs_is_given_up_and_not_waited_for_again() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    rig.rule(json!({ "command": "list", "then": { "hang_ms": 60_000 } }));
    let began = Instant::now();
    assert_eq!(rig.driver.list().await.unwrap().len(), 1);
    assert!(began.elapsed() < Duration::from_secs(15));
    let again = Instant::now();
    assert_eq!(rig.driver.list().await.unwrap()[0].name, spec.name.to_string());
    assert!(again.elapsed() < Duration::from_secs(5), "{:?}", again.elapsed());
    let note = rig.driver.probe(true).await.unwrap().note.unwrap();
    assert!(note.contains("did not finish within"), "{note}");
}

#[tokio::test]
async fn both_shapes_of_the_list_say_the_same() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    let new = rig.driver.list().await.unwrap();
    rig.set("version", json!("2.30.0"));
    assert_eq!(rig.driver.list().await.unwrap(), new);
    assert_eq!((new.len(), new[0].name.as_str()), (1, spec.name.as_str()));
}

#[tokio::test]
async fn foreign_vms_are_counted_and_never_touched() {
    let rig = TartRig::new();
    let config = rig.linux().files.config.unwrap();
    let mut stranger = rig.stranger("mine", |to| assert!(std::fs::copy(config, to).unwrap() > 0)).await;
    // Whatever it is, it takes room.
    std::fs::write(rig.home().join("vms/mine/config.json"), "{ not JSON").unwrap();
    // The name of ours, and not made by us: another Mayfly with the same home.
    let other_dir = tempfile::tempdir_in("/tmp").unwrap();
    let mut theirs = rig.settings.clone();
    theirs.run_dir = other_dir.path().join("runs");
    let theirs = Tart::new(theirs).unwrap();
    let spec = rig.created(rig.linux()).await;

    let seen = |list: Vec<mayfly::drivers::Listed>, name: &str| list.into_iter().find(|l| l.name == name).unwrap();
    let mine = seen(rig.driver.list().await.unwrap(), "mine");
    assert_eq!((mine.ours, mine.running, mine.os), (false, true, GuestOs::Macos));
    assert!(mine.cpus > 0 && mine.memory_mib > 0);
    assert!(seen(rig.driver.list().await.unwrap(), spec.name.as_str()).ours);
    assert!(!seen(theirs.list().await.unwrap(), spec.name.as_str()).ours);

    rig.driver.destroy(&spec.name).await.unwrap();
    assert!(stranger.lives());
}

#[tokio::test]
async fn another_holder_of_the_lock_never_gets_a_signal() {
    let rig = TartRig::new();
    let spec = rig.created(rig.linux()).await;
    let ours = rig.vm(&spec.name).join("config.json");
    // One file with two names: the stranger's lock is on ours.
    let mut stranger = rig.stranger("stranger", |to| std::fs::hard_link(&ours, to).unwrap()).await;
    assert_eq!(rig.pid(&spec.name).as_raw_nonzero().get().cast_unsigned(), stranger.0.id());
    assert_eq!(rig.inspect(&spec.name).await, Observation::Stopped);
    rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
    for refused in [rig.refused(&spec).await, rig.driver.create(&spec).await.unwrap_err()] {
        assert_eq!(refused.kind, ErrorKind::Retry);
        assert!(refused.summary.contains(&format!("process {}", stranger.0.id())), "{refused}");
    }
    let error = rig.driver.destroy(&spec.name).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Retry);
    assert!(rig.vm(&spec.name).exists());
    assert!(stranger.lives());
    drop(stranger);
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
}

#[tokio::test]
async fn a_delete_that_comes_too_early_is_repeated() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    rig.rule(json!({ "command": "delete", "times": 3, "then": { "says_running": true } }));
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    let spec = rig.created(rig.linux()).await;
    rig.rule(json!({ "command": "delete", "times": 1, "then": { "garbage": { "stderr": "no idea\n", "exit": 1 } } }));
    let error = rig.driver.destroy(&spec.name).await.unwrap_err();
    assert!(error.summary.contains("no idea"), "{error}");
    assert!(rig.vm(&spec.name).exists(), "what is not understood removes nothing");
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn half_a_vm_is_seen_and_removed() {
    let rig = TartRig::new();
    for file in ["config.json", "disk.img", "nvram.bin"] {
        let spec = rig.created(rig.linux()).await;
        std::fs::remove_file(rig.vm(&spec.name).join(file)).unwrap();
        match rig.inspect(&spec.name).await {
            Observation::Broken { detail } => assert!(detail.contains(file), "{detail}"),
            other => panic!("{other:?}"),
        }
        let listed = rig.driver.list().await.unwrap();
        assert!(
            listed.iter().any(|l| l.name == spec.name.as_str() && l.ours && !l.running),
            "Tart itself passes over it"
        );
        assert_eq!(rig.refused(&spec).await.kind, ErrorKind::Instance);
        rig.driver.destroy(&spec.name).await.unwrap();
        assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    }
    assert_eq!(rig.driver.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_run_without_its_directory_is_still_found() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    std::fs::remove_dir_all(rig.vm(&spec.name)).unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Running { ssh: None, agent: None, ssh_unseen: None });
    rig.driver.destroy(&spec.name).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
}

#[tokio::test]
async fn a_start_that_is_cut_short_leaks_nothing() {
    let rig = TartRig::new();
    for ms in (0..60).step_by(4).chain([100, 200]) {
        let spec = rig.created(rig.linux()).await;
        let _ = tokio::time::timeout(Duration::from_millis(ms), rig.driver.start(&spec)).await;
        if ms % 8 == 0 {
            rig.restarted().start(&spec).await.unwrap();
            assert!(matches!(rig.inspect(&spec.name).await, Observation::Running { .. }));
        }
        rig.driver.destroy(&spec.name).await.unwrap();
        assert_eq!(rig.inspect(&spec.name).await, Observation::Absent, "cut after {ms} ms");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.driver.list().await.unwrap(), []);
    assert_eq!(std::fs::read_dir(rig.dir.path().join("runs")).unwrap().count(), 0);
    let processes = mayfly::drivers::process::all().await.unwrap();
    let home = rig.home();
    let left: Vec<_> = processes
        .iter()
        .filter(|(pid, _)| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&home)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn two_starts_at_once_give_one_guest() {
    let rig = TartRig::new();
    let (one, two) = (rig.driver(), rig.restarted());
    for lock_after in [0, 0, 50, 200] {
        let spec = rig.linux();
        rig.bend(&spec.name, json!({ "lock_after_ms": lock_after }));
        let spec = rig.created(spec).await;
        let (first, second) = tokio::join!(one.start(&spec), two.start(&spec));
        first.unwrap();
        second.unwrap();
        let runs = || async {
            let all = mayfly::drivers::process::all().await.unwrap();
            all.into_iter().filter(|(_, line)| line.option("run") == Some(spec.name.as_str())).count()
        };
        assert_eq!(runs().await, 1);
        assert!(matches!(rig.inspect(&spec.name).await, Observation::Running { agent: Some(_), .. }));
        // What the loser said does not hide how the guest ended.
        rig.driver.stop(&spec.name, Duration::ZERO).await.unwrap();
        assert_eq!(rig.ended(&spec.name).await.unwrap(), GoneCause::HostStop);
        assert_eq!(runs().await, 0);
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_create_that_is_cut_short_leaks_nothing() {
    let rig = TartRig::new();
    let disk = rig.dir.path().join("template/disk");
    std::fs::write(&disk, vec![1; 64 << 20]).unwrap();
    for ms in [0, 1, 2, 5, 10, 20, 40, 80, 160] {
        let spec = rig.linux();
        let cut = tokio::time::timeout(Duration::from_millis(ms), rig.driver.create(&spec)).await.is_err();
        rig.driver.destroy(&spec.name).await.unwrap();
        assert_eq!(rig.inspect(&spec.name).await, Observation::Absent, "cut after {ms} ms: {cut}");
    }
    // Nobody waits for the last copies, which end by themselves.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.driver.list().await.unwrap(), []);
    assert_eq!(std::fs::read_dir(rig.home().join("mayfly/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_guest_does_not_hang_on_this_process() {
    let rig = TartRig::new();
    let spec = rig.started(rig.linux()).await;
    let pid = rig.pid(&spec.name).as_raw_nonzero().get();
    let session = |pid: i32| {
        let output = std::process::Command::new("ps").args(["-o", "sess=", "-p", &pid.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(session(pid), pid.to_string(), "it leads a session of its own");

    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment: Vec<_> = environment.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let home = format!("TART_HOME={}", rig.home().display());
    for expected in ["CI=1", "TART_NO_AUTO_PRUNE=1", &home] {
        assert!(environment.iter().any(|e| e == expected), "{expected}: {environment:?}");
    }
    let path = environment.iter().find(|e| e.starts_with("PATH=")).unwrap();
    assert!(path.contains("/opt/homebrew/bin") && path.contains("/usr/sbin"), "{path}");
    assert!(!environment.iter().any(|e| e.starts_with("CARGO")), "{environment:?}");

    let runs = rig.dir.path().join("runs").join(spec.name.as_str());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&runs), mode(&runs.join("run.out")), mode(&runs.join("run.err"))), (0o700, 0o600, 0o600));
}

#[tokio::test]
async fn guests_that_boot_together_are_not_confused() {
    let rig = TartRig::new();
    rig.set("lease", json!({ "after_ms": 200 }));
    let specs = [rig.linux(), rig.linux(), rig.linux()];
    let start = |spec| rig.started(spec);
    let [a, b, c] = specs;
    let (a, b, c) = tokio::join!(start(a), start(b), start(c));
    let mut seen = Vec::new();
    for spec in [&a, &b, &c] {
        let endpoint = rig.address(&spec.name).await;
        assert_eq!(endpoint.1, 22);
        let mac = rig.config(&spec.name)["macAddress"].as_str().unwrap().to_owned();
        let short: Vec<String> = mac.split(':').map(|o| format!("{:x}", u8::from_str_radix(o, 16).unwrap())).collect();
        let leases = std::fs::read_to_string(rig.home().join("dhcpd_leases")).unwrap();
        let block = leases.split('}').find(|b| b.contains(&format!("hw_address=1,{}\n", short.join(":")))).unwrap();
        assert!(block.contains(&format!("ip_address={}\n", endpoint.0)), "{block} {endpoint:?}");
        seen.push((mac, endpoint.0));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test]
async fn one_address_of_two_guests_is_neithers() {
    let rig = TartRig::new();
    let (a, b) = (rig.linux(), rig.linux());
    for spec in [&a, &b] {
        rig.bend(&spec.name, json!({ "lease": { "ip": "127.64.9.9" } }));
    }
    let a = rig.started(a).await;
    assert_eq!(rig.address(&a.name).await.0, "127.64.9.9");
    let b = rig.started(b).await;
    for name in [&a.name, &b.name] {
        let began = Instant::now();
        let (code, why) = loop {
            match rig.inspect(name).await {
                Observation::Running { ssh, ssh_unseen: Some(why), .. } => {
                    assert_eq!(ssh, None);
                    break why;
                }
                seen => assert!(began.elapsed() < SOON, "{seen:?}"),
            }
        };
        assert_eq!(code, Code::GuestNotReady);
        assert!(why.contains("127.64.9.9"), "{why}");
    }
    // Ending works all the same.
    for spec in [a, b] {
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_from_an_earlier_run_is_not_believed() {
    let rig = TartRig::new();
    rig.set("lease", json!({ "after_ms": 600 }));
    let spec = rig.created(rig.linux()).await;
    let mac = rig.config(&spec.name)["macAddress"].as_str().unwrap().to_owned();
    rig.lease(&mac, "192.168.64.77", 600);
    rig.lease(&mac, "192.168.64.78", -600);
    rig.driver.start(&spec).await.unwrap();
    match rig.inspect(&spec.name).await {
        Observation::Running { ssh, .. } => assert_eq!(ssh, None, "the old address"),
        other => panic!("{other:?}"),
    }
    assert!(rig.address(&spec.name).await.0.starts_with("127."), "the new one");
}

#[tokio::test]
async fn a_guest_without_a_lease_is_found_through_its_agent() {
    let rig = TartRig::with(|settings| settings.agent_after = Duration::from_millis(100));
    rig.set("lease", json!({ "duid": true }));
    rig.set("agent", json!("host"));
    let spec = rig.started(rig.linux()).await;
    assert!(!rig.address(&spec.name).await.0.is_empty());

    // A table that cannot be read is the host's affair as long as the guest itself can be asked, and is told when it cannot.
    std::fs::write(rig.home().join("dhcpd_leases"), "bootpd: out of order").unwrap();
    assert!(!rig.address(&spec.name).await.0.is_empty());
    rig.rule(
        json!({ "command": "ip", "times": 1, "then": { "garbage": { "stderr": "no IP address found\n", "exit": 1 } } }),
    );
    // The agent is reached without an address, whatever becomes of it.
    match rig.inspect(&spec.name).await {
        Observation::Running { ssh: None, agent: Some(_), ssh_unseen: Some((_, why)) } => {
            assert!(why.contains("bootpd: out of order"), "{why}")
        }
        other => panic!("{other:?}"),
    }

    let agent = TartRig::with(|settings| settings.resolver = Resolver::Agent);
    agent.set("agent", json!("none"));
    let spec = agent.started(agent.linux()).await;
    agent.rule(json!({ "command": "ip", "times": 1, "then": { "garbage": { "stdout": "192.168.64.300\n" } } }));
    let Observation::Running { agent: Some(_), ssh_unseen: Some((_, why)), .. } = agent.inspect(&spec.name).await
    else {
        panic!("the address was understood");
    };
    assert!(why.ends_with("found: \"192.168.64.300\\n\""), "{why}");
    assert!(matches!(
        agent.inspect(&spec.name).await,
        Observation::Running { ssh: None, agent: Some(_), ssh_unseen: None }
    ));
    // A warning is no address.
    let warned = "warning: Tart 2.36.0 is available\n192.168.64.30\n";
    agent.rule(json!({ "command": "ip", "times": 1, "then": { "garbage": { "stdout": warned } } }));
    assert_eq!(agent.address(&spec.name).await.0, "192.168.64.30");
}

#[tokio::test]
async fn a_bridged_guest_is_found_in_the_arp_table() {
    let table = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let text = format!("cat {}", table.path().display());
    let rig = TartRig::with(|settings| {
        settings.network = Network::Bridged { interfaces: vec!["en0".to_owned()] };
        settings.arp = settings.run_dir.with_file_name("arp");
    });
    rig.script("arp", &text);
    let spec = rig.started(rig.linux()).await;
    assert!(
        matches!(rig.inspect(&spec.name).await, Observation::Running { ssh: None, .. }),
        "leases mean nothing here"
    );
    let mac = rig.config(&spec.name)["macAddress"].as_str().unwrap().to_owned();
    std::fs::write(table.path(), format!("? (10.0.1.7) at {mac} on en0 ifscope [ethernet]\n")).unwrap();
    assert_eq!(rig.address(&spec.name).await.0, "10.0.1.7");
    std::fs::write(table.path(), "arp: no such thing\n").unwrap();
    let Observation::Running { ssh_unseen: Some((_, why)), .. } = rig.inspect(&spec.name).await else {
        panic!("the table was understood");
    };
    assert!(why.contains("arp: no such thing"), "{why}");
}

#[tokio::test]
async fn templates_that_cannot_run_here_are_refused_before_they_are_cloned() {
    let rig = TartRig::apple();
    let asif = |mut spec: InstanceSpec| {
        let path = spec.files.config.clone().unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replace("\"raw\"", "\"asif\"");
        spec.disk_format = DiskFormat::Asif;
        spec.files.config = Some(path.with_extension("asif"));
        std::fs::write(spec.files.config.as_ref().unwrap(), text).unwrap();
        spec
    };
    let broken = |mut spec: InstanceSpec| {
        let path = rig.dir.path().join("template/broken");
        std::fs::write(&path, "<plist>").unwrap();
        spec.files.config = Some(path);
        spec
    };
    let without = |part: &str, mut spec: InstanceSpec| {
        if part == "config" {
            spec.files.config = None
        } else {
            spec.files.nvram = None
        }
        spec
    };
    let cases = [
        (
            InstanceSpec { os: GuestOs::Linux, ..rig.macos() },
            Code::TemplateInvalid,
            "is Macos by its own configuration, not Linux",
        ),
        (InstanceSpec { arch: Arch::X86_64, ..rig.macos() }, Code::DriverUnsupported, "aarch64 guests, not x86_64"),
        (
            InstanceSpec { disk_format: DiskFormat::Qcow2, ..rig.macos() },
            Code::TemplateInvalid,
            "is raw by its own configuration, not qcow2",
        ),
        (InstanceSpec { cpus: 1, ..rig.macos() }, Code::SizeImpossible, "at least 2 cores, but 1 were requested"),
        (
            InstanceSpec { memory_mib: 1023, ..rig.macos() },
            Code::SizeImpossible,
            "at least 1024 MiB of memory, but 1023 MiB",
        ),
        (asif(rig.macos()), Code::TemplateInvalid, "needs macOS 26.0; this is no macOS"),
        (broken(rig.macos()), Code::TemplateInvalid, "<plist>"),
        (without("config", rig.macos()), Code::TemplateInvalid, "made for another driver"),
        (without("nvram", rig.macos()), Code::TemplateInvalid, "no nvram file"),
    ];
    for (spec, code, says) in cases {
        let error = rig.driver.create(&spec).await.unwrap_err();
        assert_eq!((error.kind, error.code), (ErrorKind::Permanent, code), "{error}");
        assert!(error.summary.contains(says), "{error}");
        assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    }
    for (version, fits) in [("15.7.1", false), ("26.0", true)] {
        rig.script("sw_vers", &format!("echo {version}"));
        let spec = asif(rig.macos());
        match rig.driver.create(&spec).await {
            Ok(()) => assert!(fits, "{version}"),
            Err(error) => assert!(!fits && error.summary.contains(version.strip_suffix(".1").unwrap()), "{error}"),
        }
    }
    let intel = TartRig::with(|settings| settings.arch = Some(Arch::X86_64));
    let error = intel.driver.create(&intel.spec_of(GuestOs::Macos, Arch::X86_64)).await.unwrap_err();
    assert!(error.summary.contains("Apple Silicon only"), "{error}");
}

#[tokio::test]
async fn a_host_that_cannot_run_it_is_refused_with_a_remedy() {
    let rig = TartRig::new();
    let fault = async |rig: &TartRig| {
        let error = rig.driver.probe(true).await.unwrap_err();
        assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostUnavailable));
        error.summary
    };
    let probe = rig.driver.probe(false).await.unwrap();
    assert_eq!((probe.version.as_str(), probe.accelerator.as_str()), ("Tart 2.32.1", "vz"));
    rig.set("version", json!("2.31.0"));
    assert!(fault(&rig).await.contains("Tart 2.31.0 is too old: this needs 2.32 or later"));
    rig.set("version", json!("tart v3"));
    assert!(fault(&rig).await.contains("found: \"tart v3"));
    rig.set("version", json!("SNAPSHOT"));
    rig.script("sw_vers", "echo 15.1");
    assert_eq!(rig.driver.probe(true).await.unwrap().version, "Tart SNAPSHOT on macOS 15.1");
    rig.script("sw_vers", "echo 12.7");
    assert!(fault(&rig).await.contains("macOS 12.7 is too old"));
    rig.script("sw_vers", "echo Sequoia");
    assert!(fault(&rig).await.contains("found: \"Sequoia"));

    let none = TartRig::with(|settings| settings.binary = Some("/none/tart".into()));
    assert!(fault(&none).await.contains("brew install"));
    let lost = TartRig::with(|settings| settings.launcher = vec!["/none/mayfly".to_owned()]);
    let spec = lost.created(lost.linux()).await;
    assert_eq!(lost.refused(&spec).await.kind, ErrorKind::Host);
}

#[tokio::test]
async fn the_launcher_reports_a_program_that_is_not_tart() {
    let rig = TartRig::new();
    let fake = rig.script("no-tart", "exit 0");
    let mut settings = rig.settings.clone();
    settings.binary = Some(fake.clone());
    let driver = Tart::new(settings).unwrap();
    let spec = rig.created(rig.linux()).await;
    let error = driver.start(&spec).await.unwrap_err();
    assert!(error.summary.contains("(exit status: 0): nothing"), "{error}");
    // It is executable and cannot be executed.
    std::fs::write(&fake, "#!/none/sh\n").unwrap();
    let error = driver.start(&spec).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused));
    assert!(error.summary.contains("mayfly detach: cannot run"), "{error}");
}
