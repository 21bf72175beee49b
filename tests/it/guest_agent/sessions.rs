//! Commands and shells through the agent in the guest.

use std::{fs, time::Duration};

use mayfly::{
    domain::Code,
    guest::session::{GuestLogin, SessionExit, SessionOutput, Terminal},
};
use rustix::process::Pid;
use tokio::time::timeout;

use super::{Fault, Guest, gone, soon, until};

/// Runs a command line to its end, with this input.
async fn session(guest: &Guest, command: Option<&str>, input: &[u8]) -> (Vec<u8>, Vec<u8>, SessionExit) {
    let login = GuestLogin::through_agent(&guest.socket, soon(20)).await.unwrap();
    assert_eq!(login.host_key(), None);
    let (mut reader, writer) = login.run(command, None).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        writer.input(bytes::Bytes::copy_from_slice(input)).await;
        writer.end_of_input().await;
        std::future::pending::<()>().await;
    };
    let read = async {
        loop {
            match reader.next().await.unwrap() {
                SessionOutput::Stdout(bytes) => out.extend(bytes),
                SessionOutput::Stderr(bytes) => err.extend(bytes),
                SessionOutput::Exited(exit) => return exit,
            }
        }
    };
    let exit = timeout(Duration::from_secs(60), async {
        tokio::select! {
            exit = read => exit,
            () = feed => unreachable!(),
        }
    });
    let exit = exit.await.expect("it ends");
    (out, err, exit)
}

#[tokio::test]
async fn a_command_of_a_session_has_its_input_outputs_and_exit_code() {
    for fault in [Fault::None, Fault::ForgetsTheEnd, Fault::SaysZero] {
        let guest = Guest::start(fault);
        let (out, err, exit) = session(&guest, Some("cat; echo \"it's wrong\" >&2; exit 7"), b"what comes in\n").await;
        assert_eq!(String::from_utf8_lossy(&out), "what comes in\n");
        assert_eq!(String::from_utf8_lossy(&err), "it's wrong\n");
        assert_eq!(exit, SessionExit::Code(7));
        // Without a line feed at the end, and with nothing on one of them. Its input was not read.
        let (out, err, exit) = session(&guest, Some("printf '\\n\\nx'"), b"unread").await;
        assert_eq!((out.as_slice(), err.as_slice(), exit), (&b"\n\nx"[..], &b""[..], SessionExit::Code(0)));
        let (.., exit) = session(&guest, Some("kill -9 $$"), b"").await;
        assert_eq!(exit, SessionExit::Code(137));
    }
}

#[tokio::test]
async fn more_than_all_buffers_goes_through_a_session() {
    let guest = Guest::start(Fault::None);
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (out, err, exit) = session(&guest, Some("cat"), &big).await;
    assert_eq!(exit, SessionExit::Code(0));
    assert!(out == big && err.is_empty(), "{} bytes came back", out.len());
}

#[tokio::test]
async fn a_shell_without_a_terminal_reads_its_input() {
    let guest = Guest::start(Fault::None);
    let (out, _, exit) = session(&guest, None, b"echo from the shell\nexit 3\n").await;
    assert_eq!((out.as_slice(), exit), (&b"from the shell\n"[..], SessionExit::Code(3)));
}

#[tokio::test]
async fn a_terminal_has_a_type_a_size_and_keys() {
    let guest = Guest::start(Fault::None);
    let login = GuestLogin::through_agent(&guest.socket, soon(20)).await.unwrap();
    let terminal = Terminal { term: "vt220".to_owned(), columns: 101, rows: 33 };
    let (mut reader, writer) = login.run(None, Some(&terminal)).await.unwrap();
    let mut shown = String::new();
    let mut until = async |shown: &mut String, what: &str| {
        let reading = async {
            while !shown.contains(what) {
                match reader.next().await.unwrap() {
                    SessionOutput::Stdout(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
                    other => panic!("{other:?} after {shown:?}"),
                }
            }
        };
        let read = timeout(Duration::from_secs(30), reading).await;
        assert!(read.is_ok(), "{what:?} is not shown: {shown:?}");
    };
    // What is typed is echoed: the words that are waited for are put together by the shell.
    writer.input("stty size; echo \"$TERM\" >&2; PS1='ne''xt> '\r".into()).await;
    until(&mut shown, "next> ").await;
    assert!(shown.contains("33 101") && shown.contains("vt220"), "{shown}");
    writer.resize(90, 30).await;
    // Ctrl-C ends what runs, and not the shell.
    writer.input("sh -c \"echo sle''eps; exec sleep 600\"\r".into()).await;
    until(&mut shown, "sleeps").await;
    shown.clear();
    writer.input("\x03".into()).await;
    until(&mut shown, "next> ").await;
    writer.input("stty size\r".into()).await;
    until(&mut shown, "30 90").await;
    writer.input("exit 9\r".into()).await;
    let exit = timeout(Duration::from_secs(30), async {
        loop {
            if let SessionOutput::Exited(exit) = reader.next().await.unwrap() {
                return exit;
            }
        }
    });
    assert_eq!(exit.await.expect("it ends"), SessionExit::Code(9));

    // A command that Ctrl-C ends has an exit code.
    let login = GuestLogin::through_agent(&guest.socket, soon(20)).await.unwrap();
    let (mut reader, writer) = login.run(Some("echo runs; exec sleep 600"), Some(&terminal)).await.unwrap();
    assert_eq!(reader.next().await.unwrap(), SessionOutput::Stdout("runs\r\n".into()));
    writer.input("\x03".into()).await;
    let ends = timeout(Duration::from_secs(30), async {
        loop {
            if let SessionOutput::Exited(exit) = reader.next().await.unwrap() {
                return exit;
            }
        }
    });
    assert_eq!(ends.await.expect("it ends"), SessionExit::Code(130));
}

/// A caller that goes away leaves nothing running, and a guest that goes away is no exit code.
#[tokio::test]
async fn a_session_ends_with_its_caller_and_with_its_guest() {
    let guest = Guest::start(Fault::None);
    let login = GuestLogin::through_agent(&guest.socket, soon(20)).await.unwrap();
    let (mut reader, writer) = login.run(Some("echo $$ >\"$HOME/pid\"; echo runs; sleep 300"), None).await.unwrap();
    assert_eq!(reader.next().await.unwrap(), SessionOutput::Stdout("runs\n".into()));
    let pid = Pid::from_raw(fs::read_to_string(guest.home.join("pid")).unwrap().trim().parse().unwrap()).unwrap();
    assert!(!gone(pid));
    drop((login, reader, writer));
    until("the command is gone", 10, || gone(pid)).await;

    let login = GuestLogin::through_agent(&guest.socket, soon(20)).await.unwrap();
    let (mut reader, _writer) = login.run(Some("kill -9 $PPID; true"), None).await.unwrap();
    let error = timeout(Duration::from_secs(20), reader.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code, Code::SessionFailed, "{error:?}");
}
