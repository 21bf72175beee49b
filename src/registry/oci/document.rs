//! The JSON documents of the OCI image specification. The types are those of the OCI client library, but the
//! serialisation is defined here, because a manifest's digest depends on its bytes.

use std::collections::BTreeMap;

pub use oci_client::manifest::{
    ImageIndexEntry, OciDescriptor as Descriptor, OciImageIndex as IndexDocument, OciImageManifest as ManifestDocument,
};
use serde::Serialize;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub type Annotations = BTreeMap<String, String>;

/// The only serialisation of documents, so that the same content has the same digest: compact, keys in order, slashes
/// escaped, as in Tart.
pub fn canonical(document: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(document)?;
    value.sort_all_objects();
    // Outside of strings JSON has no slash.
    Ok(value.to_string().replace('/', "\\/").into_bytes())
}
