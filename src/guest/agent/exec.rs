//! One connection to the agent, and scripts that run over it: gRPC over HTTP/2 without TLS.
//!
//! The agent's report of a command's end is not reliable. It closes the command's pipes when the process has ended,
//! whether or not they were read completely: the last output may be missing, an error about a closed pipe may replace
//! the exit code, and code zero may stand for a missing code. So the script itself prints its end, as a line that
//! nothing else can print, and the command stays alive until that line was read.

use std::{net::Shutdown, path::Path};

use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use super::{
    super::output::{TailBuffer, one_line},
    Error,
    messages::{AgentCommand, AgentRequest, Bytes, ExecRequest, ExecResponse, Response},
    socket,
};
use crate::platform::error_chain;

/// Far below the message limit of a gRPC server (4 MiB by default).
pub(super) const PIECE: usize = 32 << 10;
/// How long the agent may take to close a stream after the end mark.
const CLOSING: std::time::Duration = std::time::Duration::from_millis(500);

/// Runs the script on standard input, prints its exit code after the mark, and waits for the end of the input.
const COMMAND: &str = r#"/bin/sh -s 2>&1; code=$?; printf '\n%s %s\n' "$1" "$code"; cat >/dev/null; exit "$code""#;

/// The result of a script that ended in the guest.
#[derive(Debug)]
pub(super) struct Ended {
    /// As in the shell: above 128 if a signal ended it.
    pub exit: u32,
    pub output: TailBuffer,
}

/// A connection, without keepalive pings: a gRPC server takes more than a few of them for an attack.
pub(super) struct Agent {
    channel: Channel,
    at: String,
    _cut: AgentDisconnect,
}

/// Aborts the connection when its owner is dropped: the library's own task would keep it until the other side closes.
struct AgentDisconnect(std::os::unix::net::UnixStream);

impl Drop for AgentDisconnect {
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
        let cut = AgentDisconnect(stream.try_clone().map_err(|e| retry("cannot use the connection to", &e))?);
        let stream = UnixStream::from_std(stream).map_err(|e| retry("cannot use the connection to", &e))?;

        // A broken connection is not re-established implicitly: half a script would be followed by the other half.
        let mut stream = Some(stream);
        let once = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection was closed"));
            async move { stream.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(once)
            .await
            .map_err(|e| retry("no gRPC session with", &error_chain(&e)))?;
        Ok(Agent { channel, at, _cut: cut })
    }

    /// Runs a script to its end. Dropping the future closes its stream, whereupon the agent kills the command.
    pub async fn run(&self, script: &[u8]) -> Result<Ended, Error> {
        let mark = Uuid::new_v4().simple().to_string();
        let command = AgentCommand {
            name: "/bin/sh".to_owned(),
            args: ["-c", COMMAND, "sh", &mark].map(str::to_owned).into(),
            interactive: true,
            tty: false,
            terminal_size: None,
        };
        let (to, requests) = mpsc::channel(4);
        let end_mark_seen = Notify::new();
        let send = async {
            let input =
                |piece: &[u8]| ExecRequest { kind: Some(AgentRequest::StandardInput(Bytes { data: piece.to_vec() })) };
            // An error of sending is ignored: the agent's answer or the end of the connection is more precise.
            let _ = to.send(ExecRequest { kind: Some(AgentRequest::Command(command)) }).await;
            // The input stays open, so the shell needs an explicit end of the script.
            for piece in script.chunks(PIECE).chain([&b"\nexit\n"[..]]) {
                if to.send(input(piece)).await.is_err() {
                    break;
                }
            }
            end_mark_seen.notified().await;
            // A message without bytes is the end of the input.
            let _ = to.send(input(&[])).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = self.receive(ReceiverStream::new(requests), &mark, &end_mark_seen) => ended,
            () = send => unreachable!("it never ends"),
        }
    }

    async fn receive(
        &self,
        requests: ReceiverStream<ExecRequest>,
        mark: &str,
        end_mark_seen: &Notify,
    ) -> Result<Ended, Error> {
        let call = self.call();
        let mut answers = call.start(requests).await?;

        let mark = format!("\n{mark} ").into_bytes();
        let mut output = TailBuffer::default();
        let mut said = Vec::new();
        let exit = loop {
            let answer = answers.message().await.map_err(|status| call.refused(&status))?;
            match answer.map(|a| a.kind) {
                Some(Some(Response::StandardOutput(piece))) if !said.is_empty() => said.extend_from_slice(&piece.data),
                Some(Some(Response::StandardOutput(piece))) => {
                    output.push(&piece.data);
                    let within = piece.data.len() + mark.len();
                    if let Some(after) = output.split_off(&mark, within) {
                        // The code may come in the next piece: one byte stands for "the mark was found".
                        said = [&b" "[..], &after].concat();
                    }
                }
                // The script's own code is in the output; this is the code of the shell around it.
                Some(Some(Response::StandardError(piece))) => output.push(&piece.data),
                Some(Some(Response::Exit(_))) => {
                    let why = format!("the command ended without a word, {:?}", output.tail());
                    return Err(call.lost(&why));
                }
                // A kind of message of a later agent.
                Some(None) => {}
                None => return Err(call.lost(&"the command's end was not seen")),
            }
            if let Some(end) = said.iter().position(|&b| b == b'\n') {
                let code = std::str::from_utf8(&said[..end]).ok().and_then(|l| l.trim_start().parse().ok());
                break code.ok_or_else(|| call.lost(&"the end mark of the command cannot be parsed"))?;
            }
        };
        end_mark_seen.notify_one();
        // The rest of the output is not needed, but the agent may end properly.
        let _ = timeout(CLOSING, async { while let Ok(Some(_)) = answers.message().await {} }).await;
        Ok(Ended { exit, output })
    }

    /// Each runs one command. The connection has to outlive it.
    pub fn call(&self) -> AgentCall {
        AgentCall { channel: self.channel.clone(), at: self.at.clone() }
    }
}

/// A call of the agent's method `Exec`.
pub(super) struct AgentCall {
    channel: Channel,
    at: String,
}

impl AgentCall {
    pub async fn start(&self, requests: ReceiverStream<ExecRequest>) -> Result<Streaming<ExecResponse>, Error> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| self.lost(&error_chain(&e)))?;
        let codec = ProstCodec::<ExecRequest, ExecResponse>::default();
        let path = PathAndQuery::from_static("/Agent/Exec");
        let answers = grpc.streaming(tonic::Request::new(requests), path, codec).await;
        Ok(answers.map_err(|status| self.refused(&status))?.into_inner())
    }

    pub fn refused(&self, status: &tonic::Status) -> Error {
        use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
        let said = match std::error::Error::source(status) {
            Some(source) => error_chain(source),
            None => format!("{:?} {}", status.code(), status.message()),
        };
        match status.code() {
            Unimplemented | PermissionDenied | Unauthenticated => {
                Error::Unusable(format!("what answers at {} runs no commands: {}", self.at, one_line(&said)))
            }
            _ => self.lost(&said),
        }
    }

    pub fn lost(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Retry(format!("the session with the agent at {} broke off: {}", self.at, one_line(why)))
    }
}
