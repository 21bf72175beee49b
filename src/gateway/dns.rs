//! The guest's resolver: passes its questions on to the resolvers of the host, over UDP and TCP.
//!
//! Only questions for records are passed on. The host's resolvers may trust this host's address with more: updates,
//! notifications, transfers of whole zones.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    Gateway,
    dns_message::{LARGEST_ANSWER, is_question, truncated},
    host, packet,
    route::{Route, route},
    udp,
};
use crate::domain::gateway::RESOLVER;

/// Queries over UDP at once.
const MOST_QUERIES: usize = 64;
/// How long one resolver may take before the next one is asked.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a connection to a resolver may take, and an answer on it.
const ANSWER_ON_CONNECTION: Duration = Duration::from_secs(10);

/// Queries over UDP that wait for their answer.
#[derive(Default)]
pub(super) struct Queries(AtomicUsize);

pub(super) fn is_resolver(destination: SocketAddr) -> bool {
    destination == (RESOLVER, 53).into()
}

impl Gateway {
    /// Takes a query over UDP; `packet` is the whole packet that it came in.
    pub(super) fn query(self: &Arc<Self>, (guest, resolver): (SocketAddr, SocketAddr), query: &[u8], packet: &[u8]) {
        if !is_question(query) {
            return;
        }
        if self.queries.0.fetch_add(1, Ordering::Relaxed) >= MOST_QUERIES {
            self.queries.0.fetch_sub(1, Ordering::Relaxed);
            // The guest repeats it.
            return;
        }
        let (gateway, query, packet) = (self.clone(), query.to_vec(), packet.to_vec());
        tokio::spawn(async move {
            match route(&gateway.spec.policy, resolver, &gateway.host).await {
                Route::Resolver => match ask(&query).await {
                    Some(answer) => {
                        let fitting = if answer.len() > LARGEST_ANSWER { truncated(&answer) } else { Some(answer) };
                        if let Some(packet) = fitting.and_then(|answer| packet::udp(resolver, guest, &answer)) {
                            gateway.stack.send(packet);
                        }
                    }
                    None => tracing::debug!("no resolver of the host answered a query of the guest"),
                },
                Route::Refused(refusal) => gateway.refuse(resolver, refusal, &packet),
                Route::GuestApi | Route::Address(_) => {}
            }
            gateway.queries.0.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn ask(query: &[u8]) -> Option<Vec<u8>> {
    for resolver in host::resolvers().await {
        let asked = async {
            let socket = udp::connected(resolver).await?;
            socket.send(query).await?;
            let mut answer = vec![0; u16::MAX.into()];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok::<_, io::Error>(answer)
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver of the host cannot be asked"),
            Err(_) => tracing::debug!(%resolver, "a resolver of the host does not answer"),
        }
    }
    None
}

/// A connection to the first resolver of the host that accepts one.
pub(super) async fn connect() -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for resolver in host::resolvers().await {
        match timeout(ANSWER_ON_CONNECTION, TcpStream::connect(resolver)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Passes the questions of a connection on, one after the other, until the guest ends it.
pub(super) async fn serve(
    guest: &mut (impl AsyncRead + AsyncWrite + Unpin),
    resolver: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let Some(question) = read_message(guest).await? else {
            return guest.shutdown().await;
        };
        if !is_question(&question) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no question for records"));
        }
        let answer = timeout(ANSWER_ON_CONNECTION, async {
            write_message(resolver, &question).await?;
            read_message(resolver).await
        });
        let answer = answer.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let Some(answer) = answer else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        write_message(guest, &answer).await?;
    }
}

/// A message with its length in two bytes before it (RFC 1035, 4.2.2). `None`: the connection ended before one.
async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::{super::dns_message::tests::question, *};

    #[tokio::test]
    async fn a_connection_carries_questions_only() {
        let (mut guest, mut gateway) = tokio::io::duplex(4096);
        let (mut resolver, mut to_resolver) = tokio::io::duplex(4096);
        let serving = tokio::spawn(async move { serve(&mut gateway, &mut to_resolver).await });
        for kind in [1, 28] {
            write_message(&mut guest, &question(kind)).await.unwrap();
            assert_eq!(read_message(&mut resolver).await.unwrap().unwrap(), question(kind));
            write_message(&mut resolver, &[kind; 2000]).await.unwrap();
            assert_eq!(read_message(&mut guest).await.unwrap().unwrap(), [kind; 2000]);
        }
        write_message(&mut guest, &question(252)).await.unwrap();
        assert_eq!(serving.await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_message(&mut resolver).await.unwrap(), None);
    }
}
