//! The manifest of an image in Tart's format.
//!
//! Whatever a registry sends is bounded and checked here, before a byte of a disk is asked for: what this gives has every
//! part exactly once, in disk order, with sizes that add up.

use std::collections::BTreeMap;

use oci_client::manifest::{OciDescriptor, OciImageManifest};
use serde::Deserialize;

use super::{Digest, digest::DigestError};

/// The biggest image known has some hundred layers, of about 500 bytes each.
pub const LARGEST: usize = 4 << 20;

pub const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.cirruslabs.tart.config.v1";
const DISK: &str = "application/vnd.cirruslabs.tart.disk.v2";
const DISK_V1: &str = "application/vnd.cirruslabs.tart.disk.v1";
const OVERLAY: &str = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
const NVRAM: &str = "application/vnd.cirruslabs.tart.nvram.v1";

/// What registries are told that we can read: more than an image can be, so that what is there is named when it is refused.
pub const ACCEPTED: [&str; 4] = [
    MEDIA_TYPE,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

const UNCOMPRESSED_SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
const UNCOMPRESSED_DIGEST: &str = "org.cirruslabs.tart.uncompressed-content-digest";
const DISK_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";

const LARGEST_CONFIG: u64 = 1 << 20;
const LARGEST_NVRAM: u64 = 256 << 20;
const LARGEST_CHUNK: u64 = 1 << 40;
const LARGEST_DISK: u64 = 1 << 46;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub config: Blob,
    /// In disk order.
    pub chunks: Vec<Chunk>,
    pub nvram: Blob,
    /// What the chunks add up to.
    pub disk_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

/// A piece of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its place among the manifest's layers.
    pub layer: usize,
    pub blob: Blob,
    /// Where it begins on the disk. Not aligned to anything: some images are cut at powers of ten.
    pub offset: u64,
    pub content: Blob,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is no image manifest ({what}); it begins with {found:?}")]
    NotJson { what: String, found: String },
    #[error("this is {0}; only a virtual machine's image in Tart's format can be a template")]
    Foreign(String),
    #[error("the image has the disk format {0}, which is no longer supported: push it again with Tart 2.0 or newer")]
    Legacy(&'static str),
    #[error("the image has its disk in layers ({OVERLAY}), which is not supported: push a VM with one flat disk")]
    Stacked,
    #[error("layer {layer} of the image {what}")]
    Layer { layer: usize, what: String },
    #[error("the image {0}")]
    Image(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads and checks a manifest. `content_type` is what the registry called it.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Image, ManifestError> {
    let not_json = |what: String| ManifestError::NotJson {
        what,
        found: String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned(),
    };
    if bytes.len() > LARGEST {
        return Err(not_json(format!("it has {} bytes, and {LARGEST} at most are read", bytes.len())));
    }
    let probe: Probe = serde_json::from_slice(bytes).map_err(|e| not_json(e.to_string()))?;
    let content_type = content_type.map(|t| t.split(';').next().unwrap_or_default().trim());
    let media_type = probe.media_type.as_deref().or(content_type).unwrap_or_default();
    if probe.manifests.is_some() || media_type.contains(".index.") || media_type.contains(".list.") {
        return Err(ManifestError::Foreign(format!("a list of images ({media_type})")));
    }
    if probe.schema_version != Some(2) {
        return Err(not_json("its schemaVersion is not 2".into()));
    }
    if media_type != MEDIA_TYPE {
        return Err(ManifestError::Foreign(format!("an artifact of type {media_type:?}")));
    }
    let manifest: OciImageManifest = serde_json::from_slice(bytes).map_err(|e| not_json(e.to_string()))?;
    foreign(&manifest, probe.artifact_type.as_deref())?;
    image(&manifest)
}

/// Says what the image is instead, when it is something else.
fn foreign(manifest: &OciImageManifest, artifact_type: Option<&str>) -> Result<(), ManifestError> {
    for layer in &manifest.layers {
        match layer.media_type.as_str() {
            CONFIG | DISK | NVRAM => {}
            DISK_V1 => return Err(ManifestError::Legacy(DISK_V1)),
            OVERLAY => return Err(ManifestError::Stacked),
            other => {
                let of = artifact_type.map(|t| format!("an artifact of type {t:?}"));
                let of = of.unwrap_or_else(|| "another image".into());
                return Err(ManifestError::Foreign(format!("{of} with a layer of type {other:?}")));
            }
        }
    }
    Ok(())
}

fn image(manifest: &OciImageManifest) -> Result<Image, ManifestError> {
    let of_type = |t: &str| manifest.layers.iter().filter(|l| l.media_type == t).count();
    for (media_type, what) in [(CONFIG, "configuration"), (NVRAM, "nvram")] {
        if of_type(media_type) != 1 {
            return Err(ManifestError::Image(format!("has {} {what} layers, expected one", of_type(media_type))));
        }
    }
    if of_type(DISK) == 0 {
        return Err(ManifestError::Image("has no disk layer".into()));
    }
    let last = manifest.layers.len() - 1;
    if manifest.layers[0].media_type != CONFIG || manifest.layers[last].media_type != NVRAM {
        return Err(ManifestError::Image("has its layers out of order, expected configuration, disk, nvram".into()));
    }
    let config = blob(0, &manifest.layers[0], LARGEST_CONFIG)?;
    let nvram = blob(last, &manifest.layers[last], LARGEST_NVRAM)?;
    let mut chunks = Vec::with_capacity(last - 1);
    let mut disk_size = 0_u64;
    for (layer, descriptor) in manifest.layers.iter().enumerate().take(last).skip(1) {
        let chunk = chunk(layer, descriptor, disk_size)?;
        disk_size += chunk.content.size;
        if disk_size > LARGEST_DISK {
            return Err(ManifestError::Layer {
                layer,
                what: format!("makes the disk bigger than {LARGEST_DISK} bytes"),
            });
        }
        chunks.push(chunk);
    }
    one_content_per_blob(&chunks)?;
    let annotations = manifest.annotations.as_ref();
    if let Some(says) = annotations.and_then(|a| a.get(DISK_SIZE)) {
        let says = number(says).ok_or_else(|| ManifestError::Image(format!("has {says:?} in {DISK_SIZE}")))?;
        if says != disk_size {
            let what = format!("says that its disk has {says} bytes, and its chunks add up to {disk_size}");
            return Err(ManifestError::Image(what));
        }
    }
    Ok(Image { config, chunks, nvram, disk_size })
}

/// One blob has one content: who says two things of it is wrong at least once.
fn one_content_per_blob(chunks: &[Chunk]) -> Result<(), ManifestError> {
    let mut seen: BTreeMap<Digest, &Chunk> = BTreeMap::new();
    for chunk in chunks {
        let first = *seen.entry(chunk.blob.digest).or_insert(chunk);
        if (first.blob, first.content) != (chunk.blob, chunk.content) {
            let what = format!("has the same digest as layer {} and another size or content", first.layer);
            return Err(ManifestError::Layer { layer: chunk.layer, what });
        }
    }
    Ok(())
}

fn chunk(layer: usize, descriptor: &OciDescriptor, offset: u64) -> Result<Chunk, ManifestError> {
    let fault = |what: String| ManifestError::Layer { layer, what };
    let annotation = |key: &str| {
        let value = descriptor.annotations.as_ref().and_then(|a| a.get(key));
        value.ok_or_else(|| fault(format!("lacks the annotation {key}")))
    };
    let size = annotation(UNCOMPRESSED_SIZE)?;
    let size = number(size)
        .filter(|size| (1..=LARGEST_CHUNK).contains(size))
        .ok_or_else(|| fault(format!("has {:?} in {UNCOMPRESSED_SIZE}", shortened(size))))?;
    let digest = annotation(UNCOMPRESSED_DIGEST)?
        .parse()
        .map_err(|e: DigestError| fault(format!("has in {UNCOMPRESSED_DIGEST}: {e}")))?;
    Ok(Chunk { layer, blob: blob(layer, descriptor, LARGEST_CHUNK)?, offset, content: Blob { digest, size } })
}

fn blob(layer: usize, descriptor: &OciDescriptor, largest: u64) -> Result<Blob, ManifestError> {
    let fault = |what: String| ManifestError::Layer { layer, what };
    let digest = descriptor.digest.parse().map_err(|e: DigestError| fault(e.to_string()))?;
    match u64::try_from(descriptor.size) {
        Ok(size) if (1..=largest).contains(&size) => Ok(Blob { digest, size }),
        _ => Err(fault(format!("has {} bytes, expected 1 to {largest}", descriptor.size))),
    }
}

/// Digits and nothing else: `parse` alone would take a plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
