//! A command or a shell in a guest, for a person or a program that looks into it: over SSH, or through the agent in the guest.

use std::path::Path;

use bytes::Bytes;
use tokio::time::Instant;

pub use super::session_output::{SessionError, SessionExit, SessionOutput, Terminal};
use super::{
    agent::{
        self,
        session::{AgentReader, AgentSession, AgentWriter},
    },
    ssh::{
        SshError, SshTarget,
        session::{SshReader, SshSession, SshWriter},
    },
};
use crate::domain::Code;

/// The way into a guest, in which nothing runs yet. Closes its connection when it is dropped.
pub enum GuestLogin {
    Ssh(SshSession),
    Agent(AgentSession),
}

pub enum SessionReader {
    Ssh(SshReader),
    Agent(Box<AgentReader>),
}

pub enum SessionWriter {
    Ssh(SshWriter),
    Agent(AgentWriter),
}

impl GuestLogin {
    pub async fn over_ssh(target: &SshTarget, deadline: Instant) -> Result<GuestLogin, SessionError> {
        Ok(GuestLogin::Ssh(SshSession::open(target, deadline).await?))
    }

    pub async fn through_agent(socket: &Path, deadline: Instant) -> Result<GuestLogin, SessionError> {
        Ok(GuestLogin::Agent(AgentSession::open(socket, deadline).await?))
    }

    /// The key to pin: OpenSSH public key format, without a comment. `None`: the agent has no key.
    pub fn host_key(&self) -> Option<&str> {
        match self {
            GuestLogin::Ssh(session) => Some(&session.host_key),
            GuestLogin::Agent(_) => None,
        }
    }

    /// Runs a command line of the user's shell, or without one the shell itself.
    pub async fn run(
        &self,
        command: Option<&str>,
        terminal: Option<&Terminal>,
    ) -> Result<(SessionReader, SessionWriter), SessionError> {
        Ok(match self {
            GuestLogin::Ssh(session) => {
                let (reader, writer) = session.run(command, terminal).await?;
                (SessionReader::Ssh(reader), SessionWriter::Ssh(writer))
            }
            GuestLogin::Agent(session) => {
                let (reader, writer) = session.run(command, terminal).await?;
                (SessionReader::Agent(Box::new(reader)), SessionWriter::Agent(writer))
            }
        })
    }
}

impl SessionReader {
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<SessionOutput, SessionError> {
        // The guest had accepted the login, so no code about a login fits.
        let failed = |detail: String| SessionError { code: Code::SessionFailed, detail };
        match self {
            SessionReader::Ssh(reader) => reader.next().await.map_err(|error| failed(error.to_string())),
            SessionReader::Agent(reader) => reader.next().await.map_err(|error| failed(error.to_string())),
        }
    }
}

impl SessionWriter {
    /// Returns when the guest has room for it. After the end of what runs, input is ignored.
    pub async fn input(&self, bytes: Bytes) {
        match self {
            SessionWriter::Ssh(writer) => writer.input(bytes).await,
            SessionWriter::Agent(writer) => writer.input(&bytes).await,
        }
    }

    pub async fn end_of_input(&self) {
        match self {
            SessionWriter::Ssh(writer) => writer.end_of_input().await,
            SessionWriter::Agent(writer) => writer.end_of_input().await,
        }
    }

    pub async fn resize(&self, columns: u32, rows: u32) {
        match self {
            SessionWriter::Ssh(writer) => writer.resize(columns, rows).await,
            SessionWriter::Agent(writer) => writer.resize(columns, rows).await,
        }
    }
}

impl From<SshError> for SessionError {
    fn from(error: SshError) -> Self {
        SessionError { code: error.code(), detail: error.to_string() }
    }
}

impl From<agent::Error> for SessionError {
    fn from(error: agent::Error) -> Self {
        SessionError { code: error.code(), detail: error.to_string() }
    }
}
