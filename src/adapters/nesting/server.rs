//! The Unix socket, and gRPC on it.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::Grpc,
    transport::Server,
};
use tonic_prost::ProstCodec;

use super::{
    messages::{CreateRequest, DeleteRequest, InitRequest},
    section::NestingSection,
    service::Nesting,
};
use crate::client::ServiceOptions;

/// Calls of one connection that are worked on at once.
const CALLS: usize = 64;
/// Pause after a connection that could not be accepted, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The socket. From here on no other process can take it over.
pub struct NestingListener(UnixListener);

impl NestingListener {
    /// Replaces a socket on which nothing listens any more. Anything else at the path is left as it is.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else than a socket"));
            }
            Ok(_) => match tokio::net::UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens on it")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }
}

/// Serves until the shutdown. Calls that still wait then end with their connections.
pub async fn serve(
    listener: NestingListener,
    section: NestingSection,
    service: ServiceOptions,
    shutdown: CancellationToken,
) {
    let api = NestingApi { nesting: Arc::new(Nesting::new(section, service)) };
    let connections = stream::unfold(listener.0, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok::<_, io::Error>(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the socket of nesting");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    let server = Server::builder().concurrency_limit_per_connection(CALLS);
    let served = server.serve_with_incoming(api, Box::pin(connections));
    if let Some(Err(error)) = shutdown.run_until_cancelled(served).await {
        tracing::error!(%error, "the socket of nesting has failed");
    }
}

#[derive(Clone)]
struct NestingApi {
    nesting: Arc<Nesting>,
}

impl Service<http::Request<Body>> for NestingApi {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let nesting = self.nesting.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/nesting.Nesting/Init" => unary(request, async move |_: InitRequest| nesting.init()).await,
                "/nesting.Nesting/Create" => {
                    unary(request, async move |asked: CreateRequest| nesting.create(asked).await).await
                }
                "/nesting.Nesting/Delete" => {
                    unary(request, async move |asked: DeleteRequest| nesting.delete(&asked.id).await).await
                }
                "/nesting.Nesting/List" => unary(request, async move |(): ()| nesting.list().await).await,
                "/nesting.Nesting/Shutdown" => unary(request, async move |(): ()| nesting.shutdown()).await,
                path => Status::unimplemented(format!("nesting has no method {path:.100?}")).into_http(),
            })
        })
    }
}

async fn unary<Asked, Answer, Work>(
    request: http::Request<Body>,
    perform: impl FnOnce(Asked) -> Work + Send + 'static,
) -> http::Response<Body>
where
    Asked: prost::Message + Default + Send + 'static,
    Answer: prost::Message + Default + Send + 'static,
    Work: Future<Output = Result<Answer, Status>> + Send + 'static,
{
    let mut perform = Some(perform);
    let handler = tower::service_fn(move |request: Request<Asked>| {
        let work = perform.take().map(|perform| perform(request.into_inner()));
        async move {
            match work {
                Some(work) => work.await.map(Response::new),
                // One call has one message.
                None => Err(Status::internal("a second message")),
            }
        }
    });
    Grpc::new(ProstCodec::<Answer, Asked>::default()).unary(handler, request).await
}
