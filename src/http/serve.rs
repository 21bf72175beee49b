//! Listeners: accept connections, and shut down without aborting requests.
//!
//! On shutdown a listener stops accepting, and each connection finishes its current request; requests that have not
//! finished after [`GRACE`] are aborted. Streams and long polls end by themselves, because they watch the same
//! signal.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long requests may take to finish when the service shuts down.
const GRACE: Duration = Duration::from_secs(10);
/// A client that takes longer to send its headers is disconnected.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Concurrent connections per listener. Further clients wait in the system's queue.
const MAX_CONNECTIONS: usize = 4096;

pub async fn serve_tcp(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let accept = async move || {
        let (stream, _) = listener.accept().await?;
        // Small answers are sent at once, without waiting for more data.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    };
    match tls.map(TlsAcceptor::from) {
        None => serve(accept, plain, router, shutdown).await,
        Some(tls) => {
            let greet = move |stream| {
                let tls = tls.clone();
                async move { tls.accept(stream).await }
            };
            serve(accept, greet, router, shutdown).await;
        }
    }
}

pub async fn serve_unix(listener: UnixListener, router: Router, shutdown: CancellationToken) {
    let accept = async move || Ok(listener.accept().await?.0);
    serve(accept, plain, router, shutdown).await;
}

/// A connection without a handshake.
async fn plain<I>(stream: I) -> io::Result<I> {
    Ok(stream)
}

/// `greet` is the handshake before the first request, such as TLS; it does not block accepting other connections.
async fn serve<A, I, G>(
    accept: impl AsyncFn() -> io::Result<A>,
    greet: impl Fn(A) -> G,
    router: Router,
    shutdown: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Future<Output = io::Result<I>> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            (accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            next = next => next,
        };
        let io = match accepted {
            Ok(io) => io,
            Err(error) => {
                // No free descriptors, or the client left before it was accepted. Neither ends the listener.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = router.clone().map_request(|request: Request<Incoming>| request.map(Body::new));
        let service = service.map_err(|never: Infallible| match never {});
        let (greeting, watcher) = (greet(io), graceful.watcher());
        let ending = shutdown.clone();
        connections.spawn(async move {
            // A client that has not finished its handshake does not delay the shutdown.
            let greeting = tokio::time::timeout(HEADERS_WITHIN, ending.run_until_cancelled(greeting));
            match greeting.await.map(|greeted| greeted.unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()))) {
                Ok(Ok(io)) => {
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADERS_WITHIN)
                        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
                    // A client that disconnects is not worth a log line.
                    if let Err(error) = watcher.watch(connection).await {
                        tracing::trace!(%error, "a connection ended with an error");
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake timed out"),
            }
            drop(place);
        });
    }
    // Closes the socket, so that new clients are refused at once.
    drop(accept);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("aborted requests that had not finished {} s after the shutdown began", GRACE.as_secs());
    }
    connections.shutdown().await;
}
