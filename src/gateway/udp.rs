//! Datagrams of the guest: each pair of source and destination has a socket of its own on the host, so that only the
//! destination can answer.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Gateway, host, packet,
    route::{Route, route},
};
use crate::{
    domain::{
        gateway::{MTU, RESOLVER},
        network::NetworkRefusal,
    },
    platform::clock,
};

/// Flows at once. When a new one comes, the one that was silent longest ends.
const MOST_FLOWS: usize = 256;
/// Tasks of flows at once: an ended flow has one until it has noticed its end.
const MOST_FLOW_TASKS: usize = 2 * MOST_FLOWS;
/// A flow ends after this silence (RFC 4787 asks for at least two minutes).
const SILENCE: Duration = Duration::from_secs(120);
/// Datagrams of one flow that wait for the host's socket.
const WAITING: usize = 32;
/// DNS queries at once.
const MOST_QUERIES: usize = 64;
/// How long one resolver may take before the next one is asked.
const ANSWER: Duration = Duration::from_secs(3);
/// Largest payload of a datagram over IPv4.
const LARGEST_ANSWER: usize = MTU - 28;
const DNS_HEADER: usize = 12;

#[derive(Default)]
pub(super) struct Flows {
    flows: Mutex<HashMap<FlowKey, Flow>>,
    tasks: AtomicUsize,
    queries: AtomicUsize,
}

/// The guest's end and the destination.
type FlowKey = (SocketAddr, SocketAddr);

struct Flow {
    to_host: mpsc::Sender<Vec<u8>>,
    used: Instant,
}

impl Gateway {
    /// Takes a datagram; `packet` is the whole packet that it came in.
    pub(super) fn datagram(self: &Arc<Self>, key: FlowKey, payload: &[u8], packet: &[u8]) {
        {
            let mut flows = self.flows.flows.lock();
            if let Some(flow) = flows.get_mut(&key) {
                flow.used = clock::monotonic();
                // A full queue drops it, as any network may.
                let _ = flow.to_host.try_send(payload.to_vec());
                return;
            }
        }
        if is_resolver(key.1) {
            if !is_query(payload) {
                return;
            }
            return self.query(key, payload.to_vec(), packet.to_vec());
        }
        if self.flows.tasks.fetch_add(1, Ordering::Relaxed) >= MOST_FLOW_TASKS {
            self.flows.tasks.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (to_host, from_guest) = mpsc::channel(WAITING);
        let _ = to_host.try_send(payload.to_vec());
        {
            let mut flows = self.flows.flows.lock();
            if flows.len() >= MOST_FLOWS {
                let oldest = flows.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| *key);
                oldest.and_then(|key| flows.remove(&key));
            }
            flows.insert(key, Flow { to_host: to_host.clone(), used: clock::monotonic() });
        }
        let (gateway, packet) = (self.clone(), packet.to_vec());
        tokio::spawn(async move {
            if let Err(error) = gateway.flow(key, from_guest, &packet).await {
                tracing::debug!(destination = %key.1, %error, "datagrams of the guest were not delivered");
            }
            gateway.flows.tasks.fetch_sub(1, Ordering::Relaxed);
            let mut flows = gateway.flows.flows.lock();
            // A later flow may have taken its place.
            if flows.get(&key).is_some_and(|flow| flow.to_host.same_channel(&to_host)) {
                flows.remove(&key);
            }
        });
    }

