//! A command or a shell in a guest, through the agent in it.
//!
//! As for scripts, the agent's own report of the end is not reliable (see `exec`). So a shell around the command prints the
//! end of both outputs, as marks that nothing else can print, and stays alive until they were read. A mark begins with a byte
//! that is rare in output: output that ends with the beginning of a mark is held back until more of it comes.

use std::{collections::VecDeque, path::Path};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

use super::{
    super::session_output::{SessionExit, SessionOutput, Terminal},
    ANSWER, Error, answers,
    exec::{Agent, AgentCall, PIECE},
    messages::{self, AgentCommand, AgentRequest, ExecRequest, ExecResponse, Response, TerminalSize},
};
use crate::platform::clock;

/// Runs the command line `$2`, or the user's shell, and prints the mark `$1` at the end of both outputs. What runs it is killed
/// when the stream ends, so the time only bounds what a broken connection leaves behind.
const COMMAND: &str = r#"
if [ "$#" = 2 ]; then /bin/sh -c "$2"; else "${SHELL:-/bin/sh}"; fi
code=$?
printf '\036%s \n' "$1" >&2
printf '\036%s %s\n' "$1" "$code"
sleep 60"#;
/// The same in a terminal of the type `$2`, which has one output. Its keys end what runs, and not the shell around it: a signal
/// with a trap has its default again in a command.
const TERMINAL_COMMAND: &str = r#"
trap : INT QUIT
export TERM="$2"
if [ "$#" = 3 ]; then /bin/sh -c "$3"; else "${SHELL:-/bin/sh}"; fi
code=$?
printf '\036%s %s\n' "$1" "$code"
sleep 60"#;
/// Messages of input on their way.
const MESSAGES: usize = 4;

/// A connection to the agent, over which nothing runs yet.
pub struct AgentSession {
    agent: Agent,
}

impl AgentSession {
    pub async fn open(socket: &Path, deadline: Instant) -> Result<AgentSession, Error> {
        let first_word = async {
            let agent = Agent::connect(socket).await?;
            answers(&agent).await?;
            Ok::<_, Error>(agent)
        };
        let agent = timeout_at(deadline.min(clock::monotonic() + ANSWER), first_word)
            .await
            .map_err(|_| Error::Retry(format!("the agent at {} did not answer in time", socket.display())))??;
        Ok(AgentSession { agent })
    }

    /// Runs a command line of `/bin/sh`, or without one the shell of the agent's user.
    pub async fn run(
        &self,
        command: Option<&str>,
        terminal: Option<&Terminal>,
    ) -> Result<(AgentReader, AgentWriter), Error> {
        let mark = Uuid::new_v4().simple().to_string();
        let script = if terminal.is_some() { TERMINAL_COMMAND } else { COMMAND };
        let terminal_type = terminal.map(|terminal| terminal.term.as_str());
        let args = ["-c", script, "sh", &mark].into_iter().chain(terminal_type).chain(command);
        let command = AgentCommand {
            name: "/bin/sh".to_owned(),
            args: args.map(str::to_owned).collect(),
            interactive: true,
            tty: terminal.is_some(),
            terminal_size: terminal.map(|terminal| TerminalSize { rows: terminal.rows, columns: terminal.columns }),
        };
        let (to, requests) = mpsc::channel(MESSAGES);
        // The channel is empty and has room.
        let _ = to.send(ExecRequest { kind: Some(AgentRequest::Command(command)) }).await;
        let call = self.agent.call();
        let from = call.start(ReceiverStream::new(requests)).await?;
        let mark = format!("\x1e{mark} ").into_bytes();
        let reader = AgentReader {
            from,
            call,
            stdout: MarkedOutput::new(mark.clone()),
            stderr: terminal.is_none().then(|| MarkedOutput::new(mark)),
            ready: VecDeque::new(),
        };
        Ok((reader, AgentWriter { to, has_terminal: terminal.is_some() }))
    }
}

pub struct AgentReader {
    from: Streaming<ExecResponse>,
    call: AgentCall,
    stdout: MarkedOutput,
    /// `None`: it is in the terminal, too.
    stderr: Option<MarkedOutput>,
    /// At most two: what one message brought.
    ready: VecDeque<SessionOutput>,
}

impl AgentReader {
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<SessionOutput, Error> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Ok(output);
            }
            let stderr_ended = self.stderr.as_ref().is_none_or(|stderr| stderr.after_mark().is_some());
            if let Some(said) = self.stdout.after_mark().filter(|_| stderr_ended) {
                let code = std::str::from_utf8(said).ok().and_then(|said| said.trim().parse().ok());
                return Ok(SessionOutput::Exited(code.map_or(SessionExit::Unknown, SessionExit::Code)));
            }
            let message = self.from.message().await.map_err(|status| self.call.refused(&status))?;
            match message.map(|message| message.kind) {
                Some(Some(Response::StandardOutput(piece))) => {
                    self.ready.extend(self.stdout.push(&piece.data).map(SessionOutput::Stdout));
                }
                Some(Some(Response::StandardError(piece))) => {
                    let output = match &mut self.stderr {
                        Some(stderr) => stderr.push(&piece.data),
                        None => Some(piece.data.into()),
                    };
                    self.ready.extend(output.map(SessionOutput::Stderr));
                }
                Some(Some(Response::Exit(_))) => {
                    return Err(self.call.lost(&"the shell around the command was killed"));
                }
                // A kind of message of a later agent.
                Some(None) => {}
                None => return Err(self.call.lost(&"the command's end was not seen")),
            }
        }
    }
}

