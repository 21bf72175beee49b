//! Standard output as Tart writes it: line by line, and a reader that went away is fatal.

use std::io::Write;

pub fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

pub fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        // SIGPIPE would have ended a program that does not ask for anything else. Ours is ignored by Rust's runtime.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

pub fn error(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(format!("{text}\n").as_bytes());
}
