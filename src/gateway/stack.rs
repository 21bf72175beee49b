//! The TCP stack that the guest's connections end in, and its ends as streams.
//!
//! One task exchanges packets with the guest and calls `poll`; the tasks of the connections read and write their streams
//! and wake that task through `changed`.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{self, ConnectError, RecvError, State},
    time::Instant,
    wire::{HardwareAddress, IpCidr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::{
    domain::gateway::{GUEST, MTU, PREFIX, PREFIX_V6, ROUTER, ROUTER_V6},
    platform::clock,
};

/// The window of a connection in each direction, in bytes. The path to the guest has no delay worth a larger one; that of
/// the host's connection is the host's own.
const WINDOW: usize = 64 << 10;
/// Packets that wait for the guest. TCP sends no more than that, and datagrams beyond it are dropped.
const LONGEST_QUEUE: usize = 512;
/// Part of the queue that TCP leaves to datagrams.
const KEPT_FOR_DATAGRAMS: usize = 64;
/// How long a closed connection may wait for the guest's last acknowledgement.
const CLOSING: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);

pub(super) struct Stack {
    inner: Mutex<StackState>,
    changed: Notify,
    started: tokio::time::Instant,
}

struct StackState {
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: Queues,
    /// Connections whose stream was dropped, until they have ended.
    closing: Vec<SocketHandle>,
    /// The local port of the next connection to the guest.
    next_port: u16,
}

