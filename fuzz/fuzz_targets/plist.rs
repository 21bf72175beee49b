//! Any bytes, as an identity, a hardware model and an auxiliary storage: what is taken is carried unchanged, an identity has one
//! number whichever way it is written, and nothing panics or unfolds without end.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::payload::{HardwareModel, LARGEST, MachineIdentity, aux};

fuzz_target!(|input: &[u8]| {
    if let Ok(identity) = MachineIdentity::from_bytes(input.to_vec()) {
        assert!(input.len() <= LARGEST);
        assert_eq!(identity.bytes(), input);
        assert_ne!(identity.ecid(), 0);
        assert_eq!(MachineIdentity::from_base64(&identity.to_base64()).as_ref(), Ok(&identity));
        let plain = MachineIdentity::new(identity.ecid());
        assert_eq!(MachineIdentity::from_bytes(plain.bytes().to_vec()), Ok(plain));
    }
    if let Ok(model) = HardwareModel::from_bytes(input.to_vec()) {
        assert_eq!(model.bytes(), input);
        assert_eq!(HardwareModel::from_base64(model.as_base64()), Ok(model));
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(identity) = MachineIdentity::from_base64(text)
    {
        assert_eq!(identity.to_base64(), text);
    }
    let mark = b"\x04ECID\x02\x08";
    match aux::ecid(Cursor::new(input)).expect("memory can be read") {
        Some(ecid) => {
            let entry = [&mark[..], &ecid.to_be_bytes()].concat();
            assert!(ecid != 0 && input.windows(entry.len()).any(|window| window == entry));
        }
        None => {
            let mut marks = input.windows(mark.len() + 8).filter(|window| window.starts_with(mark));
            assert!(marks.all(|window| window.ends_with(&[0; 8])));
        }
    }
});
