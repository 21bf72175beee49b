use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use super::{DecodeError, DecodeFault, Decoder, Encoded, MAX_BLOCK_BYTES, encode, model};

mod generated;

/// What a decoder may hold while blocks are no larger than 64 KiB.
const USUAL_MEMORY: usize = 384 << 10;

const END: &[u8] = b"bv4$";

fn word(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap().to_le_bytes()
}

fn compressed(decoded: usize, payload: &[u8]) -> Vec<u8> {
    [b"bv41", &word(decoded)[..], &word(payload.len()), payload].concat()
}

fn stored(plain: &[u8]) -> Vec<u8> {
    [b"bv4-", &word(plain.len())[..], plain].concat()
}

/// A stored block as the old description has it, with its size twice.
fn stored_12(plain: &[u8]) -> Vec<u8> {
    [b"bv4-", &word(plain.len())[..], &word(plain.len()), plain].concat()
}

/// Decodes `stream` in pieces of the lengths that `split` gives, over and over.
fn decode_split(stream: &[u8], expected: usize, split: &[usize]) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(expected as u64);
    let mut out = Vec::new();
    let mut rest = stream;
    let mut lengths = split.iter().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
        rest = after;
        decoder.push(piece, &mut |plain| {
            assert!(!plain.is_empty(), "an empty piece was given out");
            out.extend_from_slice(plain);
            Ok(())
        })?;
        assert!(out.len() <= expected, "{} bytes given out, {expected} expected", out.len());
        assert!(decoder.memory() <= USUAL_MEMORY, "{} bytes held", decoder.memory());
    }
    assert_eq!(decoder.finish()?, out.len() as u64);
    assert_eq!(out.len(), expected, "as many bytes as expected, or an error");
    Ok(out)
}

fn decode(stream: &[u8], expected: usize) -> Result<Vec<u8>, DecodeError> {
    decode_split(stream, expected, &[usize::MAX])
}

fn fault(stream: &[u8], expected: usize) -> (u64, u64, DecodeFault) {
    match decode(stream, expected) {
        Err(DecodeError::Bad { compressed, uncompressed, fault }) => (compressed, uncompressed, fault),
        other => panic!("not a fault: {other:?}"),
    }
}

/// `what` without the bytes it quotes, which depend on how much had arrived.
fn place(result: Result<Vec<u8>, DecodeError>) -> Result<Vec<u8>, String> {
    result.map_err(|e| match e {
        DecodeError::Bad { compressed, uncompressed, fault: DecodeFault::UnknownBlock { .. } } => {
            format!("unknown block at {compressed}, {uncompressed}")
        }
        other => other.to_string(),
    })
}

fn encoded(plain: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let sum = encode(plain, &mut stream).unwrap();
    assert_eq!(sum, Encoded { compressed: stream.len() as u64, uncompressed: plain.len() as u64 });
    stream
}

/// Bytes with no pattern, the same each time.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn an_empty_stream_is_its_end_marker() {
    assert_eq!(decode(END, 0).unwrap(), b"");
    assert_eq!(encoded(b""), END);
}

#[test]
fn literals_and_a_match_that_overlaps_itself() {
    // Two literals, a match of 7 from 2 back, then the five literals that end every block.
    let payload = [&[0x23][..], b"ab", &[2, 0], &[0x50], b"vwxyz"].concat();
    let stream = [&compressed(14, &payload), END].concat();
    assert_eq!(decode(&stream, 14).unwrap(), b"ababababavwxyz");
}

#[test]
fn lengths_of_several_bytes() {
    // 15 + 255 + 0 literals; a match of 4 + 15 + 255 + 3 from 1 back.
    let literals = noise(270, 1);
    let payload = [&[0xff, 255, 0][..], &literals, &[1, 0, 255, 3], &[0x50], b"vwxyz"].concat();
    let plain = [&literals[..], &vec![literals[269]; 277], b"vwxyz"].concat();
    assert_eq!(decode(&[&compressed(plain.len(), &payload), END].concat(), plain.len()).unwrap(), plain);
}