#[derive(Default)]
struct Queues {
    received: Option<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

impl Stack {
    pub fn new() -> Arc<Self> {
        let mut queues = Queues::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = fastrand::u64(..);
        let mut interface = Interface::new(config, &mut queues, Instant::ZERO);
        // The guest connects to any address; the caller decides which connections are accepted.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            let own = [IpCidr::new(ROUTER.into(), PREFIX), IpCidr::new(ROUTER_V6.into(), 64)];
            for address in own {
                let _ = addresses.push(address);
            }
        });
        // Everything is on the other side of the one link. The next hops are not used on a link without hardware addresses.
        let _ = interface.routes_mut().add_default_ipv4_route(GUEST);
        let _ = interface.routes_mut().add_default_ipv6_route(PREFIX_V6);
        let inner = StackState {
            interface,
            sockets: SocketSet::new(Vec::new()),
            queues,
            closing: Vec::new(),
            next_port: fastrand::u16(FIRST_PORT..),
        };
        Arc::new(Self { inner: Mutex::new(inner), changed: Notify::new(), started: clock::monotonic() })
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(clock::elapsed(self.started).as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes a packet of the guest. A segment that belongs to no connection is answered by a reset.
    pub fn take(&self, packet: Vec<u8>) {
        let now = self.now();
        self.inner.lock().take(now, packet);
        self.changed.notify_one();
    }

    /// Sends what is due. Returns when to call it again at the latest.
    pub fn poll(&self) -> Option<Duration> {
        let now = self.now();
        let inner = &mut *self.inner.lock();
        while inner.interface.poll_egress(now, &mut inner.queues, &mut inner.sockets)
            != smoltcp::iface::PollResult::None
            && inner.queues.has_room_for_tcp()
        {}
        let (sockets, closing) = (&mut inner.sockets, &mut inner.closing);
        closing.retain(|&handle| {
            let socket = sockets.get::<tcp::Socket<'_>>(handle);
            // The link loses nothing, so no late segment has to be awaited. An aborted connection has sent its reset when it
            // no longer has a peer.
            let over = match socket.state() {
                State::TimeWait => true,
                State::Closed => socket.remote_endpoint().is_none(),
                _ => false,
            };
            if over {
                sockets.remove(handle);
            }
            !over
        });
        if !inner.queues.has_room_for_tcp() {
            // Called again when the guest has taken some.
            return None;
        }
        inner.interface.poll_delay(now, &inner.sockets).map(|delay| Duration::from_micros(delay.total_micros()))
    }

    /// Waits until `poll` has something to do.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The next packet for the guest.
    pub fn next_packet(&self) -> Option<Vec<u8>> {
        self.inner.lock().queues.to_guest.pop_front()
    }

    /// Sends a packet that is no TCP segment.
    pub fn send(&self, packet: Vec<u8>) {
        let queue = &mut self.inner.lock().queues.to_guest;
        if queue.len() < LONGEST_QUEUE {
            queue.push_back(packet);
            self.changed.notify_one();
        }
    }

    /// Connections that exist, including those that are ending.
    pub fn connections(&self) -> usize {
        self.inner.lock().sockets.iter().count()
    }

    /// Accepts the connection that this first segment asks for.
    pub fn accept(self: &Arc<Self>, to: SocketAddr, first: Vec<u8>) -> GuestStream {
        let now = self.now();
        let inner = &mut *self.inner.lock();
        let mut socket = new_socket();
        // Fails for port 0 only, where nothing accepts and the segment is answered by a reset.
        let _ = socket.listen(to);
        let handle = inner.sockets.add(socket);
        inner.take(now, first);
        self.changed.notify_one();
        GuestStream { stack: self.clone(), handle, shut_down: false }
    }

    /// Opens a connection to a port of the guest. Returns when the guest has accepted it.
    pub async fn connect(self: &Arc<Self>, port: u16, within: Duration) -> io::Result<GuestStream> {
        let mut stream = {
            let inner = &mut *self.inner.lock();
            let handle = inner.sockets.add(new_socket());
            inner.next_port = inner.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let own = (ROUTER, inner.next_port);
            socket.connect(inner.interface.context(), (GUEST, port), own).map_err(|error| match error {
                ConnectError::InvalidState | ConnectError::Unaddressable => io::Error::other(error),
            })?;
            self.changed.notify_one();
            GuestStream { stack: self.clone(), handle, shut_down: false }
        };
        let connected = std::future::poll_fn(|context| stream.poll_connected(context));
        tokio::time::timeout(within, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(stream)
    }
}

/// Local ports of connections to the guest.
const FIRST_PORT: u16 = 49152;

fn new_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    // Data is written in the pieces that arrive; holding back small ones only delays them.
    socket.set_nagle_enabled(false);
    socket
}

impl StackState {
    fn take(&mut self, now: Instant, packet: Vec<u8>) {
        self.queues.received = Some(packet);
        self.interface.poll_ingress_single(now, &mut self.queues, &mut self.sockets);
        // Not taken if there is no room for an answer. The guest repeats it.
        self.queues.received = None;
    }
}

impl Queues {
    fn has_room_for_tcp(&self) -> bool {
        self.to_guest.len() < LONGEST_QUEUE - KEPT_FOR_DATAGRAMS
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToGuest<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToGuest<'_>)> {
        if self.to_guest.len() >= LONGEST_QUEUE {
            return None;
        }
        let packet = self.received.take()?;
        Some((Received(packet), ToGuest(&mut self.to_guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToGuest<'_>> {
        self.has_room_for_tcp().then_some(ToGuest(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct ToGuest<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for ToGuest<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

/// The gateway's end of a connection with the guest. Dropping it resets the connection, unless both directions have
/// ended.
pub(super) struct GuestStream {
    stack: Arc<Stack>,
    handle: SocketHandle,
    shut_down: bool,
}

impl GuestStream {
    fn with<T>(&self, f: impl FnOnce(&mut tcp::Socket<'static>) -> T) -> T {
        f(self.stack.inner.lock().sockets.get_mut::<tcp::Socket<'static>>(self.handle))
    }

    fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| match socket.state() {
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            State::Listen | State::SynSent | State::SynReceived => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        })
    }
}

fn is_opening(socket: &tcp::Socket<'_>) -> bool {
    matches!(socket.state(), State::Listen | State::SynSent | State::SynReceived)
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.with(|socket| {
            if is_opening(socket) {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            }
            match socket.recv_slice(buffer.initialize_unfilled()) {
                Ok(0) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
                Ok(length) => Poll::Ready(Ok(length)),
                Err(RecvError::Finished) => Poll::Ready(Ok(0)),
                Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        });
        read.map_ok(|length| {
            buffer.advance(length);
            // The window may have opened.
            self.stack.changed.notify_one();
        })
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.with(|socket| {
            if is_opening(socket) {
                socket.register_send_waker(context.waker());
                return Poll::Pending;
            }
            match socket.send_slice(bytes) {
                Ok(0) if !bytes.is_empty() => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                Ok(length) => Poll::Ready(Ok(length)),
                Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        });
        if written.is_ready() {
            self.stack.changed.notify_one();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut_down {
            self.shut_down = true;
            self.with(tcp::Socket::close);
            self.stack.changed.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let inner = &mut *self.stack.inner.lock();
        let socket = inner.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        // After the guest's own end: all states in which this end only waits for an acknowledgement.
        let ends_by_itself = self.shut_down && !socket.may_recv();
        if ends_by_itself {
            socket.set_timeout(Some(CLOSING));
        } else {
            socket.abort();
        }
        inner.closing.push(self.handle);
        self.stack.changed.notify_one();
    }
}
