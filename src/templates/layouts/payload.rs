//! The opaque data of Apple's framework: a machine's hardware model, and what its auxiliary storage says of its identity.
//!
//! The model is a binary property list like [`MachineIdentity`], and handled in the same way.

use base64::{Engine as _, engine::general_purpose::STANDARD};

pub use crate::domain::machine_identity::{LARGEST, MachineIdentity};
use crate::domain::machine_identity::{decode, value_of};

const PLATFORM_VERSION: &str = "PlatformVersion";

/// The Mac model that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HardwareModel {
    bytes: Vec<u8>,
    /// The original bytes, so that they are copied unchanged.
    text: String,
}

impl HardwareModel {
    pub fn from_bytes(bytes: Vec<u8>) -> Result<HardwareModel, String> {
        let text = STANDARD.encode(&bytes);
        HardwareModel::checked(bytes, text)
    }

    pub fn from_base64(text: &str) -> Result<HardwareModel, String> {
        HardwareModel::checked(decode(text)?, text.to_owned())
    }

    fn checked(bytes: Vec<u8>, text: String) -> Result<HardwareModel, String> {
        match value_of(&bytes, PLATFORM_VERSION)? {
            Some(_) => Ok(HardwareModel { bytes, text }),
            None => Err("is no hardware model: it has no number called PlatformVersion".into()),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn as_base64(&self) -> &str {
        &self.text
    }
}

/// The identity that macOS stored in a machine's auxiliary storage at its installation. This was observed, and is not
/// documented by Apple.
pub mod aux {
    use std::io::{self, Read, Seek, SeekFrom};

    /// Length, name, type and length of the value.
    const MARK: &[u8] = b"\x04ECID\x02\x08";
    const USUAL_PLACE: u64 = 0x6c804;
    const BLOCK: usize = 256 << 10;
    /// Such a storage has 33 MiB.
    const SEARCHED: u64 = 256 << 20;

    /// `None`: it has none, or one that is zero.
    pub fn ecid(mut file: impl Read + Seek) -> io::Result<Option<u64>> {
        let mut here = [0; MARK.len() + 8];
        file.seek(SeekFrom::Start(USUAL_PLACE))?;
        match file.read_exact(&mut here) {
            Ok(()) => {
                if let Some(ecid) = at(&here, 0) {
                    return Ok(Some(ecid));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        file.seek(SeekFrom::Start(0))?;
        let mut kept = Vec::new();
        let mut file = file.take(SEARCHED);
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            if file.by_ref().take(BLOCK as u64).read_to_end(&mut block)? == 0 {
                return Ok(None);
            }
            kept.append(&mut block);
            let found = kept.windows(here.len()).enumerate().find_map(|(n, _)| at(&kept, n));
            if found.is_some() {
                return Ok(found);
            }
            // It may cross the boundary of two blocks.
            kept.drain(..kept.len().saturating_sub(here.len() - 1));
        }
    }

    fn at(bytes: &[u8], start: usize) -> Option<u64> {
        let value = bytes.get(start..)?.strip_prefix(MARK)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*value)).filter(|ecid| *ecid != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    pub const IDENTITY: &str =
        "YnBsaXN0MDDRAQJURUNJRBQAAAAAAAAAABEiM0RVZneICAsQAAAAAAAAAQEAAAAAAAAAAwAAAAAAAAAAAAAAAAAAACE=";
    pub const MODEL: &str = "YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QD1BsYXRmb3JtVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPUxQAAAAAAAAAAAAAAAAAAAABEAKjBwgIEAwQAAgPKz1SY2VpawAAAAAAAAEBAAAAAAAAAAkAAAAAAAAAAAAAAAAAAABt";

    #[test]
    fn an_identity_is_written_as_the_framework_does() {
        let identity = MachineIdentity::new(0x1122_3344_5566_7788);
        assert_eq!((identity.to_base64().as_str(), identity.bytes().len()), (IDENTITY, 68));
        assert_eq!(MachineIdentity::from_base64(IDENTITY), Ok(identity));
        for ecid in [1, u64::MAX, 1 << 63] {
            assert_eq!(MachineIdentity::from_bytes(MachineIdentity::new(ecid).bytes().to_vec()).unwrap().ecid(), ecid);
        }
    }

    #[test]
    fn another_encoding_is_the_same_identity_and_stays_as_it_is() {
        let mut bytes = b"bplist00\xd1\x01\x02\x54ECID\x13".to_vec();
        bytes.extend_from_slice(&0x1122_3344_5566_7788_u64.to_be_bytes());
        bytes.extend_from_slice(b"\x08\x0b\x10\0\0\0\0\0\0\x01\x01");
        for number in [3_u64, 0, 25] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let identity = MachineIdentity::from_bytes(bytes.clone()).unwrap();
        assert_eq!(identity.ecid(), MachineIdentity::from_base64(IDENTITY).unwrap().ecid());
        assert_eq!(identity.bytes(), bytes);
    }

    #[test]
    fn a_model_is_carried_to_the_letter() {
        let model = HardwareModel::from_base64(MODEL).unwrap();
        assert_eq!((model.as_base64(), model.bytes().len()), (MODEL, 150));
        assert_eq!(HardwareModel::from_bytes(model.bytes().to_vec()), Ok(model));
    }

    #[test]
    fn what_is_no_such_list_is_refused() {
        for (text, says) in [
            ("", "begin with bplist00"),
            ("???", "not Base64"),
            ("aGVsbG8=", "begin with bplist00"),
            (MODEL, "no number called ECID"),
            (&IDENTITY[..31], "is not Base64"),
            ("YnBsaXN0MDDRAQJURUNJRBQAAAAAAAAA", "binary property list"),
            (&"A".repeat(6000), "characters"),
        ] {
            let error = MachineIdentity::from_base64(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(HardwareModel::from_base64(IDENTITY).unwrap_err().contains("PlatformVersion"));
        assert!(MachineIdentity::from_base64(&MachineIdentity::new(0).to_base64()).unwrap_err().contains("ECID"));
        assert!(MachineIdentity::from_bytes(vec![0; LARGEST + 1]).unwrap_err().contains("4097 bytes"));
    }

    /// Each level is twice the one below it: 2^24 values in 200 bytes.
    #[test]
    fn a_list_that_unfolds_without_end_is_given_up() {
        let levels = 24_u8;
        let mut bytes = b"bplist00\xd1\x01\x02\x51A".to_vec();
        let mut offsets = vec![8, 11];
        for level in 0..levels {
            offsets.push(bytes.len() as u8);
            bytes.extend_from_slice(&[0xa2, level + 3, level + 3]);
        }
        offsets.push(bytes.len() as u8);
        bytes.push(0x09);
        let table = bytes.len() as u64;
        bytes.extend_from_slice(&offsets);
        bytes.extend_from_slice(b"\0\0\0\0\0\0\x01\x01");
        for number in [offsets.len() as u64, 0, table] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let error = value_of(&bytes, "ECID").unwrap_err();
        assert!(error.contains("too deep"), "{error}");
    }

    #[test]
    fn the_identity_is_found_in_the_auxiliary_storage() {
        let with = |place: usize, ecid: u64| {
            let mut bytes = vec![0xa5; 0x80000];
            bytes[place..place + 7].copy_from_slice(b"\x04ECID\x02\x08");
            bytes[place + 7..place + 15].copy_from_slice(&ecid.to_be_bytes());
            Cursor::new(bytes)
        };
        for place in [0x6c804, 0, 12345, (256 << 10) - 3, 0x80000 - 15] {
            assert_eq!(aux::ecid(with(place, 0x1122_3344_5566_7788)).unwrap(), Some(0x1122_3344_5566_7788), "{place}");
        }
        assert_eq!(aux::ecid(with(0x6c804, 0)).unwrap(), None);
        assert_eq!(aux::ecid(Cursor::new(Vec::new())).unwrap(), None);
        assert_eq!(aux::ecid(Cursor::new(b"\x04ECID\x02\x08\x01".to_vec())).unwrap(), None);
    }

    /// Every test run repeats the inputs of the fuzzer.
    #[test]
    fn the_fuzzers_corpus() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/plist");
        let (mut good, mut bad) = (0, 0);
        for entry in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            if let Ok(identity) = MachineIdentity::from_bytes(bytes.clone()) {
                assert_eq!(
                    MachineIdentity::from_bytes(MachineIdentity::new(identity.ecid()).bytes().to_vec()).unwrap().ecid(),
                    identity.ecid()
                );
                good += 1;
            } else if HardwareModel::from_bytes(bytes).is_ok() {
                good += 1;
            } else {
                bad += 1;
            }
        }
        assert!(good >= 3 && bad >= 3, "{good} good and {bad} bad ones");
    }
}
