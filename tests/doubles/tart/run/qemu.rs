//! A real guest. It is a child of this process and dies with it, as on a Mac; see `leash.rs`.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use super::guest::End;
use crate::{config::Config, control::Qemu, failure::Failure, vm::Vm};

/// In the VM's directory.
const CONSOLE: &str = "console.log";
const ERRORS: &str = "qemu.err";

pub struct Machine {
    child: Child,
    monitor: ChildStdin,
    /// Why it shut down, as it said itself.
    reason: Arc<Mutex<Option<String>>>,
}

pub enum NoStart {
    /// Somebody was quicker with the address.
    AddressTaken,
    Failed(Failure),
}

impl Machine {
    /// Returns when QEMU answers: its memory is there, its disk open and its address bound. The current directory is the VM's.
    pub async fn start(qemu: &Qemu, vm: &Vm, config: &Config, ip: &str) -> Result<Machine, NoStart> {
        let failed = |why: String| NoStart::Failed(Failure::Double(format!("qemu: {why}")));
        let io = |e: std::io::Error| failed(e.to_string());
        let program = program(qemu, config);
        let this = std::env::current_exe().map_err(io)?;
        let mut command = std::process::Command::new(this);
        command.arg0(crate::leash::NAME).arg(std::process::id().to_string()).arg(program);
        command.args(arguments(qemu, vm, config, ip));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(ERRORS).map_err(io)?);
        // A signal that a terminal sends to all of us is for the owner alone.
        command.process_group(0);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(io)?;
        let (Some(mut monitor), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("no monitor".to_owned()));
        };
        let mut answers = BufReader::new(answers).lines();
        let greeting = answers.next_line().await.map_err(io)?;
        if !greeting.as_ref().is_some_and(|line| line.contains("\"QMP\"")) {
            let _ = child.wait().await;
            let said = fs::read_to_string(ERRORS).unwrap_or_default();
            if said.contains("host forwarding rule") {
                return Err(NoStart::AddressTaken);
            }
            return Err(failed(said.trim().to_owned()));
        }
        monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await.map_err(io)?;
        let reason = Arc::default();
        tokio::spawn(note(answers, Arc::clone(&reason)));
        Ok(Machine { child, monitor, reason })
    }

    pub async fn ended(&mut self) -> End {
        let status = self.child.wait().await;
        let reason = self.reason.lock().ok().and_then(|mut r| r.take());
        match (reason.as_deref(), status) {
            (Some("guest-shutdown"), _) => End::PowerOff,
            (Some(reason), _) => End::Crash(format!("{} ({reason})", super::CRASH)),
            (None, Ok(status)) => End::Crash(format!("{} ({status})", super::CRASH)),
            (None, Err(e)) => End::Crash(format!("{} ({e})", super::CRASH)),
        }
    }

    pub async fn press_power_button(&mut self) {
        let _ = self.monitor.write_all(b"{\"execute\":\"system_powerdown\"}\n").await;
    }

    pub async fn cut(&mut self) {
        let _ = self.child.kill().await;
    }
}

async fn note(mut answers: Lines<BufReader<ChildStdout>>, reason: Arc<Mutex<Option<String>>>) {
    while let Ok(Some(line)) = answers.next_line().await {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        if message["event"] == "SHUTDOWN"
            && let Ok(mut reason) = reason.lock()
        {
            *reason = message["data"]["reason"].as_str().map(str::to_owned);
        }
    }
}

fn program(qemu: &Qemu, config: &Config) -> PathBuf {
    let usual = if config.arch == "arm64" { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
    qemu.binary.clone().unwrap_or_else(|| usual.into())
}

fn arguments(qemu: &Qemu, vm: &Vm, config: &Config, ip: &str) -> Vec<String> {
    // A guest of another processor may play the one that the config speaks of.
    let arm = program(qemu, config).to_string_lossy().ends_with("aarch64");
    let doubled = |path: &std::path::Path| path.to_string_lossy().replace(',', ",,");
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-M", if arm { "virt" } else { "q35" }]);
    // KVM opens on machines where guests hang in it.
    add(&["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max"]);
    let memory = qemu.memory_mib.unwrap_or(config.memory_size >> 20);
    add(&["-smp", &qemu.cpus.unwrap_or(config.cpu_count).to_string(), "-m", &memory.to_string()]);
    add(&["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"]);
    // The full path, so that a test finds what it has to end.
    let console = format!("file,id=console,path={}", doubled(&vm.dir.join(CONSOLE)));
    add(&["-chardev", &console, "-serial", "chardev:console"]);
    let disk = format!("if=none,id=disk,file={},format=raw,cache=unsafe,discard=unmap", doubled(&vm.disk()));
    add(&["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"]);
    add(&["-device", "virtio-rng-pci", "-device", "pvpanic-pci"]);
    let forward = format!("hostfwd=tcp:{ip}:{}-{}:22", qemu.ssh_port, qemu.address);
    let device = format!("virtio-net-pci,netdev=n0,romfile=,mac={}", config.mac_address);
    add(&["-netdev", &format!("user,id=n0,{},{forward}", qemu.network), "-device", &device]);
    if let Some(kernel) = &qemu.kernel {
        add(&["-kernel", &kernel.to_string_lossy()]);
        if let Some(initramfs) = &qemu.initramfs {
            add(&["-initrd", &initramfs.to_string_lossy()]);
        }
        if let Some(cmdline) = &qemu.cmdline {
            add(&["-append", cmdline]);
        }
    }
    args
}
