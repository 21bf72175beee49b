//! A command or a shell in a guest, for a person or a program that looks into it.
//!
//! What runs belongs to its channel: the guest's SSH server hangs up on a terminal when the connection closes. A command
//! without a terminal may go on until it writes, as with any SSH client.

use std::sync::Arc;

use bytes::Bytes;
use russh::{
    ChannelMsg, ChannelReadHalf, ChannelWriteHalf,
    client::{self},
};
use tokio::time::{Instant, timeout_at};

use super::{SshConnection, SshError, SshTarget, TRAILING_OUTPUT};
use crate::platform::clock;

/// Messages of the guest that wait to be passed on, and bytes of each at most: what a session may hold in memory.
const MESSAGES: usize = 16;
const MESSAGE_BYTES: u32 = 32 << 10;

/// The caller's terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// As in the environment variable `TERM`.
    pub term: String,
    pub columns: u32,
    pub rows: u32,
}

/// How what ran has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionExit {
    Code(u32),
    /// Its name without `SIG`.
    Signal(String),
    /// The guest did not say.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one.
    Exited(SessionExit),
}

/// A login in a guest in which nothing runs yet. Closes its connection when it is dropped.
pub struct GuestLogin {
    connection: SshConnection,
    /// The key to pin: OpenSSH public key format, without a comment.
    pub host_key: String,
}

impl GuestLogin {
    pub async fn open(target: &SshTarget, deadline: Instant) -> Result<GuestLogin, SshError> {
        let config = client::Config {
            channel_buffer_size: MESSAGES,
            maximum_packet_size: MESSAGE_BYTES,
            window_size: MESSAGE_BYTES * 8,
            ..super::client_config()
        };
        let connection = SshConnection::to(target, config, deadline).await?;
        let host_key = connection.shown_host_key()?;
        Ok(GuestLogin { connection, host_key })
    }

    /// Runs a command of the user's shell, or without one the shell itself.
    pub async fn run(
        &self,
        command: Option<&str>,
        terminal: Option<&Terminal>,
    ) -> Result<(SessionReader, SessionWriter), SshError> {
        let lost = |error: russh::Error| self.connection.lost(&error);
        let channel = self.connection.handle.channel_open_session().await.map_err(lost)?;
        if let Some(Terminal { term, columns, rows }) = terminal {
            channel.request_pty(false, term, *columns, *rows, 0, 0, &[]).await.map_err(lost)?;
        }
        match command {
            Some(command) => channel.exec(true, command).await.map_err(lost)?,
            None => channel.request_shell(true).await.map_err(lost)?,
        }
        let (from, to) = channel.split();
        let at = self.connection.at.clone().into();
        Ok((SessionReader { from, at, exit: None }, SessionWriter { to }))
    }
}

pub struct SessionReader {
    from: ChannelReadHalf,
    at: Arc<str>,
    /// How it ended, and until when output may follow.
    exit: Option<(SessionExit, Instant)>,
}

impl SessionReader {
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<SessionOutput, SshError> {
        loop {
            let message = match &self.exit {
                None => self.from.wait().await,
                // Some servers keep the channel open as long as any process has it open.
                Some((_, until)) => timeout_at(*until, self.from.wait()).await.unwrap_or(None),
            };
            let until = clock::monotonic() + TRAILING_OUTPUT;
            match message {
                Some(ChannelMsg::Data { data }) => return Ok(SessionOutput::Stdout(data)),
                Some(ChannelMsg::ExtendedData { data, .. }) => return Ok(SessionOutput::Stderr(data)),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.exit = Some((SessionExit::Code(exit_status), until));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    let name = match signal_name {
                        russh::Sig::Custom(name) => name,
                        known => format!("{known:?}"),
                    };
                    self.exit = Some((SessionExit::Signal(name), until));
                }
                Some(ChannelMsg::Failure) => {
                    return Err(SshError::Retry(format!("{} refused to run a command", self.at)));
                }
                Some(ChannelMsg::Close) | None => {
                    return match self.exit.take() {
                        Some((exit, _)) => Ok(SessionOutput::Exited(exit)),
                        None if message.is_some() => Ok(SessionOutput::Exited(SessionExit::Unknown)),
                        None => Err(SshError::Retry(format!("the SSH session with {} broke off", self.at))),
                    };
                }
                Some(_) => {}
            }
        }
    }
}

pub struct SessionWriter {
    to: ChannelWriteHalf<client::Msg>,
}

impl SessionWriter {
    /// Returns when the guest has room for it. After the end of what runs, input is ignored.
    pub async fn input(&self, bytes: Bytes) {
        let _ = self.to.data_bytes(bytes).await;
    }

    pub async fn end_of_input(&self) {
        let _ = self.to.eof().await;
    }

    pub async fn resize(&self, columns: u32, rows: u32) {
        let _ = self.to.window_change(columns, rows, 0, 0).await;
    }
}
