//! A real guest, under QEMU. It dies with this process, however that dies, as a vm of the program's does.

use std::{fs::File, process::Stdio, sync::Arc};

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

impl Guest {
    pub async fn boot(
        config: &VmConfig,
        inert: bool,
        events: &Arc<Monitor>,
        exit: &UnboundedSender<Exit>,
    ) -> Result<Guest, Chain> {
        let validation = |text: &str| vec!["Failed to validate config".to_owned(), text.to_owned()];
        let payload = config.payload.clone().unwrap_or_default();
        let Some(kernel) = &payload.kernel else {
            return Err(validation(match payload.firmware {
                Some(_) => "firmware is not played",
                None => "No payload was specified",
            }));
        };
        if config.cpus.boot_vcpus == 0 || config.cpus.max_vcpus < config.cpus.boot_vcpus {
            return Err(validation("Max CPUs must be greater than or equal to boot CPUs"));
        }
        if config.console.mode == Mode::Tty {
            // It would take this process's terminal, and standard output is the test's.
            return Err(validation("a console on the terminal is not played"));
        }
        image::check_kernel(kernel)?;
        let disks = config.disks.clone().unwrap_or_default();
        let locks = disks.iter().map(image::open_disk).collect::<Result<Vec<_>, _>>()?;
        if inert {
            return Ok(Guest { running: None, paused: false, _disks: locks });
        }
        let mut command = qemu();
        command.args(["-smp", &config.cpus.boot_vcpus.to_string(), "-m", &(config.memory.size >> 20).to_string()]);
        command.args(["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"]);
        if let Some(uuid) = config.platform.as_ref().and_then(|platform| platform.uuid.as_ref()) {
            command.args(["-uuid", uuid]);
        }
        match (config.serial.mode, &config.serial.file) {
            (Mode::File, Some(file)) => {
                let console = format!("file,id=console,path={}", doubled(file));
                command.args(["-chardev", &console, "-serial", "chardev:console"]);
            }
            (Mode::Off | Mode::Null, _) => {}
            _ => return Err(validation("this serial line is not played")),
        }
        for (n, disk) in disks.iter().enumerate() {
            let path = doubled(disk.path.as_deref().unwrap_or(std::path::Path::new("")));
            let format = if disk.image_type == crate::config::ImageType::Qcow2 { "qcow2" } else { "raw" };
            let readonly = if disk.readonly { ",readonly=on" } else { "" };
            command.args(["-drive", &format!("if=none,id=d{n},file={path},format={format},cache=unsafe{readonly}")]);
            command.args(["-device", &format!("virtio-blk-pci,drive=d{n}")]);
        }
        for (n, net) in config.net.iter().flatten().enumerate() {
            let Some(tap) = &net.tap else { return Err(validation("a tap of its own is not played")) };
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
        command.arg("-kernel").arg(kernel);
        if let Some(initramfs) = &payload.initramfs {
            if !initramfs.is_file() {
                return Err(vec![
                    "Cannot open initramfs file".to_owned(),
                    "No such file or directory (os error 2)".to_owned(),
                ]);
            }
            command.arg("-initrd").arg(initramfs);
        }
        if let Some(cmdline) = &payload.cmdline {
            command.args(["-append", cmdline]);
        }
        let running = Running::start(command, events.clone(), exit.clone()).await?;
        Ok(Guest { running: Some(running), paused: false, _disks: locks })
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
