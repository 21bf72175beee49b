//! What is fuzzed: the modules themselves, as source, without the rest of Mayfly.

#[path = "../../src/registry/oci"]
pub mod oci {
    pub mod digest;
    pub mod document;
    pub mod form;
    pub mod index;
    pub mod lz4;
    pub mod manifest;
    pub mod manifest_error;
    pub use digest::Digest;
    pub use form::{ImageFormat, Role};
    pub use index::Index;
    pub use manifest::Image;

    /// What the decoder is compared with.
    #[path = "lz4/model.rs"]
    pub mod model;
}

#[path = "../../src/domain"]
pub mod domain {
    pub mod mac;
    pub mod tart_config;

    /// Of the original, only what a VM's configuration says: the rest would bring half of Mayfly.
    pub mod template {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GuestOs {
            Linux,
            Macos,
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Arch {
            X86_64,
            Aarch64,
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DiskFormat {
            Raw,
            Asif,
        }

        impl DiskFormat {
            pub fn as_str(self) -> &'static str {
                match self {
                    DiskFormat::Raw => "raw",
                    DiskFormat::Asif => "asif",
                }
            }
        }
    }
}

#[path = "../../src/templates/layouts/payload.rs"]
pub mod payload;
