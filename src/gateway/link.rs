//! Frames on the socket of the hypervisor, in QEMU's format (`-netdev stream`): the length of the frame in four bytes,
//! big-endian, then the Ethernet frame without its checksum.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

/// QEMU's own limit for one frame, in bytes.
const LARGEST_FRAME: usize = 68 << 10;
const LENGTH: usize = 4;

/// The next complete frame at the beginning of what was read.
pub fn next_frame(read: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(length) = read.first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > LARGEST_FRAME {
        // Without the length nothing after it can be understood.
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the hypervisor announces a frame of {length} bytes"),
        ));
    }
    if read.len() < LENGTH + length {
        return Ok(None);
    }
    read.advance(LENGTH);
    Ok(Some(read.split_to(length).freeze()))
}

pub fn append_frame(to: &mut BytesMut, frame: &[u8]) {
    to.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    to.extend_from_slice(frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_across_reads() {
        let mut sent = BytesMut::new();
        append_frame(&mut sent, b"first");
        append_frame(&mut sent, b"");
        append_frame(&mut sent, b"second one");
        let (mut read, mut found) = (BytesMut::new(), Vec::new());
        for byte in sent {
            read.extend_from_slice(&[byte]);
            while let Some(frame) = next_frame(&mut read).unwrap() {
                found.push(frame);
            }
        }
        assert_eq!(found, ["first", "", "second one"]);
        assert!(read.is_empty());
    }

    #[test]
    fn a_length_beyond_the_limit_ends_the_link() {
        let mut read = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert!(next_frame(&mut read).is_err());
    }
}