#[test]
fn a_match_reaches_into_the_block_before() {
    let first = compressed(8, &[&[0x80][..], b"abcdefgh"].concat());
    // No literal of its own: 6 from 8 back, then "!".
    let second = compressed(7, &[0x02, 8, 0, 0x10, b'!']);
    assert_eq!(decode(&[&first, &second, END].concat(), 15).unwrap(), b"abcdefghabcdef!");
}

#[test]
fn a_match_begins_in_the_block_before_and_ends_in_its_own() {
    let second = compressed(8, &[0x04, 2, 0, 0x00]);
    assert_eq!(decode(&[&stored(b"xab"), &second, END].concat(), 11).unwrap(), b"xababababab");
}

#[test]
fn a_match_reaches_across_a_stored_block() {
    let first = compressed(8, &[&[0x80][..], b"abcdefgh"].concat());
    let between = stored(b"12345678");
    // From 16 back: what the first block held. Then from 6 back: the end of the stored one, and of what is here by now.
    let last = compressed(9, &[0x00, 16, 0, 0x01, 6, 0, 0x00]);
    assert_eq!(decode(&[&first, &between, &last, END].concat(), 25).unwrap(), b"abcdefgh12345678abcd78abc");
}

#[test]
fn a_match_reaches_as_far_back_as_the_format_goes_and_no_further() {
    // Through every kind of move that the window makes: in one piece, in many, over what is dropped.
    for between in [65_535, 65_536, 100_000, 300_000, 1_000_000] {
        let plain = noise(between, 7);
        let reach = compressed(5, &[0x00, 0xff, 0xff, 0x10, b'.']);
        for block in [1_000, 65_535, between] {
            let mut stream: Vec<u8> = plain.chunks(block).flat_map(stored).collect();
            stream.extend([&reach, END].concat());
            let want = [&plain[..], &plain[between - 65_535..][..4], b"."].concat();
            for split in [&[usize::MAX][..], &[17, 4_099, 1]] {
                assert_eq!(decode_split(&stream, want.len(), split).unwrap(), want, "{between} in blocks of {block}");
            }
        }
    }
    let stream = [&stored(&noise(65_534, 7)), &compressed(5, &[0x00, 0xff, 0xff, 0x10, b'.']), END].concat();
    let (at, done, fault) = fault(&stream, 65_539);
    assert!(matches!(fault, DecodeFault::Block { encoded: 5, decoded: 5, .. }), "{fault}");
    assert_eq!((at, done), (8 + 65_534, 65_534));
}

#[test]
fn history_ends_with_the_stream() {
    let lone = [&compressed(7, &[0x02, 8, 0, 0x10, b'!']), END].concat();
    assert!(matches!(fault(&lone, 7), (0, 0, DecodeFault::Block { .. })));
}

#[test]
fn empty_blocks_hold_nothing() {
    let stream = [&compressed(0, &[0x00]), &stored(b""), &stored(b"x"), &stored(b""), END].concat();
    assert_eq!(decode(&stream, 1).unwrap(), b"x");
    assert!(matches!(fault(&[&compressed(0, &[]), END].concat(), 0), (0, 0, DecodeFault::Block { .. })));
}

#[test]
fn what_follows_the_end_marker_is_ignored() {
    let stream = [&stored(b"x"), END, b"bv41 and anything else"].concat();
    for split in [&[usize::MAX][..], &[1], &[13]] {
        assert_eq!(decode_split(&stream, 1, split).unwrap(), b"x");
    }
}

