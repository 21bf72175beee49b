//! A Mac with `macosvm`, as far as Mayfly can tell: the double with a directory of its own, whose guests are real.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Serve, image};

const SSH_PORT: u16 = 2223;

/// A hardware model as Apple's framework writes it.
pub const MODEL: &str = "YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QD1BsYXRmb3JtVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPUxQAAAAAAAAAAAAAAAAAAAABEAKjBwgIEAwQAAgPKz1SY2VpawAAAAAAAAEBAAAAAAAAAAkAAAAAAAAAAAAAAAAAAABt";

/// A machine identity as Apple's framework writes it.
pub fn identity(ecid: u64) -> String {
    let mut bytes = b"bplist00\xd1\x01\x02\x54ECID\x14\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&ecid.to_be_bytes());
    bytes.extend_from_slice(b"\x08\x0b\x10\0\0\0\0\0\0\x01\x01");
    for number in [3_u64, 0, 33] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    STANDARD.encode(bytes)
}

/// The double under a name of its own in this directory, so that the guests of other tests are no guests of this host.
pub fn double(home: &Path) -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/macosvm-double");
    assert!(double.exists(), "there is no {}: `cargo build --example macosvm-double`", double.display());
    std::fs::create_dir_all(home).unwrap();
    let link = home.join(format!("macosvm-{}", mayfly::domain::VmId::mint()));
    std::os::unix::fs::symlink(double, &link).unwrap();
    link
}

pub struct MacosvmHost {
    pub serve: Serve,
}

impl MacosvmHost {
    /// A service whose only driver is macosvm, with a VM to make templates from in `base/`.
    pub async fn start() -> MacosvmHost {
        // Guests need the port before the service listens on it. No other test takes a port that is named.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let image = image();
        let at = |file: &str| image.join(file).to_str().unwrap().to_owned();
        let description: Value =
            serde_json::from_str(&std::fs::read_to_string(image.join("template.json")).unwrap()).unwrap();
        let control = json!({"guest": {"qemu": {
            "kernel": at("vmlinuz"), "initramfs": at("initramfs.img"), "cmdline": description["cmdline"],
            "ssh_port": SSH_PORT,
        }}});
        let serve = Serve::prepared(|dir| {
            let (home, base) = (dir.join("home"), dir.join("base"));
            let program = double(&home);
            std::fs::create_dir_all(&base).unwrap();
            std::fs::write(home.join("double.json"), control.to_string()).unwrap();
            std::fs::write(base.join("aux.img"), "aux").unwrap();
            let status = Command::new("qemu-img")
                .args(["convert", "-O", "raw"])
                .arg(image.join("disk.qcow2"))
                .arg(base.join("disk.img"))
                .status()
                .expect("qemu-img runs");
            assert!(status.success());
            // Paths in it are relative, as people write them.
            let vm = json!({
                "version": 1, "os": "macos", "hardwareModel": MODEL, "machineId": identity(42), "cpus": 1,
                "ram": 192 << 20, "storage": [
                    {"type": "disk", "file": "disk.img", "readOnly": false}, {"type": "aux", "file": "aux.img"},
                ],
                "networks": [{"type": "nat"}], "displays": [{"width": 1024, "height": 768, "dpi": 72}],
            });
            std::fs::write(base.join("vm.json"), vm.to_string()).unwrap();
            [
                ("MAYFLY_DRIVERS__MACOSVM__ENABLED", "true".to_owned()),
                ("MAYFLY_DRIVERS__QEMU__ENABLED", "false".to_owned()),
                ("MAYFLY_DRIVERS__MACOSVM__BINARY", program.display().to_string()),
                ("MAYFLY_DRIVERS__MACOSVM__LEASE_FILE", home.join("dhcpd_leases").display().to_string()),
                ("MAYFLY_DRIVERS__MACOSVM__SSH_PORT", SSH_PORT.to_string()),
                ("MAYFLY_GUEST__LISTEN", format!("127.0.0.1:{port}")),
                ("MAYFLY_SLOTS__COUNT_FOREIGN", "true".to_owned()),
            ]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
        })
        .await;
        MacosvmHost { serve }
    }

    /// Imports the VM as a template that this driver runs.
    pub async fn template(&self, name: &str, budgets: Value) {
        self.template_of(name, "runner", budgets).await;
    }

    /// The same, for another user of the guest.
    pub async fn template_of(&self, name: &str, user: &str, budgets: Value) {
        let body = json!({
            "name": name, "layout": "macosvm", "path": self.serve.dir.join("base"), "driver": "macosvm", "user": user,
            "ssh_key": image().join("id_ed25519"), "budgets": budgets,
        });
        let (status, answer) = self.serve.post("/templates/import", body).await;
        let template = &answer["template"];
        assert_eq!(
            (status, &template["driver"], &template["handover"]),
            (201, &json!("macosvm"), &json!("ssh")),
            "{answer}"
        );
    }

    pub async fn assert_nothing_left(&self) {
        self.serve.assert_nothing_left().await;
        let entries = |dir: PathBuf| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(entries(self.serve.dir.join("macosvm")), ["staging"], "instances are left");
        assert_eq!(entries(self.serve.dir.join("macosvm/staging")), Vec::<String>::new(), "clones are left");
    }
}
