//! Reads, checks and writes manifests of images.
//!
//! Everything that a registry sends is bounded and checked here, before a byte of a disk is requested: the result has
//! all required parts, each at most once, and the disk's layers in order, with sizes that add up. Written manifests
//! pass the same checks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Digest, ImageFormat, Index, Role,
    digest::DigestError,
    document::{self, Annotations, Descriptor, IndexDocument, ManifestDocument},
    form::{self, Form, Holds, LARGEST_CONFIG, LARGEST_DISK, LayerSlot},
    manifest_error::ManifestError,
};

/// The largest known image has some hundred layers, of about 500 bytes each.
pub const LARGEST: usize = 4 << 20;

pub const MEDIA_TYPE: &str = document::MANIFEST;

/// The accepted types that are sent to registries: more than an image can have, so that other content is named when
/// it is refused.
pub const ACCEPTED: [&str; 4] = [document::MANIFEST, document::INDEX, document::DOCKER_MANIFEST, document::DOCKER_LIST];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub kind: ImageFormat,
    /// In Mayfly's format: the template's settings. In Tart's: content that registries require and that is not used.
    pub config: Blob,
    /// In the order of the manifest.
    pub files: Vec<LayerFile>,
    /// In disk order.
    pub chunks: Vec<Chunk>,
    /// The total size of the chunks.
    pub disk_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

/// A file of the template other than its disk: one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// Its position among the manifest's layers.
    pub layer: usize,
    pub role: Role,
    pub blob: Blob,
    /// The uncompressed content; the blob itself if it is not compressed.
    pub content: Blob,
    pub packed: bool,
}

/// A chunk of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its position among the manifest's layers.
    pub layer: usize,
    pub blob: Blob,
    /// Its offset on the disk. Not aligned: some images are cut at powers of ten.
    pub offset: u64,
    pub content: Blob,
}

/// The possible content of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Image(Image),
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestKindProbe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads and checks a manifest. `content_type` is the registry's.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    // The parser quotes unexpected content of any length.
    let not_json = |what: String| ManifestError::NotJson {
        what: shortened(&what),
        found: String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned(),
    };
    if bytes.len() > LARGEST {
        return Err(not_json(format!("it has {} bytes, and {LARGEST} at most are read", bytes.len())));
    }
    let probe: ManifestKindProbe = serde_json::from_slice(bytes).map_err(|e| not_json(e.to_string()))?;
    let content_type = content_type.map(|t| t.split(';').next().unwrap_or_default().trim());
    let media_type = probe.media_type.as_deref().or(content_type).unwrap_or_default();
    if probe.schema_version != Some(2) {
        return Err(not_json("its schemaVersion is not 2".into()));
    }
    if [document::INDEX, document::DOCKER_LIST].contains(&media_type) || probe.manifests.is_some() {
        let list: IndexDocument = serde_json::from_slice(bytes).map_err(|e| not_json(e.to_string()))?;
        return Index::read(list.manifests).map(Document::Index);
    }
    if media_type != MEDIA_TYPE {
        return Err(ManifestError::Foreign(format!("an artifact of type {:?}", shortened(media_type))));
    }
    let manifest: ManifestDocument = serde_json::from_slice(bytes).map_err(|e| not_json(e.to_string()))?;
    image(&manifest).map(Document::Image)
}

/// Its format, or what it is instead.
fn kind(manifest: &ManifestDocument) -> Result<ImageFormat, ManifestError> {
    // An artifact without a type of its own has the type of its configuration.
    let artifact_type = manifest.artifact_type.as_deref();
    let own_type = artifact_type.unwrap_or(&manifest.config.media_type);
    if own_type == form::ARTIFACT || own_type == form::SETTINGS {
        return Ok(ImageFormat::Mayfly);
    }
    if own_type.starts_with(form::OURS) {
        let what = format!("an artifact of type {:?}, which this version of Mayfly does not know", shortened(own_type));
        return Err(ManifestError::Foreign(what));
    }
    for layer in &manifest.layers {
        match layer.media_type.as_str() {
            form::TART_DISK_V1 => return Err(ManifestError::Legacy(form::TART_DISK_V1)),
            form::TART_OVERLAY => return Err(ManifestError::Stacked),
            known if known.starts_with(form::TARTS) => {}
            other => {
                let of = artifact_type.map(|t| format!("an artifact of type {:?}", shortened(t)));
                let of = of.unwrap_or_else(|| "another image".into());
                return Err(ManifestError::Foreign(format!("{of} with a layer of type {:?}", shortened(other))));
            }
        }
    }
    Ok(ImageFormat::Tart)
}