#[test]
fn a_stored_block_may_have_its_size_twice() {
    for plain in [&b""[..], b"x", b"abc", b"abcd", b"hello, world", &noise(70_000, 3)] {
        let after = compressed(5, &[&[0x50][..], b"vwxyz"].concat());
        for next in [&[], &after[..], &stored(b"vwxyz"), &stored_12(b"vwxyz")] {
            let stream = [&stored_12(plain), next, END].concat();
            let want = [plain, if next.is_empty() { b"" } else { b"vwxyz" }].concat();
            for split in [&[usize::MAX][..], &[1], &[3, 8]] {
                assert_eq!(decode_split(&stream, want.len(), split).unwrap(), want);
            }
        }
    }
}

#[test]
fn a_size_twice_counts_for_matches_too() {
    let stream = [&stored_12(b"abcdefgh"), &compressed(5, &[0x00, 8, 0, 0x10, b'!']), END].concat();
    assert_eq!(decode(&stream, 13).unwrap(), b"abcdefghabcd!");
}

#[test]
fn content_that_begins_with_its_own_size_is_content() {
    for length in [4, 5, 12, 300, 70_000] {
        let mut plain = noise(length, 4);
        plain[..4].copy_from_slice(&word(length));
        let stream = [&stored(&plain), &stored(b"more"), END].concat();
        let want = [&plain[..], b"more"].concat();
        for split in [&[usize::MAX][..], &[1], &[3, 8]] {
            assert_eq!(decode_split(&stream, want.len(), split).unwrap(), want, "{length} in pieces of {split:?}");
        }
    }
}