    async fn flow(&self, key: FlowKey, mut from_guest: mpsc::Receiver<Vec<u8>>, packet: &[u8]) -> io::Result<()> {
        let (guest, destination) = key;
        let address = match route(&self.spec.policy, destination, &self.host).await {
            Route::Address(address) => address,
            Route::Refused(refusal) => {
                self.refuse(destination, refusal, packet);
                return Ok(());
            }
            // Neither of them takes datagrams at this address.
            Route::GuestApi | Route::Resolver => return Ok(()),
        };
        let socket = connected(address).await?;
        let mut answer = vec![0; u16::MAX.into()];
        loop {
            tokio::select! {
                sent = from_guest.recv() => match sent {
                    // The flow made room for another one.
                    None => return Ok(()),
                    Some(payload) => drop(socket.send(&payload).await),
                },
                received = timeout(SILENCE, socket.recv(&mut answer)) => match received {
                    // A flow that only sends is kept by what it sends.
                    Err(_) if self.used_lately(&key) => {}
                    Err(_) => return Ok(()),
                    // The destination has no such port; the guest learns it as from any router.
                    Ok(Err(_)) => self.unreachable(packet),
                    Ok(Ok(length)) => {
                        if let Some(flow) = self.flows.flows.lock().get_mut(&key) {
                            flow.used = clock::monotonic();
                        }
                        // `None`: too large for the guest's network, which has no fragments.
                        if let Some(packet) = packet::udp(destination, guest, &answer[..length]) {
                            self.stack.send(packet);
                        }
                    }
                },
            }
        }
    }

    fn used_lately(&self, key: &FlowKey) -> bool {
        let flows = self.flows.flows.lock();
        flows.get(key).is_some_and(|flow| clock::elapsed(flow.used) < SILENCE)
    }

    fn refuse(&self, destination: SocketAddr, refusal: NetworkRefusal, packet: &[u8]) {
        self.note_refusal(destination, refusal);
        self.unreachable(packet);
    }

    fn unreachable(&self, packet: &[u8]) {
        if let Some(message) = packet::refusal(packet) {
            self.stack.send(message);
        }
    }

    /// Asks the host's resolvers, one after the other.
    fn query(self: &Arc<Self>, (guest, resolver): FlowKey, query: Vec<u8>, packet: Vec<u8>) {
        if self.flows.queries.fetch_add(1, Ordering::Relaxed) >= MOST_QUERIES {
            self.flows.queries.fetch_sub(1, Ordering::Relaxed);
            // The guest repeats it.
            return;
        }
        let gateway = self.clone();
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
            gateway.flows.queries.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Only questions are passed on: the host's resolvers may trust this host's address with more (updates, notifications).
fn is_query(message: &[u8]) -> bool {
    const RESPONSE_AND_OPCODE: u8 = 0xf8;
    message.len() >= DNS_HEADER && message[2] & RESPONSE_AND_OPCODE == 0 && message[4..6] == [0, 1]
}

fn is_resolver(destination: SocketAddr) -> bool {
    destination == (RESOLVER, 53).into()
}

async fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

async fn ask(query: &[u8]) -> Option<Vec<u8>> {
    for resolver in host::resolvers().await {
        let asked = async {
            let socket = connected(resolver).await?;
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

/// The header and the question of a DNS message that is too large for a datagram, marked as truncated: the guest then
/// asks over TCP (RFC 1035, 4.1.1).
fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    let mut header = answer.get(..DNS_HEADER)?.to_vec();
    let mut end = DNS_HEADER;
    let questions = u16::from_be_bytes([header[4], header[5]]);
    for _ in 0..questions {
        loop {
            let length = *answer.get(end)?;
            end += 1 + usize::from(length);
            match length {
                0 => break,
                // A pointer, which no question has.
                64.. => return None,
                _ => {}
            }
        }
        // Type and class.
        end += 4;
    }
    header[2] |= 0x02;
    // No answers, authorities or additional records.
    header[6..DNS_HEADER].fill(0);
    header.extend_from_slice(answer.get(DNS_HEADER..end)?);
    (header.len() <= LARGEST_ANSWER).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_are_passed_on() {
        let mut query = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend_from_slice(b"\x07example\x03org\x00\x00\x01\x00\x01");
        assert!(is_query(&query));
        for (at, byte) in [(2, 0x81), (2, 0x28), (2, 0x20), (5, 0), (5, 2)] {
            let mut other = query.clone();
            other[at] = byte;
            assert!(!is_query(&other), "byte {at} is {byte:#x}");
        }
        assert!(!is_query(&query[..11]));
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
}
