//! A real guest. Its hypervisor is a child of this process and dies with it, as a VM does on a Mac.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
};

use crate::{control::Qemu, leash};

pub struct Machine {
    child: Child,
    /// Held open: QEMU's monitor ends with it.
    _monitor: ChildStdin,
    /// Why it shut down, as it said itself.
    reason: Arc<Mutex<Option<String>>>,
}

/// What a VM is made of.
pub struct Parts<'a> {
    pub disk: &'a str,
    pub mac: &'a str,
    pub cpus: u64,
    pub ram: u64,
    pub ip: &'a str,
    /// The guest's serial line is this process's output.
    pub serial: bool,
}

impl Machine {
    /// Returns when QEMU answers: its memory is there, its disk open and its address bound. `None`: the address is taken.
    pub async fn start(qemu: &Qemu, home: &Path, parts: &Parts<'_>) -> Result<Option<Machine>, String> {
        let failed = |e: std::io::Error| format!("qemu: {e}");
        let errors = crate::control::state(home).join(format!("qemu-{}.err", std::process::id()));
        let this = std::env::current_exe().map_err(failed)?;
        let mut command = std::process::Command::new(this);
        command
            .arg0(leash::NAME)
            .arg(std::process::id().to_string())
            .arg(&qemu.binary)
            .args(arguments(qemu, home, parts));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors).map_err(failed)?);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(failed)?;
        let (Some(mut monitor), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("qemu: no monitor".to_owned());
        };
        let mut answers = BufReader::new(answers).lines();
        let greeting = answers.next_line().await.map_err(failed)?;
        if !greeting.as_ref().is_some_and(|line| line.contains("\"QMP\"")) {
            let _ = child.wait().await;
            let said = fs::read_to_string(errors).unwrap_or_default();
            return if said.contains("host forwarding rule") {
                Ok(None)
            } else {
                Err(format!("qemu: {}", said.trim()))
            };
        }
        monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await.map_err(failed)?;
        let reason = Arc::default();
        tokio::spawn(note(answers, Arc::clone(&reason)));
        Ok(Some(Machine { child, _monitor: monitor, reason }))
    }

    /// `Err`: the guest did not power itself off.
    pub async fn ended(&mut self) -> Result<(), String> {
        let status = self.child.wait().await;
        let reason = self.reason.lock().ok().and_then(|mut r| r.take());
        match (reason.as_deref(), status) {
            (Some("guest-shutdown"), _) => Ok(()),
            (Some(reason), _) => Err(reason.to_owned()),
            (None, Ok(status)) => Err(status.to_string()),
            (None, Err(e)) => Err(e.to_string()),
        }
    }

    /// The power is cut.
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

fn arguments(qemu: &Qemu, home: &Path, parts: &Parts<'_>) -> Vec<String> {
    let arm = qemu.binary.to_string_lossy().ends_with("aarch64");
    let doubled = |path: &str| path.replace(',', ",,");
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-M", if arm { "virt" } else { "q35" }]);
    // KVM opens on machines where guests hang in it.
    add(&["-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max"]);
    add(&["-smp", &parts.cpus.to_string(), "-m", &(parts.ram >> 20).to_string()]);
    add(&["-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"]);
    let console = match parts.serial {
        true => format!("/proc/{}/fd/1", std::process::id()),
        false => crate::control::state(home).join(format!("console-{}", std::process::id())).display().to_string(),
    };
    add(&["-chardev", &format!("file,id=console,append=on,path={}", doubled(&console)), "-serial", "chardev:console"]);
    let disk = format!("if=none,id=disk,file={},format=raw,cache=unsafe,discard=unmap", doubled(parts.disk));
    add(&[
        "-drive",
        &disk,
        "-device",
        "virtio-blk-pci,drive=disk",
        "-device",
        "virtio-rng-pci",
        "-device",
        "pvpanic-pci",
    ]);
    let forward = format!("hostfwd=tcp:{}:{}-{}:22", parts.ip, qemu.ssh_port, qemu.address);
    let device = format!("virtio-net-pci,netdev=n0,romfile=,mac={}", parts.mac);
    add(&["-netdev", &format!("user,id=n0,{},{forward}", qemu.network), "-device", &device]);
    for (option, file) in [("-kernel", &qemu.kernel), ("-initrd", &qemu.initramfs)] {
        if let Some(file) = file {
            add(&[option, &file.to_string_lossy()]);
        }
    }
    if let (Some(_), Some(cmdline)) = (&qemu.kernel, &qemu.cmdline) {
        add(&["-append", cmdline]);
    }
    args
}
