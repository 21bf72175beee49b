//! `mayfly vm exec` and `mayfly vm ssh`: a command or a shell in the guest of a vm, through the service.

use std::{
    io::{IsTerminal, Read, Write},
    os::fd::AsFd,
};

use bytes::Bytes;
use clap::Args;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::SignalKind;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, output, report, text},
    resolve,
};
use crate::client::{CallerTerminal, LARGEST_PIECE, SessionEnd, SessionEvent, SessionInput, SessionLoss, SessionStart};

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
        Err(failure @ CommandFailure::SessionLost(_)) => Err(failure),
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
    let (input, mut events) = client.open_session(&id).await?;
    let terminal = tty.then(terminal_size).map(|(columns, rows)| {
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm".to_owned());
        CallerTerminal { term, columns, rows }
    });
    let raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let mut resized = tokio::signal::unix::signal(SignalKind::window_change())
        .map_err(|error| CommandFailure::Other(format!("cannot watch the terminal's size: {error}")))?;
    let lost = |SessionLoss(why)| {
        let next = "what ran may still be running; `mayfly vm show` says where the vm stands";
        CommandFailure::SessionLost(format!("the session was lost: {why}; {next}"))
    };
    input.start(&SessionStart { command, terminal }).await;
    read_input(input.clone());
    let ended = loop {
        tokio::select! {
            event = events.next() => match event.map_err(lost)? {
                SessionEvent::Stdout(bytes) => output::bytes(&bytes)?,
                SessionEvent::Stderr(bytes) => {
                    let mut stderr = std::io::stderr().lock();
                    let _ = stderr.write_all(&bytes).and_then(|()| stderr.flush());
                }
                SessionEvent::Ended(ended) => break ended,
            },
            Some(()) = resized.recv(), if tty => {
                let (columns, rows) = terminal_size();
                input.resize(columns, rows);
            }
        }
    };
    drop(raw);
    outcome(&ended)
}

/// The exit code of what ran, as a shell has it.
fn outcome(ended: &SessionEnd) -> Result<u8, CommandFailure> {
    match ended {
        SessionEnd::Exited { code: Some(code), .. } => Ok(u8::try_from(code & 0xff).unwrap_or(exit::FAILURE)),
        SessionEnd::Exited { code: None, signal: Some(signal) } => {
            output::note(&format!("ended by the signal {}", text::plain(signal)));
            Ok(128 + SessionEnd::signal_number(signal))
        }
        SessionEnd::Exited { code: None, signal: None } => {
            Err(CommandFailure::SessionLost("the guest did not say how it ended".into()))
        }
        SessionEnd::Failed { code, title, detail } => {
            let [title, code, detail] = [title, code, detail].map(|part| text::plain(part));
            Err(CommandFailure::SessionLost(format!("{title} [{code}]: {detail}")))
        }
    }
}

/// Sends standard input in pieces, and its end. A thread of its own, which does not delay the end of this process while it
/// waits for input.
fn read_input(input: SessionInput) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; LARGEST_PIECE];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    input.blocking_end();
                    return;
                }
                Ok(n) => {
                    if !input.blocking_send(Bytes::copy_from_slice(&buffer[..n])) {
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
