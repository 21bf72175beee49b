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
    Gateway, host, packet,
    route::{Route, route},
    udp,
};
use crate::domain::gateway::{MTU, RESOLVER};

/// Queries over UDP at once.
const MOST_QUERIES: usize = 64;
/// How long one resolver may take before the next one is asked.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a connection to a resolver may take, and an answer on it.
const ANSWER_ON_CONNECTION: Duration = Duration::from_secs(10);
/// Largest payload of a datagram over IPv4.
const LARGEST_ANSWER: usize = MTU - 28;
const HEADER: usize = 12;
/// Transfers of zones: IXFR (RFC 1995) and AXFR (RFC 5936).
const TRANSFERS: [u16; 2] = [251, 252];

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

/// One question, for something else than a transfer of a zone.
fn is_question(message: &[u8]) -> bool {
    const RESPONSE_AND_OPCODE: u8 = 0xf8;
    message.len() >= HEADER
        && message[2] & RESPONSE_AND_OPCODE == 0
        && message[4..6] == [0, 1]
        && question_end(message, HEADER).is_some_and(|end| {
            let kind = u16::from_be_bytes([message[end - 4], message[end - 3]]);
            !TRANSFERS.contains(&kind)
        })
}

/// Where the question that begins at `at` ends: after its name, type and class.
fn question_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        at += 1 + usize::from(length);
        match length {
            0 => break,
            // A pointer, which no question has.
            64.. => return None,
            _ => {}
        }
    }
    (at + 4 <= message.len()).then_some(at + 4)
}

/// The header and the question of a DNS message that is too large for a datagram, marked as truncated: the guest then
/// asks over TCP (RFC 1035, 4.1.1).
fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    let mut short = answer.get(..HEADER)?.to_vec();
    let mut end = HEADER;
    for _ in 0..u16::from_be_bytes([short[4], short[5]]) {
        end = question_end(answer, end)?;
    }
    short[2] |= 0x02;
    // No answers, authorities or additional records.
    short[6..HEADER].fill(0);
    short.extend_from_slice(answer.get(HEADER..end)?);
    (short.len() <= LARGEST_ANSWER).then_some(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: u8) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(b"\x07example\x03org\x00\x00");
        query.extend_from_slice(&[kind, 0, 1]);
        query
    }

    #[test]
    fn only_questions_for_records_are_passed_on() {
        assert!(is_question(&question(1)));
        for transfer in [251, 252] {
            assert!(!is_question(&question(transfer)));
        }
        for (at, byte) in [(2, 0x81), (2, 0x28), (2, 0x20), (5, 0), (5, 2), (12, 0xc0)] {
            let mut other = question(1);
            other[at] = byte;
            assert!(!is_question(&other), "byte {at} is {byte:#x}");
        }
        for length in 0..question(1).len() {
            assert!(!is_question(&question(1)[..length]), "{length} bytes");
        }
    }

    #[test]
    fn a_large_answer_is_marked_as_truncated() {
        let mut answer = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 90, 0, 2, 0, 1];
        answer.extend_from_slice(b"\x07example\x03org\x00\x00\x10\x00\x01");
        let question = answer.len();
        answer.resize(3000, 9);
        let short = truncated(&answer).unwrap();
        assert_eq!(short.len(), question);
        assert_eq!(short[..12], [0x12, 0x34, 0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(short[12..], answer[12..question]);
        // Cut in the middle of the question, a pointer, no header.
        assert_eq!(truncated(&answer[..question - 6]), None);
        answer[12] = 0xc0;
        assert_eq!(truncated(&answer), None);
        assert_eq!(truncated(b"short"), None);
    }

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
