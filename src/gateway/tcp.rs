//! Connections: those of the guest, and those of the service to the guest's SSH port.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{
    Gateway, host,
    route::{Route, route},
    stack::Stack,
};
use crate::domain::{
    gateway::{GUEST_API, GUEST_API_PORT},
    network::NetworkRefusal,
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

impl Connections {
    fn of(&self, destination: SocketAddr) -> (&Mutex<HashMap<ConnectionKey, Phase>>, usize) {
        if destination == (GUEST_API, GUEST_API_PORT).into() {
            (&self.api, MOST_API_CONNECTIONS)
        } else {
            (&self.others, MOST_CONNECTIONS)
        }
    }
}

trait HostStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> HostStream for T {}

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
            Ok(mut host) => {
                self.connections.of(destination).0.lock().insert(key, Phase::Accepted);
                match self.stack.accept(destination, first).await {
                    // On an error of the host's connection, dropping the guest's end resets it.
                    Ok(mut guest) => drop(copy_bidirectional_with_sizes(&mut guest, &mut host, PIECE, PIECE).await),
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

    async fn connect(&self, destination: SocketAddr) -> io::Result<Box<dyn HostStream>> {
        match route(&self.spec.policy, destination, &self.host).await {
            Route::GuestApi => Ok(Box::new(UnixStream::connect(&self.spec.guest_api).await?)),
            Route::Address(address) => Ok(Box::new(dial(address).await?)),
            Route::Resolver => {
                let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
                for resolver in host::resolvers().await {
                    match dial(resolver).await {
                        Ok(stream) => return Ok(Box::new(stream)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Route::Refused(refusal) => Err(self.refused(destination, refusal)),
        }
    }

    fn refused(&self, destination: SocketAddr, refusal: NetworkRefusal) -> io::Error {
        self.note_refusal(destination, refusal);
        io::Error::new(io::ErrorKind::PermissionDenied, refusal.describe())
    }

    /// Connects what arrives on the socket to the guest's SSH port.
    pub(super) async fn serve_ssh(self: Arc<Self>, listener: UnixListener) {
        let free = Arc::new(tokio::sync::Semaphore::new(MOST_SSH_CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((mut caller, _)) => {
                    let stack = self.stack.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        forward(&stack, &mut caller).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the guest's SSH port");
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
