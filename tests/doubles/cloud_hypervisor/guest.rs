//! A real guest, under QEMU. It dies with this process, however that dies, as a vm of the program's does.

use std::{collections::BTreeSet, fs::File, path::PathBuf, process::Stdio, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc::UnboundedSender,
};

use crate::{
    Chain,
    args::Described,
    config::{Mode, VmConfig},
    events::Monitor,
    image,
    vmm::Exit,
};

pub struct Guest {
    /// `None`: it is inert.
    running: Option<Running>,
    pub paused: bool,
    _disks: Vec<File>,
}

struct Running {
    child: Arc<tokio::sync::Mutex<Child>>,
    qmp: ChildStdin,
    watcher: tokio::task::JoinHandle<()>,
}

fn program() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

/// It gets SIGKILL when this process has ended.
fn qemu() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "--"]).arg(program());
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-M", if cfg!(target_arch = "aarch64") { "virt" } else { "q35" }]);
    // KVM opens on machines where guests hang in it.
    command.args(["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max"]);
    command
}

fn doubled(path: &std::path::Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Why a guest is not there.
pub enum NoGuest {
    /// Nothing was made.
    Refused(Chain),
    /// The disks, or the network cards: from then on the program knows nothing of them, and boots without.
    Disks(Chain),
    Nets(Chain),
    /// It was made and could not be booted. The program keeps it.
    NotBooted(Chain),
}

fn validation(texts: &[&str]) -> NoGuest {
    let texts = std::iter::once("Failed to validate config").chain(texts.iter().copied());
    NoGuest::Refused(texts.map(str::to_owned).collect())
}

/// In the order of the program: what it says first.
fn validate(config: &VmConfig) -> Result<PathBuf, NoGuest> {
    let payload = config.payload.clone().unwrap_or_default();
    let unbootable = |text| validation(&["Payload configuration is not bootable", text]);
    let kernel = match (payload.kernel, payload.firmware) {
        (Some(kernel), None) => kernel,
        (Some(_), Some(_)) => {
            return Err(unbootable("Specifying a kernel is not supported when a firmware is provided"));
        }
        (None, None) => return Err(unbootable("No bootitem provided: neither firmware nor kernel")),
        (None, Some(_)) => return Err(validation(&["firmware is not simulated"])),
    };
    let (boot, max) = (config.cpus.boot_vcpus, config.cpus.max_vcpus);
    if max < boot {
        return Err(validation(&[&format!("Max CPUs ({max}) lower than boot CPUs ({boot})")]));
    }
    if boot == 0 {
        // It is the queue of a disk that is counted.
        return Err(validation(&["Queue count (1) must not exceed boot vCPUs (0)"]));
    }
    for net in config.net.iter().flatten() {
        if (net.offload_tso || net.offload_ufo) && !net.offload_csum {
            return Err(validation(&["\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""]));
        }
    }
    let mut known = BTreeSet::new();
    let disks = config.disks.iter().flatten().filter_map(|disk| disk.id.as_ref());
    for id in disks.chain(config.net.iter().flatten().filter_map(|net| net.id.as_ref())) {
        if !known.insert(id) {
            return Err(validation(&[&format!("Identifier {id} is not unique")]));
        }
    }
    if config.console.common.mode == Mode::Tty {
        // It would take this process's terminal, and standard output is the test's.
        return Err(validation(&["a console on the terminal is not simulated"]));
    }
    Ok(kernel)
}

/// The tap is there, and may be opened.
fn check_tap(tap: &str) -> Result<(), Chain> {
    let failed = |what: &str, error: std::io::Error| {
        let texts = ["Error from device manager", "Cannot create virtio-net device", "Failed to open taps"];
        let texts = texts.into_iter().map(str::to_owned);
        texts.chain(["Open tap device failed".to_owned(), what.to_owned(), error.to_string()]).collect()
    };
    File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| failed("Couldn't open /dev/net/tun", error))?;
    let interfaces = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    if interfaces.lines().any(|line| line.trim_start().starts_with(&format!("{tap}:"))) {
        return Ok(());
    }
    // It would make one, which takes rights.
    Err(failed("Unable to configure tap interface", std::io::Error::from_raw_os_error(1)))
}

impl Guest {
    pub async fn boot(
        config: &VmConfig,
        inert: bool,
        events: &Arc<Monitor>,
        exit: &UnboundedSender<Exit>,
    ) -> Result<Guest, NoGuest> {
        let kernel = validate(config)?;
        let payload = config.payload.clone().unwrap_or_default();
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Chain>();
        if config.memory.size == 0 {
            return Err(NoGuest::Refused(texts(&["Memory manager error", "No memory zones found"])));
        }
        if let Some(initramfs) = &payload.initramfs {
            File::open(initramfs)
                .map_err(|error| NoGuest::Refused(texts(&["Cannot open initramfs file", &error.to_string()])))?;
        }
        let disks = config.disks.clone().unwrap_or_default();
        let files = disks.iter().map(image::open_disk).collect::<Result<Vec<_>, _>>().map_err(NoGuest::Disks)?;
        for net in config.net.iter().flatten() {
            let Some(tap) = &net.tap else { return Err(validation(&["a tap of its own is not simulated"])) };
            check_tap(tap).map_err(NoGuest::Nets)?;
        }
        for (disk, file) in disks.iter().zip(&files) {
            image::lock_disk(disk, file).map_err(NoGuest::NotBooted)?;
        }
        image::check_kernel(&kernel).map_err(NoGuest::NotBooted)?;
        if inert {
            return Ok(Guest { running: None, paused: false, _disks: files });
        }
        let mut command = qemu();
        command.args(["-smp", &config.cpus.boot_vcpus.to_string(), "-m", &(config.memory.size >> 20).to_string()]);
        command.args(["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"]);
        if let Some(uuid) = config.platform.as_ref().and_then(|platform| platform.system_uuid.as_ref()) {
            command.args(["-uuid", uuid]);
        }
        match (config.serial.common.mode, &config.serial.common.file) {
            (Mode::File, Some(file)) => {
                let console = format!("file,id=console,path={}", doubled(file));
                command.args(["-chardev", &console, "-serial", "chardev:console"]);
            }
            (Mode::Off | Mode::Null, _) => {}
            _ => return Err(validation(&["this serial line is not simulated"])),
        }
        for (n, disk) in disks.iter().enumerate() {
            let path = doubled(disk.path.as_deref().unwrap_or(std::path::Path::new("")));
            let format = if disk.image_type == crate::config::ImageType::Qcow2 { "qcow2" } else { "raw" };
            let readonly = if disk.readonly { ",readonly=on" } else { "" };
            command.args(["-drive", &format!("if=none,id=d{n},file={path},format={format},cache=unsafe{readonly}")]);
            command.args(["-device", &format!("virtio-blk-pci,drive=d{n}")]);
        }
        for (n, net) in config.net.iter().flatten().enumerate() {
            let Some(tap) = &net.tap else { continue };
            command.args(["-netdev", &format!("tap,id=n{n},ifname={tap},script=no,downscript=no,vhost=off")]);
            let on = |on: bool| if on { "on" } else { "off" };
            let (csum, tso, ufo) = (on(net.offload_csum), on(net.offload_tso), on(net.offload_ufo));
            let mac = net.mac.as_deref().map(|mac| format!(",mac={mac}")).unwrap_or_default();
            command.args([
                "-device",
                &format!(
                    "virtio-net-pci,netdev=n{n},romfile=,csum={csum},guest_csum={csum},host_tso4={tso},host_tso6={tso},\
                     guest_tso4={tso},guest_tso6={tso},host_ufo={ufo},guest_ufo={ufo},host_ecn=off,guest_ecn=off,gso={tso}{mac}"
                ),
            ]);
        }
        command.args(["-device", "virtio-rng-pci"]);
        if config.pvpanic {
            command.args(["-device", "pvpanic-pci"]);
        }
        command.arg("-kernel").arg(&kernel);
        if let Some(initramfs) = &payload.initramfs {
            command.arg("-initrd").arg(initramfs);
        }
        if let Some(cmdline) = &payload.cmdline {
            command.args(["-append", cmdline]);
        }
        let running = Running::start(command, events.clone(), exit.clone()).await.map_err(NoGuest::NotBooted)?;
        Ok(Guest { running: Some(running), paused: false, _disks: files })
    }

    pub async fn press_power_button(&mut self) {
        self.qmp("system_powerdown").await;
    }

    pub async fn pause(&mut self, pause: bool) {
        self.qmp(if pause { "stop" } else { "cont" }).await;
        self.paused = pause;
    }

    async fn qmp(&mut self, command: &str) {
        if let Some(running) = &mut self.running {
            let _ = running.qmp.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await;
        }
    }

    pub async fn end(self) {
        if let Some(running) = self.running {
            running.watcher.abort();
            let mut child = running.child.lock().await;
            let _ = child.kill().await;
        }
    }
}

impl Running {
    async fn start(mut command: Command, events: Arc<Monitor>, exit: UnboundedSender<Exit>) -> Result<Self, Chain> {
        let failed = |text: String| vec!["Error from device manager".to_owned(), text];
        let io = |error: std::io::Error| failed(error.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(io)?;
        let (Some(mut qmp), Some(answers), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("no pipes".to_owned()));
        };
        let mut answers = BufReader::new(answers).lines();
        let greeting = answers.next_line().await.map_err(io)?;
        if !greeting.is_some_and(|line| line.contains("\"QMP\"")) {
            let mut said = String::new();
            let _ = errors.read_to_string(&mut said).await;
            return Err(failed(said.trim().to_owned()));
        }
        tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = errors.read_to_end(&mut said).await;
        });
        qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await.map_err(io)?;
        let child = Arc::new(tokio::sync::Mutex::new(child));
        let watcher = tokio::spawn(async move {
            while let Ok(Some(line)) = answers.next_line().await {
                let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                match message["event"].as_str() {
                    Some("GUEST_PANICKED") => events.event("guest", "panic", Some(("event", "panic"))),
                    Some("RESET") if message["data"]["guest"] == true => {
                        let _ = exit.send(Exit::GuestReset);
                    }
                    _ => {}
                }
            }
            // It has ended: its guest has powered off.
            let _ = exit.send(Exit::GuestShutdown);
        });
        Ok(Self { child, qmp, watcher })
    }
}

/// A guest on the command line, to its end. Its serial line is standard output.
pub async fn run_described(described: &Described) -> Result<(), Chain> {
    image::check_kernel(&described.kernel)?;
    let mut command = qemu();
    command.args(["-smp", &described.cpus.to_string(), "-m", &described.memory_mib.to_string(), "-no-reboot"]);
    command.args(["-serial", "stdio", "-monitor", "none", "-kernel"]).arg(&described.kernel);
    let mut child = command.stdin(Stdio::null()).spawn().map_err(|error| vec![error.to_string()])?;
    child.wait().await.map_err(|error| vec![error.to_string()])?;
    Ok(())
}
