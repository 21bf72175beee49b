//! The agent's commands with a terminal.

use std::{
    fs::{File, OpenOptions},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::Path,
    process::Stdio,
};

use rustix::{
    fs::OFlags,
    io::{FdFlags, fcntl_setfd},
    process::Pid,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Status, Streaming};

use super::{Answers, Asked, Command, ExecRequest, Exit, Group, IoChunk, Said, TerminalSize, said};

fn resize(terminal: &File, size: TerminalSize) {
    let short = |number: u32| u16::try_from(number).expect("the size of a terminal");
    let size = Winsize { ws_row: short(size.rows), ws_col: short(size.cols), ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a terminal");
}

/// The terminal's other side, and what the command opens.
fn open(size: Option<TerminalSize>) -> std::io::Result<(File, File)> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    // macOS has no flag for it.
    fcntl_setfd(&terminal, FdFlags::CLOEXEC)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let path = ptsname(&terminal, Vec::new())?;
    let terminal = File::from(terminal);
    resize(&terminal, size.expect("a terminal has a size"));
    let flags = OFlags::NOCTTY.bits().cast_signed();
    let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    Ok((terminal, OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?))
}

/// As the real one: a session of its own, whose terminal has one output.
pub async fn exec(
    command: &Command,
    home: &Path,
    mut requests: Streaming<ExecRequest>,
    answers: Answers,
) -> Result<(), Status> {
    let internal = |error: std::io::Error| Status::internal(error.to_string());
    let (terminal, side) = open(command.terminal_size).map_err(internal)?;
    let stdio = || side.try_clone().map(Stdio::from).map_err(internal);
    let mut child = tokio::process::Command::new("setsid")
        .arg("--ctty")
        .arg(&command.name)
        .args(&command.args)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .current_dir(home)
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?)
        .spawn()
        .map_err(internal)?;
    drop(side);
    let group = Group(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap());
    let mut output = tokio::fs::File::from_std(terminal.try_clone().map_err(internal)?);
    let mut input = tokio::fs::File::from_std(terminal.try_clone().map_err(internal)?);
    let feed = async {
        while let Ok(Some(ExecRequest { asked: Some(asked) })) = requests.message().await {
            match asked {
                Asked::StandardInput(IoChunk { data }) => {
                    input.write_all(&data).await.unwrap();
                    input.flush().await.unwrap();
                }
                Asked::TerminalResize(size) => resize(&terminal, size),
                Asked::Command(_) => panic!("a command in the middle of one"),
            }
        }
    };
    let work = async {
        let mut bytes = vec![0; 4096];
        // Linux reports an error once nothing has the terminal open.
        while let Ok(count @ 1..) = output.read(&mut bytes).await {
            if answers.send(said(Said::StandardOutput(IoChunk { data: bytes[..count].to_vec() }))).await.is_err() {
                return;
            }
        }
        let code = child.wait().await.ok().and_then(|status| status.code()).unwrap_or(-1);
        let _ = answers.send(said(Said::Exit(Exit { code }))).await;
    };
    tokio::select! {
        () = work => {}
        () = feed => {}
        () = answers.closed() => {}
    }
    drop(group);
    Ok(())
}
