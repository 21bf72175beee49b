//! Plans the source of each chunk of a disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{
    registry::oci::{Digest, Image, manifest::Chunk},
    templates::catalog::pulled::{CatalogPiece, KnownPieces},
};

/// Limits of local hashing. Images have chunks of one or two sizes, of half a gigabyte. If a manifest has many sizes,
/// or huge ones, its chunks are fetched instead of hashed.
const SIZES_OF_ZEROS: usize = 8;
const LARGEST_OF_ZEROS: u64 = 1 << 30;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChunkSource {
    /// An earlier, interrupted pull has written it.
    Done,
    /// All zeros, like a new file.
    Zeros,
    /// A template in the catalog has it at the same offset, and so does this disk, if it was cloned from it. It is
    /// read and hashed before it counts, because disks lose data after a template was verified.
    Shared(CatalogPiece),
    /// A template in the catalog has it.
    Known(CatalogPiece),
    /// The registry.
    Registry,
    /// Another range of the same disk gets the same bytes first.
    Twin { offset: u64 },
}

/// The disk in the catalog with the most common content at the same offsets. Counts compressed sizes, because zeros
/// are the same everywhere.
pub(super) fn base(image: &Image, known: &KnownPieces) -> Option<PathBuf> {
    let mut common: BTreeMap<&Path, u64> = BTreeMap::new();
    for chunk in &image.chunks {
        let all = known.get(&(chunk.content.digest, chunk.content.size)).into_iter().flatten();
        for disk in all.filter(|k| k.offset == chunk.offset).map(|k| k.disk.as_path()).collect::<BTreeSet<_>>() {
            *common.entry(disk).or_default() += chunk.blob.size;
        }
    }
    common.into_iter().max_by_key(|&(_, bytes)| bytes).map(|(disk, _)| disk.to_owned())
}

/// One source for each chunk, in their order. `blank`: unwritten parts of the disk are zeros. Hashes, so it may take
/// a moment.
pub(super) fn plan(
    image: &Image,
    done: &BTreeSet<usize>,
    known: &KnownPieces,
    blank: bool,
) -> Vec<(Chunk, ChunkSource)> {
    let mut zeros = BTreeMap::new();
    let mut repeated: HashMap<Digest, usize> = HashMap::new();
    for chunk in &image.chunks {
        *repeated.entry(chunk.content.digest).or_default() += 1;
    }
    let mut first: HashMap<(Digest, u64), u64> = HashMap::new();
    let source = |chunk: &Chunk| {
        let content = (chunk.content.digest, chunk.content.size);
        if done.contains(&chunk.layer) {
            first.entry(content).or_insert(chunk.offset);
            return ChunkSource::Done;
        }
        let may_be_zeros = may_be_zeros(chunk, repeated[&chunk.content.digest])
            && (zeros.len() < SIZES_OF_ZEROS || zeros.contains_key(&chunk.content.size));
        if may_be_zeros && *zeros.entry(chunk.content.size).or_insert_with_key(|&n| of_zeros(n)) == content.0 {
            return ChunkSource::Zeros;
        }
        let all = known.get(&content).map(Vec::as_slice).unwrap_or_default();
        // Also for a resumed pull: its base disk is not recorded, and reading shows the content.
        if !blank && let Some(known) = all.iter().find(|k| k.offset == chunk.offset) {
            return ChunkSource::Shared(known.clone());
        }
        if let Some(known) = all.first() {
            return ChunkSource::Known(known.clone());
        }
        match first.get(&content) {
            Some(&offset) => ChunkSource::Twin { offset },
            None => {
                first.insert(content, chunk.offset);
                ChunkSource::Registry
            }
        }
    };
    let sources: Vec<ChunkSource> = image.chunks.iter().map(source).collect();
    image.chunks.iter().copied().zip(sources).collect()
}

/// The digest of many gigabytes of zeros takes seconds, so it is computed only for chunks that may be zeros: those that are
/// compressed to almost nothing, which all usual encoders do with zeros; and those that the image has more than once, because
/// an encoder may compress badly, and each of its chunks of zeros would otherwise be read and hashed.
fn may_be_zeros(chunk: &Chunk, times: usize) -> bool {
    let small = chunk.blob.size <= chunk.content.size / 64 + 4096;
    chunk.content.size <= LARGEST_OF_ZEROS && (small || times > 1)
}

