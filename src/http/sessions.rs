//! Sessions in guests, over a WebSocket.
//!
//! Everything that can be refused is refused before the upgrade, as a problem: then the login in the guest stands, and
//! nothing runs in it. The caller's first message says what runs.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{
        State as FromState,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures_util::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Allowed, Create, PathVm},
    middleware::{RequestPermit, WaitPermit},
    problem::Problem,
};
use crate::{
    domain::{Code, Error},
    platform::clock,
    service::sessions::{
        GuestSession, IDLE, LONGEST_COMMAND, SessionExit, SessionOutput, SessionReader, SessionRequest, SessionWriter,
        Terminal, is_terminal_size,
    },
};

/// Largest message of a caller, in bytes. Its JSON may be longer than the command in it.
const LARGEST_MESSAGE: usize = LONGEST_COMMAND * 2;
/// How long the caller's first message may take.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(15);
/// A caller that neither sends anything nor answers a ping for this long is gone.
const SILENT: Duration = Duration::from_secs(60);
/// How long the last message may take to be read.
const FAREWELL: Duration = Duration::from_secs(10);
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// A text message of the caller, as JSON. Its binary messages are the standard input of what runs, at most 128 KiB each.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionInputMessage {
    /// The first message: what to run.
    Start {
        /// The program and its arguments, at most 64 KiB. Without them the shell of the user in the guest is run.
        #[serde(default)]
        command: Vec<String>,
        /// Gives it a terminal. Standard error is then part of standard output.
        #[serde(default)]
        terminal: Option<TerminalView>,
    },
    /// The caller's terminal has another size.
    Resize {
        #[schema(minimum = 1, maximum = 10000)]
        columns: u32,
        #[schema(minimum = 1, maximum = 10000)]
        rows: u32,
    },
    /// There is no more input.
    EndOfInput {},
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Terminal)]
#[serde(deny_unknown_fields)]
pub struct TerminalView {
    /// As in the environment variable `TERM`.
    #[schema(example = "xterm-256color", max_length = 64)]
    pub term: String,
    #[schema(minimum = 1, maximum = 10000)]
    pub columns: u32,
    #[schema(minimum = 1, maximum = 10000)]
    pub rows: u32,
}

/// A text message of the service, as JSON; the last one before it closes the connection. Its binary messages are output: the
/// first byte is 1 for standard output and 2 for standard error, and the rest is what was written.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionOutputMessage {
    /// What ran has ended.
    Exited {
        /// Null: a signal ended it, or the guest did not say.
        code: Option<u32>,
        /// The signal's name without `SIG`.
        signal: Option<String>,
    },
    /// The session has ended without that.
    Failed { code: Code, title: &'static str, detail: String },
}

impl SessionOutputMessage {
    fn failed(error: &Error) -> Self {
        if let Some(cause) = &error.cause {
            tracing::error!(code = %error.code, cause = %cause, "a session failed");
        }
        Self::Failed { code: error.code, title: error.code.title(), detail: error.detail.clone() }
    }
}

impl From<SessionExit> for SessionOutputMessage {
    fn from(exit: SessionExit) -> Self {
        match exit {
            SessionExit::Code(code) => Self::Exited { code: Some(code), signal: None },
            SessionExit::Signal(signal) => Self::Exited { code: None, signal: Some(signal) },
            SessionExit::Unknown => Self::Exited { code: None, signal: None },
        }
    }
}

/// Run a command or a shell in a vm's guest
///
/// A WebSocket (RFC 6455). The service logs in to the guest with the SSH login of the vm's template, as its user; the caller
/// gets no key. If the template has no login and its guests are provisioned through the agent in them, the agent runs it, as
/// the agent's user. The caller's first message is a `SessionInputMessage` of the type `start`; from then on its binary
/// messages are standard input. The service sends output as binary messages, whose first byte is 1 for standard output and 2
/// for standard error, and at last a `SessionOutputMessage`.
///
/// The vm must be `configuring`, `running`, `draining` or `kept`. A token with the scope `create` opens sessions in the vms that
/// were created with it, one with the scope `admin` in all of them. Each session is recorded as the event `session_opened`,
/// without its command. It ends with the vm, with the connection, with the service, and after 30 minutes in which neither
/// side sent anything. At most 8 sessions of a vm, 16 of a token and 64 in all are open at once.
#[utoipa::path(
    get, path = "/vms/{id}/exec", tag = "vms",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 101, description = "The WebSocket is open")),
    security(("token" = ["create"])),
)]
pub async fn open_session(
    FromState(http): FromState<Arc<Http>>,
    Allowed { token, .. }: Allowed<Create>,
    PathVm(id): PathVm,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    permit: RequestPermit,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| {
        Problem::invalid("header:Upgrade", format!("this is a WebSocket: {}", rejection.body_text()))
    })?;
    let place = permit.wait()?;
    let session = http.services.sessions.open(id, &token).await?;
    let upgrade = upgrade.max_message_size(LARGEST_MESSAGE).max_frame_size(LARGEST_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| serve(http, session, socket, place)))
}

