//! Ends connections whose client reads nothing while the service shuts down: an answer that cannot be sent would otherwise
//! hold the shutdown for its whole grace.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a client may read nothing of its answer once the shutdown has begun.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct StalledWrites<I> {
    io: I,
    shutdown: CancellationToken,
    begun: Pin<Box<WaitForCancellationFutureOwned>>,
    since: Option<Pin<Box<Sleep>>>,
}

impl<I> StalledWrites<I> {
    pub fn new(io: I, shutdown: CancellationToken) -> Self {
        let begun = Box::pin(shutdown.clone().cancelled_owned());
        Self { io, shutdown, begun, since: None }
    }

    /// What a write leads to that did (`Ready`) or did not make progress.
    fn judge<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.since = None;
            return write;
        }
        // Polled only until it is ready; wakes this task when the shutdown begins.
        if !self.shutdown.is_cancelled() && self.begun.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let since = self.since.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        match since.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for StalledWrites<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for StalledWrites<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(cx);
        self.judge(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn only_a_write_that_makes_no_progress_during_the_shutdown_fails() {
        let shutdown = CancellationToken::new();
        let (mut client, server) = duplex(16);
        let mut server = StalledWrites::new(server, shutdown.clone());
        server.write_all(&[0; 16]).await.unwrap();
        // Before the shutdown it may take any time.
        assert!(tokio::time::timeout(PATIENCE * 2, server.write_all(b"x")).await.is_err());
        shutdown.cancel();
        // A slow client that reads is served.
        let writing = tokio::spawn(async move {
            for _ in 0..4 {
                server.write_all(&[0; 16]).await?;
            }
            server.write_all(&[0; 16]).await
        });
        for _ in 0..4 {
            tokio::time::sleep(PATIENCE / 2).await;
            client.read_exact(&mut [0; 16]).await.unwrap();
        }
        let ended =
            tokio::time::timeout(PATIENCE * 3, writing).await.expect("it waits for a client that does not read");
        assert_eq!(ended.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
