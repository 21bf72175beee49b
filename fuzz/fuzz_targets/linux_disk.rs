//! Any bytes, as the disk of a Linux guest: nothing panics, and nothing is allocated or read that the disk only claims. An input is
//! the size of a disk of zeros, in pages, and what differs from zeros: pairs of an offset and 32 bytes. So the fuzzer gets by
//! with short inputs for disks that are large enough for a file system; the corpus has some that are whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::templates::look_for_kernels;

const PART: usize = 32;

fuzz_target!(|input: &[u8]| {
    let Some(([pages], parts)) = input.split_first_chunk::<1>() else { return };
    let mut disk = vec![0; (usize::from(*pages) + 1) * 4096];
    for part in parts.chunks_exact(2 + PART) {
        let at = usize::from(u16::from_le_bytes([part[0], part[1]])) * PART;
        if let Some(place) = disk.get_mut(at..at + PART) {
            place.copy_from_slice(&part[2..]);
        }
    }
    match look_for_kernels(&disk) {
        // Each kernel has a megabyte at most.
        Ok(copied) => assert!(copied <= 2 << 30),
        Err(what) => assert!(!what.is_empty() && what.len() < 4000),
    }
});
