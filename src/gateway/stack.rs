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
/// the host's connection is the host's own. Not larger: with a scaled window, smoltcp accepts segments beyond the buffer after
/// the first, unscaled announcement, and panics.
const WINDOW: usize = u16::MAX as usize;
/// Packets that wait for the guest. TCP sends no more than that, and datagrams beyond it are dropped.
const LONGEST_QUEUE: usize = 512;
/// Part of the queue that TCP leaves to datagrams.
const KEPT_FOR_DATAGRAMS: usize = 64;
/// How long a closed connection may wait until the guest has taken and acknowledged the rest.
const CLOSING: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(180);
/// How long the guest may take to acknowledge that its connection was accepted.
pub(super) const ACCEPTED: Duration = Duration::from_secs(30);
/// The guest answers, or resets a connection that it no longer knows.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// Rounds of sending in one call. A full window is sent in fewer.
const MOST_ROUNDS: usize = 128;

pub(super) struct Stack {
    inner: Mutex<StackState>,
    changed: Notify,
    started: tokio::time::Instant,
}

struct StackState {
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: Queues,
    /// Connections whose stream was dropped, until they have ended, and when they are reset.
    closing: Vec<(SocketHandle, Instant)>,
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
        let mut rounds = 0;
        while inner.interface.poll_egress(now, &mut inner.queues, &mut inner.sockets)
            != smoltcp::iface::PollResult::None
            && inner.queues.has_room_for_tcp()
        {
            rounds += 1;
            if rounds == MOST_ROUNDS {
                inner.reset_endless();
            }
        }
        let (sockets, closing) = (&mut inner.sockets, &mut inner.closing);
        closing.retain(|&(handle, deadline)| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if now >= deadline {
                socket.abort();
            }
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
        let resets = inner.closing.iter().map(|(_, deadline)| *deadline - now).min();
        let due = inner.interface.poll_delay(now, &inner.sockets).into_iter().chain(resets).min();
        due.map(|delay| Duration::from_micros(delay.total_micros()))
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

    /// Accepts the connection that this first segment asks for. Returns when the guest has acknowledged that.
    pub async fn accept(self: &Arc<Self>, to: SocketAddr, first: Vec<u8>) -> io::Result<GuestStream> {
        let mut stream = self.accepting(to, first);
        // A segment that is not taken opens nothing: it is malformed, or there was no room for an answer.
        if stream.with(|socket| socket.state()) != State::SynReceived {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        stream.connected(ACCEPTED).await?;
        Ok(stream)
    }

    fn accepting(self: &Arc<Self>, to: SocketAddr, first: Vec<u8>) -> GuestStream {
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
        stream.connected(within).await?;
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
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket
}

fn tcp_socket<'a, 'b>(socket: &'b mut smoltcp::socket::Socket<'a>) -> Option<&'b mut tcp::Socket<'a>> {
    match socket {
        smoltcp::socket::Socket::Tcp(socket) => Some(socket),
        #[expect(unreachable_patterns, reason = "depends on smoltcp's features")]
        _ => None,
    }
}

impl StackState {
    fn take(&mut self, now: Instant, packet: Vec<u8>) {
        let resets = super::packet::is_reset(&packet);
        self.queues.received = Some(packet);
        self.interface.poll_ingress_single(now, &mut self.queues, &mut self.sockets);
        // Not taken if there is no room for an answer. The guest repeats it.
        self.queues.received = None;
        if resets {
            // A reset before the connection is established makes the socket listen again, for any connection to its destination.
            let sockets = self.sockets.iter_mut().filter_map(|(_, socket)| tcp_socket(socket));
            sockets.filter(|socket| socket.is_listening()).for_each(tcp::Socket::abort);
        }
    }

    /// Resets the connections that send without end. A guest that acknowledges everything with a closed window keeps smoltcp's
    /// timer for probes of that window running, and each probe is sent at once.
    fn reset_endless(&mut self) {
        let sockets = self.sockets.iter_mut().filter_map(|(_, socket)| tcp_socket(socket));
        let idle = sockets.filter(|socket| socket.state() == State::FinWait2 && socket.send_queue() == 0);
        idle.for_each(tcp::Socket::abort);
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

    /// Whether nothing can be exchanged any more: the guest has reset the connection.
    pub fn is_closed(&self) -> bool {
        self.with(|socket| socket.state()) == State::Closed
    }

    /// Waits until the guest has acknowledged what was written, or has reset the connection.
    pub async fn drained(&mut self) {
        std::future::poll_fn(|context| {
            self.with(|socket| {
                if socket.send_queue() == 0 || socket.state() == State::Closed {
                    return Poll::Ready(());
                }
                socket.register_send_waker(context.waker());
                Poll::Pending
            })
        })
        .await;
    }

    async fn connected(&mut self, within: Duration) -> io::Result<()> {
        let connected = std::future::poll_fn(|context| self.poll_connected(context));
        tokio::time::timeout(within, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| match socket.state() {
            State::Closed | State::Listen => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            State::SynSent | State::SynReceived => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        })
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.with(|socket| match socket.recv_slice(buffer.initialize_unfilled()) {
            Ok(0) => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            Ok(length) => Poll::Ready(Ok(length)),
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
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
        let written = self.with(|socket| match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(length) => Poll::Ready(Ok(length)),
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
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
        let deadline = self.stack.now() + CLOSING;
        let inner = &mut *self.stack.inner.lock();
        let socket = inner.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        // After the guest's own end: all states in which this end only waits for acknowledgements.
        let ends_by_itself = self.shut_down && !socket.may_recv();
        if !ends_by_itself {
            socket.abort();
        }
        inner.closing.push((self.handle, deadline));
        self.stack.changed.notify_one();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use smoltcp::{
        phy::ChecksumCapabilities,
        wire::{IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
    };
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const TO: ([u8; 4], u16) = ([1, 1, 1, 1], 80);
    const FROM: u16 = 5000;

    /// A segment of the guest. Its sequence numbers begin with 1000.
    pub(in crate::gateway) fn segment(
        control: TcpControl,
        offset: usize,
        ack: Option<TcpSeqNumber>,
        window: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: FROM,
            dst_port: TO.1,
            control,
            seq_number: TcpSeqNumber(1000) + offset,
            ack_number: ack,
            window_len: window,
            window_scale: (control == TcpControl::Syn).then_some(7),
            max_seg_size: (control == TcpControl::Syn).then_some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let ip = Ipv4Repr {
            src_addr: GUEST,
            dst_addr: TO.0.into(),
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; ip.buffer_len() + tcp.buffer_len()];
        let checks = ChecksumCapabilities::default();
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checks);
        let at = ip.buffer_len();
        let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
        tcp.emit(&mut TcpPacket::new_unchecked(&mut packet[at..]), &from, &to, &checks);
        packet
    }

    /// The next packet for the guest: its flags, and the acknowledgement that answers it.
    fn sent(stack: &Stack) -> Option<(TcpControl, TcpSeqNumber)> {
        stack.poll();
        let packet = stack.next_packet()?;
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        let repr = TcpRepr::parse(&tcp, &ip.src_addr().into(), &ip.dst_addr().into(), &ChecksumCapabilities::default());
        let repr = repr.unwrap();
        Some((repr.control, repr.seq_number + repr.segment_len()))
    }

    /// The stream of an established connection, and the acknowledgement of all that was sent.
    pub(in crate::gateway) async fn established(stack: &Arc<Stack>, window: u16) -> (GuestStream, TcpSeqNumber) {
        let first = segment(TcpControl::Syn, 0, None, 60_000, b"");
        let accepting = tokio::spawn({
            let stack = stack.clone();
            async move { stack.accept((TO.0, TO.1).into(), first).await }
        });
        let (control, ack) = loop {
            tokio::task::yield_now().await;
            if let Some(sent) = sent(stack) {
                break sent;
            }
        };
        assert_eq!(control, TcpControl::Syn);
        stack.take(segment(TcpControl::None, 1, Some(ack), window, b""));
        (accepting.await.unwrap().unwrap(), ack)
    }

    #[tokio::test]
    async fn data_beyond_the_window_is_cut_and_panics_nothing() {
        let stack = Stack::new();
        let (mut stream, ack) = established(&stack, 500).await;
        // More than the window, the end first: what smoltcp would store beyond its buffer with a scaled window.
        let data = vec![7; 20_000];
        for offset in [60_000, 40_000, 20_000, 0] {
            stack.take(segment(TcpControl::None, 1 + offset, Some(ack), 500, &data));
        }
        let mut read = vec![0; WINDOW];
        stream.read_exact(&mut read).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
        stack.poll();
    }

    #[tokio::test]
    async fn a_guest_that_gives_up_while_it_is_accepted_leaves_nothing() {
        let stack = Stack::new();
        let first = segment(TcpControl::Syn, 0, None, 60_000, b"");
        let accepting = tokio::spawn({
            let stack = stack.clone();
            async move { stack.accept((TO.0, TO.1).into(), first).await.map(drop) }
        });
        while stack.connections() == 0 {
            tokio::task::yield_now().await;
        }
        let (_, ack) = sent(&stack).unwrap();
        stack.take(segment(TcpControl::Rst, 1, Some(ack), 0, b""));
        assert!(accepting.await.unwrap().is_err());
        while sent(&stack).is_some() {}
        assert_eq!(stack.connections(), 0);
    }

    #[tokio::test]
    async fn a_first_segment_that_opens_nothing_is_noticed() {
        let stack = Stack::new();
        let mut damaged = segment(TcpControl::Syn, 0, None, 60_000, b"");
        *damaged.last_mut().unwrap() ^= 1;
        assert!(stack.accept((TO.0, TO.1).into(), damaged).await.is_err());
        while sent(&stack).is_some() {}
        assert_eq!(stack.connections(), 0);
    }

    /// Everything acknowledged, and no window: without a limit the stack would send forever.
    #[tokio::test]
    async fn a_closed_window_does_not_make_the_stack_send_without_end() {
        use tokio::io::AsyncWriteExt as _;
        let stack = Stack::new();
        let (mut stream, ack) = established(&stack, 0).await;
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        stack.poll();
        // The data and the end of the connection, acknowledged before they could be sent.
        stack.take(segment(TcpControl::None, 1, Some(ack + 7), 0, b""));
        let began = clock::monotonic();
        let mut packets = 0;
        // The probe of the window is due after a second.
        while clock::elapsed(began) < Duration::from_millis(2500) {
            if sent(&stack).is_some() {
                packets += 1;
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(packets < 2 * MOST_ROUNDS, "{packets} packets");
    }
}
