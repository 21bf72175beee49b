//! The driver for Cloud Hypervisor over its double, whose guests are real. `MAYFLY_TEST_CLOUD_HYPERVISOR` names a real one, for the
//! last test; see docs/contributing.md.
//!
//! Needs user namespaces and /dev/net/tun, as the driver does. Nothing here is skipped.

use std::{
    io::Read as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use mayfly::{
    domain::{
        Arch, Code, GuestOs, InstanceName, NetworkMode, NetworkPolicy, VmId,
        endpoint::Endpoint,
        event::GoneCause,
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        Driver, DriverError, ErrorKind, GuestNetwork, InstanceSpec, Observation, Seed,
        cloud_hypervisor::{CloudHypervisor, Settings, probe::pvh_kernel},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::conformance::{self, Rig};
use crate::support::{cloud_hypervisor::double, image};

const SOON: Duration = Duration::from_secs(60);
/// `cli; hlt`, for ever.
const DEAF: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// In QEMU, with the firmware of a PC: reset by the reset port.
const RESET: &[u8] = &[0xb0, 0x06, 0xba, 0xf9, 0x0c, 0x00, 0x00, 0xee, 0xf4, 0xeb, 0xfd];

struct VmmRig {
    dir: tempfile::TempDir,
    driver: Arc<CloudHypervisor>,
}

fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::new(dir.join("instances"), env!("CARGO_BIN_EXE_mayfly"));
    settings.binary = Some(dir.join("cloud-hypervisor"));
    settings
}

impl VmmRig {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("mayfly-it-").tempdir_in("/tmp").unwrap();
        std::os::unix::fs::symlink(double(), dir.path().join("cloud-hypervisor")).unwrap();
        let driver = Arc::new(CloudHypervisor::new(settings(dir.path())).unwrap());
        Self { dir, driver }
    }

    /// Tells the double something.
    fn order(&self, control: Value) {
        let new = self.dir.path().join("double.new");
        std::fs::write(&new, control.to_string()).unwrap();
        std::fs::rename(new, self.dir.path().join("double.json")).unwrap();
    }

    fn instance(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str())
    }

    fn bare(&self, id: VmId, code: &[u8]) -> InstanceSpec {
        let (disk, kernel) = (self.dir.path().join("disk"), self.dir.path().join(format!("kernel-{id}")));
        std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        std::fs::write(&kernel, pvh_kernel(code)).unwrap();
        InstanceSpec {
            name: id.instance(),
            os: GuestOs::Linux,
            arch: Arch::of_this_host().unwrap(),
            cpus: 1,
            memory_mib: 64,
            disk_format: DiskFormat::Raw,
            files: TemplateFiles { disk, kernel: Some(kernel), ..TemplateFiles::default() },
            cmdline: None,
            seed: Some(Seed { volume: vec![0; 4096] }),
            network: GuestNetwork {
                policy: NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() },
                guest_api: self.dir.path().join("api.sock"),
            },
        }
    }

    async fn started(&self, code: &[u8]) -> InstanceSpec {
        let spec = self.bare(VmId::mint(), code);
        self.driver.create(&spec).await.unwrap();
        self.driver.start(&spec).await.unwrap();
        spec
    }

    async fn refused(&self, spec: &InstanceSpec) -> DriverError {
        self.driver.create(spec).await.unwrap();
        let error = self.driver.start(spec).await.unwrap_err();
        let seen = self.driver.inspect(&spec.name).await.unwrap();
        assert_eq!(seen, Observation::Stopped, "a refused start leaves nothing running: {error}");
        error
    }

    async fn ended(&self, name: &InstanceName) -> GoneCause {
        tokio::time::timeout(SOON, self.driver.ended(name)).await.expect("the end is reported").unwrap()
    }

    fn hypervisor(&self, name: &InstanceName) -> Pid {
        let record = std::fs::read(self.instance(name).join("hypervisor.process")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        Pid::from_raw(record["pid"].as_i64().unwrap() as i32).unwrap()
    }

    fn supervisor(&self, name: &InstanceName) -> Pid {
        let lock = std::fs::File::open(self.instance(name).join("supervisor.lock")).unwrap();
        let held =
            rustix::process::fcntl_getlk(&lock, &rustix::process::Flock::from(rustix::process::FlockType::ReadLock));
        held.unwrap().and_then(|lock| lock.pid).expect("a supervisor holds its lock")
    }

    async fn ssh_socket(&self, name: &InstanceName) -> PathBuf {
        match self.driver.inspect(name).await.unwrap() {
            Observation::Running { ssh: Some(Endpoint::Socket { socket }), .. } => socket,
            other => panic!("{name} is {other:?}"),
        }
    }

    async fn ssh(&self, name: &InstanceName, command: &str) -> String {
        let port = crate::support::forwarded(self.ssh_socket(name).await).to_string();
        let output = tokio::process::Command::new("ssh")
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "LogLevel=ERROR", "-F", "none", "-p", &port, "-i"])
            .arg(image().join("id_ed25519"))
            .args(["root@127.0.0.1", command])
            .stdin(Stdio::null())
            .output()
            .await
            .expect("an ssh client");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