/// Output up to a mark. Holds back at most the beginning of one.
struct MarkedOutput {
    mark: Vec<u8>,
    held: Vec<u8>,
    /// What follows the mark.
    after: Option<Vec<u8>>,
}

/// The code of an exit and the end of its line.
const LONGEST_END: usize = 16;

impl MarkedOutput {
    fn new(mark: Vec<u8>) -> Self {
        Self { mark, held: Vec::new(), after: None }
    }

    /// Returns what is certainly output.
    fn push(&mut self, piece: &[u8]) -> Option<Bytes> {
        if let Some(after) = &mut self.after {
            let room = LONGEST_END.saturating_sub(after.len());
            after.extend_from_slice(&piece[..piece.len().min(room)]);
            return None;
        }
        self.held.extend_from_slice(piece);
        let (end, rest) = match self.held.windows(self.mark.len()).position(|window| window == self.mark) {
            Some(at) => {
                let after = &self.held[at + self.mark.len()..];
                self.after = Some(after[..after.len().min(LONGEST_END)].to_vec());
                (at, self.held.len())
            }
            None => {
                // The first byte of the mark is nowhere else in it.
                let begins = |at: &usize| self.mark.starts_with(&self.held[*at..]);
                let from = self.held.len().saturating_sub(self.mark.len());
                let at = (from..self.held.len()).find(begins).unwrap_or(self.held.len());
                (at, at)
            }
        };
        let output = Bytes::copy_from_slice(&self.held[..end]);
        self.held.drain(..rest);
        Some(output).filter(|output| !output.is_empty())
    }

    /// What follows the mark, once its line is complete.
    fn after_mark(&self) -> Option<&[u8]> {
        let after = self.after.as_ref()?;
        let end = after.iter().position(|&byte| byte == b'\n')?;
        Some(&after[..end])
    }
}

pub struct AgentWriter {
    to: mpsc::Sender<ExecRequest>,
    has_terminal: bool,
}

impl AgentWriter {
    pub async fn input(&self, bytes: &[u8]) {
        // A message without bytes would be the end of the input.
        for piece in bytes.chunks(PIECE) {
            self.send(AgentRequest::StandardInput(messages::Bytes { data: piece.to_vec() })).await;
        }
    }

    pub async fn end_of_input(&self) {
        self.send(AgentRequest::StandardInput(messages::Bytes::default())).await;
    }

    pub async fn resize(&self, columns: u32, rows: u32) {
        if self.has_terminal {
            self.send(AgentRequest::TerminalResize(TerminalSize { rows, columns })).await;
        }
    }

    async fn send(&self, request: AgentRequest) {
        let _ = self.to.send(ExecRequest { kind: Some(request) }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output, however it is cut into pieces, and what follows the mark.
    fn read(output: &[u8], size: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut marked = MarkedOutput::new(b"\x1eMARK ".to_vec());
        let mut seen = Vec::new();
        for piece in output.chunks(size) {
            seen.extend(marked.push(piece).unwrap_or_default());
            assert!(marked.held.len() < b"\x1eMARK ".len());
        }
        (seen, marked.after_mark().map(<[u8]>::to_vec))
    }

    #[test]
    fn output_ends_at_the_mark_wherever_the_pieces_end() {
        for size in 1..40 {
            let ended = |code: &str| Some(code.as_bytes().to_vec());
            assert_eq!(read(b"a\nb\n\x1eMARK 7\nlate", size), (b"a\nb\n".to_vec(), ended("7")));
            assert_eq!(read(b"\x1eMARK 0\n", size), (Vec::new(), ended("0")));
            assert_eq!(read(b"x\x1eMARX\x1eMARK 255\n", size), (b"x\x1eMARX".to_vec(), ended("255")));
            assert_eq!(read(b"\x1e\x1e\n\x1eMARK 1\n", size), (b"\x1e\x1e\n".to_vec(), ended("1")));
            assert_eq!(read(b"no mark\x1eMAR", size).0, b"no mark");
            assert_eq!(read(b"\x1eMARK 12", size).1, None);
            let long = read(&[b"\x1eMARK ".as_slice(), &[b'9'; 100]].concat(), size);
            assert_eq!(long, (Vec::new(), None));
        }
    }
}
