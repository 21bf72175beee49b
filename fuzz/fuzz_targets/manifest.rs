//! Any bytes, as what a registry calls a manifest: it is refused, or what comes of it is consistent, and written and read again
//! it is the same.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::oci::{
    Image, index,
    manifest::{self, Document},
};

fn consistent(image: &Image) {
    assert!(!image.chunks.is_empty());
    let mut end = 0;
    for chunk in &image.chunks {
        assert_eq!(chunk.offset, end, "the pieces of the disk follow each other");
        assert!(chunk.content.size > 0 && chunk.blob.size > 0);
        end += chunk.content.size;
    }
    assert_eq!(end, image.disk_size);
    let roles: BTreeSet<_> = image.files.iter().map(|file| file.role).collect();
    assert_eq!(roles.len(), image.files.len(), "each file is there once");
    assert!(image.files.iter().all(|file| file.packed || file.blob == file.content));
    let layers: Vec<usize> = image.layers().map(|(layer, ..)| layer).collect();
    assert!(layers.iter().copied().eq(0..layers.len()), "each layer is there once, and in order: {layers:?}");
}

fuzz_target!(|input: &[u8]| {
    for content_type in [None, Some(manifest::MEDIA_TYPE), Some("application/vnd.oci.image.index.v1+json")] {
        match manifest::parse(input, content_type) {
            Ok(Document::Image(image)) => {
                consistent(&image);
                let time = manifest::time_of(input, image.kind).unwrap_or_default();
                let written = image.to_bytes(&time).unwrap();
                assert_eq!(manifest::parse(&written, None), Ok(Document::Image(image.clone())));
                assert_eq!(image.to_bytes(&time).unwrap(), written);
            }
            Ok(Document::Index(list)) => {
                for architecture in ["x86_64", "aarch64"] {
                    match list.choose(index::architecture(architecture)) {
                        Ok(digest) => assert!(list.entries.iter().any(|entry| entry.digest == digest)),
                        Err(error) => assert!(error.to_string().len() < 8000),
                    }
                }
            }
            // Whatever it quotes of the input is bounded.
            Err(error) => assert!(error.to_string().len() < 8000, "{error}"),
        }
    }
});
