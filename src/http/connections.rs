//! The open connections of one listener, and which of them is closed when there are too many.
//!
//! At the limit, the peer with most connections loses the one that has been without a request for the longest time: a
//! client that opens more and more connections closes its own, and others are still served. A connection with a request
//! is never closed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    response::Response,
};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::sender::{Peer, Sender};

#[derive(Clone)]
pub struct OpenConnections {
    limit: usize,
    open: Arc<Mutex<ConnectionTable>>,
    /// A connection was closed, or has no request any more.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct ConnectionTable {
    next: u64,
    connections: BTreeMap<u64, ConnectionEntry>,
}

struct ConnectionEntry {
    peer: Peer,
    usage: Arc<ConnectionUsage>,
    close: CancellationToken,
}

#[derive(Default)]
struct ConnectionUsage {
    /// Requests that are being served.
    requests: AtomicUsize,
    /// When the connection was opened or its last request ended, by the table's counter.
    idle_since: AtomicU64,
}

/// One open connection, until it is dropped.
pub struct Connection {
    id: u64,
    pub peer: Peer,
    usage: Arc<ConnectionUsage>,
    /// Cancelled when its place is needed.
    pub close: CancellationToken,
    connections: OpenConnections,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open.lock().connections.remove(&self.id);
        self.connections.changed.notify_one();
    }
}

impl OpenConnections {
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default(), changed: Arc::default() }
    }

    /// A place for a new connection. At the limit, it closes another one and waits for its end.
    pub async fn admit(&self, peer: Peer) -> Connection {
        loop {
            if let Some(connection) = self.try_admit(peer) {
                return connection;
            }
            self.changed.notified().await;
        }
    }

    fn try_admit(&self, peer: Peer) -> Option<Connection> {
        let mut open = self.open.lock();
        if open.connections.len() >= self.limit {
            open.close_one(peer);
            return None;
        }
        open.next += 1;
        let (id, close, usage) = (open.next, CancellationToken::new(), Arc::<ConnectionUsage>::default());
        usage.idle_since.store(id, Ordering::Release);
        open.connections.insert(id, ConnectionEntry { peer, usage: usage.clone(), close: close.clone() });
        Some(Connection { id, peer, usage, close, connections: self.clone() })
    }
}

impl ConnectionTable {
    /// Closes one connection for a new one of this peer, unless one is being closed already.
    fn close_one(&self, new: Peer) {
        if self.connections.values().any(|entry| entry.close.is_cancelled()) {
            return;
        }
        let mut counts: HashMap<Peer, usize> = HashMap::from([(new, 1)]);
        for entry in self.connections.values() {
            *counts.entry(entry.peer).or_default() += 1;
        }
        let idle = self.connections.values().filter(|entry| entry.usage.requests.load(Ordering::Acquire) == 0);
        let idle_since = |entry: &ConnectionEntry| entry.usage.idle_since.load(Ordering::Acquire);
        if let Some(entry) = idle.max_by_key(|entry| (counts[&entry.peer], Reverse(idle_since(entry)))) {
            let sender = Sender::Peer(entry.peer).kind();
            metrics::counter!("mayfly_over_limit_total", "sender" => sender, "limit" => "connections").increment(1);
            entry.close.cancel();
        }
    }
}

/// A request that is being served on a connection, until it is dropped.
pub struct Serving {
    usage: Arc<ConnectionUsage>,
    connections: OpenConnections,
}

impl Connection {
    pub fn serve(&self) -> Serving {
        self.usage.requests.fetch_add(1, Ordering::AcqRel);
        Serving { usage: self.usage.clone(), connections: self.connections.clone() }
    }
}

impl Serving {
    /// The request is being served until the body of its answer is sent.
    pub fn until_sent(self, response: Response) -> Response {
        response.map(|body| Body::new(Sending { body, _serving: self }))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let now = {
            let mut open = self.connections.open.lock();
            open.next += 1;
            open.next
        };
        self.usage.idle_since.store(now, Ordering::Release);
        // From now on, the connection can be closed for another one.
        if self.usage.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connections.changed.notify_one();
        }
    }
}

struct Sending {
    body: Body,
    _serving: Serving,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn address(last: u8) -> Peer {
        Peer::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
    }

    #[tokio::test]
    async fn the_peer_with_most_connections_loses_its_oldest_idle_one() {
        let connections = OpenConnections::new(4);
        let calm = connections.admit(address(1)).await;
        let busy = connections.admit(address(2)).await;
        let serving = busy.serve();
        let (second, third) = (connections.admit(address(2)).await, connections.admit(address(2)).await);
        let new = tokio::spawn({
            let connections = connections.clone();
            async move { connections.admit(address(3)).await }
        });
        second.close.cancelled().await;
        assert!(!calm.close.is_cancelled() && !busy.close.is_cancelled() && !third.close.is_cancelled());
        drop(second);
        let new = new.await.unwrap();
        // A peer beyond all others ends its own.
        let more = tokio::spawn({
            let connections = connections.clone();
            async move { connections.admit(address(2)).await }
        });
        third.close.cancelled().await;
        assert!(!calm.close.is_cancelled() && !new.close.is_cancelled());
        drop(third);
        let more = more.await.unwrap();
        drop((calm, new, more, serving, busy));
        assert!(connections.open.lock().connections.is_empty());
    }

    #[tokio::test]
    async fn a_connection_is_not_closed_before_its_answer_is_sent() {
        let connections = OpenConnections::new(1);
        let busy = connections.admit(address(1)).await;
        let answer = busy.serve().until_sent(Response::new(Body::from("x")));
        assert!(connections.try_admit(address(2)).is_none() && !busy.close.is_cancelled());
        assert_eq!(answer.body().size_hint().exact(), Some(1));
        drop(answer);
        assert!(connections.try_admit(address(2)).is_none() && busy.close.is_cancelled());
    }
}
