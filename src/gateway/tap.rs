//! Passes a guest's frames between the tap of its network card and the gateway's link, for hypervisors that know taps only.
//!
//! Runs in the guest's network namespace, as the other side of the link that QEMU has itself: it listens, and takes another
//! gateway's connection after the end of one. It reads and writes the tap through a packet socket (packet(7)), so the kernel of the
//! namespace, which has no addresses there, never answers the guest.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use bytes::BytesMut;
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, socket},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, unix::AsyncFd},
    net::{UnixListener, UnixStream},
};

use super::link;
use crate::domain::gateway::MTU;

/// The largest frame: an Ethernet header with a VLAN tag, and a packet.
const FRAME: usize = 18 + MTU;
/// Frames of the guest that are passed on at once, so that both directions progress.
const BURST: usize = 64;
/// Bytes for the gateway that wait for it to take them. Further frames of the guest wait in the kernel, which drops what does not
/// fit there, as a network does.
const UNSENT: usize = 128 << 10;
/// Bytes that are read from the gateway at once.
const READ: usize = 64 << 10;

/// A tap, and the socket at which the gateway connects.
pub struct TapLink {
    tap: AsyncFd<OwnedFd>,
    listener: UnixListener,
}

impl TapLink {
    /// `tap`: the name of an interface in this process's namespace, which is up.
    #[expect(
        deprecated,
        reason = "the successor is unsafe, for types that lie about their descriptor; OwnedFd does not"
    )]
    pub fn open(tap: &str, link: &Path) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        bind(socket.as_raw_fd(), &address(tap)?)?;
        match std::fs::remove_file(link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { tap: AsyncFd::new(socket)?, listener: UnixListener::bind(link)? })
    }

    /// Serves one gateway after another. Returns when the tap fails.
    pub async fn serve(self) -> io::Error {
        loop {
            let gateway = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((gateway, _)) => gateway,
                    Err(error) => return error,
                },
                // Without a gateway the guest has no network. What it sent meanwhile is over.
                error = self.discard() => return error,
            };
            if let Err(LinkFailure::Tap(error)) = self.pass(gateway).await {
                return error;
            }
        }
    }

    async fn discard(&self) -> io::Error {
        let mut frame = [0; FRAME];
        loop {
            if let Err(error) = self.receive(&mut frame).await {
                return error;
            }
        }
    }

    /// Until the gateway closes the link.
    async fn pass(&self, gateway: UnixStream) -> Result<(), LinkFailure> {
        let (mut from, mut to) = gateway.into_split();
        let (mut read, mut unsent, mut frame) = (BytesMut::new(), BytesMut::new(), [0; FRAME]);
        loop {
            read.reserve(READ);
            tokio::select! {
                received = from.read_buf(&mut read) => {
                    if received.map_err(LinkFailure::Gateway)? == 0 {
                        return Ok(());
                    }
                    while let Some(frame) = link::next_frame(&mut read).map_err(LinkFailure::Gateway)? {
                        self.send(&frame).await.map_err(LinkFailure::Tap)?;
                    }
                }
                sent = to.write_buf(&mut unsent), if !unsent.is_empty() => {
                    if sent.map_err(LinkFailure::Gateway)? == 0 {
                        return Ok(());
                    }
                }
                received = self.receive(&mut frame), if unsent.len() < UNSENT => {
                    let length = received.map_err(LinkFailure::Tap)?;
                    link::append_frame(&mut unsent, &frame[..length]);
                    self.receive_more(&mut frame, &mut unsent).map_err(LinkFailure::Tap)?;
                }
            }
        }
    }

    async fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.tap.readable().await?;
            match ready.try_io(|tap| Ok(rustix::io::read(tap.get_ref(), &mut *frame)?)) {
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    /// Frames that are there already.
    fn receive_more(&self, frame: &mut [u8], unsent: &mut BytesMut) -> io::Result<()> {
        for _ in 0..BURST {
            match rustix::io::read(self.tap.get_ref(), &mut *frame) {
                Ok(length) if unsent.len() < UNSENT => link::append_frame(unsent, &frame[..length]),
                Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.tap.writable().await?;
            match ready.try_io(|tap| Ok(rustix::io::write(tap.get_ref(), frame)?)) {
                // The guest does not take its frames, or has not set its network card up yet; or it is none that the tap can carry.
                Ok(Err(error)) if is_drop(&error) => return Ok(()),
                Ok(sent) => return sent.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

enum LinkFailure {
    Tap(io::Error),
    Gateway(#[expect(dead_code, reason = "another gateway is waited for, whatever the failure")] io::Error),
}

/// Whether only this frame is lost.
fn is_drop(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lost = [Errno::NOBUFS, Errno::MSGSIZE, Errno::INVAL, Errno::NETDOWN];
    lost.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The address of an interface for packet sockets.
fn address(name: &str) -> io::Result<LinkAddr> {
    let found = getifaddrs()?.filter(|interface| interface.interface_name == name);
    let mut links = found.filter_map(|interface| interface.address?.as_link_addr().copied());
    links.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}")))
}
