//! Listeners: accept connections, and shut down without aborting requests.
//!
//! On shutdown a listener stops accepting, and each connection finishes its current request; requests that have not
//! finished after [`GRACE`] are aborted. Streams and long polls end by themselves, because they watch the same
//! signal. A client that does not read its answer is disconnected after a second.

use std::{convert::Infallible, io, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{connections::OpenConnections, sender::Peer, stalled::StalledWrites};

/// How long requests may take to finish when the service shuts down.
const GRACE: Duration = Duration::from_secs(10);
/// A client that takes longer to send its headers is disconnected.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Largest head of a request, and the read buffer of a connection, in bytes. A longer head is refused with 431.
const MAX_HEAD: usize = 32 * 1024;

pub async fn serve_tcp(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    max_connections: usize,
    router: Router,
    shutdown: CancellationToken,
) {
    let accept = async move || {
        let (stream, address) = listener.accept().await?;
        // Small answers are sent at once, without waiting for more data.
        let _ = stream.set_nodelay(true);
        Ok((stream, Peer::of_address(address.ip())))
    };
    let connections = OpenConnections::new(max_connections);
    match tls.map(TlsAcceptor::from) {
        None => serve(accept, plain, connections, router, shutdown).await,
        Some(tls) => {
            let greet = move |stream| {
                let tls = tls.clone();
                async move { tls.accept(stream).await }
            };
            serve(accept, greet, connections, router, shutdown).await;
        }
    }
}

pub async fn serve_unix(listener: UnixListener, max_connections: usize, router: Router, shutdown: CancellationToken) {
    let accept = async move || {
        let (stream, _) = listener.accept().await?;
        let process = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
        Ok((stream, process.map_or(Peer::Unknown, Peer::Process)))
    };
    serve(accept, plain, OpenConnections::new(max_connections), router, shutdown).await;
}

/// A connection without a handshake.
async fn plain<I>(stream: I) -> io::Result<I> {
    Ok(stream)
}

/// `greet` is the handshake before the first request, such as TLS; it does not block accepting other connections.
async fn serve<A, I, G>(
    accept: impl AsyncFn() -> io::Result<(A, Peer)>,
    greet: impl Fn(A) -> G,
    connections: OpenConnections,
    router: Router,
    shutdown: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Future<Output = io::Result<I>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Some(accepted) = shutdown.run_until_cancelled(accept()).await else { break };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No free descriptors, or the client left before it was accepted. Neither ends the listener.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(connection) = shutdown.run_until_cancelled(connections.admit(peer)).await else { break };
        let connection = Arc::new(connection);
        let (router, served) = (router.clone(), connection.clone());
        let service = tower::service_fn(move |request: Request<Incoming>| {
            let (router, serving) = (router.clone(), served.serve());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(served.peer);
            async move { router.oneshot(request).await.map(|response| serving.until_sent(response)) }
        });
        let service = service.map_err(|never: Infallible| match never {});
        let greeting = greet(io);
        let (ending, finishing, stalling) = (shutdown.clone(), shutdown.clone(), shutdown.clone());
        tasks.spawn(async move {
            let close = connection.close.clone();
            // A client that has not finished its handshake does not delay the shutdown.
            let ending = async {
                tokio::select! { () = ending.cancelled() => {}, () = close.cancelled() => {} }
            };
            let greeting = async {
                tokio::select! { greeted = greeting => Some(greeted), () = ending => None }
            };
            let greeting = tokio::time::timeout(HEADERS_WITHIN, greeting);
            match greeting.await.map(|greeted| greeted.unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()))) {
                Ok(Ok(io)) => {
                    let served = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADERS_WITHIN)
                        .max_buf_size(MAX_HEAD)
                        .serve_connection(
                            TokioIo::new(StalledWrites::new(io, stalling)),
                            TowerToHyperService::new(service),
                        )
                        .with_upgrades();
                    // After the shutdown began, the connection finishes its request.
                    let served = async {
                        let mut served = pin!(served);
                        tokio::select! {
                            ended = &mut served => return ended,
                            () = finishing.cancelled() => served.as_mut().graceful_shutdown(),
                        }
                        served.await
                    };
                    // A client that disconnects is not worth a log line.
                    match close.run_until_cancelled(served).await {
                        Some(Err(error)) => tracing::trace!(%error, "a connection ended with an error"),
                        Some(Ok(())) => {}
                        None => tracing::debug!("closed a connection without a request, for a new one"),
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake timed out"),
            }
            drop(connection);
        });
    }
    // Closes the socket, so that new clients are refused at once.
    drop(accept);
    let finished = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finished).await.is_err() {
        tracing::warn!("aborted requests that had not finished {} s after the shutdown began", GRACE.as_secs());
    }
    tasks.shutdown().await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use futures_util::{StreamExt as _, stream};
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};

    use super::*;
    use crate::platform::clock;

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_that_nobody_reads_do_not_delay_the_shutdown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let endless = move || async move {
            let pieces = stream::repeat_with(|| Ok::<_, Infallible>(vec![0_u8; 64 << 10]));
            Body::from_stream(pieces.take_until(ending.cancelled_owned()))
        };
        let router = Router::new().route("/", get(endless));
        let serving = tokio::spawn(serve_unix(UnixListener::bind(&path).unwrap(), 64, router, shutdown.clone()));
        let mut clients = Vec::new();
        for _ in 0..40 {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            client.readable().await.unwrap();
            clients.push(client);
        }
        let begun = clock::monotonic();
        shutdown.cancel();
        serving.await.unwrap();
        assert!(clock::elapsed(begun) < GRACE / 2, "{:?}", clock::elapsed(begun));
    }
}
