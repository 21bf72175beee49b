//! `tart exec` and the agent's resolver, both through the socket that `run` listens on.

use std::{
    io::{Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::proto::{Ask, Chunk, Command, ExecRequest, ExecResponse, ResolveIpRequest, ResolveIpResponse, Tell};
use crate::{
    control::Control,
    failure::Failure,
    home::Home,
    output,
    vm::{State, Vm},
};

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::Double(format!("runtime: {e}")))
}

/// From within the VM's directory: a path to it would be too long for a socket.
async fn connect() -> Result<Grpc<Channel>, String> {
    let connector = tower::service_fn(|_| async { UnixStream::connect("control.sock").await.map(TokioIo::new) });
    let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await;
    let mut client = Grpc::new(channel.map_err(|e| e.to_string())?);
    client.ready().await.map_err(|e| e.to_string())?;
    Ok(client)
}

pub fn exec(
    home: &Home,
    control: &Control,
    name: &str,
    interactive: bool,
    tty: bool,
    command: Vec<String>,
) -> Result<u8, Failure> {
    let vm = Vm::open(home, name)?;
    if vm.state() != State::Running {
        return Err(Failure::not_running(name));
    }
    std::env::set_current_dir(&vm.dir).map_err(|e| Failure::io("chdir", &e))?;
    let mut words = command.into_iter();
    let name = words.next().unwrap_or_default();
    let command = Command { name, args: words.collect(), interactive, tty, terminal_size: None };
    runtime()?.block_on(run(control, interactive, command))
}

async fn run(control: &Control, interactive: bool, command: Command) -> Result<u8, Failure> {
    let end = Instant::now() + Duration::from_millis(control.agent_patience_ms);
    let (asks, mut answers) = loop {
        let (asks, stream) = mpsc::channel(16);
        let ask = Ask::Command(command.clone());
        let _ = asks.send(ExecRequest { ask: Some(ask) }).await;
        match call(stream).await {
            Ok(answers) => break (asks, answers),
            Err(why) if Instant::now() >= end => {
                return Err(Failure::runtime(format!(
                    "Failed to connect to the VM using its control socket: {why}, is the Tart Guest Agent running?"
                )));
            }
            // Nothing tells when an agent begins to listen.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    if interactive {
        // A thread of its own, because a read that never ends must not keep the process.
        let asks = asks.clone();
        std::thread::spawn(move || feed(&asks));
    }
    let ended = loop {
        match answers.message().await {
            Ok(Some(ExecResponse { tell })) => match tell {
                Some(Tell::StandardOutput(chunk)) => output::bytes(&chunk.data),
                Some(Tell::StandardError(chunk)) => drop(std::io::stderr().write_all(&chunk.data)),
                Some(Tell::Exit(exit)) => break Ok((exit.code & 0xff) as u8),
                None => {}
            },
            Ok(None) => break Err(Failure::Other("the stream ended without an exit code".to_owned())),
            Err(status) => break Err(Failure::Other(format!("{}: {}", status.code(), status.message()))),
        }
    };
    drop(asks);
    ended
}

async fn call(asks: mpsc::Receiver<ExecRequest>) -> Result<Streaming<ExecResponse>, String> {
    let mut client = connect().await?;
    let path = PathAndQuery::from_static("/Agent/Exec");
    let codec = ProstCodec::<ExecRequest, ExecResponse>::default();
    let answers = client.streaming(Request::new(ReceiverStream::new(asks)), path, codec).await;
    answers.map(tonic::Response::into_inner).map_err(|e: Status| e.message().to_owned())
}

fn feed(asks: &mpsc::Sender<ExecRequest>) {
    let mut input = std::io::stdin().lock();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let n = input.read(&mut buffer).unwrap_or(0);
        let ask = Some(Ask::StandardInput(Chunk { data: buffer[..n].to_vec() }));
        if asks.blocking_send(ExecRequest { ask }).is_err() || n == 0 {
            return;
        }
    }
}

/// One attempt of the `agent` resolver: a second at most.
pub fn resolve(dir: &Path) -> Option<String> {
    std::env::set_current_dir(dir).ok()?;
    let asked = async {
        let mut client = connect().await.ok()?;
        let path = PathAndQuery::from_static("/Agent/ResolveIP");
        let codec = ProstCodec::<ResolveIpRequest, ResolveIpResponse>::default();
        let answer = client.unary(Request::new(ResolveIpRequest {}), path, codec).await.ok()?;
        Some(answer.into_inner().ip)
    };
    let limited = async { tokio::time::timeout(Duration::from_secs(1), asked).await.ok().flatten() };
    runtime().ok()?.block_on(limited)
}