fn image(manifest: &ManifestDocument) -> Result<Image, ManifestError> {
    let kind = kind(manifest)?;
    let form = kind.form();
    let wrong = |what: String| Err(ManifestError::Image(what));
    if kind == ImageFormat::Mayfly && manifest.config.media_type != form.config_type {
        return wrong(format!("has a configuration of type {:?}", shortened(&manifest.config.media_type)));
    }
    let slots = slots(form, &manifest.layers)?;
    for (at, slot) in form.slots.iter().enumerate() {
        let there = slots.iter().filter(|s| **s == at).count();
        let (fits, expected) = match (slot.holds, slot.needed) {
            (Holds::Disk, _) => (there > 0, "at least one"),
            (_, true) => (there == 1, "one"),
            (_, false) => (there < 2, "one at most"),
        };
        if !fits {
            return wrong(format!("has {there} {} layers, expected {expected}", slot.name()));
        }
    }
    if !slots.is_sorted() {
        let order: Vec<&str> = form.slots.iter().map(LayerSlot::name).collect();
        return wrong(format!("has its layers out of order, expected {}", order.join(", ")));
    }
    let config = blob(&manifest.config, LARGEST_CONFIG);
    let config = config.map_err(|what| ManifestError::Image(format!("has a configuration that {what}")))?;
    let mut image = Image { kind, config, files: Vec::new(), chunks: Vec::new(), disk_size: 0 };
    for (layer, (descriptor, slot)) in manifest.layers.iter().zip(slots).enumerate() {
        let slot = &form.slots[slot];
        image.take(layer, descriptor, slot, form).map_err(|what| ManifestError::Layer { layer, what })?;
    }
    image.one_content_per_blob()?;
    let annotations = manifest.annotations.as_ref();
    if let Some(says) = annotations.and_then(|a| a.get(form.disk_size)) {
        let disk_size = image.disk_size;
        let number = number(says);
        if number.is_none() {
            return wrong(format!("has {:?} in {}", shortened(says), form.disk_size));
        }
        if number != Some(disk_size) {
            return wrong(format!("says that its disk has {says} bytes, and its chunks add up to {disk_size}"));
        }
    }
    Ok(image)
}

/// The number of its slot for each layer.
fn slots(form: &Form, layers: &[Descriptor]) -> Result<Vec<usize>, ManifestError> {
    let slot = |(layer, descriptor): (usize, &Descriptor)| {
        let found = form.slots.iter().position(|slot| slot.media_type == descriptor.media_type);
        let what = || format!("has the type {:?}, which is not known here", shortened(&descriptor.media_type));
        found.ok_or_else(|| ManifestError::Layer { layer, what: what() })
    };
    layers.iter().enumerate().map(slot).collect()
}

impl Image {
    fn take(&mut self, layer: usize, descriptor: &Descriptor, slot: &LayerSlot, form: &Form) -> Result<(), String> {
        let blob = blob(descriptor, slot.largest)?;
        match slot.holds {
            Holds::Disk => {
                let content = content(descriptor, slot, form)?;
                self.chunks.push(Chunk { layer, blob, offset: self.disk_size, content });
                self.disk_size += content.size;
                if self.disk_size > LARGEST_DISK {
                    return Err(format!("makes the disk bigger than {LARGEST_DISK} bytes"));
                }
            }
            Holds::Plain(role) => self.files.push(LayerFile { layer, role, blob, content: blob, packed: false }),
            Holds::Packed(role) => {
                let content = content(descriptor, slot, form)?;
                self.files.push(LayerFile { layer, role, blob, content, packed: true });
            }
        }
        Ok(())
    }

