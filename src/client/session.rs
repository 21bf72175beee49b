//! A session in the guest of a vm, over a WebSocket to the service: what runs there, with its input and output.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{ApiClient, Error};

/// The service sends a ping several times as often.
const SILENT: Duration = Duration::from_secs(60);
/// Largest piece of input in one message, in bytes.
pub const LARGEST_PIECE: usize = 16 << 10;
const STDERR: u8 = 2;

/// What to run.
#[derive(Serialize)]
pub struct SessionStart<'a> {
    /// The program and its arguments. Empty: the user's shell.
    pub command: &'a [String],
    pub terminal: Option<CallerTerminal>,
}

#[derive(Serialize)]
pub struct CallerTerminal {
    pub term: String,
    pub columns: u16,
    pub rows: u16,
}

/// To what runs in the guest.
#[derive(Clone)]
pub struct SessionInput(mpsc::Sender<Message>);

/// From what runs in the guest.
pub struct SessionEvents(SplitStream<WebSocketStream<reqwest::Upgraded>>);

pub enum SessionEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    Ended(SessionEnd),
}

/// The last message of the service.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionEnd {
    /// What ran has ended. Without a code, a signal ended it; without a signal, the guest did not say.
    Exited { code: Option<u64>, signal: Option<String> },
    /// The session has ended without that.
    Failed { code: String, title: String, detail: String },
}

/// The connection ended before the session, for this reason: what ran may still be running.
#[derive(Debug)]
pub struct SessionLoss(pub String);

impl ApiClient {
    /// Logs in to the guest. What the service refuses, it refuses here; nothing runs before `SessionInput::start`.
    pub async fn open_session(&self, vm: &str) -> Result<(SessionInput, SessionEvents), Error> {
        let (mut to, from) = self.web_socket(&["vms", vm, "exec"]).await?.split();
        // Input is sent beside the output: a full buffer in one direction must not stop the other one.
        let (messages, mut outgoing) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(message) = outgoing.recv().await {
                // The answer of the service, or the end of the connection, says why it takes no more.
                if to.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok((SessionInput(messages), SessionEvents(from)))
    }
}

/// Input that the session no longer takes is dropped: its events say why.
impl SessionInput {
    pub async fn start(&self, start: &SessionStart<'_>) {
        let message = json!({ "type": "start", "command": start.command, "terminal": start.terminal });
        let _ = self.0.send(Message::text(message.to_string())).await;
    }

    /// At most `LARGEST_PIECE` of standard input. `false`: the session takes no more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(Message::binary(bytes)).await.is_ok()
    }

    pub async fn end(&self) {
        let _ = self.0.send(end_of_input()).await;
    }

    /// As `send`, for a thread that is not one of the runtime's.
    pub fn blocking_send(&self, bytes: Bytes) -> bool {
        self.0.blocking_send(Message::binary(bytes)).is_ok()
    }

    pub fn blocking_end(&self) {
        let _ = self.0.blocking_send(end_of_input());
    }

    /// If there is no room, nothing is sent: the size at that time is sent with the next change.
    pub fn resize(&self, columns: u16, rows: u16) {
        let message = json!({ "type": "resize", "columns": columns, "rows": rows });
        let _ = self.0.try_send(Message::text(message.to_string()));
    }
}

fn end_of_input() -> Message {
    Message::text(json!({ "type": "end_of_input" }).to_string())
}

impl SessionEvents {
    /// The next one; after the end there is none. May be dropped while it waits.
    pub async fn next(&mut self) -> Result<SessionEvent, SessionLoss> {
        let lost = |why: &str| Err(SessionLoss(why.to_owned()));
        loop {
            match timeout(SILENT, self.0.next()).await {
                Ok(Some(Ok(Message::Binary(mut bytes)))) => {
                    if bytes.is_empty() {
                        continue;
                    }
                    // The first byte says where the rest was written.
                    let output = bytes.split_off(1);
                    let to_stderr = bytes[0] == STDERR;
                    return Ok(if to_stderr { SessionEvent::Stderr(output) } else { SessionEvent::Stdout(output) });
                }
                Ok(Some(Ok(Message::Text(text)))) => {
                    return match serde_json::from_str(&text) {
                        Ok(end) => Ok(SessionEvent::Ended(end)),
                        Err(_) => lost("its last message cannot be read"),
                    };
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
                Ok(Some(Ok(Message::Close(_))) | None) => return lost("the service closed the connection"),
                Ok(Some(Err(error))) => return lost(&error.to_string()),
                Err(_) => return lost("the service is silent"),
            }
        }
    }
}

impl SessionEnd {
    /// The number of a signal, as shells add it to 128.
    pub fn signal_number(name: &str) -> u8 {
        match name {
            "HUP" => 1,
            "INT" => 2,
            "QUIT" => 3,
            "ABRT" => 6,
            "KILL" => 9,
            "SEGV" => 11,
            "PIPE" => 13,
            "ALRM" => 14,
            _ => 15,
        }
    }
}
