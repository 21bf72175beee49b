//! `mayfly vm exec` and `mayfly vm ssh`: a command or a shell in the guest of a vm, through the service.

use std::{
    io::{IsTerminal, Read, Write},
    os::fd::AsFd,
    time::Duration,
};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::{Value, json};
use tokio::{signal::unix::SignalKind, sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, output, report, text},
    resolve,
};

/// The service sends a ping several times as often.
const SILENT: Duration = Duration::from_secs(60);
const PIECE: usize = 16 << 10;
const STDERR: u8 = 2;

#[derive(Args)]
pub(in crate::cli) struct ExecArgs {
    /// Id, the beginning of an id, or name
    vm: String,
    /// Give the command a terminal, for programs that need one
    #[arg(long, short)]
    tty: bool,
    /// Program and arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args)]
pub(in crate::cli) struct SshArgs {
    /// Id, the beginning of an id, or name
    vm: String,
}

pub(super) async fn exec(args: ExecArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    if args.tty && !std::io::stdin().is_terminal() {
        return Err(CommandFailure::Usage("--tty: standard input is not a terminal; leave it out".into()));
    }
    told_apart(run(&args.vm, &args.command, args.tty, client).await, json)
}

pub(super) async fn ssh(args: SshArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    told_apart(run(&args.vm, &[], std::io::stdin().is_terminal(), client).await, json)
}

/// Failures have exit codes of their own, so that none is taken for that of what ran: 125, and 255 for a session that was
/// lost after its beginning.
fn told_apart(result: Result<u8, CommandFailure>, json: bool) -> Result<u8, CommandFailure> {
    match result {
        Ok(code) => Ok(code),
        Err(failure @ (CommandFailure::SessionLost(_) | CommandFailure::OutputClosed)) => Err(failure),
        Err(failure) => {
            report::report(&failure, json);
            Ok(exit::NO_RESULT)
        }
    }
}

async fn run(vm: &str, command: &[String], tty: bool, client: &ApiClient) -> Result<u8, CommandFailure> {
    let id = resolve(vm, client).await?;
    if let Some(warning) = client.cleartext_warning("what is typed and shown") {
        output::note(&format!("warning: {warning}"));
    }
    let (mut to, mut from) = client.web_socket(&["vms", &id, "exec"]).await?.split();
    let terminal = tty.then(terminal_size).map(|(columns, rows)| {
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm".to_owned());
        json!({ "term": term, "columns": columns, "rows": rows })
    });
    let start = json!({ "type": "start", "command": command, "terminal": terminal });
    let raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let mut resized = tokio::signal::unix::signal(SignalKind::window_change())
        .map_err(|error| CommandFailure::Other(format!("cannot watch the terminal's size: {error}")))?;
    let lost = |why: &str| {
        let next = "what ran may still be running; `mayfly vm show` says where the vm stands";
        CommandFailure::SessionLost(format!("the session was lost: {why}; {next}"))
    };
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
    let _ = messages.send(Message::text(start.to_string())).await;
    read_input(messages.clone());
    let ended = loop {
        tokio::select! {
            message = timeout(SILENT, from.next()) => match message {
                Ok(Some(Ok(Message::Binary(bytes)))) => show(&bytes)?,
                Ok(Some(Ok(Message::Text(text)))) => {
                    break serde_json::from_str::<Value>(&text).map_err(|_| lost("its last message cannot be read"))?;
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
                Ok(Some(Ok(Message::Close(_))) | None) => return Err(lost("the service closed the connection")),
                Ok(Some(Err(error))) => return Err(lost(&error.to_string())),
                Err(_) => return Err(lost("the service is silent")),
            },
            Some(()) = resized.recv(), if tty => {
                let (columns, rows) = terminal_size();
                let message = json!({ "type": "resize", "columns": columns, "rows": rows });
                // If there is no room, the size at that time is sent with the next change.
                let _ = messages.try_send(Message::text(message.to_string()));
            }
        }
    };
    drop(raw);
    outcome(&ended)
}

/// The exit code of what ran, as a shell has it.
fn outcome(ended: &Value) -> Result<u8, CommandFailure> {
    let text_of = |key: &str| text::plain(ended[key].as_str().unwrap_or_default());
    if ended["type"] == "exited" {
        return Ok(match (ended["code"].as_u64(), ended["signal"].as_str()) {
            (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(exit::FAILURE),
            (None, Some(signal)) => {
                output::note(&format!("ended by the signal {}", text::plain(signal)));
                128 + signal_number(signal)
            }
            (None, None) => return Err(CommandFailure::SessionLost("the guest did not say how it ended".into())),
        });
    }
    Err(CommandFailure::SessionLost(format!("{} [{}]: {}", text_of("title"), text_of("code"), text_of("detail"))))
}

fn signal_number(name: &str) -> u8 {
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

/// Writes output of the guest: the first byte says where.
fn show(message: &[u8]) -> Result<(), CommandFailure> {
    let Some((stream, bytes)) = message.split_first() else { return Ok(()) };
    if *stream == STDERR {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
        return Ok(());
    }
    output::bytes(bytes)
}

/// Sends standard input in pieces, and its end. A thread of its own, which does not delay the end of this process while it
/// waits for input.
fn read_input(messages: mpsc::Sender<Message>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    let end = json!({ "type": "end_of_input" });
                    let _ = messages.blocking_send(Message::text(end.to_string()));
                    return;
                }
                Ok(n) => {
                    if messages.blocking_send(Message::binary(buffer[..n].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
    });
}

/// Columns and rows.
fn terminal_size() -> (u16, u16) {
    match termios::tcgetwinsize(std::io::stdin().as_fd()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}

/// Passes every key on to the guest, Ctrl-C included, until it is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<RawTerminal, CommandFailure> {
        let failed = |error: rustix::io::Errno| CommandFailure::Other(format!("cannot use the terminal: {error}"));
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}
