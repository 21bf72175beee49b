//! Connections: those of the guest, and those of the service to the guest's SSH port.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::net::sockopt;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{
    Gateway, dns,
    route::{Route, route},
    stack::{GuestStream, Stack},
};
use crate::{
    domain::{
        gateway::{GUEST_API, GUEST_API_PORT},
        network::NetworkRefusal,
    },
    platform::files::ignore_not_found,
};

/// Connections of the guest at once, besides those to the guest API.
const MOST_CONNECTIONS: usize = 512;
/// Connections of the guest to the guest API at once.
const MOST_API_CONNECTIONS: usize = 32;
/// Connections to the guest's SSH port at once.
const MOST_SSH_CONNECTIONS: usize = 16;
/// How long a destination may take to accept, as on Linux without a gateway.
const CONNECT: Duration = Duration::from_secs(127);
/// How long the guest may take to accept a connection to its SSH port. The service tries again.
const SSH_CONNECT: Duration = Duration::from_secs(5);
const SSH_PORT: u16 = 22;
/// The guest's own keep-alives end here, so the host's connections have theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Bytes that are copied at once.
const PIECE: usize = 16 << 10;
/// How long the guest may take to receive the rest, after an error of the host's connection.
const DRAIN: Duration = Duration::from_secs(5);
/// How often it is checked that the socket of the SSH port is still there.
const LOOK_AFTER_SOCKET: Duration = Duration::from_secs(2);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// The connections of the guest that exist or are being opened.
#[derive(Default)]
pub(super) struct Connections {
    /// To the guest API.
    api: Mutex<HashMap<ConnectionKey, Phase>>,
    others: Mutex<HashMap<ConnectionKey, Phase>>,
}

/// The guest's end and the destination.
type ConnectionKey = (SocketAddr, SocketAddr);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The destination has not accepted yet, so neither has the gateway.
    Opening,
    Accepted,
}

