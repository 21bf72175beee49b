//! Blobs that the registry already has. They are read from the manifests of (1) the image at the target tag, (2) the
//! image this template was pulled from, (3) images that other templates were pulled from.
//!
//! The same content gives a different blob if another encoder compressed it, so a piece whose content is listed in one
//! of these manifests is not compressed again: its blob is used, which is in the repository or can be mounted from
//! another one of the same registry. A manifest that cannot be read costs only bandwidth.

use std::{collections::HashMap, sync::Arc};

use crate::{
    registry::{
        RegistryClient, RegistryError, RegistryOptions,
        credentials::CredentialSource,
        oci::{
            Digest, Image, Reference,
            manifest::{self, Blob, Document},
            manifest_error::ManifestError,
        },
    },
    templates::manifest::Origin,
};

/// Limit of manifests that are read, besides that of the tag. Each has some hundred kilobytes.
const OTHERS: usize = 6;
/// Limit of attempts to reach the registry for the first time.
const FIRST_ATTEMPTS: usize = 3;

#[derive(Debug, Default)]
pub(super) struct KnownBlobs {
    /// By content and size: the compressed blob.
    packed: HashMap<(Digest, u64), ReusableBlob>,
    /// The repository of each blob that is not known to be in the target's.
    mounts: HashMap<Digest, String>,
    target: Option<(Image, Digest)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReusableBlob {
    pub blob: Blob,
    /// The repository from which it can be mounted; `None`: it should be in the target's.
    pub mount: Option<String>,
}

#[derive(Debug)]
pub(super) enum Unusable {
    Registry(RegistryError),
    /// The content of the tag must not be replaced.
    Tag(String),
}

impl KnownBlobs {
    pub async fn gather(
        target: &Reference,
        origin: Option<&Origin>,
        others: Vec<Origin>,
        options: &RegistryOptions,
        credentials: &Arc<dyn CredentialSource>,
    ) -> Result<KnownBlobs, Unusable> {
        let mut known = KnownBlobs::default();
        // The caller waits, and nothing is lost yet: a mistyped port is reported within seconds.
        let first = RegistryOptions { retry: options.retry.at_most(FIRST_ATTEMPTS), ..options.clone() };
        match image(target, &first, credentials).await? {
            There::Nothing | There::Unreadable => {}
            There::Image(image, digest) => {
                known.add(&image, None);
                known.target = Some((image, digest));
            }
            There::Other(what) => {
                let what =
                    format!("the tag is {what}, which would be replaced: choose another tag, or delete that one");
                return Err(Unusable::Tag(what));
            }
        }
        let prefix = format!("{}/", target.registry());
        let mut asked = known.target.iter().map(|(_, digest)| digest.to_string()).collect::<Vec<_>>();
        let own = origin.filter(|origin| origin.repository.starts_with(&prefix)).cloned();
        for origin in own.into_iter().chain(others) {
            if asked.len() > OTHERS {
                break;
            }
            if asked.contains(&origin.digest) {
                continue;
            }
            asked.push(origin.digest.clone());
            let Ok(reference) = format!("{}@{}", origin.repository, origin.digest).parse::<Reference>() else {
                continue;
            };
            match image(&reference, options, credentials).await {
                Ok(There::Image(image, _)) => {
                    let elsewhere = reference.repository() != target.repository();
                    known.add(&image, elsewhere.then(|| reference.repository()));
                }
                Ok(_) => {}
                // The tag was just read, so only this other repository is not accessible.
                Err(Unusable::Registry(error)) => {
                    tracing::debug!(image = %reference, %error, "cannot reuse the blobs of this image");
                }
                Err(Unusable::Tag(_)) => {}
            }
        }
        Ok(known)
    }