    /// One blob has one content: contradicting entries are an error.
    fn one_content_per_blob(&self) -> Result<(), ManifestError> {
        let mut seen: BTreeMap<Digest, (usize, Blob, Blob)> = BTreeMap::new();
        for (layer, blob, content) in self.layers() {
            let (first, ..) = *seen.entry(blob.digest).or_insert((layer, blob, content));
            if seen.get(&blob.digest).is_some_and(|(_, b, c)| (*b, *c) != (blob, content)) {
                let what = format!("has the same digest as layer {first} and another size or content");
                return Err(ManifestError::Layer { layer, what });
            }
        }
        Ok(())
    }

    /// Number, blob and content of each layer, in the order of the manifest.
    pub fn layers(&self) -> impl Iterator<Item = (usize, Blob, Blob)> + '_ {
        let files = |before: bool| {
            let first_chunk = self.chunks.first().map_or(0, |c| c.layer);
            self.files.iter().filter(move |f| (f.layer < first_chunk) == before).map(|f| (f.layer, f.blob, f.content))
        };
        let chunks = self.chunks.iter().map(|c| (c.layer, c.blob, c.content));
        files(true).chain(chunks).chain(files(false))
    }

    /// The manifest's bytes, always the same for the same image and time.
    pub fn to_bytes(&self, time: &str) -> serde_json::Result<Vec<u8>> {
        let form = self.kind.form();
        let mut layers = Vec::new();
        for slot in form.slots {
            match slot.holds {
                Holds::Disk => layers.extend(self.chunks.iter().map(|c| packed(slot, form, c.blob, c.content))),
                Holds::Plain(role) | Holds::Packed(role) => {
                    let files = self.files.iter().filter(|f| f.role == role);
                    layers.extend(files.map(|f| match f.packed {
                        true => packed(slot, form, f.blob, f.content),
                        false => descriptor(slot.media_type, f.blob, form.always_annotated.then(Annotations::new)),
                    }));
                }
            }
        }
        let annotations = [(form.disk_size, self.disk_size.to_string()), (form.time, time.to_owned())];
        document::canonical(&ManifestDocument {
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value)).into()),
            artifact_type: form.artifact_type.map(str::to_owned),
            config: descriptor(form.config_type, self.config, None),
            layers,
            media_type: Some(MEDIA_TYPE.into()),
            schema_version: 2,
            subject: None,
        })
    }
}

/// The time of an image's push, in the notation of the manifest.
pub fn time_of(bytes: &[u8], kind: ImageFormat) -> Option<String> {
    let manifest: ManifestDocument = serde_json::from_slice(bytes).ok()?;
    manifest.annotations?.remove(kind.form().time)
}

fn packed(slot: &LayerSlot, form: &Form, blob: Blob, content: Blob) -> Descriptor {
    let size = (form.content_size.to_owned(), content.size.to_string());
    let digest = (form.content_digest.to_owned(), content.digest.to_string());
    descriptor(slot.media_type, blob, Some([size, digest].into()))
}

fn descriptor(media_type: &str, blob: Blob, annotations: Option<Annotations>) -> Descriptor {
    Descriptor {
        annotations,
        digest: blob.digest.to_string(),
        media_type: media_type.to_owned(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}

/// The declared content of a compressed layer.
fn content(descriptor: &Descriptor, slot: &LayerSlot, form: &Form) -> Result<Blob, String> {
    let annotation = |key: &str| {
        let value = descriptor.annotations.as_ref().and_then(|a| a.get(key));
        value.ok_or_else(|| format!("lacks the annotation {key}"))
    };
    let size = annotation(form.content_size)?;
    let size = number(size)
        .filter(|size| (1..=slot.largest).contains(size))
        .ok_or_else(|| format!("has {:?} in {}", shortened(size), form.content_size))?;
    let digest = annotation(form.content_digest)?.parse();
    let digest = digest.map_err(|e: DigestError| format!("has in {}: {e}", form.content_digest))?;
    Ok(Blob { digest, size })
}

fn blob(descriptor: &Descriptor, largest: u64) -> Result<Blob, String> {
    let digest = descriptor.digest.parse().map_err(|e: DigestError| e.to_string())?;
    match u64::try_from(descriptor.size) {
        Ok(size) if (1..=largest).contains(&size) => Ok(Blob { digest, size }),
        _ => Err(format!("has {} bytes, expected 1 to {largest}", descriptor.size)),
    }
}

/// Only digits: `parse` alone would accept a plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
