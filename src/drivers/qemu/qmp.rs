//! The QEMU Machine Protocol: one JSON object per line over a Unix socket.
//!
//! A socket serves one client at a time; the next one is greeted when the current one disconnects. So connections for
//! commands are short, and clients queue by waiting for the greeting. Events may arrive at any time, also between a
//! command and its reply. Errors of the human monitor are the text of a successful reply.

use std::{io, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

use crate::{domain::event::GoneCause, platform::clock};

/// No expected reply is that long.
const LINE_LIMIT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QMP did not answer in time")]
    Deadline,
    #[error("QMP closed the connection")]
    Closed,
    #[error("QMP refused {command}: {desc}")]
    Refused { command: String, desc: String },
    #[error("QMP sent what is not QMP: {0}")]
    Garbled(String),
    #[error("QMP cannot be reached")]
    Io(#[from] io::Error),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct QmpEvent {
    #[serde(rename = "event")]
    pub name: String,
    #[serde(default)]
    pub data: Value,
}

/// The cause in a `SHUTDOWN` event. `None` for other events.
pub fn shutdown_cause(event: &QmpEvent) -> Option<GoneCause> {
    if event.name != "SHUTDOWN" {
        return None;
    }
    Some(match event.data.get("reason").and_then(Value::as_str).unwrap_or_default() {
        "guest-shutdown" => GoneCause::GuestPowerOff,
        "guest-reset" | "subsystem-reset" => GoneCause::GuestReset,
        "guest-panic" => GoneCause::GuestPanic,
        reason if reason.starts_with("host-") => GoneCause::HostStop,
        _ => GoneCause::Unknown,
    })
}

/// The last `SHUTDOWN` of a recorded stream. Its final line may be incomplete.
pub fn last_cause(log: &str) -> Option<GoneCause> {
    log.lines().filter_map(|line| shutdown_cause(&serde_json::from_str(line).ok()?)).next_back()
}

#[derive(Debug)]
enum Message {
    Greeting,
    Event(QmpEvent),
    Reply { id: Option<u64>, outcome: Result<Value, String> },
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let garbled = || QmpError::Garbled(String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned());
    let value: Value = serde_json::from_slice(line).map_err(|_| garbled())?;
    let id = value.get("id").and_then(Value::as_u64);
    if let Some(result) = value.get("return") {
        return Ok(Message::Reply { id, outcome: Ok(result.clone()) });
    }
    if let Some(error) = value.get("error") {
        let desc = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
        return Ok(Message::Reply { id, outcome: Err(desc.to_owned()) });
    }
    if value.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    serde_json::from_value::<QmpEvent>(value).map(Message::Event).map_err(|_| garbled())
}

/// A negotiated connection.
pub struct QmpClient<S> {
    stream: BufReader<S>,
    /// An incomplete line.
    line: Vec<u8>,
    next_id: u64,
    deadline: Instant,
}

impl QmpClient<UnixStream> {
    /// Connects, waits for its turn and negotiates, within `patience`, which also limits each following command.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Self, QmpError> {
        let deadline = clock::monotonic() + patience;
        let stream = timeout_at(deadline, queue_up(socket)).await.map_err(|_| QmpError::Deadline)??;
        Self::negotiate(stream, deadline).await
    }
}

