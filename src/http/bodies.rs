//! Limits of request bodies while they are received.
//!
//! A body is received before its request can be judged, and its sender decides how long that takes. So unfinished
//! bodies have a limit in number and in bytes, for all requests of a listener together. At the limit, the oldest
//! unfinished body of the sender that holds the most is given up: a flood ends its own requests first, and a slow
//! sender does not keep others out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::FromRequestParts,
    http::request::Parts,
};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{problem::Problem, sender::Sender};
use crate::domain::{Code, Error};

#[derive(Clone)]
pub struct Bodies {
    limits: BodyLimits,
    table: Arc<Mutex<BodyTable>>,
}

#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bodies that are not complete.
    pub unfinished: usize,
    /// Bytes of all bodies, until their request is answered or parsed.
    pub bytes: usize,
}

#[derive(Default)]
struct BodyTable {
    next: u64,
    bytes: usize,
    bodies: BTreeMap<u64, BodyEntry>,
}

struct BodyEntry {
    sender: Sender,
    bytes: usize,
    is_complete: bool,
    give_up: CancellationToken,
}

/// A body's share of the limits, until it is dropped.
pub struct BodyShare {
    id: u64,
    give_up: CancellationToken,
    table: Arc<Mutex<BodyTable>>,
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.table.lock().remove(self.id);
    }
}

impl BodyTable {
    fn remove(&mut self, id: u64) {
        if let Some(body) = self.bodies.remove(&id) {
            self.bytes -= body.bytes;
        }
    }

    /// Gives up the oldest unfinished body of the sender that holds the most. `false`: there is none.
    fn give_up_one(&mut self, weight: impl Fn(&BodyEntry) -> usize) -> bool {
        // By sender: what it holds, and the id of its oldest body. Ids increase, so that is the first one here.
        let mut senders: HashMap<Sender, (usize, Reverse<u64>)> = HashMap::new();
        for (id, body) in self.bodies.iter().filter(|(_, body)| !body.is_complete) {
            senders.entry(body.sender).or_insert((0, Reverse(*id))).0 += weight(body);
        }
        let Some((sender, (_, Reverse(id)))) = senders.into_iter().max_by_key(|(_, held)| *held) else { return false };
        metrics::counter!("mayfly_over_limit_total", "sender" => sender.kind(), "limit" => "bodies").increment(1);
        self.bodies[&id].give_up.cancel();
        self.remove(id);
        true
    }
}

impl Bodies {
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, table: Arc::default() }
    }

    fn begin(&self, sender: Sender) -> BodyShare {
        let mut table = self.table.lock();
        while table.bodies.values().filter(|body| !body.is_complete).count() >= self.limits.unfinished
            && table.give_up_one(|_| 1)
        {}
        table.next += 1;
        let (id, give_up) = (table.next, CancellationToken::new());
        let body = BodyEntry { sender, bytes: 0, is_complete: false, give_up: give_up.clone() };
        table.bodies.insert(id, body);
        BodyShare { id, give_up, table: self.table.clone() }
    }

    /// Adds to a body's bytes. `false`: it was given up, possibly by this call.
    fn grow(&self, share: &BodyShare, bytes: usize) -> bool {
        let mut table = self.table.lock();
        while table.bytes + bytes > self.limits.bytes && table.give_up_one(|body| body.bytes) {}
        if table.bytes + bytes > self.limits.bytes {
            table.remove(share.id);
        }
        let Some(body) = table.bodies.get_mut(&share.id) else { return false };
        body.bytes += bytes;
        table.bytes += bytes;
        true
    }

    /// Reads a body of at most `largest` bytes.
    async fn read(&self, mut body: Body, largest: usize, sender: Sender) -> Result<(Bytes, BodyShare), Problem> {
        let too_large = || Problem::new(Code::RequestTooLarge, format!("the limit is {largest} bytes"));
        // A body whose declared size is too large is refused before any of it is read.
        if body.size_hint().lower() > largest as u64 {
            return Err(too_large());
        }
        let share = self.begin(sender);
        let mut bytes = Vec::new();
        loop {
            let frame = tokio::select! {
                biased;
                () = share.give_up.cancelled() => return Err(given_up()),
                frame = body.frame() => frame,
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|_| Problem::invalid("", "the body ended before it was complete"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > largest {
                return Err(too_large());
            }
            if !self.grow(&share, data.len()) {
                return Err(given_up());
            }
            // Copied, because a small part would keep the connection's whole read buffer in memory.
            bytes.extend_from_slice(&data);
        }
        if let Some(body) = share.table.lock().bodies.get_mut(&share.id) {
            body.is_complete = true;
        }
        Ok((bytes.into(), share))
    }
}

/// How the body of one request is read: the limits of its listener, and its sender.
#[derive(Clone)]
pub struct BodyReader {
    bodies: Bodies,
    sender: Sender,
    largest: usize,
}

impl BodyReader {
    pub fn new(bodies: Bodies, sender: Sender, largest: usize) -> Self {
        Self { bodies, sender, largest }
    }

    /// Of a route with a limit of its own.
    pub fn up_to(self, largest: usize) -> Self {
        Self { largest, ..self }
    }

    /// Reads the body. The share has to be kept as long as the bytes are.
    pub async fn read(&self, body: Body) -> Result<(Bytes, BodyShare), Problem> {
        self.bodies.read(body, self.largest, self.sender).await
    }
}

impl<S: Sync> FromRequestParts<S> for BodyReader {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().ok_or_else(|| Error::internal("a route without the middleware").into())
    }
}

