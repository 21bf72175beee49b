//! Property tests with generated streams and contents.

use proptest::{collection::vec, prelude::*};

use super::*;

/// One block of a stream, to be made with what came before it known.
#[derive(Clone, Debug)]
enum Block {
    Stored(Vec<u8>),
    StoredTwice(Vec<u8>),
    /// Sequences of literals, how far back (as a share of what there is) and how long a match; then the last literals.
    Compressed(Vec<(Vec<u8>, u16, usize)>, Vec<u8>),
}

fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let literals = vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..40);
    let sequence = (literals.clone(), any::<u16>(), prop_oneof![4..30_usize, 4..3_000_usize]);
    vec(
        prop_oneof![
            1 => vec(any::<u8>(), 0..2_000).prop_map(Block::Stored),
            1 => vec(any::<u8>(), 0..50).prop_map(Block::StoredTwice),
            3 => (vec(sequence, 0..20), literals).prop_map(|(sequences, last)| Block::Compressed(sequences, last)),
        ],
        0..12,
    )
}

fn put_length(payload: &mut Vec<u8>, length: usize) {
    if let Some(mut more) = length.checked_sub(15) {
        while more >= 255 {
            payload.push(255);
            more -= 255;
        }
        payload.push(more as u8);
    }
}

/// The stream that `blocks` describe and what it holds.
fn build(blocks: &[Block]) -> (Vec<u8>, Vec<u8>) {
    let (mut stream, mut plain) = (Vec::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Stored(bytes) => {
                stream.extend(stored(bytes));
                plain.extend(bytes);
            }
            Block::StoredTwice(bytes) => {
                stream.extend(stored_12(bytes));
                plain.extend(bytes);
            }
            Block::Compressed(sequences, last) => {
                let (mut payload, start) = (Vec::new(), plain.len());
                for (literals, back, length) in sequences {
                    if plain.is_empty() && literals.is_empty() {
                        continue;
                    }
                    payload.push((literals.len().min(15) << 4 | (length - 4).min(15)) as u8);
                    put_length(&mut payload, literals.len());
                    payload.extend(literals);
                    plain.extend(literals);
                    let distance = 1 + usize::from(*back) % plain.len().min(65_535);
                    payload.extend((distance as u16).to_le_bytes());
                    put_length(&mut payload, length - 4);
                    for _ in 0..*length {
                        plain.push(plain[plain.len() - distance]);
                    }
                }
                payload.push((last.len().min(15) << 4) as u8);
                put_length(&mut payload, last.len());
                payload.extend(last);
                plain.extend(last);
                stream.extend(compressed(plain.len() - start, &payload));
            }
        }
    }
    stream.extend(END);
    (stream, plain)
}

/// Bytes as disks have them: runs, repetitions near and far, noise.
fn disk() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        (any::<u8>(), 1..90_000_usize).prop_map(|(byte, length)| vec![byte; length]),
        (vec(any::<u8>(), 1..300), 1..200_usize).prop_map(|(unit, times)| unit.repeat(times)),
        (any::<u64>(), 1..70_000_usize).prop_map(|(seed, length)| noise(length, seed)),
    ];
    vec(part, 0..5).prop_map(|parts| parts.concat())
}

fn splits() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..20_usize, 1..5_000_usize, 1..200_000_usize], 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_of_the_format_decodes_from_any_pieces(blocks in blocks(), split in splits()) {
        let (stream, plain) = build(&blocks);
        prop_assert!(model::decode(&stream, plain.len() as u64).as_deref() == Some(&plain[..]));
        prop_assert!(decode_split(&stream, plain.len(), &split).unwrap() == plain);
    }

    #[test]
    fn what_is_encoded_decodes_from_any_pieces(plain in disk(), split in splits()) {
        let stream = encoded(&plain);
        prop_assert!(stream.len() <= plain.len() + 8 * plain.len().div_ceil(65_536) + END.len());
        prop_assert!(decode_split(&stream, plain.len(), &split).unwrap() == plain);
    }

    #[test]
    fn damage_is_an_error_or_other_content_whatever_the_pieces(
        blocks in blocks(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        split in splits(),
    ) {
        let (mut stream, plain) = build(&blocks);
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let whole = place(decode(&stream, plain.len()));
        prop_assert!(whole.as_ref().ok() == model::decode(&stream, plain.len() as u64).as_ref());
        prop_assert!(place(decode_split(&stream, plain.len(), &split)) == whole);
    }
}
