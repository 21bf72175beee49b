//! The guest agent, as far as Tart uses it: runs a command, tells the guest's address.
//!
//! - A command lives as long as its stream: when that goes, the command and all of its process group are killed.
//! - Its exit is told when its output has ended, so whoever it leaves behind with its output open keeps the stream open.

use std::{
    convert::Infallible,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, ChildStdin},
    sync::mpsc,
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, UnboundedReceiverStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    proto::{Ask, Chunk, Command, ExecRequest, ExecResponse, Exit, ResolveIpRequest, ResolveIpResponse, Tell},
    socket::Player,
};

pub type Answers = mpsc::Sender<Result<ExecResponse, Status>>;

pub async fn serve(
    player: Player,
    ip: String,
    connections: UnboundedReceiverStream<Result<UnixStream, std::io::Error>>,
) {
    let agent = AgentService { player, ip };
    let _ = tonic::transport::Server::builder().add_service(agent).serve_with_incoming(connections).await;
}

#[derive(Clone)]
struct AgentService {
    player: Player,
    ip: String,
}

impl NamedService for AgentService {
    const NAME: &'static str = "Agent";
}

impl Service<http::Request<Body>> for AgentService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let agent = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/Agent/Exec" => Grpc::new(ProstCodec::default()).streaming(ExecMethod(agent), request).await,
                "/Agent/ResolveIP" => Grpc::new(ProstCodec::default()).unary(ResolveMethod(agent), request).await,
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

struct ResolveMethod(AgentService);

impl UnaryService<ResolveIpRequest> for ResolveMethod {
    type Response = ResolveIpResponse;
    type Future = BoxFuture<Response<ResolveIpResponse>, Status>;

    fn call(&mut self, _: Request<ResolveIpRequest>) -> Self::Future {
        let ip = self.0.ip.clone();
        Box::pin(async move { Ok(Response::new(ResolveIpResponse { ip })) })
    }
}

struct ExecMethod(AgentService);

impl StreamingService<ExecRequest> for ExecMethod {
    type Response = ExecResponse;
    type ResponseStream = Pin<Box<ReceiverStream<Result<ExecResponse, Status>>>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<ExecRequest>>) -> Self::Future {
        let player = self.0.player.clone();
        Box::pin(async move {
            let (answers, stream) = mpsc::channel(16);
            // The answer's head goes out before the first request came in: a client may wait for one with the other.
            tokio::spawn(run(player, request.into_inner(), answers));
            Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
        })
    }
}

async fn run(player: Player, mut asks: Streaming<ExecRequest>, answers: Answers) {
    let done = async {
        let command = match asks.message().await? {
            Some(ExecRequest { ask: Some(Ask::Command(command)) }) => command,
            _ => return Err(Status::failed_precondition("expected command as the first message")),
        };
        match player {
            Player::Guest(shell) => shell.run(command, input(asks), &answers).await,
            Player::Host | Player::Nobody => on_this_machine(command, input(asks), &answers).await,
        }
    };
    if let Err(status) = done.await {
        let _ = answers.send(Err(status)).await;
    }
}

/// What comes for the command's standard input. `None`: it has ended. The sender goes when the stream breaks.
pub type Input = mpsc::Receiver<Option<Vec<u8>>>;

fn input(mut asks: Streaming<ExecRequest>) -> Input {
    let (to, input) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(ask) = asks.next().await {
            let Ok(ask) = ask else { return };
            if let Some(Ask::StandardInput(Chunk { data })) = ask.ask
                && to.send(Some(data).filter(|d| !d.is_empty())).await.is_err()
            {
                return;
            }
        }
        // The client has nothing more to ask, which is not the end of the input and not the end of the stream.
        to.closed().await;
    });
    input
}

async fn on_this_machine(command: Command, mut input: Input, answers: &Answers) -> Result<(), Status> {
    let mut child = tokio::process::Command::new(&command.name)
        .args(&command.args)
        // This machine is not the guest.
        .env("MAYFLY_NO_POWER_OFF", "1")
        .stdin(if command.interactive { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| Status::internal(format!("failed to start {}: {e}", command.name)))?;
    let _group = Group(child.id());
    let mut stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let life = async {
        let out = copy(stdout, answers, |data| Tell::StandardOutput(Chunk { data }));
        let err = copy(stderr, answers, |data| Tell::StandardError(Chunk { data }));
        tokio::join!(out, err);
        code(&mut child).await
    };
    let feed = async {
        while let Some(data) = input.recv().await {
            write(&mut stdin, data).await;
        }
    };
    tokio::select! {
        code = life => {
            let _ = answers.send(Ok(ExecResponse { tell: Some(Tell::Exit(Exit { code })) })).await;
        }
        () = feed => {}
        () = answers.closed() => {}
    }
    Ok(())
}

async fn write(stdin: &mut Option<ChildStdin>, data: Option<Vec<u8>>) {
    match (data, &mut *stdin) {
        // What the command no longer reads is lost.
        (Some(data), Some(open)) => drop(open.write_all(&data).await),
        (None, _) => *stdin = None,
        (Some(_), None) => {}
    }
}

async fn copy(from: Option<impl AsyncRead + Unpin>, answers: &Answers, tell: impl Fn(Vec<u8>) -> Tell) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if answers.send(Ok(ExecResponse { tell: Some(tell(buffer[..n].to_vec())) })).await.is_err() {
            return;
        }
    }
}

async fn code(child: &mut Child) -> i32 {
    // As Go puts it: -1 for a command that a signal has ended.
    child.wait().await.ok().and_then(|s| s.code()).unwrap_or(-1)
}

/// Ends with everything in it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
