//! The JSON documents of the OCI image specification, as far as they are read and written here.
//!
//! A manifest's digest is of its bytes, so there is one way to write each: compact, keys in order, slashes escaped, as Tart
//! does. The fields below stand in the order of their names, because that is the order in which they are written. They are
//! types of our own and not a library's, because such bytes cannot be had from a library that chooses the order itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub type Annotations = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
    pub digest: String,
    pub media_type: String,
    #[serde(skip_serializing)]
    pub platform: Option<Platform>,
    /// Signed, so that one that lies below zero is found with its layer's number.
    pub size: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    pub media_type: Option<String>,
    pub schema_version: u64,
}

/// One document that stands for several images.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IndexDocument {
    pub manifests: Vec<Descriptor>,
}

/// The one way to write a document. Its structs have their fields in order, and maps are sorted.
pub fn canonical(document: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let text = serde_json::to_string(document)?;
    // Outside of strings JSON has no slash.
    Ok(text.replace('/', "\\/").into_bytes())
}