fn of_zeros(size: u64) -> Digest {
    let zeros = [0; 64 << 10];
    let mut hasher = Sha256::new();
    let mut left = size;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        hasher.update(&zeros[..n as usize]);
        left -= n;
    }
    Digest::finish(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::oci::{ImageFormat, manifest::Blob};

    fn chunk(layer: usize, offset: u64, content: &[u8]) -> Chunk {
        let size = content.len() as u64;
        let blob = Blob { digest: Digest::of(&[content, b"blob"].concat()), size };
        Chunk { layer, blob, offset, content: Blob { digest: Digest::of(content), size } }
    }

    #[test]
    fn each_piece_comes_from_the_nearest_place() {
        let config = Blob { digest: Digest::of(b""), size: 1 };
        let chunks = vec![
            chunk(1, 0, b"done"),
            chunk(2, 4, &[0; 100]),
            chunk(3, 104, b"known"),
            chunk(4, 109, b"new"),
            chunk(5, 112, b"new"),
            chunk(6, 115, b"done"),
        ];
        let image = Image { kind: ImageFormat::Tart, config, files: Vec::new(), disk_size: 119, chunks };
        let at = |offset| CatalogPiece { disk: "/templates/a/disk".into(), offset };
        let known = KnownPieces::from([((Digest::of(b"known"), 5), vec![at(7), at(104)])]);
        let sources = |blank| -> Vec<ChunkSource> {
            plan(&image, &BTreeSet::from([1]), &known, blank).into_iter().map(|(_, source)| source).collect()
        };
        assert_eq!(sources(false)[2], ChunkSource::Shared(at(104)));
        let sources = sources(true);
        assert_eq!(
            sources,
            [
                ChunkSource::Done,
                ChunkSource::Zeros,
                ChunkSource::Known(at(7)),
                ChunkSource::Registry,
                ChunkSource::Twin { offset: 109 },
                ChunkSource::Twin { offset: 0 },
            ]
        );
    }

    #[test]
    fn the_base_is_the_disk_with_most_at_its_place() {
        let config = Blob { digest: Digest::of(b""), size: 1 };
        let chunks = vec![chunk(1, 0, b"first"), chunk(2, 5, b"second"), chunk(3, 11, b"the third")];
        let image = Image { kind: ImageFormat::Tart, config, files: Vec::new(), disk_size: 20, chunks };
        let at = |disk: &str, offset| CatalogPiece { disk: disk.into(), offset };
        let piece = |content: &[u8], places| ((Digest::of(content), content.len() as u64), places);
        assert_eq!(base(&image, &KnownPieces::new()), None);
        let moved = KnownPieces::from([piece(b"first", vec![at("/a", 5)]), piece(b"second", vec![at("/a", 0)])]);
        assert_eq!(base(&image, &moved), None);
        let known = KnownPieces::from([
            piece(b"first", vec![at("/a", 0), at("/b", 0)]),
            piece(b"second", vec![at("/b", 11), at("/a", 5)]),
            piece(b"the third", vec![at("/b", 11), at("/b", 11), at("/c", 11)]),
        ]);
        assert_eq!(base(&image, &known), Some("/b".into()));
    }

    #[test]
    fn a_manifest_that_claims_much_costs_little() {
        let config = Blob { digest: Digest::of(b""), size: 1 };
        let claim = |size| Chunk { content: Blob { digest: Digest::of(b"claimed"), size }, ..chunk(1, 0, b"") };
        let mut chunks = vec![claim(1 << 40)];
        chunks.extend((0..10_000).map(|n| claim((1 << 20) + n)));
        let image = Image { kind: ImageFormat::Tart, config, files: Vec::new(), disk_size: 0, chunks };
        let sources = plan(&image, &BTreeSet::new(), &KnownPieces::new(), true);
        assert!(sources.iter().all(|(_, source)| *source == ChunkSource::Registry));
    }

    #[test]
    fn zeros_that_are_compressed_badly_are_known_when_they_come_twice() {
        let config = Blob { digest: Digest::of(b""), size: 1 };
        let loose = |layer, offset| {
            let zeros = chunk(layer, offset, &[0; 100_000]);
            Chunk { blob: Blob { size: 90_000, ..zeros.blob }, ..zeros }
        };
        let chunks = vec![loose(1, 0), loose(2, 100_000), chunk(3, 200_000, &[7; 100_000])];
        let image = Image { kind: ImageFormat::Tart, config, files: Vec::new(), disk_size: 300_000, chunks };
        let at = |offset| CatalogPiece { disk: "/templates/a/disk".into(), offset };
        let known = KnownPieces::from([((Digest::of(&[0; 100_000]), 100_000), vec![at(0), at(100_000)])]);
        let sources: Vec<_> =
            plan(&image, &BTreeSet::new(), &known, false).into_iter().map(|(_, source)| source).collect();
        assert_eq!(sources, [ChunkSource::Zeros, ChunkSource::Zeros, ChunkSource::Registry]);
    }

    #[test]
    fn zeros_are_known_by_their_digest() {
        let known = "sha256:9acca8e8c22201155389f65abbf6bc9723edc7384ead80503839f49dcc56d767";
        assert_eq!(of_zeros(512 << 20).to_string(), known);
        assert_eq!(of_zeros(5), Digest::of(&[0; 5]));
    }
}
