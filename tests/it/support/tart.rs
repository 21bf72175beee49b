//! A Mac, as far as Mayfly can tell: the double of `tart` with a directory of its own, whose guests are real.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Serve, image};

pub const SSH_PORT: u16 = 2222;

pub fn double() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/tart-double");
    assert!(double.exists(), "there is no {}: `cargo build --example tart-double`", double.display());
    double
}

/// What Tart keeps of a VM. `os` is what the VM says of itself: the guest that is booted is the small Linux either way.
pub fn config(os: &str) -> Value {
    json!({
        "version": 1, "os": os, "arch": "arm64", "ecid": "YQ==", "hardwareModel": "Yg==",
        "cpuCountMin": 1, "cpuCount": 1, "memorySizeMin": 64 << 20, "memorySize": 192u64 << 20,
        "macAddress": "7a:65:e4:3f:b2:51", "display": {"width": 1024, "height": 768},
    })
}

pub struct Mac {
    pub serve: Serve,
    control: Value,
}

impl Mac {
    /// A service whose only driver is tart, with a VM to make templates from in `base/`.
    pub async fn start(os: &str) -> Mac {
        Self::with(os, &[]).await
    }

    /// With settings of one's own, too.
    pub async fn with(os: &str, settings: &[(&str, &str)]) -> Mac {
        // Guests have to be told the port before the service has it. Nobody else in these tests takes one that is named.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let image = image();
        let at = |file: &str| image.join(file).to_str().unwrap().to_owned();
        let description: Value =
            serde_json::from_str(&std::fs::read_to_string(image.join("template.json")).unwrap()).unwrap();
        // Apple Silicon, as far as words go: the guest has this machine's processor.
        let control = json!({
            "arch": "arm64",
            "guest": {"qemu": {
                "binary": format!("qemu-system-{}", std::env::consts::ARCH),
                "kernel": at("vmlinuz"), "initramfs": at("initramfs.img"), "cmdline": description["cmdline"],
                "ssh_port": SSH_PORT, "user": "runner", "key": at("id_ed25519"),
            }},
        });
        let serve = Serve::prepared(|dir| {
            let home = dir.join("home");
            let base = dir.join("base");
            std::fs::create_dir_all(&home).unwrap();
            std::fs::create_dir_all(&base).unwrap();
            std::fs::write(base.join("config.json"), config(os).to_string()).unwrap();
            std::fs::write(base.join("nvram.bin"), "nvram").unwrap();
            raw_disk(&base.join("disk.img"));
            write_control(dir, &control);
            [
                ("MAYFLY_DRIVERS__TART__ENABLED", "true".to_owned()),
                ("MAYFLY_DRIVERS__QEMU__ENABLED", "false".to_owned()),
                ("MAYFLY_DRIVERS__TART__ARCH", "aarch64".to_owned()),
                ("MAYFLY_DRIVERS__TART__BINARY", double().display().to_string()),
                ("MAYFLY_DRIVERS__TART__HOME", home.display().to_string()),
                ("MAYFLY_DRIVERS__TART__LEASE_FILE", home.join("dhcpd_leases").display().to_string()),
                ("MAYFLY_DRIVERS__TART__SSH_PORT", SSH_PORT.to_string()),
                ("MAYFLY_GUEST__LISTEN", format!("127.0.0.1:{port}")),
                ("MAYFLY_SLOTS__COUNT_FOREIGN", "true".to_owned()),
            ]
            .into_iter()
            .chain(settings.iter().map(|(key, value)| (*key, (*value).to_owned())))
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
        })
        .await;
        Mac { serve, control }
    }

    /// Tells the double something, from its next command on.
    pub fn set(&mut self, key: &str, value: Value) {
        self.control[key] = value;
        write_control(&self.serve.dir, &self.control);
    }

    pub async fn template(&self, name: &str, handover: &str, budgets: Value) {
        let mut body = json!({
            "name": name, "vm_dir": self.serve.dir.join("base"), "handover": handover, "user": "runner", "budgets": budgets,
        });
        if handover == "ssh" {
            body["ssh_key"] = json!(image().join("id_ed25519"));
        }
        let (status, template) = self.serve.post("/templates", body).await;
        assert_eq!((status, &template["driver"]), (201, &json!("tart")), "{template}");
    }

    /// A VM that is not Mayfly's, to be run.
    pub fn foreign(&self, name: &str) -> Foreign {
        let vm = self.serve.dir.join("home/vms").join(name);
        std::fs::create_dir_all(&vm).unwrap();
        for file in ["config.json", "nvram.bin"] {
            std::fs::copy(self.serve.dir.join("base").join(file), vm.join(file)).unwrap();
        }
        std::fs::write(vm.join("disk.img"), "disk").unwrap();
        Foreign { home: self.serve.dir.join("home"), name: name.to_owned(), running: None }
    }

    pub fn vms(&self) -> Vec<String> {
        entries(&self.serve.dir.join("home/vms"))
    }

    pub async fn assert_nothing_left(&self) {
        self.serve.assert_nothing_left().await;
        assert_eq!(self.vms(), Vec::<String>::new(), "VMs of Tart are left");
        assert_eq!(entries(&self.serve.dir.join("tart")), Vec::<String>::new(), "output of runs is left");
        assert_eq!(entries(&self.serve.dir.join("home/mayfly/staging")), Vec::<String>::new(), "clones are left");
    }
}

/// What a human does with `tart`, beside Mayfly.
pub struct Foreign {
    home: PathBuf,
    name: String,
    running: Option<Child>,
}

impl Foreign {
    /// Runs the VM; returns once its guest runs.
    pub fn run(&mut self) {
        // It appears once the guest runs.
        let socket = self.home.join("vms").join(&self.name).join("control.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(double());
        command.env("TART_HOME", &self.home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.running = Some(command.args(["run", "--no-graphics", &self.name]).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < end, "the foreign guest does not run");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn runs(&self) -> bool {
        self.running.is_some()
    }

    pub fn end(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.end();
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn write_control(dir: &Path, control: &Value) {
    let new = dir.join("home/double.new");
    std::fs::write(&new, control.to_string()).unwrap();
    std::fs::rename(new, dir.join("home/double.json")).unwrap();
}

/// The image's disk as Tart has disks. Made anew for each test: it takes a moment and is sparse.
fn raw_disk(to: &Path) {
    let status = Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .arg(image().join("disk.qcow2"))
        .arg(to)
        .status()
        .expect("qemu-img runs");
    assert!(status.success());
}
