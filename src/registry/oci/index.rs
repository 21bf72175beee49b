//! An image index: a list of images for different platforms.

use super::{
    Digest,
    digest::DigestError,
    document::{ImageIndexEntry, MANIFEST},
    manifest_error::ManifestError,
};

/// Limit of the entries that are shown of a list.
const SHOWN: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub entries: Vec<IndexEntry>,
}

/// As in image indexes: `linux` and `amd64`, `darwin` and `arm64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub digest: Digest,
    pub platform: Option<Platform>,
}

impl Index {
    pub(super) fn read(manifests: Vec<ImageIndexEntry>) -> Result<Index, ManifestError> {
        let mut entries = Vec::new();
        for (at, descriptor) in manifests.into_iter().enumerate() {
            // Nested indexes and manifests of other kinds cannot be pulled.
            if descriptor.media_type != MANIFEST {
                continue;
            }
            let fault = |e: DigestError| ManifestError::Image(format!("list has in its entry {at}: {e}"));
            let digest = descriptor.digest.parse().map_err(fault)?;
            let platform = descriptor
                .platform
                .map(|p| Platform { os: p.os.to_string(), architecture: p.architecture.to_string() });
            entries.push(IndexEntry { digest, platform });
        }
        Ok(Index { entries })
    }

    /// The image for hosts of this architecture, in the notation of indexes (`amd64`, `arm64`).
    pub fn choose(&self, architecture: &str) -> Result<Digest, ManifestError> {
        let fits = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(|p| p.architecture == architecture);
        let mut fitting: Vec<Digest> = self.entries.iter().filter(fits).map(|entry| entry.digest).collect();
        fitting.sort();
        fitting.dedup();
        match fitting[..] {
            [digest] => Ok(digest),
            ref none_or_many => Err(ManifestError::Platform {
                wanted: architecture.to_owned(),
                fitting: none_or_many.len(),
                there: self.platforms(),
            }),
        }
    }

    /// For messages.
    fn platforms(&self) -> String {
        let named = self.entries.iter().map(|entry| match &entry.platform {
            Some(Platform { os, architecture }) => format!("{os:.40}/{architecture:.40} ({})", entry.digest),
            None => format!("no platform ({})", entry.digest),
        });
        let mut shown: Vec<String> = named.take(SHOWN).collect();
        match self.entries.len().saturating_sub(SHOWN) {
            0 if shown.is_empty() => return "no images".into(),
            0 => {}
            more => shown.push(format!("and {more} more")),
        }
        shown.join(", ")
    }
}

/// The name of one of Rust's architectures in image indexes.
pub fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &[u8], platform: Option<(&str, &str)>) -> IndexEntry {
        let platform = platform.map(|(os, arch)| Platform { architecture: arch.into(), os: os.into() });
        IndexEntry { digest: Digest::of(content), platform }
    }

    #[test]
    fn the_one_that_fits_is_chosen() {
        let index = Index {
            entries: vec![
                entry(b"mac", Some(("darwin", "arm64"))),
                entry(b"pc", Some(("linux", "amd64"))),
                entry(b"attestation", Some(("unknown", "unknown"))),
                entry(b"nothing", None),
                entry(b"pc", Some(("linux", "amd64"))),
            ],
        };
        assert_eq!(index.choose(architecture("aarch64")), Ok(Digest::of(b"mac")));
        assert_eq!(index.choose(architecture("x86_64")), Ok(Digest::of(b"pc")));
        let error = index.choose(architecture("riscv64")).unwrap_err().to_string();
        for said in ["riscv64", "darwin/arm64", "linux/amd64", "no platform", &Digest::of(b"pc").to_string()] {
            assert!(error.contains(said), "{error}");
        }
        let twice =
            Index { entries: vec![entry(b"a", Some(("linux", "arm64"))), entry(b"b", Some(("darwin", "arm64")))] };
        let error = twice.choose("arm64").unwrap_err().to_string();
        assert!(error.contains("2 images") && error.contains("darwin/arm64"), "{error}");
        let none = Index { entries: Vec::new() };
        assert!(none.choose("arm64").unwrap_err().to_string().contains("no images"));
        let many = Index { entries: (0..100_u8).map(|n| entry(&[n], None)).collect() };
        let error = many.choose("arm64").unwrap_err().to_string();
        assert!(error.contains("and 80 more") && error.len() < 3000, "{error}");
    }
}
