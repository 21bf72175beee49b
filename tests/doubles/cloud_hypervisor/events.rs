//! The event monitor: pretty-printed objects, each followed by a blank line. The timestamp is the time since the start.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    sync::Mutex,
    time::Instant,
};

use serde::Serialize;

use crate::args::EventSink;

pub struct Monitor {
    start: Instant,
    sink: Mutex<Option<Sink>>,
}

/// In the order of the program.
#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<BTreeMap<&'a str, &'a str>>,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

enum Sink {
    File(File),
    Stdout,
}

impl Monitor {
    pub fn open(sink: Option<&EventSink>) -> io::Result<Self> {
        let sink = match sink {
            None => None,
            Some(EventSink::Path(path)) => Some(Sink::File(File::create(path)?)),
            Some(EventSink::Fd(1)) => Some(Sink::Stdout),
            Some(EventSink::Fd(fd)) => return Err(io::Error::other(format!("fd={fd} is not simulated"))),
        };
        Ok(Self { start: Instant::now(), sink: Mutex::new(sink) })
    }

    pub fn event(&self, source: &str, event: &str, property: Option<(&str, &str)>) {
        let elapsed = self.start.elapsed();
        let object = Event {
            timestamp: Timestamp { secs: elapsed.as_secs(), nanos: elapsed.subsec_nanos() },
            source,
            event,
            properties: property.map(|property| BTreeMap::from([property])),
        };
        let Ok(text) = serde_json::to_string_pretty(&object) else { return };
        let Ok(mut sink) = self.sink.lock() else { return };
        // What cannot be written is lost.
        let _ = match &mut *sink {
            None => Ok(()),
            Some(Sink::File(file)) => file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n\n")),
            Some(Sink::Stdout) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n\n")).and_then(|()| stdout.flush())
            }
        };
    }
}