fn given_up() -> Problem {
    let detail = "the body was not complete when the service needed its place for other requests";
    Error::new(Code::Overloaded, detail).retry_after(1).into()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use futures_util::stream;

    use super::{super::sender::Peer, *};

    fn address(last: u8) -> Sender {
        Sender::Peer(Peer::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))))
    }

    fn bodies(unfinished: usize, bytes: usize) -> Bodies {
        Bodies::new(BodyLimits { unfinished, bytes })
    }

    fn is_given_up(share: &BodyShare) -> bool {
        share.give_up.is_cancelled()
    }

    #[test]
    fn the_oldest_body_of_the_sender_with_most_of_them_makes_room() {
        let bodies = bodies(4, 1000);
        let calm = bodies.begin(address(1));
        let loud: Vec<_> = (0..5).map(|_| bodies.begin(address(2))).collect();
        assert_eq!(loud.iter().map(is_given_up).collect::<Vec<_>>(), [true, true, false, false, false]);
        let other = bodies.begin(address(3));
        assert!(is_given_up(&loud[2]) && !is_given_up(&calm) && !is_given_up(&other));
        assert!(!bodies.grow(&loud[0], 1) && bodies.grow(&loud[4], 1));
        drop((calm, loud, other));
        let table = bodies.table.lock();
        assert_eq!((table.bytes, table.bodies.len()), (0, 0));
    }

    #[test]
    fn the_bytes_of_all_bodies_have_a_limit() {
        let bodies = bodies(100, 100);
        let (calm, loud, late) = (bodies.begin(address(1)), bodies.begin(address(2)), bodies.begin(address(3)));
        assert!(bodies.grow(&calm, 30) && bodies.grow(&loud, 60));
        assert!(bodies.grow(&late, 20));
        assert!(is_given_up(&loud) && !is_given_up(&calm));
        assert_eq!(bodies.table.lock().bytes, 50);
        // A complete body keeps its bytes, and a new one that does not fit beside it is refused.
        bodies.table.lock().bodies.get_mut(&calm.id).unwrap().is_complete = true;
        assert!(!bodies.grow(&late, 80) && is_given_up(&late) && !is_given_up(&calm));
        assert_eq!(bodies.table.lock().bytes, 30);
    }

    #[tokio::test]
    async fn a_body_is_read_whole_or_not_at_all() {
        let bodies = bodies(8, 1000);
        let of = |chunks: Vec<Vec<u8>>| {
            Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::convert::Infallible>)))
        };
        let read = async |body| bodies.read(body, 10, address(1)).await.map(|(bytes, _)| bytes.to_vec());
        assert_eq!(read(of(vec![vec![1; 4], vec![2; 6]])).await.unwrap(), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert!(read(Body::empty()).await.unwrap().is_empty());
        assert!(read(of(vec![vec![1; 4], vec![2; 7]])).await.is_err());
        assert!(read(Body::from(vec![0; 11])).await.is_err());
        assert_eq!(bodies.table.lock().bytes, 0);
    }

    #[tokio::test]
    async fn a_body_that_waits_is_ended_when_its_place_is_needed() {
        let bodies = bodies(1, 1000);
        let endless = Body::from_stream(stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let slow = bodies.read(endless, 10, address(1));
        let quick = async {
            tokio::task::yield_now().await;
            bodies.read(Body::from("x"), 10, address(2)).await.map(|(bytes, _)| bytes)
        };
        let (slow, quick) = tokio::join!(slow, quick);
        assert!(slow.is_err());
        assert_eq!(&quick.unwrap()[..], b"x");
    }
}
