//! The driver over a program in a directory of its own: the double, or a real one.

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
        Arch, GuestOs, InstanceName, NetworkMode, NetworkPolicy, VmId,
        endpoint::Endpoint,
        event::GoneCause,
        template::{DiskFormat, TemplateFiles},
    },
    drivers::{
        Driver, DriverError, GuestNetwork, InstanceSpec, Observation, Seed,
        cloud_hypervisor::{CloudHypervisor, Settings, probe::pvh_kernel},
    },
};
use rustix::process::Pid;
use serde_json::Value;

use super::super::conformance::Rig;
use crate::support::{cloud_hypervisor::double, image};

pub const SOON: Duration = Duration::from_secs(60);
/// `cli; hlt`, for ever.
pub const DEAF: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Resets itself: by the keyboard's controller, then by the reset port of a PC.
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xb0, 0x06, 0xba, 0xf9, 0x0c, 0x00, 0x00, 0xee, 0xf4, 0xeb, 0xfd];
/// Powers off: by the port of Cloud Hypervisor, then by that of a PC.
pub const POWER_OFF: &[u8] = &[
    0xba, 0x00, 0x06, 0x00, 0x00, 0xb0, 0x34, 0xee, 0xba, 0x04, 0x06, 0x00, 0x00, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef,
    0xfa, 0xf4, 0xeb, 0xfd,
];

pub struct VmmRig {
    pub dir: tempfile::TempDir,
    pub driver: Arc<CloudHypervisor>,
}

fn settings(dir: &Path) -> Settings {
    let mut settings = Settings::new(dir.join("instances"), env!("CARGO_BIN_EXE_mayfly"));
    settings.binary = Some(dir.join("cloud-hypervisor"));
    settings
}

impl VmmRig {
    /// With the double.
    pub fn new() -> Self {
        Self::of(&double())
    }

    /// With this program.
    pub fn of(program: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("mayfly-it-").tempdir_in("/tmp").unwrap();
        std::os::unix::fs::symlink(program, dir.path().join("cloud-hypervisor")).unwrap();
        let driver = Arc::new(CloudHypervisor::new(settings(dir.path())).unwrap());
        Self { dir, driver }
    }

    /// Tells the double something.
    pub fn order(&self, control: Value) {
        let new = self.dir.path().join("double.new");
        std::fs::write(&new, control.to_string()).unwrap();
        std::fs::rename(new, self.dir.path().join("double.json")).unwrap();
    }

    /// The requests that the double was ordered not to answer, and has not answered.
    pub fn unanswered(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("double.unanswered")).unwrap_or_default()
    }

    pub fn forget_unanswered(&self) {
        let _ = std::fs::remove_file(self.dir.path().join("double.unanswered"));
    }

    /// What the hypervisor reported, once this is in it. It writes its events beside its answers.
    pub async fn events_until(&self, name: &InstanceName, what: &str) -> String {
        let file = self.instance(name).join("events.log");
        let deadline = Instant::now() + SOON;
        loop {
            let events = std::fs::read_to_string(&file).unwrap();
            if events.contains(what) {
                return events;
            }
            assert!(Instant::now() < deadline, "no {what} in {events}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn instance(&self, name: &InstanceName) -> PathBuf {
        self.dir.path().join("instances").join(name.as_str())
    }

    pub fn bare(&self, id: VmId, code: &[u8]) -> InstanceSpec {
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

    pub async fn started(&self, code: &[u8]) -> InstanceSpec {
        let spec = self.bare(VmId::mint(), code);
        self.driver.create(&spec).await.unwrap();
        self.driver.start(&spec).await.unwrap();
        spec
    }

    pub async fn refused(&self, spec: &InstanceSpec) -> DriverError {
        self.driver.create(spec).await.unwrap();
        let error = self.driver.start(spec).await.unwrap_err();
        let seen = self.driver.inspect(&spec.name).await.unwrap();
        assert_eq!(seen, Observation::Stopped, "a refused start leaves nothing running: {error}");
        error
    }

    pub async fn ended(&self, name: &InstanceName) -> GoneCause {
        tokio::time::timeout(SOON, self.driver.ended(name)).await.expect("the end is reported").unwrap()
    }

    pub fn hypervisor(&self, name: &InstanceName) -> Pid {
        let record = std::fs::read(self.instance(name).join("hypervisor.process")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        Pid::from_raw(record["pid"].as_i64().unwrap() as i32).unwrap()
    }

    pub fn supervisor(&self, name: &InstanceName) -> Pid {
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