impl Drop for VmmRig {
    /// A failed test leaves no guests behind.
    fn drop(&mut self) {
        let Ok(dirs) = std::fs::read_dir(self.dir.path().join("instances")) else { return };
        for dir in dirs.flatten() {
            if let Some(name) = InstanceName::read(&dir.file_name().into_string().unwrap_or_default()) {
                let driver = self.driver.clone();
                let destroy = async move { driver.destroy(&name).await };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let _ = std::thread::spawn(move || runtime.map(|r| r.block_on(destroy).is_ok())).join();
            }
        }
    }
}

impl Rig for VmmRig {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.clone()
    }

    fn restarted(&self) -> Arc<dyn Driver> {
        Arc::new(CloudHypervisor::new(settings(self.dir.path())).unwrap())
    }

    fn spec(&self, id: VmId) -> InstanceSpec {
        let image = image();
        InstanceSpec {
            memory_mib: 192,
            disk_format: DiskFormat::Qcow2,
            files: TemplateFiles {
                disk: image.join("disk.qcow2"),
                kernel: Some(image.join("vmlinuz")),
                initramfs: Some(image.join("initramfs.img")),
                ..TemplateFiles::default()
            },
            cmdline: Some("console=ttyS0 quiet panic=-1 no_timer_check".to_owned()),
            ..self.bare(id, DEAF)
        }
    }

    fn deaf(&self, id: VmId) -> InstanceSpec {
        self.bare(id, DEAF)
    }

    async fn up(&self, name: &InstanceName) {
        let socket = self.ssh_socket(name).await;
        let began = Instant::now();
        let console = self.driver.console_log(name).unwrap();
        tokio::task::spawn_blocking(move || {
            while !greets(&socket) {
                let log = || std::fs::read_to_string(&console).unwrap_or_default();
                assert!(began.elapsed() < SOON, "no SSH after a minute; console:\n{}", log());
            }
        })
        .await
        .unwrap();
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(20)
    }

    async fn power_off(&self, name: &InstanceName) -> bool {
        self.ssh(name, "poweroff").await;
        true
    }

    async fn foreign(&self) -> (String, Box<dyn std::any::Any + Send>) {
        let socket = self.dir.path().join("stranger.sock");
        let child = tokio::process::Command::new(self.dir.path().join("cloud-hypervisor"))
            .arg("--api-socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let name = socket.display().to_string();
        // Until it is executed, the new process has this one's command line.
        while !self.driver.list().await.unwrap().iter().any(|l| l.name == name) {
            tokio::task::yield_now().await;
        }
        (name, Box::new(child))
    }
}

/// The gateway accepts before anything in the guest listens, so only the banner counts.
fn greets(socket: &Path) -> bool {
    let mut banner = [0; 4];
    let read = UnixStream::connect(socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.read_exact(&mut banner)
    });
    std::thread::sleep(Duration::from_millis(50));
    read.is_ok() && &banner == b"SSH-"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_hypervisor_conforms() {
    assert_eq!(conformance::all(&VmmRig::new()).await, 17);
}

