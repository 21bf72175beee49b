//! The section `[registry]`, and the section of one registry.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    client::{HostOptions, RegistryOptions},
    pace::{BandwidthLimit, BandwidthLimits},
};
use crate::platform::settings::section;

section! {
    /// Settings for all registries. The table of one registry overrides them.
    pub struct RegistrySection {
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None;
        /// Use plain HTTP. Accepted for registries on this host only.
        plain_http: bool = false;
        /// Bandwidth limit of all pulls from registries and S3 together, in bytes per second (65536 to 4294967295). 0:
        /// no limit.
        bytes_per_second: u32 = 0;
        /// Bandwidth limit of all background pulls together, in bytes per second (65536 to 4294967295). 0: no limit. A
        /// background pull is one that no vm and no person waits for.
        background_bytes_per_second: u32 = 0;
    }
}

section! {
    /// Settings for one registry, by its name as in image references: `[registries."registry.example.com:5000"]`. These
    /// tables can be set in the file or on the command line, but not in the environment.
    pub struct RegistryHostSection {
        /// Certificates (PEM) of authorities to trust in addition to the system's.
        ca_file: Option<PathBuf> = None, shown as "that of `[registry]`";
        /// Use plain HTTP, wherever the registry is. Passwords and images are then sent unencrypted, and an attacker on
        /// the network can replace the image of a tag.
        plain_http: Option<bool> = None, shown as "that of `[registry]`";
        /// User name for the registry; needs `password_file`.
        username: Option<String> = None;
        /// File with that user's password or token, readable by its owner only (mode 0600).
        password_file: Option<PathBuf> = None;
    }
}

impl RegistrySection {
    /// How registries are reached. `hosts`: the sections of single registries, by the one spelling of their names.
    pub fn options(&self, hosts: &BTreeMap<String, RegistryHostSection>) -> RegistryOptions {
        let host = |section: &RegistryHostSection| HostOptions {
            ca_file: section.ca_file.clone(),
            plain_http: section.plain_http,
        };
        RegistryOptions {
            ca_file: self.ca_file.clone(),
            plain_http: self.plain_http,
            limits: BandwidthLimits {
                all: BandwidthLimit::of(self.bytes_per_second),
                background: BandwidthLimit::of(self.background_bytes_per_second),
            },
            hosts: hosts.iter().map(|(name, section)| (name.clone(), host(section))).collect(),
            ..RegistryOptions::default()
        }
    }
}
