//! An image index: a list of images for different platforms.

use super::{
    Digest,
    digest::DigestError,
    document::{DOCKER_LIST, INDEX, ImageIndexEntry, MANIFEST},
    manifest_error::ManifestError,
};

/// Limit of the entries that are shown of a list.
const SHOWN: usize = 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Images.
    pub entries: Vec<IndexEntry>,
    /// Lists within this list.
    pub lists: Vec<IndexEntry>,
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
        let mut index = Index::default();
        for (at, descriptor) in manifests.into_iter().enumerate() {
            // Manifests of other kinds cannot be pulled.
            let of_its_kind = match descriptor.media_type.as_str() {
                MANIFEST => &mut index.entries,
                INDEX | DOCKER_LIST => &mut index.lists,
                _ => continue,
            };
            let fault = |e: DigestError| ManifestError::Image(format!("list has in its entry {at}: {e}"));
            let digest = descriptor.digest.parse().map_err(fault)?;
            let platform = descriptor
                .platform
                .map(|p| Platform { os: p.os.to_string(), architecture: p.architecture.to_string() });
            of_its_kind.push(IndexEntry { digest, platform });
        }
        Ok(index)
    }

    /// The lists in it that may contain an image for this architecture.
    pub fn lists_for(&self, architecture: &str) -> Vec<Digest> {
        let may_fit = |entry: &&IndexEntry| entry.platform.as_ref().is_none_or(|p| p.architecture == architecture);
        let mut lists: Vec<Digest> = self.lists.iter().filter(may_fit).map(|entry| entry.digest).collect();
        lists.sort();
        lists.dedup();
        lists
    }

    /// The image for hosts of this architecture, in the notation of indexes (`amd64`, `arm64`).
    pub fn choose(&self, architecture: &str) -> Result<Digest, ManifestError> {
        let fits = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(|p| p.architecture == architecture);
        let mut fitting: Vec<Digest> = self.entries.iter().filter(fits).map(|entry| entry.digest).collect();
        fitting.sort();
        fitting.dedup();
        match fitting[..] {
            [digest] => Ok(digest),
            [] if self.entries.is_empty() => Err(ManifestError::EmptyList),
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
            lists: Vec::new(),
        };
        assert_eq!(index.choose(architecture("aarch64")), Ok(Digest::of(b"mac")));
        assert_eq!(index.choose(architecture("x86_64")), Ok(Digest::of(b"pc")));
        let error = index.choose(architecture("riscv64")).unwrap_err().to_string();
        for said in ["riscv64", "darwin/arm64", "linux/amd64", "no platform", &Digest::of(b"pc").to_string()] {
            assert!(error.contains(said), "{error}");
        }
        let twice = Index {
            entries: vec![entry(b"a", Some(("linux", "arm64"))), entry(b"b", Some(("darwin", "arm64")))],
            ..Index::default()
        };
        let error = twice.choose("arm64").unwrap_err().to_string();
        assert!(error.contains("2 images") && error.contains("darwin/arm64"), "{error}");
        assert_eq!(Index::default().choose("arm64"), Err(ManifestError::EmptyList));
        let many = Index { entries: (0..100_u8).map(|n| entry(&[n], None)).collect(), ..Index::default() };
        let error = many.choose("arm64").unwrap_err().to_string();
        assert!(error.contains("and 80 more") && error.len() < 3000, "{error}");
        let lists = vec![
            entry(b"mine", Some(("darwin", "arm64"))),
            entry(b"other", Some(("linux", "amd64"))),
            entry(b"any", None),
        ];
        let mut expected = [Digest::of(b"mine"), Digest::of(b"any")];
        expected.sort();
        assert_eq!(Index { lists, ..Index::default() }.lists_for("arm64"), expected);
    }
}
