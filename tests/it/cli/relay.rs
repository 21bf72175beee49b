//! The relay between an isolated guest's connection and the guest API.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The relay with one socket for everything, as QEMU starts it; the other end of that socket; and the service's listener.
fn start() -> (Child, UnixStream, UnixListener, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (guest, ours) = UnixStream::pair().unwrap();
    let end = || Stdio::from(OwnedFd::from(ours.try_clone().unwrap()));
    let child = Command::new(super::program())
        .arg("guest-relay")
        .arg(&path)
        .env_clear()
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (child, guest, listener, dir)
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_guest_that_closed_its_side_still_gets_the_answer() {
    let (mut child, mut guest, listener, _dir) = start();
    let request: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (to_send, mut sender) = (request.clone(), guest.try_clone().unwrap());
    let writer = std::thread::spawn(move || {
        sender.write_all(&to_send).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let (mut service, _) = listener.accept().unwrap();
    assert_eq!(read_all(&mut service), request);
    service.write_all(b"answer").unwrap();
    drop(service);
    assert_eq!(read_all(&mut guest), b"answer");
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_service_that_said_its_last_word_closes_the_guests_side_and_still_hears_it() {
    let (mut child, mut guest, listener, _dir) = start();
    let (mut service, _) = listener.accept().unwrap();
    service.write_all(b"early").unwrap();
    service.shutdown(Shutdown::Write).unwrap();
    // The end reaches the guest although the relay's input, the same socket, is still open.
    assert_eq!(read_all(&mut guest), b"early");
    guest.write_all(b"late").unwrap();
    guest.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut service), b"late");
    assert!(child.wait().unwrap().success());
}

#[test]
fn bytes_go_on_at_once_in_both_directions() {
    let (mut child, mut guest, listener, _dir) = start();
    let (mut service, _) = listener.accept().unwrap();
    let mut byte = [0];
    for n in 0..100 {
        guest.write_all(&[n]).unwrap();
        service.read_exact(&mut byte).unwrap();
        service.write_all(&byte).unwrap();
        guest.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [n]);
    }
    drop((guest, service));
    child.wait().unwrap();
}

#[test]
fn a_guest_that_lingers_does_not_keep_the_relay() {
    let (mut child, mut guest, listener, _dir) = start();
    let (service, _) = listener.accept().unwrap();
    let begun = Instant::now();
    drop(service);
    assert_eq!(read_all(&mut guest), b"");
    child.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9));
}

#[test]
fn nothing_is_printed_when_the_service_is_away() {
    let (mut child, mut guest, listener, dir) = start();
    drop((listener.accept().unwrap(), listener));
    assert_eq!(read_all(&mut guest), b"");
    child.wait().unwrap();
    let ran = Command::new(super::program()).arg("guest-relay").arg(dir.path().join("none.sock")).output().unwrap();
    assert_eq!((ran.status.code(), ran.stdout.len(), ran.stderr.len()), (Some(4), 0, 0));
}
