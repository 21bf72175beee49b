//! The identity of a Mac's virtual machine: opaque data of Apple's framework.
//!
//! It is a binary property list. It is parsed only to detect invalid data, and is copied byte by byte: an unknown key may be
//! required by the next macOS.
//!
//! In this format one object may be referenced many times, so a few hundred bytes can describe a list of any size. It
//! is therefore read as a stream with limits on length and depth.

use std::io::Cursor;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use plist::stream::{BinaryReader, Event};
use uuid::Uuid;

/// An identity has 68 bytes and a model 150.
pub const LARGEST: usize = 4096;
const MOST_EVENTS: usize = 256;
const MOST_DEPTH: usize = 8;
const MAGIC: &[u8] = b"bplist00";
const ECID: &str = "ECID";

/// The identity of a machine, from which its serial number derives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineIdentity {
    bytes: Vec<u8>,
    ecid: u64,
}

impl MachineIdentity {
    pub fn from_bytes(bytes: Vec<u8>) -> Result<MachineIdentity, String> {
        match value_of(&bytes, ECID)? {
            Some(ecid) if ecid > 0 => Ok(MachineIdentity { bytes, ecid }),
            _ => Err("is no machine's identity: it has no number called ECID".into()),
        }
    }

    pub fn from_base64(text: &str) -> Result<MachineIdentity, String> {
        MachineIdentity::from_bytes(decode(text)?)
    }

    /// One that no other machine has.
    pub fn random() -> MachineIdentity {
        // The fixed bits of each half meet random bits of the other one. Zero means none.
        let (high, low) = Uuid::new_v4().as_u64_pair();
        MachineIdentity::new((high.rotate_left(32) ^ low).max(1))
    }

    /// As the framework writes it.
    pub fn new(ecid: u64) -> MachineIdentity {
        let mut bytes = Vec::with_capacity(68);
        bytes.extend_from_slice(MAGIC);
        // A dictionary of one pair, its key, and an integer of 16 bytes.
        bytes.extend_from_slice(&[0xd1, 1, 2, 0x54]);
        bytes.extend_from_slice(ECID.as_bytes());
        bytes.push(0x14);
        bytes.extend_from_slice(&u128::from(ecid).to_be_bytes());
        // The offsets of the three objects, and the trailer.
        bytes.extend_from_slice(&[8, 11, 16]);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 1, 1]);
        for number in [3_u64, 0, 33] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        MachineIdentity { bytes, ecid }
    }

    /// Two identities with this value are the same, in whatever form they were written.
    pub fn ecid(&self) -> u64 {
        self.ecid
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.bytes)
    }
}

/// Of a Base64 text of a bounded length.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    if text.len() > LARGEST.div_ceil(3) * 4 {
        return Err(format!("has {} characters, more than any that is known", text.len()));
    }
    STANDARD.decode(text).map_err(|error| format!("is not Base64: {error}"))
}

/// The unsigned number with this key in a binary property list that is a dictionary.
pub fn value_of(bytes: &[u8], wanted: &str) -> Result<Option<u64>, String> {
    let broken = |what: &str| format!("is not a binary property list that is understood: {what}");
    if bytes.len() > LARGEST {
        return Err(broken(&format!("it has {} bytes, more than any that is known", bytes.len())));
    }
    if !bytes.starts_with(MAGIC) {
        return Err(broken("it does not begin with bplist00"));
    }
    let mut found = None;
    let mut depth = 0_usize;
    // The key at the first level whose value comes next.
    let mut key: Option<String> = None;
    for (n, event) in BinaryReader::new(Cursor::new(bytes)).enumerate() {
        let event = event.map_err(|error| broken(&error.to_string()))?;
        if n == 0 && !matches!(event, Event::StartDictionary(_)) {
            return Err(broken("it is not a dictionary"));
        }
        if n >= MOST_EVENTS {
            return Err(broken("it has too many values"));
        }
        if depth == 1 && key.is_none() {
            match event {
                Event::String(name) => key = Some(name.into_owned()),
                Event::EndCollection => depth = 0,
                _ => return Err(broken("a key of its dictionary is no text")),
            }
            continue;
        }
        let is_wanted = depth == 1 && key.as_deref() == Some(wanted);
        if is_wanted {
            let Event::Integer(number) = &event else { return Err(broken(&format!("{wanted} is no number"))) };
            let number = number.as_unsigned().ok_or_else(|| broken(&format!("{wanted} is below zero")))?;
            if found.replace(number).is_some() {
                return Err(broken(&format!("it has {wanted} twice")));
            }
        }
        match event {
            Event::StartArray(_) | Event::StartDictionary(_) => depth += 1,
            Event::EndCollection => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MOST_DEPTH {
            return Err(broken("its values lie too deep"));
        }
        if depth == 1 {
            // The previous value has ended, whatever it was.
            key = None;
        }
    }
    if depth != 0 {
        return Err(broken("it ends too early"));
    }
    Ok(found)
}