async fn serve(http: Arc<Http>, mut session: GuestSession, socket: WebSocket, _place: WaitPermit) {
    let (mut to, mut from) = socket.split();
    let last = match start(&session, &mut from).await {
        Ok((mut reader, writer)) => {
            let active = Activity::default();
            tokio::select! {
                biased;
                last = pass_output(&mut reader, &mut to, &active) => last,
                error = session.ended() => Some(SessionOutputMessage::failed(&error)),
                () = http.shutdown.cancelled() => {
                    let error = Error::new(Code::ShuttingDown, "the session has ended because the service is ending");
                    Some(SessionOutputMessage::failed(&error))
                }
                () = pass_input(&mut from, &writer, &active) => None,
                () = active.idle(IDLE) => {
                    let minutes = IDLE.as_secs() / 60;
                    let detail = format!("the session has ended because nothing was sent for {minutes} minutes");
                    Some(SessionOutputMessage::failed(&Error::new(Code::SessionIdle, detail)))
                }
            }
        }
        Err(last) => last,
    };
    let farewell = async {
        if let Some(last) = last
            && let Ok(text) = serde_json::to_string(&last)
        {
            to.send(Message::text(text)).await?;
        }
        to.close().await?;
        // Until the caller has read it: closing a connection on which input arrives would discard what was sent last.
        while let Some(Ok(_)) = from.next().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// Runs what the first message asks for. `Err(None)`: the caller is gone.
async fn start(
    session: &GuestSession,
    from: &mut SplitStream<WebSocket>,
) -> Result<(SessionReader, SessionWriter), Option<SessionOutputMessage>> {
    let refused = |error: Error| Some(SessionOutputMessage::failed(&error));
    let invalid = |detail: String| refused(Error::new(Code::RequestInvalid, detail));
    let first = timeout(FIRST_MESSAGE, async {
        loop {
            match from.next().await {
                Some(Ok(Message::Text(text))) => return Some(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    });
    let text = match first.await {
        Ok(Some(text)) => text,
        Ok(None) => return Err(invalid("the first message must be text: `{\"type\":\"start\",…}`".to_owned())),
        Err(_) => return Err(invalid(format!("the first message did not come within {} s", FIRST_MESSAGE.as_secs()))),
    };
    // The error of the parser may quote the message, which may hold secrets: only its place is told.
    let (command, terminal) = match serde_json::from_str(&text) {
        Ok(SessionInputMessage::Start { command, terminal }) => (command, terminal),
        Ok(_) => return Err(invalid("the first message must have the type `start`".to_owned())),
        Err(error) => {
            let at = error.column();
            return Err(invalid(format!("the first message is not a `SessionInputMessage`: see its character {at}")));
        }
    };
    let terminal = terminal.map(|TerminalView { term, columns, rows }| Terminal { term, columns, rows });
    session.run(&SessionRequest { command, terminal }).await.map_err(|error| {
        let fields =
            error.fields.iter().map(|field| format!(": {} {}", field.pointer, field.detail)).collect::<String>();
        refused(Error { detail: format!("{}{fields}", error.detail), ..error })
    })
}

/// Passes output on to its end. `None`: the caller is gone.
async fn pass_output(
    reader: &mut SessionReader,
    to: &mut SplitSink<WebSocket, Message>,
    active: &Activity,
) -> Option<SessionOutputMessage> {
    let mut ping = tokio::time::interval_at(clock::monotonic() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            output = reader.next() => {
                let (stream, bytes) = match output {
                    Ok(SessionOutput::Stdout(bytes)) => (STDOUT, bytes),
                    Ok(SessionOutput::Stderr(bytes)) => (STDERR, bytes),
                    Ok(SessionOutput::Exited(exit)) => return Some(exit.into()),
                    Err(error) => {
                        let error = Error::new(error.code, error.detail);
                        return Some(SessionOutputMessage::failed(&error));
                    }
                };
                active.note();
                Message::Binary([&[stream][..], &bytes].concat().into())
            }
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        to.send(message).await.ok()?;
    }
}

/// Passes input on until the caller is gone.
async fn pass_input(from: &mut SplitStream<WebSocket>, writer: &SessionWriter, active: &Activity) {
    while let Ok(Some(Ok(message))) = timeout(SILENT, from.next()).await {
        match message {
            Message::Binary(bytes) => {
                active.note();
                writer.input(bytes).await;
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(SessionInputMessage::Resize { columns, rows }) if is_terminal_size(columns, rows) => {
                    writer.resize(columns, rows).await;
                }
                Ok(SessionInputMessage::EndOfInput {}) => writer.end_of_input().await,
                // Of a caller that does not keep to the protocol.
                Ok(SessionInputMessage::Start { .. } | SessionInputMessage::Resize { .. }) | Err(_) => return,
            },
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return,
        }
    }
}

/// When something was last sent, by either side.
struct Activity(Mutex<Instant>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(clock::monotonic()))
    }
}

impl Activity {
    fn note(&self) {
        *self.0.lock() = clock::monotonic();
    }

    /// Returns when nothing was sent for this long.
    async fn idle(&self, limit: Duration) {
        loop {
            let until = *self.0.lock() + limit;
            tokio::time::sleep_until(until).await;
            if *self.0.lock() + limit <= clock::monotonic() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_puts_the_end_of_an_idle_session_off() {
        const LIMIT: Duration = Duration::from_secs(1);
        let active = Activity::default();
        let begun = clock::monotonic();
        let sent = async {
            for _ in 0..3 {
                tokio::time::sleep(LIMIT / 4).await;
                active.note();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = active.idle(LIMIT) => {}
            () = sent => {}
        }
        assert!(clock::monotonic() - begun >= LIMIT / 4 * 3 + LIMIT);
    }
}
