//! The event monitor: pretty-printed objects, each followed by a blank line. The timestamp is the time since the start.

use std::{
    fs::File,
    io::{self, Write as _},
    sync::Mutex,
    time::Instant,
};

use serde_json::{Map, Value, json};

use crate::args::EventSink;

pub struct Monitor {
    start: Instant,
    sink: Mutex<Option<Sink>>,
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
            Some(EventSink::Fd(fd)) => return Err(io::Error::other(format!("fd={fd} is not played"))),
        };
        Ok(Self { start: Instant::now(), sink: Mutex::new(sink) })
    }

    pub fn event(&self, source: &str, event: &str, property: Option<(&str, &str)>) {
        let elapsed = self.start.elapsed();
        let properties = property.map(|(key, value)| {
            let mut properties = Map::new();
            properties.insert(key.to_owned(), Value::from(value));
            properties
        });
        let object = json!({
            "timestamp": {"secs": elapsed.as_secs(), "nanos": elapsed.subsec_nanos()},
            "source": source,
            "event": event,
            "properties": properties,
        });
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