/// The socket of the guest's SSH port.
pub(super) struct SshSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl SshSocket {
    /// The directory is private; the mode is for a directory that is not.
    pub fn listen(path: &Path) -> io::Result<Self> {
        ignore_not_found(std::fs::remove_file(path))?;
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), file: (found.dev(), found.ino()) })
    }

    /// Whether the file is gone or another one: connections to it do not arrive here.
    fn is_lost(&self) -> bool {
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.file,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl Connections {
    fn of(&self, destination: SocketAddr) -> (&Mutex<HashMap<ConnectionKey, Phase>>, usize) {
        if destination == (GUEST_API, GUEST_API_PORT).into() {
            (&self.api, MOST_API_CONNECTIONS)
        } else {
            (&self.others, MOST_CONNECTIONS)
        }
    }
}

/// The host's connection that continues one of the guest.
enum Outgoing {
    GuestApi(UnixStream),
    Address(TcpStream),
    Resolver(TcpStream),
}

/// Passes data on until both directions have ended. An error on one side becomes a reset on the other.
async fn join(mut guest: GuestStream, outgoing: Outgoing) {
    let ended = match outgoing {
        Outgoing::GuestApi(mut host) => {
            copy_bidirectional_with_sizes(&mut guest, &mut host, PIECE, PIECE).await.map(drop)
        }
        Outgoing::Address(mut host) => {
            let ended = copy_bidirectional_with_sizes(&mut guest, &mut host, PIECE, PIECE).await.map(drop);
            if ended.is_err() && guest.is_closed() {
                // Without this, an upload that the guest broke off looks complete.
                let _ = sockopt::set_socket_linger(&host, Some(Duration::ZERO));
            }
            ended
        }
        Outgoing::Resolver(mut host) => dns::serve(&mut guest, &mut host).await,
    };
    if ended.is_err() {
        // What the host sent before its error. Dropping the guest's end then resets it.
        let _ = timeout(DRAIN, guest.drained()).await;
    }
}

impl Gateway {
    /// Takes the first segment of a connection.
    pub(super) fn open(self: &Arc<Self>, key: ConnectionKey, first: Vec<u8>) {
        let (connections, most) = self.connections.of(key.1);
        {
            let mut connections = connections.lock();
            match connections.get(&key) {
                // The guest repeats it while it waits.
                Some(Phase::Opening) => return,
                Some(Phase::Accepted) => return self.stack.take(first),
                // Connections that are ending count too.
                None if connections.len() >= most
                    || self.stack.connections() >= MOST_CONNECTIONS + MOST_API_CONNECTIONS + MOST_SSH_CONNECTIONS =>
                {
                    self.note_limit();
                    return self.stack.take(first);
                }
                None => connections.insert(key, Phase::Opening),
            };
        }
        let gateway = self.clone();
        tokio::spawn(async move {
            gateway.serve(key, first).await;
            gateway.connections.of(key.1).0.lock().remove(&key);
        });
    }

    async fn serve(&self, key: ConnectionKey, first: Vec<u8>) {
        let (_, destination) = key;
        let connected = match timeout(CONNECT, self.connect(destination)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected {
            Ok(outgoing) => {
                self.connections.of(destination).0.lock().insert(key, Phase::Accepted);
                match self.stack.accept(destination, first).await {
                    Ok(guest) => join(guest, outgoing).await,
                    Err(error) => tracing::debug!(%destination, %error, "the guest gave a connection up"),
                }
            }
            // Nothing accepts this segment, so the stack answers with a reset.
            Err(error) => {
                tracing::debug!(%destination, %error, "a connection of the guest failed");
                self.stack.take(first);
            }
        }
    }

    async fn connect(&self, destination: SocketAddr) -> io::Result<Outgoing> {
        Ok(match route(&self.spec.policy, destination, &self.host).await {
            Route::GuestApi => Outgoing::GuestApi(UnixStream::connect(&self.spec.guest_api).await?),
            Route::Address(address) => Outgoing::Address(dial(address).await?),
            Route::Resolver => Outgoing::Resolver(dns::connect().await?),
            Route::Refused(refusal) => return Err(self.refused(destination, refusal)),
        })
    }

    pub(super) fn refused(&self, destination: SocketAddr, refusal: NetworkRefusal) -> io::Error {
        self.note_refusal(destination, refusal);
        io::Error::new(io::ErrorKind::PermissionDenied, refusal.describe())
    }

    /// Connects what arrives on the socket to the guest's SSH port. Without the socket the service cannot reach its guest, so
    /// one that was removed is made again.
    pub(super) async fn serve_ssh(self: Arc<Self>, mut socket: SshSocket) {
        let free = Arc::new(tokio::sync::Semaphore::new(MOST_SSH_CONNECTIONS));
        // Logged once in a row: an error that lasts is met again and again.
        let mut failed = false;
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = socket.listener.accept() => accepted,
                () = sleep(LOOK_AFTER_SOCKET) => {
                    if !socket.is_lost() {
                        continue;
                    }
                    tracing::warn!("the socket of the guest's SSH port is lost; making another one");
                    match SshSocket::listen(&self.spec.ssh) {
                        Ok(another) => {
                            socket = another;
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            match accepted {
                Ok((mut caller, _)) => {
                    failed = false;
                    let stack = self.stack.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        forward(&stack, &mut caller).await;
                    });
                }
                Err(error) => {
                    if !failed {
                        tracing::warn!(%error, "cannot accept connections to the guest's SSH port");
                    }
                    failed = true;
                    sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
    }
}

async fn forward(stack: &Arc<Stack>, caller: &mut UnixStream) {
    match stack.connect(SSH_PORT, SSH_CONNECT).await {
        Ok(mut guest) => drop(copy_bidirectional_with_sizes(caller, &mut guest, PIECE, PIECE).await),
        // The caller sees the end of the connection.
        Err(error) => tracing::debug!(%error, "the guest's SSH port does not answer"),
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::TcpControl;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{
        super::stack::tests::{established, segment},
        *,
    };

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = dial(listener.local_addr().unwrap()).await.unwrap();
        (host, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_lost_ssh_socket_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::in_directory(dir.path());
        let path = gateway.spec.ssh.clone();
        // One that an earlier gateway left, and one that another program put there.
        for left in [true, false] {
            if left {
                drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
                let serving = tokio::spawn(gateway.clone().serve_ssh(SshSocket::listen(&path).unwrap()));
                assert!(UnixStream::connect(&path).await.is_ok());
                std::fs::remove_file(&path).unwrap();
                connected(&path).await;
                serving.abort();
                assert!(serving.await.unwrap_err().is_cancelled());
            } else {
                let serving = tokio::spawn(gateway.clone().serve_ssh(SshSocket::listen(&path).unwrap()));
                std::fs::remove_file(&path).unwrap();
                drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
                assert!(UnixStream::connect(&path).await.is_err());
                connected(&path).await;
                let mode = std::fs::metadata(&path).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
                serving.abort();
            }
        }
    }

    async fn connected(path: &Path) {
        let connecting = async {
            while UnixStream::connect(path).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), connecting).await.expect("the socket is made again");
    }

    #[tokio::test]
    async fn a_reset_by_the_guest_does_not_look_like_the_end_of_its_upload() {
        let stack = Stack::new();
        let (host, mut server) = connection().await;
        let (guest, ack) = established(&stack, 1000).await;
        let joined = tokio::spawn(join(guest, Outgoing::Address(host)));
        stack.take(segment(TcpControl::None, 1, Some(ack), 1000, b"half"));
        let mut upload = [0; 4];
        server.read_exact(&mut upload).await.unwrap();
        assert_eq!(&upload, b"half");
        stack.take(segment(TcpControl::Rst, 5, Some(ack), 0, b""));
        joined.await.unwrap();
        assert_eq!(server.read(&mut upload).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_a_server_sent_before_its_reset_reaches_the_guest() {
        let stack = Stack::new();
        let (host, mut server) = connection().await;
        let (guest, ack) = established(&stack, 1000).await;
        let joined = tokio::spawn(join(guest, Outgoing::Address(host)));
        server.write_all(b"answer").await.unwrap();
        // Data that nobody reads makes the kernel send a reset at the end.
        stack.take(segment(TcpControl::None, 1, Some(ack), 1000, b"unread"));
        let mut first = [0; 1];
        while server.peek(&mut first).await.unwrap() == 0 {}
        drop(server);
        let mut received = Vec::new();
        let began = crate::platform::clock::monotonic();
        while !joined.is_finished() {
            assert!(crate::platform::clock::elapsed(began) < Duration::from_secs(10));
            stack.poll();
            while let Some(packet) = stack.next_packet() {
                if packet.ends_with(b"answer") {
                    received.extend_from_slice(b"answer");
                    stack.take(segment(TcpControl::None, 7, Some(ack + 6), 1000, b""));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(received, b"answer");
    }
}
