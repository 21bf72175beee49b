//! The body of `vm.create`: a pure function of the spec and the paths.
//!
//! Every version of Cloud Hypervisor ignores keys that it does not know. So keys with which a version changed its
//! defaults are always sent: `image_type` (v52 and later do not like to guess) and `backing_files` (off since v51).

use serde::{Deserialize, Serialize};

use super::{namespace::TAP, paths::VmmPaths};
use crate::{
    domain::{Arch, gateway::GUEST_MAC},
    drivers::InstanceSpec,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    pub cpus: CpusConfig,
    pub memory: MemoryConfig,
    payload: PayloadConfig,
    disks: Vec<DiskConfig>,
    net: Vec<NetConfig>,
    rng: RngConfig,
    serial: ConsoleConfig,
    console: ConsoleConfig,
    platform: PlatformConfig,
    pvpanic: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusConfig {
    pub boot_vcpus: u32,
    max_vcpus: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// In bytes.
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PayloadConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initramfs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskConfig {
    id: String,
    path: String,
    readonly: bool,
    image_type: String,
    backing_files: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NetConfig {
    id: String,
    tap: String,
    mac: String,
    /// Frames that the guest leaves unfinished for its network card to finish have no valid checksum on the tap, and may be larger
    /// than a packet. So the card must not offer that.
    offload_csum: bool,
    offload_tso: bool,
    offload_ufo: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RngConfig {
    src: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConsoleConfig {
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PlatformConfig {
    /// The guest sees it as its machine id.
    uuid: String,
}

/// `None` if a path is not valid UTF-8.
pub fn config(spec: &InstanceSpec, paths: &VmmPaths) -> Option<VmConfig> {
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned);
    let optional = |path: &Option<std::path::PathBuf>| match path {
        Some(path) => text(path).map(Some),
        None => Some(None),
    };
    let mut disks = vec![DiskConfig {
        id: "disk".to_owned(),
        path: text(&paths.disk())?,
        readonly: false,
        image_type: "Qcow2".to_owned(),
        backing_files: true,
    }];
    if spec.seed.is_some() {
        disks.push(DiskConfig {
            id: "seed".to_owned(),
            path: text(&paths.seed())?,
            readonly: true,
            image_type: "Raw".to_owned(),
            backing_files: false,
        });
    }
    let payload = match optional(&spec.files.kernel)? {
        Some(kernel) => PayloadConfig {
            kernel: Some(kernel),
            initramfs: optional(&spec.files.initramfs)?,
            cmdline: Some(spec.cmdline.clone().unwrap_or_else(|| default_cmdline(spec.arch).to_owned())),
            firmware: None,
        },
        None => {
            PayloadConfig { kernel: None, initramfs: None, cmdline: None, firmware: optional(&spec.files.firmware)? }
        }
    };
    Some(VmConfig {
        cpus: CpusConfig { boot_vcpus: spec.cpus, max_vcpus: spec.cpus },
        memory: MemoryConfig { size: u64::from(spec.memory_mib) << 20 },
        payload,
        disks,
        net: vec![NetConfig {
            id: "net".to_owned(),
            tap: TAP.to_owned(),
            mac: GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":"),
            offload_csum: false,
            offload_tso: false,
            offload_ufo: false,
        }],
        rng: RngConfig { src: "/dev/urandom".to_owned() },
        serial: ConsoleConfig { mode: "File".to_owned(), file: Some(text(&paths.console())?) },
        console: ConsoleConfig { mode: "Off".to_owned(), file: None },
        // The same for every attempt.
        platform: PlatformConfig { uuid: spec.name.vm_id().to_string() },
        pvpanic: true,
    })
}

/// For a template that has a kernel and no command line: the first partition of the disk, as cloud images have it.
fn default_cmdline(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "console=ttyS0 root=/dev/vda1 rw",
        Arch::Aarch64 => "console=ttyAMA0 root=/dev/vda1 rw",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        domain::{
            GuestOs, NetworkMode, NetworkPolicy, VmId,
            template::{DiskFormat, TemplateFiles},
        },
        drivers::{GuestNetwork, Seed},
    };

    #[test]
    fn what_versions_disagree_about_is_always_sent() {
        let id = VmId::mint();
        let mut spec = InstanceSpec {
            name: id.instance_of(2),
            os: GuestOs::Linux,
            arch: Arch::X86_64,
            cpus: 3,
            memory_mib: 1536,
            disk_format: DiskFormat::Raw,
            files: TemplateFiles {
                disk: "/t/disk".into(),
                kernel: Some("/t/vmlinuz".into()),
                initramfs: Some("/t/initrd".into()),
                ..TemplateFiles::default()
            },
            cmdline: Some("console=ttyS0 root=LABEL=cloudimg-rootfs".into()),
            seed: Some(Seed { volume: Vec::new() }),
            network: GuestNetwork {
                policy: NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() },
                guest_api: "/api".into(),
            },
        };
        let paths = VmmPaths::new(Path::new("/i"), &spec.name);
        let body = serde_json::to_value(config(&spec, &paths).unwrap()).unwrap();
        let dir = format!("/i/{}", spec.name);
        assert_eq!(
            body,
            serde_json::json!({
                "cpus": {"boot_vcpus": 3, "max_vcpus": 3},
                "memory": {"size": 1_610_612_736_u64},
                "payload": {
                    "kernel": "/t/vmlinuz", "initramfs": "/t/initrd", "cmdline": "console=ttyS0 root=LABEL=cloudimg-rootfs"
                },
                "disks": [
                    {
                        "id": "disk", "path": format!("{dir}/disk.qcow2"), "readonly": false, "image_type": "Qcow2",
                        "backing_files": true
                    },
                    {
                        "id": "seed", "path": format!("{dir}/seed.img"), "readonly": true, "image_type": "Raw",
                        "backing_files": false
                    },
                ],
                "net": [{
                    "id": "net", "tap": "tap0", "mac": "52:54:00:12:34:56", "offload_csum": false, "offload_tso": false,
                    "offload_ufo": false
                }],
                "rng": {"src": "/dev/urandom"},
                "serial": {"mode": "File", "file": format!("{dir}/console.log")},
                "console": {"mode": "Off"},
                "platform": {"uuid": id.to_string()},
                "pvpanic": true,
            })
        );
        spec.cmdline = None;
        let body = serde_json::to_value(config(&spec, &paths).unwrap()).unwrap();
        assert_eq!(body["payload"]["cmdline"], "console=ttyS0 root=/dev/vda1 rw");
        spec.files.kernel = None;
        spec.files.firmware = Some("/t/CLOUDHV.fd".into());
        let body = serde_json::to_value(config(&spec, &paths).unwrap()).unwrap();
        assert_eq!(body["payload"], serde_json::json!({"firmware": "/t/CLOUDHV.fd"}));
    }
}