#[tokio::test]
async fn what_keeps_guests_from_running_is_found_before_a_vm_is() {
    let rig = VmmRig::new();
    rig.order(json!({"version": "v33.0.0"}));
    let error = rig.driver.probe(true).await.unwrap_err();
    assert!(error.summary.contains("v33.0.0 is too old: install v34 or later"), "{error}");
    rig.order(json!({"no_hypervisor": true}));
    let error = rig.driver.probe(true).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostUnavailable));
    assert!(error.summary.contains("runs no guest: 0: Failed to open hypervisor interface"), "{error}");
    let spec = rig.bare(VmId::mint(), DEAF);
    let error = rig.refused(&spec).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused), "{error}");
    rig.order(json!({}));
    assert_eq!(rig.driver.probe(true).await.unwrap().version, "cloud-hypervisor v54.0.0");
    // What the host lacked was not the vm's fault: the same clone starts.
    rig.driver.start(&spec).await.unwrap();
    rig.driver.destroy(&spec.name).await.unwrap();
}

#[tokio::test]
async fn refusals_are_laid_at_the_right_door() {
    let rig = VmmRig::new();
    let good = rig.bare(VmId::mint(), DEAF);

    let mut wrong = good.clone();
    wrong.files.kernel = None;
    let error = rig.driver.create(&wrong).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid));
    assert!(error.summary.contains("needs a kernel"), "{error}");

    let text = rig.dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    wrong.files.kernel = Some(text);
    let error = rig.refused(&wrong).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid), "{error}");
    assert!(error.summary.contains("The VM could not boot: "), "{error}");

    // Each generation of the program answers in its own form.
    for (body, shown) in [
        (
            r#"["Error from API","The VM could not boot","something new"]"#,
            "(500): Error from API: The VM could not boot: something new",
        ),
        ("The VM could not boot: something old", "(500): The VM could not boot: something old"),
        ("", "(500): it gave no reason"),
    ] {
        rig.order(json!({"answers": {"vm.boot": {"status": 500, "body": body}}}));
        let error = rig.refused(&good).await;
        assert_eq!((error.kind, error.code), (ErrorKind::Retry, Code::BootFailed), "{error}");
        assert!(error.summary.ends_with(shown), "{error}");
    }
    rig.order(json!({}));
    rig.driver.start(&good).await.unwrap();
    rig.driver.destroy(&good.name).await.unwrap();
}

