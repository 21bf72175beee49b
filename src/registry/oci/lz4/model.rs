//! A second, simple decoder for tests to compare with: it holds the whole stream and output in memory, works byte by
//! byte, and shares nothing with the decoder, not even a constant.

/// The content of `stream`, if it is a stream of `expected` bytes.
pub fn decode(stream: &[u8], expected: u64) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(stream.get(at..at + 4)?.try_into().unwrap()) as usize);
    let magic = |at: usize| matches!(stream.get(at..at + 4), Some(b"bv41" | b"bv4-" | b"bv4$"));
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        let size = |at| word(at + 4).filter(|size| (out.len() + size) as u64 <= expected);
        match stream.get(at..at + 4)? {
            b"bv4$" => return (out.len() as u64 == expected).then_some(out),
            b"bv41" => {
                let (decoded, encoded) = (size(at)?, word(at + 8)?);
                let end = out.len() + decoded;
                let payload = stream.get(at + 12..at + 12 + encoded)?;
                if decoded > 8 * 1024 * 1024 {
                    return None;
                }
                block(payload, &mut out, end)?;
                at += 12 + encoded;
            }
            b"bv4-" => {
                let size = size(at)?;
                if !magic(at + 8 + size) {
                    if word(at + 8)? != size || size > 8 * 1024 * 1024 || !magic(at + 12 + size) {
                        return None;
                    }
                    at += 4;
                }
                out.extend(&stream[at + 8..at + 8 + size]);
                at += 8 + size;
            }
            _ => return None,
        }
    }
}

fn block(payload: &[u8], out: &mut Vec<u8>, end: usize) -> Option<()> {
    let mut bytes = payload.iter().copied();
    let length = |nibble: u8, bytes: &mut dyn Iterator<Item = u8>| {
        let mut length = usize::from(nibble);
        if nibble == 15 {
            loop {
                let more = bytes.next()?;
                length += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        Some(length)
    };
    loop {
        let token = bytes.next()?;
        let literals = length(token >> 4, &mut bytes)?;
        for _ in 0..literals {
            out.push(bytes.next()?);
        }
        if out.len() > end {
            return None;
        }
        let Some(low) = bytes.next() else { return (out.len() == end).then_some(()) };
        let distance = usize::from(low) + 256 * usize::from(bytes.next()?);
        let match_length = 4 + length(token & 15, &mut bytes)?;
        if distance == 0 || distance > out.len() || out.len() + match_length > end {
            return None;
        }
        for _ in 0..match_length {
            out.push(out[out.len() - distance]);
        }
    }
}