/// The queue of waiting connections is short; when it is full, the system returns "try again".
async fn queue_up(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(5)).await,
            other => return other,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> QmpClient<S> {
    pub async fn negotiate(stream: S, deadline: Instant) -> Result<Self, QmpError> {
        let mut client = Self { stream: BufReader::new(stream), line: Vec::new(), next_id: 1, deadline };
        loop {
            match client.next().await? {
                Some(Message::Greeting) => break,
                Some(_) => {}
                None => return Err(QmpError::Closed),
            }
        }
        client.execute("qmp_capabilities", None).await?;
        Ok(client)
    }

    /// Sends a command. Events before the reply are dropped: the log of the watch socket has them.
    pub async fn execute(&mut self, command: &str, arguments: Option<Value>) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        let send = self.stream.get_mut().write_all(&bytes);
        timeout_at(self.deadline, send).await.map_err(|_| QmpError::Deadline)??;
        loop {
            match self.next().await? {
                Some(Message::Reply { id: Some(replied), outcome }) if replied == id => {
                    return outcome.map_err(|desc| QmpError::Refused { command: command.to_owned(), desc });
                }
                Some(_) => {}
                None => return Err(QmpError::Closed),
            }
        }
    }

    /// The next event, if one arrives within `patience`.
    pub async fn event(&mut self, patience: Duration) -> Result<Option<QmpEvent>, QmpError> {
        self.deadline = clock::monotonic() + patience;
        loop {
            match self.next().await {
                Ok(Some(Message::Event(event))) => return Ok(Some(event)),
                Ok(Some(Message::Greeting | Message::Reply { .. })) => {}
                Ok(None) => return Err(QmpError::Closed),
                Err(QmpError::Deadline) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The state of the guest: `running`, `paused`, `internal-error`, ….
    pub async fn run_state(&mut self, patience: Duration) -> Result<String, QmpError> {
        self.deadline = clock::monotonic() + patience;
        let status = self.execute("query-status", None).await?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// A command of the human monitor: returns its text, which may be an error's.
    pub async fn human(&mut self, command_line: &str) -> Result<String, QmpError> {
        let reply = self.execute("human-monitor-command", Some(json!({ "command-line": command_line }))).await?;
        reply.as_str().map(str::to_owned).ok_or_else(|| QmpError::Garbled(reply.to_string()))
    }

    async fn next(&mut self) -> Result<Option<Message>, QmpError> {
        let read = async {
            loop {
                let available = self.stream.fill_buf().await?;
                if available.is_empty() {
                    return Ok(None);
                }
                let end = available.iter().position(|b| *b == b'\n');
                let taken = end.map_or(available.len(), |at| at + 1);
                self.line.extend_from_slice(&available[..taken]);
                self.stream.consume(taken);
                if self.line.len() > LINE_LIMIT {
                    return Err(QmpError::Garbled("a line without end".to_owned()));
                }
                if end.is_some() {
                    let line = std::mem::take(&mut self.line);
                    if !line.trim_ascii().is_empty() {
                        return parse(&line).map(Some);
                    }
                }
            }
        };
        let result = timeout_at(self.deadline, read).await.map_err(|_| QmpError::Deadline)?;
        match result {
            // A hypervisor that ends may reset the connection instead of closing it.
            Err(QmpError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;

    /// Plays QEMU: answers each received line with the next text.
    async fn server(mut stream: DuplexStream, replies: Vec<String>) {
        stream.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
        for reply in replies {
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() && byte[0] != b'\n' {}
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn play(replies: &[&str]) -> DuplexStream {
        let (ours, theirs) = duplex(4096);
        tokio::spawn(server(theirs, replies.iter().map(|r| (*r).to_owned()).collect()));
        ours
    }

    const POWERDOWN: &str = "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"POWERDOWN\"}\r\n";
    const SHUTDOWN: &str = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;

    #[tokio::test]
    async fn an_event_between_a_command_and_its_reply_is_no_reply() {
        let reply = format!("{POWERDOWN}{{\"return\": {{}}, \"id\": 99}}\r\n{{\"return\": \"ok\", \"id\": 2}}\r\n");
        let mut client =
            QmpClient::negotiate(play(&["{\"return\": {}, \"id\": 1}\r\n", &reply]), soon()).await.unwrap();
        assert_eq!(client.execute("system_powerdown", None).await.unwrap(), json!("ok"));
    }

    #[tokio::test]
    async fn a_refusal_carries_its_reason() {
        let reply =
            r#"{"id": 2, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}"#;
        let stream = play(&["{\"return\": {}, \"id\": 1}\r\n", &format!("{reply}\r\n")]);
        let mut client = QmpClient::negotiate(stream, soon()).await.unwrap();
        let error = client.execute("nope", None).await.unwrap_err();
        assert_eq!(error.to_string(), "QMP refused nope: The command nope has not been found");
    }

    #[tokio::test]
    async fn a_busy_socket_never_greets() {
        let (ours, _theirs) = duplex(64);
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(matches!(QmpClient::negotiate(ours, deadline).await, Err(QmpError::Deadline)));
    }

    #[test]
    fn every_reason_has_a_cause() {
        for (reason, cause) in [
            ("guest-shutdown", GoneCause::GuestPowerOff),
            ("guest-reset", GoneCause::GuestReset),
            ("guest-panic", GoneCause::GuestPanic),
            ("host-signal", GoneCause::HostStop),
            ("host-qmp-quit", GoneCause::HostStop),
            ("something-new", GoneCause::Unknown),
        ] {
            let event = QmpEvent { name: "SHUTDOWN".to_owned(), data: json!({ "guest": true, "reason": reason }) };
            assert_eq!(shutdown_cause(&event), Some(cause), "{reason}");
        }
    }

    #[test]
    fn a_recorded_stream_tells_the_cause() {
        let log = format!("{GREETING}\r\n{{\"return\": {{}}, \"id\": 1}}\r\n{POWERDOWN}{SHUTDOWN}\r\n{{\"timest");
        assert_eq!(last_cause(&log), Some(GoneCause::GuestPowerOff));
        assert_eq!(last_cause(GREETING), None);
    }
}
