//! Reads an answer's body, and gives it up when it comes too slowly.
//!
//! A time limit between two pieces is not enough: a server that sends one byte every few seconds would hold a transfer for
//! ever. Only the time in which this host waits for the server counts, not the time in which it is busy with what came, or
//! in which a bandwidth limit delays it.

use std::time::Duration;

use reqwest::Response;

use super::error::{RegistryError, describe};
use crate::platform::clock;

/// A piece of a body, as hyper delivers it.
pub type BodyChunk = bytes::Bytes;

/// The least that has to arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeastRate {
    /// The time over which the rate is an average.
    pub window: Duration,
    pub bytes_per_second: u64,
}

impl LeastRate {
    fn bytes(self) -> u64 {
        (self.window.as_secs_f64() * self.bytes_per_second as f64) as u64
    }
}

pub(super) struct MeteredBody {
    response: Response,
    least: LeastRate,
    /// Of the current window.
    waited: Duration,
    received: u64,
}

#[derive(Debug)]
pub(super) enum BodyError {
    Broken(reqwest::Error),
    Slow { received: u64, waited: Duration },
}

impl BodyError {
    pub fn into_error(self, registry: &str, what: &str) -> RegistryError {
        match self {
            BodyError::Broken(error) => describe(registry, what, error),
            BodyError::Slow { received, waited } => {
                let what = format!("{what}: only {received} bytes arrived within {} s", waited.as_secs());
                RegistryError::Unreachable { registry: registry.to_owned(), what }
            }
        }
    }
}

impl MeteredBody {
    pub fn new(response: Response, least: LeastRate) -> MeteredBody {
        MeteredBody { response, least, waited: Duration::ZERO, received: 0 }
    }

    /// The next piece, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<BodyChunk>, BodyError> {
        let begun = clock::monotonic();
        let left = self.least.window.saturating_sub(self.waited);
        let piece = tokio::time::timeout(left, self.response.chunk()).await;
        self.waited += clock::elapsed(begun);
        match piece {
            Ok(piece) => {
                let piece = piece.map_err(BodyError::Broken)?;
                self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                if self.received >= self.least.bytes() {
                    (self.waited, self.received) = (Duration::ZERO, 0);
                }
                Ok(piece)
            }
            Err(_) => Err(BodyError::Slow { received: self.received, waited: self.waited }),
        }
    }

    /// All of it, or `None` if it is larger than `largest` bytes. Reads no further than that.
    pub async fn read_to_end(&mut self, largest: usize) -> Result<Option<Vec<u8>>, BodyError> {
        let mut body = Vec::new();
        while let Some(piece) = self.next().await? {
            if body.len() + piece.len() > largest {
                return Ok(None);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Some(body))
    }
}
