//! Any content: what is encoded is no longer than stored blocks would be, the model reads it, and so does the decoder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::oci::{lz4, model};

/// The fuzzer's inputs are short: the first three bytes say how often the rest is repeated and where the repetition is cut, so
/// that several blocks come of it.
fn content(input: &[u8]) -> Vec<u8> {
    let Some(([times, low, high], unit)) = input.split_first_chunk::<3>().map(|(n, unit)| (*n, unit)) else {
        return input.to_vec();
    };
    let mut plain = unit.repeat(usize::from(times) + 1);
    plain.truncate(200_000);
    plain.truncate(plain.len().saturating_sub(usize::from(u16::from_le_bytes([low, high])) % (unit.len() + 1)));
    plain.extend_from_slice(unit);
    plain
}

fuzz_target!(|input: &[u8]| {
    let plain = content(input);
    let expected = plain.len() as u64;
    let mut stream = Vec::new();
    let sum = lz4::encode(&plain[..], &mut stream).unwrap();
    assert_eq!((sum.compressed, sum.uncompressed), (stream.len() as u64, expected));
    assert!(stream.len() <= plain.len() + 8 * plain.len().div_ceil(65_536) + 4);
    assert!(model::decode(&stream, expected).as_ref() == Some(&plain), "the model reads something else");
    let mut decoder = lz4::Decoder::new(expected);
    let mut decoded = Vec::with_capacity(plain.len());
    for piece in stream.chunks(1 + stream.len() / 3) {
        decoder
            .push(piece, &mut |bytes| {
                decoded.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(decoder.finish().unwrap(), expected);
    assert!(decoded == plain, "the decoder gives something else");
});
