//! The hypervisor's event monitor: JSON objects, printed over several lines and separated by blank lines.

use serde::{Deserialize, Serialize};

/// No event is that long, in bytes.
const LARGEST: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmEvent {
    /// `vmm`, `vm`, `guest`, `virtio-device`, …
    pub source: String,
    pub event: String,
}

/// What an event says about the guest's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMeaning {
    /// Nothing.
    Other,
    /// The guest has reset itself, and the hypervisor is about to boot it again.
    Rebooting,
    /// The guest's kernel has panicked.
    Panicked,
    /// Another program on the host has paused it.
    Paused,
    /// It was shut down: by itself, after which the hypervisor ends, or by a request, after which it does not.
    ShutDown,
}

impl VmmEvent {
    pub fn meaning(&self) -> EventMeaning {
        match (self.source.as_str(), self.event.as_str()) {
            ("vm", "rebooting") => EventMeaning::Rebooting,
            ("guest", "panic") => EventMeaning::Panicked,
            ("vm", "paused") => EventMeaning::Paused,
            ("vm", "shutdown") => EventMeaning::ShutDown,
            _ => EventMeaning::Other,
        }
    }
}

/// Finds events in a stream of bytes.
#[derive(Debug, Default)]
pub struct EventReader {
    unread: Vec<u8>,
}

impl EventReader {
    /// The events that are complete with these bytes. An error: the stream is not understood from here on.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Vec<VmmEvent>, String> {
        self.unread.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut stream = serde_json::Deserializer::from_slice(&self.unread).into_iter::<VmmEvent>();
        let rest = loop {
            match stream.next() {
                Some(Ok(event)) => found.push(event),
                None => break stream.byte_offset(),
                Some(Err(error)) if error.is_eof() => break stream.byte_offset(),
                Some(Err(error)) => return Err(error.to_string()),
            }
        };
        self.unread.drain(..rest);
        if self.unread.len() > LARGEST {
            return Err(format!("an event is longer than {LARGEST} bytes"));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the hypervisor writes them.
    const BOOT: &str = "{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 5000\n  },\n  \"source\": \"vmm\",\n  \
                        \"event\": \"starting\",\n  \"properties\": null\n}\n\n{\n  \"timestamp\": {\n    \"secs\": 1,\n    \
                        \"nanos\": 7\n  },\n  \"source\": \"guest\",\n  \"event\": \"panic\",\n  \"properties\": {\n    \
                        \"event\": \"panic\"\n  }\n}\n\n";

    #[test]
    fn events_are_found_however_they_arrive() {
        for step in [1, 7, 64, BOOT.len()] {
            let mut reader = EventReader::default();
            let mut found = Vec::new();
            for piece in BOOT.as_bytes().chunks(step) {
                found.extend(reader.read(piece).unwrap());
            }
            let names: Vec<_> = found.iter().map(|event| (event.source.as_str(), event.event.as_str())).collect();
            assert_eq!(names, [("vmm", "starting"), ("guest", "panic")], "{step}");
            assert_eq!((found[0].meaning(), found[1].meaning()), (EventMeaning::Other, EventMeaning::Panicked));
            assert!(reader.unread.iter().all(u8::is_ascii_whitespace), "{step}");
        }
    }

    #[test]
    fn what_is_no_event_is_an_error_and_nothing_grows_without_bound() {
        assert!(EventReader::default().read(b"booted\n").is_err());
        assert!(EventReader::default().read(b"{\"source\": 1}\n").is_err());
        let mut reader = EventReader::default();
        let long = format!("{{\"source\": \"{}", "x".repeat(LARGEST));
        assert!(reader.read(long.as_bytes()).is_err());
    }
}
