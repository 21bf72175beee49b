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
    Gateway, packet,
    route::{Route, route},
};
use crate::{domain::network::NetworkRefusal, platform::clock};

/// Flows at once. When a new one comes, the one that was silent longest ends.
const MOST_FLOWS: usize = 256;
/// Tasks of flows at once: an ended flow has one until it has noticed its end.
const MOST_FLOW_TASKS: usize = 2 * MOST_FLOWS;
/// A flow ends after this silence (RFC 4787 asks for at least two minutes).
const SILENCE: Duration = Duration::from_secs(120);
/// Datagrams of one flow that wait for the host's socket.
const WAITING: usize = 32;

#[derive(Default)]
pub(super) struct Flows {
    flows: Mutex<HashMap<FlowKey, Flow>>,
    tasks: AtomicUsize,
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
        // The map has the only sender, so that the task ends when its flow is removed from there.
        let own = to_host.downgrade();
        drop(to_host);
        tokio::spawn(async move {
            if let Err(error) = gateway.flow(key, from_guest, &packet).await {
                tracing::debug!(destination = %key.1, %error, "datagrams of the guest were not delivered");
            }
            gateway.flows.tasks.fetch_sub(1, Ordering::Relaxed);
            let mut flows = gateway.flows.flows.lock();
            // A later flow may have taken its place.
            if let Some(own) = own.upgrade()
                && flows.get(&key).is_some_and(|flow| flow.to_host.same_channel(&own))
            {
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

    pub(super) fn refuse(&self, destination: SocketAddr, refusal: NetworkRefusal, packet: &[u8]) {
        self.note_refusal(destination, refusal);
        self.unreachable(packet);
    }

    fn unreachable(&self, packet: &[u8]) {
        if let Some(message) = packet::refusal(packet) {
            self.stack.send(message);
        }
    }
}

/// A socket that only this address can answer.
pub(super) async fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        NetworkMode, NetworkPolicy,
        gateway::{GUEST, GatewaySpec, ROUTER},
    };

    #[tokio::test]
    async fn a_new_flow_takes_the_place_of_the_oldest_one() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let destination = SocketAddr::from((ROUTER, server.local_addr().unwrap().port()));
        let gateway = Gateway::new(GatewaySpec {
            policy: NetworkPolicy { mode: NetworkMode::Host, allow: Vec::new() },
            link: "/none".into(),
            guest_api: "/none".into(),
            ssh: "/none".into(),
            logs: Vec::new(),
            lock: "/none".into(),
        });
        let mut datagram = [0; 8];
        for port in 1..=u16::try_from(3 * MOST_FLOWS).unwrap() {
            gateway.datagram((SocketAddr::from((GUEST, port)), destination), b"datagram", &[]);
            let received = timeout(Duration::from_secs(10), server.recv(&mut datagram)).await;
            assert_eq!(received.unwrap_or_else(|_| panic!("that of port {port} is lost")).unwrap(), 8);
        }
        assert!(gateway.flows.flows.lock().len() <= MOST_FLOWS);
    }
}
