//! A command or a shell in a guest, over SSH.
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

use super::{
    super::session_output::{SessionExit, SessionOutput, Terminal},
    SshConnection, SshError, SshTarget, TRAILING_OUTPUT,
};
use crate::platform::clock;

/// Messages of the guest that wait to be passed on, and bytes of each at most: what a session may hold in memory.
const MESSAGES: usize = 16;
const MESSAGE_BYTES: u32 = 32 << 10;

/// A login in a guest, in which nothing runs yet. Closes its connection when it is dropped.
pub struct SshSession {
    connection: SshConnection,
    /// The key to pin: OpenSSH public key format, without a comment.
    pub host_key: String,
}

impl SshSession {
    pub async fn open(target: &SshTarget, deadline: Instant) -> Result<SshSession, SshError> {
        let config = client::Config {
            channel_buffer_size: MESSAGES,
            maximum_packet_size: MESSAGE_BYTES,
            window_size: MESSAGE_BYTES * 8,
            ..super::client_config()
        };
        let connection = SshConnection::to(target, config, deadline).await?;
        let host_key = connection.shown_host_key()?;
        Ok(SshSession { connection, host_key })
    }

    /// Runs a command of the user's shell, or without one the shell itself.
    pub async fn run(
        &self,
        command: Option<&str>,
        terminal: Option<&Terminal>,
    ) -> Result<(SshReader, SshWriter), SshError> {
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
        Ok((SshReader { from, at, exit: None }, SshWriter { to }))
    }
}

pub struct SshReader {
    from: ChannelReadHalf,
    at: Arc<str>,
    /// How it ended, and until when output may follow.
    exit: Option<(SessionExit, Instant)>,
}

impl SshReader {
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

pub struct SshWriter {
    to: ChannelWriteHalf<client::Msg>,
}

impl SshWriter {
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
