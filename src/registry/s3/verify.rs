//! Verifies the content of an object after its download.

use std::{fs::File, io::Read as _, path::Path};

use aws_sdk_s3::{operation::head_object::HeadObjectOutput, types::ChecksumType};
use aws_smithy_checksums::ChecksumAlgorithm;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::{Location, S3Error};
use crate::registry::oci::Digest;

/// Size of a read.
const BUFFER: usize = 1 << 20;

/// The expected digests and checksums of an object's content.
#[derive(Default)]
pub(super) struct Sums {
    /// The origin of the value, and the value.
    digests: Vec<(&'static str, Digest)>,
    /// Base64, of the algorithm with this name.
    own: Vec<(&'static str, String)>,
}

/// The values from the caller, the object's metadata and S3 itself.
pub(super) fn sums(from: &Location, head: &HeadObjectOutput) -> Result<Sums, S3Error> {
    let mut sums = Sums::default();
    sums.digests.extend(from.digest().map(|digest| ("the one that was given", digest)));
    if let Some(said) = head.metadata().and_then(|m| m.get("sha256")) {
        let digest = format!("sha256:{}", said.trim().to_ascii_lowercase()).parse().map_err(|_| S3Error::Content {
            at: from.to_string(),
            what: format!("its metadata has the sha256 {said:.100?}, which is none"),
        })?;
        sums.digests.push(("the one in its metadata", digest));
    }
    // For an object that was uploaded in parts, some checksums are of the parts' checksums, and not every service
    // marks them.
    let in_parts = head.e_tag().is_some_and(|etag| etag.contains('-'));
    if head.checksum_type().map_or(!in_parts, |kind| *kind == ChecksumType::FullObject) {
        let all = [
            ("sha256", head.checksum_sha256()),
            ("crc64nvme", head.checksum_crc64_nvme()),
            ("crc32c", head.checksum_crc32_c()),
            ("crc32", head.checksum_crc32()),
        ];
        let whole = |(name, sum): (&'static str, Option<&str>)| {
            sum.filter(|sum| !sum.contains('-')).map(|sum| (name, sum.to_owned()))
        };
        sums.own.extend(all.into_iter().filter_map(whole));
    }
    Ok(sums)
}

/// Reads the whole file once, for all digests.
pub(super) fn verify(path: &Path, size: u64, sums: &Sums, at: &str) -> Result<(Digest, Vec<String>), S3Error> {
    let wrong = |what: String| S3Error::Content { at: at.to_owned(), what };
    let mut hasher = Sha256::new();
    let mut others: Vec<_> = sums
        .own
        .iter()
        .filter(|(name, _)| *name != "sha256")
        .filter_map(|(name, sum)| Some((*name, sum, name.parse::<ChecksumAlgorithm>().ok()?.into_impl())))
        .collect();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER];
    let mut read = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        read += n as u64;
        hasher.update(&buffer[..n]);
        for (_, _, sum) in &mut others {
            sum.update(&buffer[..n]);
        }
    }
    if read != size {
        return Err(wrong(format!("it has {read} bytes here, expected {size}")));
    }
    let base64 = STANDARD.encode(hasher.clone().finalize());
    let digest = Digest::finish(hasher);
    for (said_by, expected) in &sums.digests {
        if *expected != digest {
            return Err(wrong(format!("it has the digest {digest}, and {said_by} is {expected}")));
        }
    }
    let of_s3 = sums.own.iter().find(|(name, _)| *name == "sha256");
    if let Some((_, expected)) = of_s3
        && *expected != base64
    {
        return Err(wrong(format!("it has the SHA-256 {base64}, and S3 says {expected}")));
    }
    let mut damage = Vec::new();
    for (name, expected, sum) in others {
        let found = STANDARD.encode(sum.finalize());
        if found != *expected {
            return Err(wrong(format!("it has the {name} {found}, and S3 says {expected}")));
        }
        damage.push(name);
    }
    let mut notices = Vec::new();
    if sums.digests.is_empty() && of_s3.is_none() {
        notices.push(match &damage[..] {
            [] => format!(
                "{at} could not be verified: neither a sha256 was given nor does the object have one; it has the digest {digest}"
            ),
            names => format!(
                "{at} was verified by {} only, which finds damage and no forgery; it has the digest {digest}",
                names.join(" and ")
            ),
        });
    }
    Ok((digest, notices))
}