#[tokio::test]
async fn causes_of_a_guests_end_are_distinguished() {
    let rig = VmmRig::new();
    // A guest that resets itself is not booted again, although the hypervisor would do that.
    let spec = rig.started(RESET).await;
    assert_eq!(rig.ended(&spec.name).await, GoneCause::GuestReset);
    assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
    rig.driver.destroy(&spec.name).await.unwrap();

    let spec = rig.started(DEAF).await;
    kill_process(rig.hypervisor(&spec.name), Signal::KILL).unwrap();
    assert_eq!(rig.ended(&spec.name).await, GoneCause::Unknown);
    rig.driver.destroy(&spec.name).await.unwrap();

    // The hypervisor does not outlive its supervisor, and neither does the namespace with its tap.
    let spec = rig.started(DEAF).await;
    let hypervisor = rig.hypervisor(&spec.name);
    kill_process(rig.supervisor(&spec.name), Signal::KILL).unwrap();
    assert_eq!(rig.ended(&spec.name).await, GoneCause::Unknown);
    // The process that reaps it may be slow.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", hypervisor.as_raw_nonzero())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the hypervisor runs without its supervisor: {stat}");
    rig.driver.destroy(&spec.name).await.unwrap();

    // Another program pauses it, or shuts its guest down.
    for (request, cause) in [("vm.pause", GoneCause::HostPause), ("vm.shutdown", GoneCause::HostStop)] {
        let spec = rig.started(DEAF).await;
        let socket = rig.instance(&spec.name).join("api.sock");
        let ran = tokio::process::Command::new("curl")
            .args(["--silent", "--fail", "--request", "PUT", "--unix-socket"])
            .arg(socket)
            .arg(format!("http://localhost/api/v1/{request}"))
            .status();
        assert!(ran.await.unwrap().success());
        assert_eq!(rig.ended(&spec.name).await, cause, "{request}");
        rig.driver.start(&spec).await.unwrap();
        assert_eq!(rig.driver.inspect(&spec.name).await.unwrap(), Observation::Stopped, "it is not started again");
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}

#[tokio::test]
async fn a_hypervisor_that_hangs_is_killed() {
    let rig = VmmRig::new();
    let spec = rig.started(DEAF).await;
    rig.order(json!({"hangs": ["vmm.shutdown", "vm.power-button"]}));
    let began = Instant::now();
    rig.driver.stop(&spec.name, Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(rig.ended(&spec.name).await, GoneCause::HostStop);
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// The interface is in the guest's namespace only, and the hypervisor has no rights there.
#[tokio::test]
async fn the_host_sees_nothing_of_a_guests_network() {
    let rig = VmmRig::new();
    let spec = rig.started(DEAF).await;
    let here = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    assert!(!here.contains("tap0"), "{here}");
    let proc = PathBuf::from(format!("/proc/{}", rig.hypervisor(&spec.name).as_raw_nonzero()));
    let there = std::fs::read_to_string(proc.join("net/dev")).unwrap();
    let interfaces: Vec<&str> =
        there.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(interfaces.len(), 2, "{there}");
    assert!(interfaces.contains(&"lo") && interfaces.contains(&"tap0"), "{there}");
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    rig.driver.destroy(&spec.name).await.unwrap();
}

/// The real program, where it can be run: as far as the event `booted`. Without a usable KVM its guest stays mute.
#[tokio::test]
#[ignore = "needs a real cloud-hypervisor, named by MAYFLY_TEST_CLOUD_HYPERVISOR, and /dev/kvm"]
async fn the_real_program_is_driven_as_its_double_is() {
    let rig = VmmRig::new();
    let mut settings = settings(rig.dir.path());
    settings.binary = Some(std::env::var_os("MAYFLY_TEST_CLOUD_HYPERVISOR").expect("a path").into());
    eprintln!("probe: {:?}", CloudHypervisor::new(settings.clone()).unwrap().probe(true).await);
    for spec in [rig.spec(VmId::mint()), rig.bare(VmId::mint(), DEAF)] {
        let driver = CloudHypervisor::new(settings.clone()).unwrap();
        driver.create(&spec).await.unwrap();
        driver.start(&spec).await.unwrap();
        let events = std::fs::read_to_string(rig.instance(&spec.name).join("events.log")).unwrap();
        assert!(events.contains(r#"{"source":"vm","event":"booted"}"#), "{events}");
        driver.start(&spec).await.unwrap();
        assert!(matches!(driver.inspect(&spec.name).await.unwrap(), Observation::Running { .. }));
        driver.stop(&spec.name, Duration::from_secs(2)).await.unwrap();
        assert_eq!(driver.ended(&spec.name).await.unwrap(), GoneCause::HostStop);
        driver.start(&spec).await.unwrap();
        assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Stopped);
        let said = std::fs::read_to_string(rig.instance(&spec.name).join("hypervisor.log")).unwrap();
        eprintln!("said: {said}");
        driver.destroy(&spec.name).await.unwrap();
        assert_eq!(driver.inspect(&spec.name).await.unwrap(), Observation::Absent);
    }
    let driver = CloudHypervisor::new(settings).unwrap();
    let mut wrong = rig.bare(VmId::mint(), DEAF);
    let text = rig.dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    wrong.files.kernel = Some(text);
    driver.create(&wrong).await.unwrap();
    let error = driver.start(&wrong).await.unwrap_err();
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid), "{error}");
    eprintln!("refused: {error}");
    driver.destroy(&wrong.name).await.unwrap();
}
