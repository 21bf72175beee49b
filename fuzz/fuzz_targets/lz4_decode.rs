//! Any bytes, as a stream of any expected length: the decoder gives what the plain model gives, or an error where the model has
//! none; in one piece and in many alike; and nothing that is not expected.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::oci::{
    lz4::{DecodeError, Decoder},
    model,
};

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, expected: u64) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(expected);
    let mut plain = Vec::new();
    for piece in pieces {
        decoder.push(piece, &mut |bytes| {
            assert!(!bytes.is_empty());
            plain.extend_from_slice(bytes);
            Ok(())
        })?;
    }
    assert!(plain.len() as u64 <= expected);
    assert_eq!(decoder.finish()?, plain.len() as u64);
    Ok(plain)
}

fuzz_target!(|input: &[u8]| {
    let Some((length, stream)) = input.split_first_chunk::<4>() else { return };
    let expected = u64::from(u32::from_le_bytes(*length) % (1 << 20));
    let whole = decode(std::iter::once(stream), expected);
    assert_eq!(whole.as_ref().ok(), model::decode(stream, expected).as_ref(), "{:?}", whole.as_ref().err());
    // The lengths of the pieces are taken from the stream, too, so that the fuzzer can choose them.
    let mut rest = stream;
    let pieces = std::iter::from_fn(|| {
        let length = usize::from(*rest.first()?) % 37 + 1;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        Some(piece)
    });
    let split = decode(pieces, expected);
    match (whole, split) {
        (Ok(whole), Ok(split)) => assert_eq!(whole, split),
        (
            Err(DecodeError::Bad { compressed, uncompressed, fault }),
            Err(DecodeError::Bad { compressed: at, uncompressed: done, fault: split }),
        ) => {
            assert_eq!((compressed, uncompressed), (at, done), "{fault} or {split}");
            assert_eq!(std::mem::discriminant(&fault), std::mem::discriminant(&split));
        }
        (whole, split) => panic!("whole {whole:?}, in pieces {split:?}"),
    }
});
