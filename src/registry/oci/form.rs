//! The structure of the two image formats. Reading and writing follow these tables and know nothing else about either
//! format.

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Tart's, version 2.
    Tart,
    /// Mayfly's, for templates of all other drivers.
    Mayfly,
}

/// A file of the image, besides the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Config,
    Nvram,
    Kernel,
    Initramfs,
    Firmware,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Config => "configuration",
            Role::Nvram => "nvram",
            Role::Kernel => "kernel",
            Role::Initramfs => "initramfs",
            Role::Firmware => "firmware",
        }
    }
}

/// The content of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A compressed chunk of the disk.
    Disk,
    /// A file, not compressed.
    Plain(Role),
    /// A file, compressed like chunks of the disk.
    Packed(Role),
}

/// Consecutive layers of one type.
#[derive(Debug)]
pub struct LayerSlot {
    pub media_type: &'static str,
    pub holds: Holds,
    pub needed: bool,
    /// Limit of the size of the blob and of its content.
    pub largest: u64,
}

impl LayerSlot {
    pub fn name(&self) -> &'static str {
        match self.holds {
            Holds::Disk => "disk",
            Holds::Plain(role) | Holds::Packed(role) => role.name(),
        }
    }
}

#[derive(Debug)]
pub struct Form {
    pub artifact_type: Option<&'static str>,
    pub config_type: &'static str,
    /// In the required order of layers.
    pub slots: &'static [LayerSlot],
    /// Annotation of a compressed layer: the size of its content.
    pub content_size: &'static str,
    /// Annotation of a compressed layer: the digest of its content.
    pub content_digest: &'static str,
    /// Annotation of the manifest: the total size of the disk's chunks.
    pub disk_size: &'static str,
    /// Annotation of the manifest: the time of the push.
    pub time: &'static str,
    /// Layers without annotations have an empty object.
    pub always_annotated: bool,
}

pub const ARTIFACT: &str = "application/vnd.mayfly.template.v1";
pub const SETTINGS: &str = "application/vnd.mayfly.template.config.v1+json";
/// Any version of any of Mayfly's types.
pub const OURS: &str = "application/vnd.mayfly.";

pub const TART_DISK_V1: &str = "application/vnd.cirruslabs.tart.disk.v1";
pub const TART_OVERLAY: &str = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
/// Any version of any of Tart's types.
pub const TARTS: &str = "application/vnd.cirruslabs.tart.";
/// Tart's content of the configuration, for registries that require one.
pub const TART_DISK_FORMAT: &str = "org.cirruslabs.tart.disk.format";

pub const LARGEST_CONFIG: u64 = 1 << 20;
pub const LARGEST_CHUNK: u64 = 1 << 40;
pub const LARGEST_DISK: u64 = 1 << 46;
const LARGEST_NVRAM: u64 = 256 << 20;
const LARGEST_BOOT_FILE: u64 = 4 << 30;

static TART: Form = Form {
    artifact_type: None,
    config_type: "application/vnd.oci.image.config.v1+json",
    slots: &[
        LayerSlot {
            media_type: "application/vnd.cirruslabs.tart.config.v1",
            holds: Holds::Plain(Role::Config),
            needed: true,
            largest: LARGEST_CONFIG,
        },
        LayerSlot {
            media_type: "application/vnd.cirruslabs.tart.disk.v2",
            holds: Holds::Disk,
            needed: true,
            largest: LARGEST_CHUNK,
        },
        LayerSlot {
            media_type: "application/vnd.cirruslabs.tart.nvram.v1",
            holds: Holds::Plain(Role::Nvram),
            needed: true,
            largest: LARGEST_NVRAM,
        },
    ],
    content_size: "org.cirruslabs.tart.uncompressed-size",
    content_digest: "org.cirruslabs.tart.uncompressed-content-digest",
    disk_size: "org.cirruslabs.tart.uncompressed-disk-size",
    time: "org.cirruslabs.tart.upload-time",
    always_annotated: true,
};

static MAYFLY: Form = Form {
    artifact_type: Some(ARTIFACT),
    config_type: SETTINGS,
    slots: &[
        LayerSlot {
            media_type: "application/vnd.mayfly.template.kernel.v1",
            holds: Holds::Packed(Role::Kernel),
            needed: false,
            largest: LARGEST_BOOT_FILE,
        },
        LayerSlot {
            media_type: "application/vnd.mayfly.template.initramfs.v1",
            holds: Holds::Packed(Role::Initramfs),
            needed: false,
            largest: LARGEST_BOOT_FILE,
        },
        LayerSlot {
            media_type: "application/vnd.mayfly.template.firmware.v1",
            holds: Holds::Packed(Role::Firmware),
            needed: false,
            largest: LARGEST_BOOT_FILE,
        },
        LayerSlot {
            media_type: "application/vnd.mayfly.template.disk.v1",
            holds: Holds::Disk,
            needed: true,
            largest: LARGEST_CHUNK,
        },
    ],
    content_size: "dev.mayfly.template.uncompressed-size",
    content_digest: "dev.mayfly.template.uncompressed-digest",
    disk_size: "dev.mayfly.template.disk-size",
    time: "org.opencontainers.image.created",
    always_annotated: false,
};

impl ImageFormat {
    pub fn form(self) -> &'static Form {
        match self {
            ImageFormat::Tart => &TART,
            ImageFormat::Mayfly => &MAYFLY,
        }
    }
}
