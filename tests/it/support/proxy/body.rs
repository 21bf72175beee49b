//! An answer's body on its way: cut, slowed, changed.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use hyper::body::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::Instant,
};

/// Why a connection ends. For nobody to see but the HTTP library.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failure(String);

impl Failure {
    pub(super) fn new(why: impl std::fmt::Display) -> Failure {
        Failure(why.to_string())
    }
}

/// A connection that says when all that was written has left for the client. The HTTP library closes a connection whose
/// body fails at once, with what it had not yet written; a cut after so many bytes has to wait for them.
pub(super) struct Flushing<S> {
    pub inner: S,
    pub flushed: Arc<watch::Sender<u64>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushed.send_modify(|count| *count += 1);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[derive(Default)]
pub(super) struct Shape {
    pub cut: Option<u64>,
    pub hold: Option<u64>,
    /// Offset in this body.
    pub flip: Option<u64>,
    pub limit: Option<u64>,
    pub bytes_per_second: Option<u64>,
    /// What the headers promise.
    pub announced: Option<u64>,
}

struct Shaped<S, F> {
    source: S,
    rest: Bytes,
    sent: u64,
    shape: Shape,
    started: Instant,
    flushed: Arc<watch::Sender<u64>>,
    release: watch::Receiver<bool>,
    count: F,
}

/// `count` is told how many bytes went on.
pub(super) fn shaped<S>(
    source: S,
    shape: Shape,
    flushed: Arc<watch::Sender<u64>>,
    release: watch::Receiver<bool>,
    count: impl FnMut(u64) + Send,
) -> impl Stream<Item = Result<Bytes, Failure>> + Send
where
    S: Stream<Item = reqwest::Result<Bytes>> + Send + Unpin,
{
    let started = Instant::now();
    let body = Shaped { source, rest: Bytes::new(), sent: 0, shape, started, flushed, release, count };
    stream::unfold(body, |mut body| async move { body.next().await.map(|piece| (piece, body)) })
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin, F: FnMut(u64)> Shaped<S, F> {
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        if self.shape.limit == Some(self.sent) {
            return self.end().await;
        }
        if self.shape.hold == Some(self.sent) {
            self.release.wait_for(|released| *released).await.ok()?;
        }
        if self.shape.cut == Some(self.sent) {
            self.left().await;
            return Some(Err(Failure::new("the connection is cut")));
        }
        while self.rest.is_empty() {
            match self.source.next().await {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Some(Err(Failure::new(error))),
                None => return self.end().await,
            }
        }
        let stops = [self.shape.limit, self.shape.hold, self.shape.cut].into_iter().flatten();
        let next = stops.filter(|stop| *stop > self.sent).map(|stop| stop - self.sent);
        let pace = self.shape.bytes_per_second.map(|rate| (rate / 20).max(1));
        let most = next.chain(pace).min().unwrap_or(u64::MAX);
        let mut piece = self.rest.split_to(self.rest.len().min(usize::try_from(most).unwrap_or(usize::MAX)));
        if let Some(rate) = self.shape.bytes_per_second {
            let due = (self.sent + piece.len() as u64) as f64 / rate as f64;
            tokio::time::sleep_until(self.started + Duration::from_secs_f64(due)).await;
        }
        if let Some(at) = self.shape.flip.and_then(|at| at.checked_sub(self.sent))
            && at < piece.len() as u64
        {
            let mut bytes = piece.to_vec();
            bytes[at as usize] ^= 0xff;
            piece = bytes.into();
        }
        self.sent += piece.len() as u64;
        (self.count)(piece.len() as u64);
        Some(Ok(piece))
    }

    /// Less than was promised also closes the connection.
    async fn end(&mut self) -> Option<Result<Bytes, Failure>> {
        if self.shape.announced.is_some_and(|announced| announced > self.sent) {
            self.left().await;
        }
        None
    }

    /// What was handed over before this is on its way once the connection was flushed after it.
    async fn left(&mut self) {
        let mut flushed = self.flushed.subscribe();
        let _ = flushed.changed().await;
    }
}