#[test]
fn neither_reading_of_a_size_twice_fits() {
    let stream = [&b"bv4-"[..], &word(5), &word(5), b"abcdefgh", END].concat();
    let (at, done, fault) = fault(&stream, 5);
    assert_eq!((at, done), (0, 0));
    assert!(fault.to_string().ends_with(r#"found "bcde""#), "{fault}");
}

#[test]
fn what_is_no_stream_is_shown() {
    let page = format!("<!DOCTYPE html>\n<title>Sign in</title>{}", " ".repeat(500));
    let (at, done, fault) = fault(page.as_bytes(), 1_000);
    assert_eq!((at, done), (0, 0));
    let text = fault.to_string();
    assert!(text.contains(r#"expected a block (bv41, bv4-)"#), "{text}");
    assert!(text.contains(r#"found "<!DOCTYPE html>\n<title>Sign in</title>"#), "{text}");
    assert!(text.len() < 320, "{} bytes of text", text.len());
}

#[test]
fn of_what_is_inside_a_stream_no_more_than_a_word_is_shown() {
    let stream = [&stored(b"abcd")[..], b"-----BEGIN OPENSSH PRIVATE KEY-----", END].concat();
    let (at, done, fault) = fault(&stream, 100);
    assert_eq!((at, done), (12, 4));
    assert!(fault.to_string().ends_with(r#"found "----""#), "{fault}");
}

#[test]
fn a_stream_of_another_length_than_expected_is_refused() {
    let stream = [&stored(b"abcd")[..], &stored(b"efgh"), END].concat();
    assert!(matches!(fault(&stream, 7), (12, 4, DecodeFault::MoreThanExpected { size: 4, left: 3 })));
    assert!(matches!(fault(&stream, 9), (24, 8, DecodeFault::EndsEarly { left: 1 })));
    let block = compressed(4, &[&[0x40][..], b"abcd"].concat());
    assert!(matches!(fault(&[&block, END].concat(), 3), (0, 0, DecodeFault::MoreThanExpected { size: 4, left: 3 })));
}

#[test]
fn a_block_of_another_length_than_it_claims_is_refused() {
    let payload = [&[0x40][..], b"abcd"].concat();
    assert!(matches!(
        fault(&[&compressed(5, &payload), END].concat(), 100),
        (0, 0, DecodeFault::WrongSize { claimed: 5, found: 4 })
    ));
    assert!(matches!(fault(&[&compressed(3, &payload), END].concat(), 100), (0, 0, DecodeFault::Block { .. })));
}

#[test]
fn a_stream_cut_off_anywhere_is_refused_with_its_length() {
    let noise = noise(40, 9);
    let stream = [
        &compressed(14, &[&[0x23][..], b"ab", &[2, 0], &[0x50], b"vwxyz"].concat()),
        &stored(&noise),
        &stored_12(b"twice"),
        &compressed(7, &[0x02, 8, 0, 0x10, b'!']),
        &stored(b""),
        END,
    ]
    .concat();
    let expected = 14 + 40 + 5 + 7;
    let whole = decode(&stream, expected).unwrap();
    for length in 0..stream.len() {
        for split in [&[usize::MAX][..], &[1], &[5, 2]] {
            match decode_split(&stream[..length], expected, split) {
                Err(DecodeError::Bad { compressed, uncompressed, fault: DecodeFault::CutOff(_) }) => {
                    assert_eq!(compressed, length as u64);
                    assert!(uncompressed <= whole.len() as u64);
                }
                other => panic!("cut off after {length} bytes: {other:?}"),
            }
        }
    }
}

#[test]
fn one_wrong_byte_is_an_error_or_other_content_whatever_the_pieces() {
    let plain = [&b"the same again, ".repeat(8)[..], &noise(30, 5)].concat();
    let stream = [&encoded(&plain)[..encoded(&plain).len() - 4], &stored_12(b"twice"), &stored(b"once"), END].concat();
    let expected = plain.len() + 9;
    assert_eq!(decode(&stream, expected).unwrap()[..plain.len()], plain);
    let mut refused = 0;
    for at in 0..stream.len() {
        for wrong in (0..8).map(|bit| stream[at] ^ 1 << bit).chain([0, 255]) {
            let mut stream = stream.clone();
            if stream[at] == wrong {
                continue;
            }
            stream[at] = wrong;
            let whole = place(decode(&stream, expected));
            assert_eq!(whole.as_ref().ok(), model::decode(&stream, expected as u64).as_ref(), "{wrong} at {at}");
            refused += usize::from(whole.is_err());
            for split in [&[1][..], &[7, 3]] {
                assert_eq!(place(decode_split(&stream, expected, split)), whole, "{wrong} at {at}");
            }
        }
    }
    assert!(refused > 24 * 8, "headers alone have more bits than the {refused} that were refused");
}

#[test]
fn sizes_that_cannot_be_are_refused_before_anything_is_taken_for_them() {
    let header = |decoded: usize, encoded: usize| [b"bv41", &word(decoded)[..], &word(encoded)].concat();
    let huge = u32::MAX as usize;
    let far = 1 << 40;
    assert!(matches!(fault(&header(huge, 20), huge - 1).2, DecodeFault::MoreThanExpected { .. }));
    assert!(matches!(fault(&header(huge, huge), far).2, DecodeFault::BlockTooLarge { .. }));
    assert!(matches!(fault(&header(MAX_BLOCK_BYTES + 1, MAX_BLOCK_BYTES), far).2, DecodeFault::BlockTooLarge { .. }));
    assert!(matches!(
        fault(&header(65_536, 256), far).2,
        DecodeFault::ImpossibleSizes { encoded: 256, decoded: 65_536 }
    ));
    assert!(matches!(fault(&header(65_536, huge), far).2, DecodeFault::ImpossibleSizes { .. }));
    assert!(matches!(fault(&header(0, 17), far).2, DecodeFault::ImpossibleSizes { .. }));

    // What can be is not refused, and is not made room for before it is there.
    let mut decoder = Decoder::new(far as u64);
    let mut none = |_: &[u8]| -> io::Result<()> { panic!("nothing to give out") };
    decoder.push(&header(MAX_BLOCK_BYTES, MAX_BLOCK_BYTES), &mut none).unwrap();
    decoder.push(&[0; 1_000], &mut none).unwrap();
    assert!(decoder.memory() <= 4_096, "{} bytes held for 1000 that arrived", decoder.memory());
}

#[test]
fn the_tightest_block_there_is_decodes_within_the_bound() {
    // The densest that the format allows: one literal, then length bytes of 255 each.
    let lengths = 4 + 15 + 255 * 32_000;
    let payload = [&[0x1f, b'x', 1, 0][..], &[255; 32_000], &[0], &[0x50], b"vwxyz"].concat();
    let size = 1 + lengths + 5;
    let stream = [&compressed(size, &payload), END].concat();
    let mut decoder = Decoder::new(size as u64);
    let (mut count, mut last) = (0, Vec::new());
    for piece in stream.chunks(1_000) {
        decoder
            .push(piece, &mut |plain| {
                count += plain.len();
                last = plain[plain.len() - 6..].to_vec();
                Ok(())
            })
            .unwrap();
    }
    assert_eq!((count, &last[..]), (size, &b"xvwxyz"[..]));
    assert!(decoder.memory() <= 2 * MAX_BLOCK_BYTES + (1 << 20));
    assert_eq!(decoder.finish().unwrap(), size as u64);
}

#[test]
fn an_endless_row_of_blocks_ends_at_what_is_expected() {
    // 64 KiB of one byte in 266 bytes, again and again: what a bomb is made of.
    let block = encoded(&[b'x'; 65_536]);
    let block = &block[..block.len() - 4];
    assert!(block.len() < 300);
    let mut decoder = Decoder::new(1 << 20);
    let mut given = 0_usize;
    let failed = (0..1_000).find_map(|_| {
        let result = decoder.push(block, &mut |plain| {
            given += plain.len();
            Ok(())
        });
        assert!(decoder.memory() <= USUAL_MEMORY);
        result.err()
    });
    assert!(matches!(failed, Some(DecodeError::Bad { fault: DecodeFault::MoreThanExpected { left: 0, .. }, .. })));
    assert_eq!(given, 1 << 20);
}

#[test]
fn what_cannot_be_written_stops_the_decoder() {
    let mut decoder = Decoder::new(8);
    let stream = [&stored(b"abcd")[..], &stored(b"efgh"), END].concat();
    let full = decoder.push(&stream, &mut |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
    assert!(matches!(&full, DecodeError::Write(e) if e.kind() == io::ErrorKind::StorageFull), "{full}");
    assert!(matches!(decoder.push(END, &mut |_| Ok(())), Err(DecodeError::FailedBefore)));
    assert!(matches!(decoder.finish(), Err(DecodeError::FailedBefore)));
}

/// Blocks of another LZ4 implementation, with matches that reach across them: see how they were made beside them.
#[test]
fn streams_of_another_encoder() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lz4");
    let sums = std::fs::read_to_string(format!("{fixtures}/plain.sha256")).unwrap();
    assert!(sums.lines().count() >= 3);
    for line in sums.lines() {
        let mut fields = line.split_whitespace();
        let mut field = || fields.next().expect("a name, a length and a digest");
        let (name, length, digest) = (field(), field().parse::<usize>().unwrap(), field());
        let stream = std::fs::read(format!("{fixtures}/{name}")).unwrap();
        for split in [&[usize::MAX][..], &[1_000, 1], &[65_536]] {
            let mut decoder = Decoder::new(length as u64);
            let mut plain = Vec::new();
            let mut rest = &stream[..];
            for length in split.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*length));
                decoder.push(piece, &mut |bytes| plain.write_all(bytes)).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            assert_eq!(decoder.finish().unwrap(), length as u64, "{name}");
            let found = hex::encode(Sha256::digest(&plain));
            assert_eq!(found, digest, "{name}");
        }
    }
}

/// What fuzzing starts from and what it once found.
#[test]
fn the_fuzzers_corpus() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/lz4_decode");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        // As the fuzz target reads it: the expected length, then the stream.
        let Some((length, stream)) = bytes.split_first_chunk::<4>() else { continue };
        let expected = u32::from_le_bytes(*length) as usize % (1 << 20);
        let want = model::decode(stream, expected as u64);
        let mut decoder = Decoder::new(expected as u64);
        let mut plain = Vec::new();
        let result = decoder.push(stream, &mut |bytes| plain.write_all(bytes)).and_then(|()| decoder.finish());
        assert_eq!(result.is_ok().then_some(plain), want);
        seen += 1;
    }
    assert!(seen > 0);
}

/// The lengths of a block's sequences as (literals, match), checked against the rules for how a block has to end.
fn sequences(payload: &[u8], decoded: usize) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let (mut at, mut done) = (0, 0);
    let length = |nibble: u8, at: &mut usize| {
        let more = if nibble == 15 { 1 + payload[*at..].iter().take_while(|byte| **byte == 255).count() } else { 0 };
        let counted = &payload[*at..][..more];
        *at += more;
        usize::from(nibble) + counted.iter().map(|byte| usize::from(*byte)).sum::<usize>()
    };
    loop {
        let token = payload[at];
        at += 1;
        let literals = length(token >> 4, &mut at);
        at += literals;
        done += literals;
        if at == payload.len() {
            found.push((literals, 0));
            assert_eq!(done, decoded);
            return found;
        }
        assert!(done + 12 <= decoded, "a match begins {} bytes before the block's end", decoded - done);
        let distance = usize::from(u16::from_le_bytes([payload[at], payload[at + 1]]));
        assert!((1..=done).contains(&distance), "a match reaches out of its block");
        at += 2;
        let matched = 4 + length(token & 15, &mut at);
        done += matched;
        found.push((literals, matched));
    }
}

#[test]
fn what_is_encoded_keeps_every_rule_for_encoders() {
    let mut plain = b"independent blocks. ".repeat(9_830);
    plain.extend(noise(70_000, 2));
    plain.extend([0; 200_000]);
    let stream = encoded(&plain);
    let (mut at, mut sizes, mut kinds) = (0, Vec::new(), Vec::new());
    while &stream[at..at + 4] != END {
        let number = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) as usize;
        let decoded = number(at + 4);
        kinds.push(stream[at + 3]);
        sizes.push(decoded);
        if &stream[at..at + 4] == b"bv41" {
            let encoded = number(at + 8);
            assert!(12 + encoded < 8 + decoded, "a stored block would be smaller");
            let found = sequences(&stream[at + 12..][..encoded], decoded);
            assert!(found.last().unwrap().0 >= 5, "fewer than five literals at the end");
            at += 12 + encoded;
        } else {
            assert_eq!(&stream[at..at + 4], b"bv4-");
            at += 8 + decoded;
        }
    }
    assert_eq!(at + 4, stream.len());
    let (last, full) = sizes.split_last().unwrap();
    assert!(full.iter().all(|size| *size == 65_536) && *last <= 65_536, "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), plain.len());
    // Text, then a block that is all noise but for its start, then zeros.
    assert_eq!(String::from_utf8(kinds).unwrap(), "111-1111");
    assert_eq!(decode(&stream, plain.len()).unwrap(), plain);
}

/// Gives its bytes in pieces, and is interrupted between them.
struct Dribble<'a> {
    rest: &'a [u8],
    most: usize,
    interrupted: bool,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = self.rest.len().min(self.most).min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest[..length]);
        self.rest = &self.rest[length..];
        Ok(length)
    }
}

#[test]
fn the_stream_does_not_depend_on_how_the_input_comes() {
    let plain = [&b"independent blocks. ".repeat(5_000)[..], &noise(30_000, 2)].concat();
    for most in [1, 1_000, 65_537] {
        let mut stream = Vec::new();
        encode(Dribble { rest: &plain, most, interrupted: false }, &mut stream).unwrap();
        assert!(stream == encoded(&plain), "another stream in pieces of {most}");
    }
}

#[test]
fn errors_of_input_and_output_are_passed_on() {
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert_eq!(encode(Broken, io::sink()).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(encode(&b"x"[..], Broken).unwrap_err().kind(), io::ErrorKind::StorageFull);
}
