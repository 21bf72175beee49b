//! Any bytes, as a qcow2 image with a hole behind them: it is refused, or its size is one that a disk can have; and no input takes
//! long, whatever its tables claim.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::templates::check_qcow2;

fuzz_target!(|input: &[u8]| {
    let Some(([shift], image)) = input.split_first_chunk::<1>() else { return };
    // Up to 64 GiB, of which nothing is there.
    let hole = 1_u64 << (shift % 37);
    match check_qcow2(image, hole) {
        Ok(size) => assert!(size > 0 && size.is_multiple_of(512)),
        Err(what) => assert!(!what.is_empty() && what.len() < 4000),
    }
});
