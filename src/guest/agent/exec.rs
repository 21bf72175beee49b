//! One connection to the agent, and commands over it: gRPC over HTTP/2 without TLS.

use std::{net::Shutdown, path::Path};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    super::output::{Output, one_line},
    Error,
    messages::{Bytes, Command, ExecRequest, ExecResponse, Request, Response},
    socket,
};

/// Far below what a gRPC server takes in one message (4 MiB unless told otherwise).
const PIECE: usize = 32 << 10;
/// How long the end of the output may trail behind the exit code.
const TRAILING_OUTPUT: std::time::Duration = std::time::Duration::from_millis(500);

/// A command that came to its end in the guest.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None`: by a signal.
    pub exit: Option<u32>,
    pub output: Output,
}

/// A connection. It is not kept alive by pings: a gRPC server takes more than a few of them for an attack.
pub(super) struct Agent {
    channel: Channel,
    at: String,
    _cut: Cut,
}

/// Ends the connection with the value that owns it: the library's own task would keep it until the other side has let go.
struct Cut(std::os::unix::net::UnixStream);

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Agent {
    pub async fn connect(path: &Path) -> Result<Agent, Error> {
        let at = path.display().to_string();
        let retry = |what: &str, e: &dyn std::fmt::Display| Error::Retry(format!("{what} {at}: {}", one_line(e)));
        let stream = socket::connect(path).await.map_err(|e| retry("cannot connect to", &e))?;
        let stream = stream.into_std().map_err(|e| retry("cannot use the connection to", &e))?;
        let cut = Cut(stream.try_clone().map_err(|e| retry("cannot use the connection to", &e))?);
        let stream = UnixStream::from_std(stream).map_err(|e| retry("cannot use the connection to", &e))?;

        // A connection that broke is not made again behind our back: half a script would be followed by the other half.
        let mut stream = Some(stream);
        let once = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection was closed"));
            async move { stream.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(once)
            .await
            .map_err(|e| retry("no gRPC session with", &chain(&e)))?;
        Ok(Agent { channel, at, _cut: cut })
    }

    /// Runs a command to its end. Dropping the future closes its stream, on which the agent kills it.
    pub async fn run(&self, name: &str, args: &[&str], input: Option<&[u8]>) -> Result<Ended, Error> {
        let command = Command {
            name: name.to_owned(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            interactive: input.is_some(),
            tty: false,
        };
        let (to, requests) = mpsc::channel(4);
        let send = async {
            // A failure to send is no news: the agent's answer or the end of the connection tells more.
            let _ = to.send(ExecRequest { kind: Some(Request::Command(command)) }).await;
            if let Some(input) = input {
                // The last piece has no bytes, which is the end of the input.
                for piece in input.chunks(PIECE).chain([&[][..]]) {
                    let input = Bytes { data: piece.to_vec() };
                    if to.send(ExecRequest { kind: Some(Request::StandardInput(input)) }).await.is_err() {
                        break;
                    }
                }
            }
            // Whether an agent takes the end of the requests for the end of the stream is not ours to find out.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = self.receive(ReceiverStream::new(requests)) => ended,
            () = send => unreachable!("it never ends"),
        }
    }

    async fn receive(&self, requests: ReceiverStream<ExecRequest>) -> Result<Ended, Error> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| self.lost(&chain(&e)))?;
        let codec = ProstCodec::<ExecRequest, ExecResponse>::default();
        let path = PathAndQuery::from_static("/Agent/Exec");
        let mut answers = grpc
            .streaming(tonic::Request::new(requests), path, codec)
            .await
            .map_err(|status| self.refused(&status))?
            .into_inner();

        let mut output = Output::default();
        let mut exit = None;
        loop {
            let answer = match exit {
                None => answers.message().await.map_err(|status| self.refused(&status))?,
                // The exit code is what we came for; what goes wrong after it is of no interest.
                Some(_) => match timeout(TRAILING_OUTPUT, answers.message()).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) | Err(_) => None,
                },
            };
            match answer.map(|a| a.kind) {
                Some(Some(Response::StandardOutput(piece) | Response::StandardError(piece))) => {
                    output.push(&piece.data);
                }
                Some(Some(Response::Exit(code))) => exit = Some(u32::try_from(code.code).ok()),
                // A kind of message that a later agent may have.
                Some(None) => {}
                None => break,
            }
        }
        match exit {
            Some(exit) => Ok(Ended { exit, output }),
            None => Err(self.lost(&"the command's end was not seen")),
        }
    }

    fn refused(&self, status: &tonic::Status) -> Error {
        use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
        let said = match std::error::Error::source(status) {
            Some(source) => chain(source),
            None => format!("{:?} {}", status.code(), status.message()),
        };
        match status.code() {
            Unimplemented | PermissionDenied | Unauthenticated => {
                Error::Unusable(format!("what answers at {} runs no commands: {}", self.at, one_line(&said)))
            }
            _ => self.lost(&said),
        }
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Retry(format!("the session with the agent at {} broke off: {}", self.at, one_line(why)))
    }
}

/// The outermost of the library's errors says "transport error" and no more.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = error.source();
    }
    text
}
