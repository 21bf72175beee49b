//! The agent of a real guest is simulated over SSH. A client sees no difference: the guest answers or it does not.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use russh::{
    ChannelMsg,
    client::{self, Handle},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::{
    net::TcpStream,
    time::{interval, sleep, timeout},
};
use tonic::Status;

use super::{
    agent::{Answers, Input},
    proto::{Chunk, Command, ExecResponse, Exit, Tell},
};
use crate::control::Qemu;

/// Between connections to a guest that may not be there yet, and how long each of them waits.
const KNOCK: Duration = Duration::from_millis(500);
const BANNER: Duration = Duration::from_secs(3);
/// An emulated guest takes its time.
const LOGIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

pub struct Shell {
    at: (String, u16),
    user: String,
    key: Option<PathBuf>,
    session: Mutex<Option<Arc<Handle<AnyHost>>>>,
}

/// A guest that is as old as this process has no key that anybody could know.
pub struct AnyHost;

impl client::Handler for AnyHost {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

impl Shell {
    pub fn new(qemu: &Qemu, ip: &str) -> Shell {
        Shell {
            at: (ip.to_owned(), qemu.ssh_port),
            user: qemu.user.clone(),
            key: qemu.key.clone(),
            session: Mutex::default(),
        }
    }

    /// The session there is. Without one nobody listens in the guest.
    pub fn session(&self) -> Option<Arc<Handle<AnyHost>>> {
        self.session.lock().ok()?.as_ref().filter(|s| !s.is_closed()).map(Arc::clone)
    }

    /// Keeps a session for as long as the guest lives.
    pub async fn keep(&self) {
        loop {
            if self.session().is_none() {
                let stream = self.answered().await;
                if let Ok(session) = self.log_in(stream).await
                    && let Ok(mut held) = self.session.lock()
                {
                    *held = Some(Arc::new(session));
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// The first connection on which a guest speaks. QEMU takes connections before there is one, and then tries to pass them
    /// on ever more rarely: so new ones are made while the old ones wait.
    async fn answered(&self) -> TcpStream {
        let mut waiting = FuturesUnordered::new();
        let mut again = interval(KNOCK);
        loop {
            tokio::select! {
                // Any other answer: nobody is there, or not yet.
                Some(answer) = waiting.next() => if let Some(stream) = answer { return stream },
                _ = again.tick() => waiting.push(self.knock()),
            }
        }
    }

    async fn knock(&self) -> Option<TcpStream> {
        let stream = TcpStream::connect((self.at.0.as_str(), self.at.1)).await.ok()?;
        let banner = timeout(BANNER, stream.peek(&mut [0; 4])).await.ok()?.ok()?;
        (banner > 0).then_some(stream)
    }

    async fn log_in(&self, stream: TcpStream) -> Result<Handle<AnyHost>, String> {
        let path = self.key.as_ref().ok_or("no key in double.json")?;
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let key = russh::keys::decode_secret_key(&text, None).map_err(|e| e.to_string())?;
        let config = Arc::new(client::Config { nodelay: true, ..client::Config::default() });
        let login = async {
            let mut session = client::connect_stream(config, stream, AnyHost).await.map_err(|e| e.to_string())?;
            let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
            let login = session.authenticate_publickey(&self.user, key).await.map_err(|e| e.to_string())?;
            if login.success() { Ok(session) } else { Err("login refused".to_owned()) }
        };
        timeout(LOGIN, login).await.map_err(|e| e.to_string())?
    }

    pub async fn run(&self, command: Command, mut input: Input, answers: &Answers) -> Result<(), Status> {
        let lost = |e: &dyn std::fmt::Display| Status::unavailable(e.to_string());
        let session = self.session().ok_or_else(|| lost(&"the guest is gone"))?;
        let mut channel = session.channel_open_session().await.map_err(|e| lost(&e))?;
        // A group of its own, to be found by its number when the stream goes. Its first line is not the command's.
        let script = "command -v \"$1\" >/dev/null 2>&1 || { echo none; exit 127; }; echo $$; exec \"$@\"";
        let words = ["setsid", "sh", "-c", script, "sh", &command.name];
        let words: Vec<String> = words.into_iter().chain(command.args.iter().map(String::as_str)).map(quoted).collect();
        let redirect = if command.interactive { "" } else { " </dev/null" };
        channel.exec(true, format!("{}{redirect}", words.join(" "))).await.map_err(|e| lost(&e))?;
        let mut group: Option<String> = None;
        let mut first = Vec::new();
        let mut code = None;
        let ended = loop {
            let message = tokio::select! {
                message = channel.wait() => message,
                data = input.recv(), if group.is_some() => {
                    match data {
                        Some(Some(data)) => drop(channel.data(data.as_slice()).await),
                        Some(None) => drop(channel.eof().await),
                        None => break false,
                    }
                    continue;
                }
                () = answers.closed() => break false,
            };
            let tell = match message {
                Some(ChannelMsg::Data { data }) if group.is_none() => {
                    first.extend_from_slice(&data);
                    let Some(at) = first.iter().position(|b| *b == b'\n') else { continue };
                    let rest = first.split_off(at + 1);
                    let line = String::from_utf8_lossy(&first).trim().to_owned();
                    if line == "none" {
                        return Err(Status::internal(format!("failed to start {}: not found", command.name)));
                    }
                    group = Some(line);
                    Tell::StandardOutput(Chunk { data: rest })
                }
                Some(ChannelMsg::Data { data }) => Tell::StandardOutput(Chunk { data: data.to_vec() }),
                Some(ChannelMsg::ExtendedData { data, .. }) => Tell::StandardError(Chunk { data: data.to_vec() }),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    code = Some(exit_status as i32);
                    continue;
                }
                Some(ChannelMsg::ExitSignal { .. }) => {
                    code = Some(-1);
                    continue;
                }
                Some(ChannelMsg::Close) | None => break true,
                Some(_) => continue,
            };
            let empty = matches!(&tell, Tell::StandardOutput(c) | Tell::StandardError(c) if c.data.is_empty());
            if !empty && answers.send(Ok(ExecResponse { tell: Some(tell) })).await.is_err() {
                break false;
            }
        };
        match (ended, code) {
            (true, Some(code)) => {
                let _ = answers.send(Ok(ExecResponse { tell: Some(Tell::Exit(Exit { code })) })).await;
            }
            (true, None) => return Err(lost(&"the guest's end of the stream is gone")),
            (false, _) => self.kill(&group).await,
        }
        Ok(())
    }

    async fn kill(&self, group: &Option<String>) {
        let Some(group) = group else { return };
        let Some(session) = self.session() else { return };
        let Ok(mut channel) = session.channel_open_session().await else { return };
        if channel.exec(true, format!("kill -9 -{group}")).await.is_ok() {
            while channel.wait().await.is_some() {}
        }
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