    /// The first entry counts, because it is closer.
    fn add(&mut self, image: &Image, mount: Option<&str>) {
        let packed_files = image.files.iter().filter(|file| file.packed).map(|file| (file.blob, file.content));
        for (blob, content) in packed_files.chain(image.chunks.iter().map(|c| (c.blob, c.content))) {
            let found = ReusableBlob { blob, mount: mount.map(str::to_owned) };
            self.packed.entry((content.digest, content.size)).or_insert(found);
        }
        if let Some(from) = mount {
            let all = image.layers().map(|(_, blob, _)| blob).chain([image.config]);
            for blob in all {
                self.mounts.entry(blob.digest).or_insert_with(|| from.to_owned());
            }
        }
    }

    pub fn packed(&self, content: Blob) -> Option<&ReusableBlob> {
        self.packed.get(&(content.digest, content.size))
    }

    /// The repository from which a blob can be mounted, if it is not in the target's.
    pub fn mount(&self, blob: Blob) -> Option<&str> {
        self.mounts.get(&blob.digest).map(String::as_str)
    }

    /// All repositories from which blobs may be mounted.
    pub fn mounts(&self) -> Vec<String> {
        let mut all: Vec<String> = self.mounts.values().cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The current image of the tag.
    pub fn at_target(&self) -> Option<(&Image, Digest)> {
        self.target.as_ref().map(|(image, digest)| (image, *digest))
    }
}

enum There {
    Nothing,
    Image(Image, Digest),
    /// An image of a VM in an unsupported format.
    Unreadable,
    /// Another kind of content.
    Other(String),
}

async fn image(
    reference: &Reference,
    options: &RegistryOptions,
    credentials: &Arc<dyn CredentialSource>,
) -> Result<There, Unusable> {
    let client = RegistryClient::new(reference, options, credentials.clone()).map_err(Unusable::Registry)?;
    let raw = match client.manifest(reference).await {
        Ok(raw) => raw,
        // Some registries answer this for a repository that does not exist yet. The push shows whether it is
        // permitted.
        Err(RegistryError::NotFound { .. } | RegistryError::Denied { .. }) => return Ok(There::Nothing),
        Err(error) => return Err(Unusable::Registry(error)),
    };
    match manifest::parse(&raw.bytes, raw.content_type.as_deref()) {
        Ok(Document::Image(image)) => Ok(There::Image(image, raw.digest)),
        Ok(Document::Index(_)) => Ok(There::Other("a list of images for several platforms".into())),
        Err(ManifestError::Foreign(what)) => Ok(There::Other(what)),
        Err(_) => Ok(There::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::oci::{
        ImageFormat, Role,
        manifest::{Chunk, LayerFile},
    };

    fn blob(content: &[u8]) -> Blob {
        Blob { digest: Digest::of(content), size: content.len() as u64 }
    }

    fn image(packed: &[u8]) -> Image {
        let file =
            LayerFile { layer: 0, role: Role::Config, blob: blob(b"config"), content: blob(b"config"), packed: false };
        let chunk = Chunk { layer: 1, blob: blob(packed), offset: 0, content: blob(b"disk") };
        Image { kind: ImageFormat::Tart, config: blob(b"{}"), files: vec![file], chunks: vec![chunk], disk_size: 4 }
    }

    #[test]
    fn what_is_nearest_counts() {
        let mut known = KnownBlobs::default();
        known.add(&image(b"here"), None);
        known.add(&image(b"there"), Some("acme/other"));
        assert_eq!(known.packed(blob(b"disk")), Some(&ReusableBlob { blob: blob(b"here"), mount: None }));
        // Only compressed layers have separate digests for blob and content.
        assert_eq!(known.packed(blob(b"config")), None);
        assert_eq!(known.mount(blob(b"config")), Some("acme/other"));
        assert_eq!(known.mount(blob(b"there")), Some("acme/other"));
        assert_eq!(known.mount(blob(b"here")), None);
        assert_eq!(known.mounts(), ["acme/other"]);
        assert_eq!(KnownBlobs::default().packed(blob(b"disk")), None);
    }
}
