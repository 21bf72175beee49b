//! The macosvm driver over the strict double of `macosvm`. Guests are inert.
//!
//! Nothing here is skipped: without the double these tests fail and say what is missing.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use mayfly::{
    domain::{
        Arch, Code, GuestOs, InstanceName, VmId,
        endpoint::Endpoint,
        event::GoneCause,
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        Driver, DriverError, ErrorKind, GuestNetwork, InstanceSpec, Observation,
        macosvm::{IdentityChoice, Macosvm, MacosvmNetwork, Settings},
        process::{self, CommandLine},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

use super::conformance::{self, Rig};
use crate::support::macosvm::{MODEL, double, identity};

mod ends;

const SOON: Duration = Duration::from_secs(20);

struct MacosvmRig {
    dir: tempfile::TempDir,
    settings: Settings,
    driver: Arc<Macosvm>,
    control: Mutex<Map<String, Value>>,
}

impl MacosvmRig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::Builder::new().prefix("mayfly-it-").tempdir_in("/tmp").unwrap();
        let home = dir.path().join("bin");
        let launcher = [env!("CARGO_BIN_EXE_mayfly"), "detach", "--"].map(str::to_owned);
        let mut settings = Settings::new(dir.path().join("instances"), launcher.into());
        settings.binary = Some(double(&home));
        settings.lease_file = home.join("dhcpd_leases");
        change(&mut settings);
        let driver = Arc::new(Macosvm::new(settings.clone()).unwrap());
        let rig = Self { dir, settings, driver, control: Mutex::default() };
        let template = rig.dir.path().join("template");
        std::fs::create_dir(&template).unwrap();
        std::fs::File::create(template.join("disk")).unwrap().set_len(8 << 20).unwrap();
        std::fs::write(template.join("aux"), "aux").unwrap();
        rig
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn instance(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str())
    }

    /// Tells the double something.
    fn set(&self, key: &str, value: Value) {
        let mut control = self.control.lock().unwrap();
        control.insert(key.to_owned(), value);
        let file = self.home().join("double.new");
        std::fs::write(&file, serde_json::to_vec(&*control).unwrap()).unwrap();
        std::fs::rename(file, self.home().join("double.json")).unwrap();
    }

    /// Bends the runs of this VM, once.
    fn bend(&self, name: &InstanceName, then: Value) {
        let mut rules = match self.control.lock().unwrap().get("rules") {
            Some(Value::Array(rules)) => rules.clone(),
            _ => Vec::new(),
        };
        rules.push(json!({"id": rules.len().to_string(), "vm": name.as_str(), "times": 1, "then": then}));
        self.set("rules", Value::Array(rules));
    }

    fn spec_with(&self, change: impl FnOnce(&mut Value)) -> InstanceSpec {
        let name = VmId::mint().instance();
        let template = self.dir.path().join("template");
        let config = template.join(format!("{name}.json"));
        let mut text = json!({
            "version": 1, "os": "darwin", "arch": "arm64", "cpuCountMin": 2, "cpuCount": 4, "memorySizeMin": 1 << 30,
            "memorySize": 4_u64 << 30, "macAddress": "7a:65:e4:3f:b2:51", "diskFormat": "raw", "ecid": identity(7),
            "hardwareModel": MODEL,
        });
        change(&mut text);
        std::fs::write(&config, text.to_string()).unwrap();
        InstanceSpec {
            name,
            os: GuestOs::Macos,
            arch: Arch::Aarch64,
            cpus: 3,
            memory_mib: 1536,
            disk_format: DiskFormat::Raw,
            files: TemplateFiles {
                disk: template.join("disk"),
                config: Some(config),
                nvram: Some(template.join("aux")),
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

    fn macos(&self) -> InstanceSpec {
        self.spec_with(|_| {})
    }

    async fn created(&self) -> InstanceSpec {
        let spec = self.macos();
        self.driver.create(&spec).await.unwrap();
        spec
    }

    async fn started(&self) -> InstanceSpec {
        let spec = self.created().await;
        self.driver.start(&spec).await.unwrap();
        spec
    }

    /// Begins to start it, and forgets about it when its process is there, as when the service is killed.
    async fn interrupted(&self, spec: &InstanceSpec) {
        let start = tokio::spawn({
            let (driver, spec) = (self.driver.clone(), spec.clone());
            async move { driver.start(&spec).await }
        });
        let began = Instant::now();
        while !self.instance(&spec.name).join("macosvm.pid").exists() {
            assert!(began.elapsed() < SOON && !start.is_finished());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        start.abort();
    }

    async fn refused(&self, spec: &InstanceSpec) -> DriverError {
        self.driver.start(spec).await.unwrap_err()
    }

    async fn ended(&self, name: &InstanceName) -> GoneCause {
        tokio::time::timeout(SOON, self.driver.ended(name)).await.expect("the end is told").unwrap()
    }

    async fn inspect(&self, name: &InstanceName) -> Observation {
        self.driver.inspect(name).await.unwrap()
    }

    fn description(&self, name: &InstanceName) -> Value {
        serde_json::from_slice(&std::fs::read(self.instance(name).join("vm.json")).unwrap()).unwrap()
    }

    /// The process and its command line, as the host lists them.
    async fn process(&self, name: &InstanceName) -> (i32, Vec<String>) {
        let description = self.instance(name).join("vm.json").display().to_string();
        let all = process::all().await.unwrap();
        let mut found = all.into_iter().filter_map(|(pid, line)| match line {
            CommandLine::Exact(args) if args.last() == Some(&description) => Some((pid, args)),
            CommandLine::Exact(_) | CommandLine::Joined(_) => None,
        });
        let one = found.next().expect("it runs");
        assert!(found.next().is_none(), "one process per instance");
        one
    }

    async fn pid(&self, name: &InstanceName) -> Pid {
        Pid::from_raw(self.process(name).await.0).unwrap()
    }

    /// As when a program in the guest shuts it down.
    async fn shut_down(&self, name: &InstanceName) {
        let pid = self.process(name).await.0;
        std::fs::write(self.home().join("double").join(format!("off-{pid}")), "").unwrap();
    }

    /// Runs a stranger's guest.
    async fn stranger(&self, name: &str, description: Value) -> (String, Stranger) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str| {
            std::fs::write(dir.join(name), "x").unwrap();
            dir.join(name)
        };
        let mut whole =
            json!({"storage": [{"type": "disk", "file": file("disk")}, {"type": "aux", "file": file("aux")}]});
        whole.as_object_mut().unwrap().extend(description.as_object().unwrap().clone());
        let path = dir.join("vm.json");
        std::fs::write(&path, whole.to_string()).unwrap();
        let said = dir.join("said");
        let child = std::process::Command::new(self.settings.binary.as_ref().unwrap())
            .arg(&path)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(&said).unwrap())
            .spawn()
            .unwrap();
        let stranger = Stranger(child);
        let began = Instant::now();
        while !std::fs::read_to_string(&said).unwrap().contains("start completed err=nil") {
            assert!(began.elapsed() < SOON, "{name} does not run");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (path.display().to_string(), stranger)
    }
}

/// A program that prints the host's ARP table: the file `table` beside it.
fn arp_beside(binary: &Path) -> PathBuf {
    let arp = binary.with_file_name("arp");
    std::fs::write(&arp, "#!/bin/sh\ncat \"$(dirname \"$0\")/table\"\n").unwrap();
    std::fs::set_permissions(&arp, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    arp
}

struct Stranger(std::process::Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for MacosvmRig {
    /// A failed test leaves no guests behind.
    fn drop(&mut self) {
        let Ok(dirs) = std::fs::read_dir(self.dir.path().join("instances")) else { return };
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

impl Rig for MacosvmRig {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn restarted(&self) -> Arc<dyn Driver> {
        Arc::new(Macosvm::new(self.settings.clone()).unwrap())
    }

    fn spec(&self, id: VmId) -> InstanceSpec {
        InstanceSpec { name: id.instance(), ..self.macos() }
    }

    /// The host cannot ask any guest.
    fn deaf(&self, id: VmId) -> InstanceSpec {
        self.spec(id)
    }

    async fn up(&self, _name: &InstanceName) {}

    async fn ask(&self, name: &InstanceName) {
        self.shut_down(name).await;
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn power_off(&self, name: &InstanceName) -> bool {
        self.shut_down(name).await;
        true
    }

    async fn foreign(&self) -> (String, Box<dyn std::any::Any + Send>) {
        let (name, stranger) = self.stranger("xcode", json!({"cpus": 2, "ram": 2_u64 << 30})).await;
        (name, Box::new(stranger))
    }
}

#[tokio::test]
async fn macosvm_conforms() {
    assert_eq!(conformance::all(&MacosvmRig::new()).await, 17);
}

#[tokio::test]
async fn the_command_line_fits_the_version() {
    let rig = MacosvmRig::new();
    let spec = rig.started().await;
    let dir = rig.instance(&spec.name).display().to_string();
    let (pid, args) = rig.process(&spec.name).await;
    let pid_file = format!("{dir}/macosvm.pid");
    assert_eq!(args[1..], ["--no-serial", "--pid-file", &pid_file, &format!("{dir}/vm.json")]);
    assert_eq!(std::fs::read_to_string(pid_file).unwrap(), format!("{pid}\n"));
    let session = rustix::process::getsid(Pid::from_raw(pid)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), pid, "it has a session of its own");
    rig.driver.destroy(&spec.name).await.unwrap();

    // It does not know the option, and would take its value for the description.
    rig.set("version", json!("0.2-2"));
    assert!(rig.driver.probe(true).await.unwrap().note.is_some());
    let spec = rig.started().await;
    assert_eq!(
        rig.process(&spec.name).await.1[1..],
        ["--no-serial", &rig.instance(&spec.name).join("vm.json").display().to_string()]
    );

    for (key, value, says) in [
        ("version", "0.1-4", "0.1-4 is too old"),
        ("version", "next", "; found: "),
        ("capabilities", "vol, usb", "runs no macOS guests"),
    ] {
        rig.set("version", json!("0.2-3"));
        rig.set(key, json!(value));
        let error = rig.driver.probe(true).await.unwrap_err();
        assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostUnavailable));
        assert!(error.summary.contains(says), "{error}");
        let spec = rig.created().await;
        assert_eq!(rig.refused(&spec).await.code, Code::HostUnavailable);
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn the_template_decides_what_a_clone_is_and_is_not_changed() {
    let rig = MacosvmRig::new();
    let (one, two) = (rig.created().await, rig.created().await);
    let (a, b) = (rig.description(&one.name), rig.description(&two.name));
    assert_eq!((&a["machineId"], &a["hardwareModel"]), (&json!(identity(7)), &json!(MODEL)));
    assert_eq!(a["machineId"], b["machineId"], "an identity is kept");
    assert_ne!(a["networks"][0]["mac"], b["networks"][0]["mac"], "an address is not");
    assert_eq!((&a["cpus"], &a["ram"]), (&json!(3), &json!(1536_u64 << 20)));
    let template = rig.dir.path().join("template");
    std::fs::write(rig.instance(&one.name).join("aux.img"), "changed").unwrap();
    assert_eq!(std::fs::read_to_string(template.join("aux")).unwrap(), "aux");
    assert_eq!(std::fs::read_to_string(rig.instance(&two.name).join("aux.img")).unwrap(), "aux");
    assert_eq!(std::fs::read_dir(rig.dir.path().join("instances/staging")).unwrap().count(), 0);

    let fresh = MacosvmRig::with(|settings| settings.identity = IdentityChoice::Regenerate);
    let (one, two) = (fresh.started().await, fresh.created().await);
    let (a, b) = (fresh.description(&one.name), fresh.description(&two.name));
    assert!(a["machineId"] != b["machineId"] && a["machineId"] != json!(identity(7)));

    type Change = fn(&mut Value);
    let refused: [(&str, Change); 4] = [
        ("runs Linux", |c| c["os"] = json!("linux")),
        ("in the format asif", |c| c["diskFormat"] = json!("asif")),
        ("hardwareModel", |c| c["hardwareModel"] = json!("bW9kZWw=")),
        ("machineId", |c| c["ecid"] = json!("ZWNpZA==")),
    ];
    for (says, change) in refused {
        let spec = rig.spec_with(change);
        let error = rig.driver.create(&spec).await.unwrap_err();
        assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid), "{error}");
        assert!(error.summary.contains(says), "{error}");
        assert_eq!(rig.inspect(&spec.name).await, Observation::Absent);
    }
    let small = InstanceSpec { cpus: 1, ..rig.macos() };
    assert_eq!(rig.driver.create(&small).await.unwrap_err().code, Code::SizeImpossible);
    let linux = InstanceSpec { os: GuestOs::Linux, ..rig.macos() };
    assert_eq!(rig.driver.create(&linux).await.unwrap_err().code, Code::DriverUnsupported);
}

/// macosvm would boot something else: an empty machine, or one with a new auxiliary storage.
#[tokio::test]
async fn a_clone_that_another_program_changed_is_not_started() {
    let rig = MacosvmRig::new();
    for (file, content, says) in [
        ("vm.json", Some("{"), "vm.json was changed"),
        ("vm.json", Some("{}"), "vm.json was changed"),
        ("vm.json", None, "has no vm.json"),
        ("aux.img", None, "has no aux.img"),
        ("disk.img", None, "has no disk.img"),
    ] {
        let spec = rig.created().await;
        let path = rig.instance(&spec.name).join(file);
        match content {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = rig.refused(&spec).await;
        assert_eq!((error.kind, error.code), (ErrorKind::Instance, Code::BootFailed), "{error}");
        assert!(error.summary.contains(says), "{error}");
        assert_eq!(path.exists(), content.is_some());
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

/// A start that was interrupted at any point is continued with the same guest.
#[tokio::test]
async fn an_interrupted_start_is_continued() {
    let rig = MacosvmRig::new();
    let spec = rig.created().await;
    rig.bend(&spec.name, json!({"start_after_ms": 1500}));
    rig.interrupted(&spec).await;
    let pid = rig.pid(&spec.name).await;
    assert!(!rig.instance(&spec.name).join("started").exists());
    let restarted = rig.restarted();
    restarted.create(&spec).await.unwrap();
    restarted.start(&spec).await.unwrap();
    assert_eq!(rig.pid(&spec.name).await, pid, "the same guest");
    assert!(rig.instance(&spec.name).join("started").exists());
}

#[tokio::test]
async fn a_guest_is_found_by_its_lease() {
    let rig = MacosvmRig::new();
    let spec = rig.created().await;
    rig.bend(&spec.name, json!({"lease": {"after_ms": 1500, "ip": "192.168.64.9"}}));
    rig.driver.start(&spec).await.unwrap();
    assert_eq!(rig.inspect(&spec.name).await, Observation::Running { ssh: None, agent: None, ssh_unseen: None });
    let began = Instant::now();
    let found = loop {
        match rig.inspect(&spec.name).await {
            Observation::Running { ssh: Some(ssh), .. } => break ssh,
            Observation::Running { ssh: None, ssh_unseen: None, .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(found, Endpoint::address("192.168.64.9", 22));
    // The same address for another guest: it is not known which one would answer.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let file = rig.home().join("dhcpd_leases");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str(&format!(
        "{{\n\tip_address=192.168.64.9\n\thw_address=1,2:0:0:0:0:9\n\tlease=0x{:x}\n}}\n",
        now + 500
    ));
    std::fs::write(&file, text).unwrap();
    match rig.inspect(&spec.name).await {
        Observation::Running { ssh: None, ssh_unseen: Some((code, detail)), .. } => {
            assert_eq!(code, Code::GuestNotReady);
            assert!(detail.contains("2:00:00:00:00:09"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    // A broken file says nothing about the guest.
    std::fs::write(&file, "half a block").unwrap();
    assert!(matches!(
        rig.inspect(&spec.name).await,
        Observation::Running { ssh: None, ssh_unseen: Some((Code::HostUnavailable, _)), .. }
    ));
}

/// As where another program is the host's DHCP server. Another guest answers too.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_guest_without_a_lease_is_found_by_a_scan() {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    let first = TcpListener::bind("127.64.9.2:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    for listener in [first, TcpListener::bind(("127.64.9.3", port)).await.unwrap()] {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"SSH-2.0-guest\r\n").await;
            }
        });
    }
    let rig = MacosvmRig::with(|settings| {
        settings.arp = arp_beside(settings.binary.as_ref().unwrap());
        settings.ssh_port = port;
        settings.scan = Some(std::net::Ipv4Addr::new(127, 64, 9, 1));
        settings.scan_after = Duration::ZERO;
    });
    let spec = rig.created().await;
    rig.bend(&spec.name, json!({"lease": {"none": true}}));
    rig.driver.start(&spec).await.unwrap();
    let mac = rig.description(&spec.name)["networks"][0]["mac"].as_str().unwrap().to_owned();
    let table = |own: &str| {
        format!(
            "? (127.64.9.2) at 2:0:0:0:0:2 on bridge100 ifscope [bridge]\n? ({own}) at {mac} on bridge100 ifscope [bridge]\n"
        )
    };
    std::fs::write(rig.home().join("table"), table("127.64.9.4")).unwrap();
    assert_eq!(
        rig.inspect(&spec.name).await,
        Observation::Running { ssh: None, agent: None, ssh_unseen: None },
        "nothing answers at its address"
    );
    std::fs::write(rig.home().join("table"), table("127.64.9.3")).unwrap();
    let off = Macosvm::new(Settings { scan: None, ..rig.settings.clone() }).unwrap();
    assert!(matches!(off.inspect(&spec.name).await.unwrap(), Observation::Running { ssh: None, .. }));
    match rig.restarted().inspect(&spec.name).await.unwrap() {
        Observation::Running { ssh: Some(ssh), .. } => assert_eq!(ssh, Endpoint::address("127.64.9.3", port)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn foreign_guests_count_unless_they_run_linux() {
    let rig = MacosvmRig::new();
    let spec = rig.started().await;
    let (linux, _linux) = rig.stranger("linux", json!({"os": "linux", "cpus": 1, "ram": 1_u64 << 30})).await;
    let (macos, macos_guard) = rig.stranger("macos", json!({"cpus": 6, "ram": 3_u64 << 30})).await;
    let listed = rig.driver.list().await.unwrap();
    let shown = |name: &str| {
        let found = listed.iter().find(|l| l.name == name).unwrap();
        (found.ours, found.running, found.os, found.cpus, found.memory_mib)
    };
    assert_eq!(shown(spec.name.as_str()), (true, true, GuestOs::Macos, 3, 1536));
    assert_eq!(shown(&linux), (false, true, GuestOs::Linux, 1, 1024));
    assert_eq!(shown(&macos), (false, true, GuestOs::Macos, 6, 3072));
    assert_eq!(listed.len(), 3);

    // Two macOS guests run: the kernel refuses a third.
    let third = rig.created().await;
    let error = rig.refused(&third).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit), "{error}");
    assert!(error.summary.contains("that Mayfly did not start"), "{error}");
    assert_eq!(rig.inspect(&third.name).await, Observation::Stopped);
    drop(macos_guard);
    rig.driver.start(&third).await.unwrap();

    let quiet = Macosvm::new(Settings { count_foreign: false, ..rig.settings.clone() }).unwrap();
    assert!(quiet.list().await.unwrap().iter().all(|l| l.ours));
}

#[tokio::test]
async fn a_bridge_needs_an_entitlement() {
    let rig = MacosvmRig::with(|settings| {
        settings.network = MacosvmNetwork::Bridged { interface: "en0".to_owned() };
        settings.arp = arp_beside(settings.binary.as_ref().unwrap());
    });
    let spec = rig.created().await;
    assert_eq!(rig.description(&spec.name)["networks"][0]["type"], "bridge");
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused));
    assert!(error.summary.contains("com.apple.vm.networking"), "{error}");
    assert!(error.summary.contains("exit status: 0"), "which proves nothing: {error}");
    rig.set("entitlements", json!(["com.apple.security.virtualization", "com.apple.vm.networking"]));
    let spec = rig.started().await;
    let mac = rig.description(&spec.name)["networks"][0]["mac"].as_str().unwrap().to_owned();
    std::fs::write(rig.home().join("table"), format!("? (10.0.1.7) at {mac} on en0 ifscope [ethernet]\n")).unwrap();
    match rig.inspect(&spec.name).await {
        Observation::Running { ssh: Some(ssh), .. } => assert_eq!(ssh, Endpoint::address("10.0.1.7", 22)),
        other => panic!("{other:?}"),
    }
    rig.set("entitlements", json!([]));
    let spec = rig.created().await;
    assert!(rig.refused(&spec).await.summary.contains("com.apple.security.virtualization"));
}
