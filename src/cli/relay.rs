//! `mayfly guest-relay SOCKET`: connects standard input and output to a Unix socket.
//!
//! A QEMU that an earlier version of Mayfly started runs one of these for every connection of its guest to the guest
//! API, so that its job goes on after an upgrade. QEMU passes one socket as
//! input, output *and* error output, so nothing may ever be printed here: the guest would read it as part of the
//! answer. Both directions end independently, as in TCP: a guest that closes its side after the request still gets
//! the answer.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::mpsc,
    time::Duration,
};

use super::exit;

/// How long the guest may continue to send after the service has closed its side.
const LINGER: Duration = Duration::from_secs(5);

pub(super) fn run(socket: &Path) -> u8 {
    match relay(socket) {
        Ok(()) => exit::OK,
        Err(_) => exit::UNREACHABLE,
    }
}

fn relay(socket: &Path) -> io::Result<()> {
    let service = UnixStream::connect(socket)?;
    let mut to_service = service.try_clone()?;
    let mut from_service = service;
    // Duplicated descriptors, because `Stdin` and `Stdout` buffer, and every byte has to be sent at once.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let (done, sent) = mpsc::channel();
    std::thread::Builder::new().name("to-service".into()).spawn(move || {
        let _ = io::copy(&mut input, &mut to_service);
        let _ = to_service.shutdown(Shutdown::Write);
        let _ = done.send(());
    })?;
    let received = io::copy(&mut from_service, &mut File::from(output.try_clone()?));
    end_of_output(output);
    // If the guest did not take the answer, the rest of its request does not matter.
    if received.is_ok() {
        let _ = sent.recv_timeout(LINGER);
    }
    Ok(())
}

/// Signals the end of the output to the guest. Closing is not enough if input and output are one socket.
fn end_of_output(output: OwnedFd) {
    let _ = UnixStream::from(output).shutdown(Shutdown::Write);
}
