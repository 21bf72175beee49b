//! The agent of a real guest is played over SSH. A client sees no difference: the guest answers or it does not.

use std::{path::PathBuf, sync::Arc};

use russh::{
    ChannelMsg,
    client::{self, Handle},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::sync::Mutex;
use tonic::Status;

use super::{
    agent::{Answers, Input},
    proto::{Chunk, Command, ExecResponse, Exit, Tell},
};
use crate::control::Qemu;

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

    /// The session there is, or a new one.
    pub async fn session(&self) -> Result<Arc<Handle<AnyHost>>, String> {
        let mut held = self.session.lock().await;
        if let Some(session) = held.as_ref().filter(|s| !s.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let path = self.key.as_ref().ok_or("no key in double.json")?;
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let key = russh::keys::decode_secret_key(&text, None).map_err(|e| e.to_string())?;
        let config = Arc::new(client::Config { nodelay: true, ..client::Config::default() });
        let address = (self.at.0.as_str(), self.at.1);
        let mut session = client::connect(config, address, AnyHost).await.map_err(|e| e.to_string())?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let login = session.authenticate_publickey(&self.user, key).await.map_err(|e| e.to_string())?;
        if !login.success() {
            return Err("login refused".to_owned());
        }
        let session = Arc::new(session);
        *held = Some(Arc::clone(&session));
        Ok(session)
    }

    pub async fn run(&self, command: Command, mut input: Input, answers: &Answers) -> Result<(), Status> {
        let lost = |e: &dyn std::fmt::Display| Status::unavailable(e.to_string());
        let session = self.session().await.map_err(|e| lost(&e))?;
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
        let Ok(session) = self.session().await else { return };
        let Ok(mut channel) = session.channel_open_session().await else { return };
        if channel.exec(true, format!("kill -9 -{group}")).await.is_ok() {
            while channel.wait().await.is_some() {}
        }
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
