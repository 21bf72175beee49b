//! Tests against OpenSSH's server where it is installed, and against a test server that misbehaves.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use russh::{
    Channel, ChannelId, MethodSet,
    keys::{PrivateKey, key::safe_rng, ssh_key::LineEnding},
    server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey},
};
use tokio::net::TcpListener;

use super::{
    super::{
        install::tests::{BOOT, assert_written},
        kit::tests::input,
        readiness::banner,
    },
    *,
};

fn soon(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn ed25519() -> PrivateKey {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
}

fn target(port: u16, login: SshLogin) -> SshTarget {
    SshTarget { endpoint: Endpoint::address("127.0.0.1", port), user: "runner".into(), login, pinned_host_key: None }
}

fn password(text: &str) -> SshLogin {
    SshLogin::Password(SecretString::from(text))
}

// ---- OpenSSH ----

/// A server on a loopback port with its own keys, run by this test and ended with it.
struct Sshd {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    /// `None` where it is not installed. Host keys: the names of key types in order.
    fn start(kinds: &[&str]) -> Option<Sshd> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            eprintln!("no sshd here: not tested against it");
            return None;
        }
        let _ = fs::create_dir_all("/run/sshd");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = format!(
            "ListenAddress 127.0.0.1:{port}\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nAuthorizedKeysFile {}\n",
            at("authorized")
        );
        for kind in kinds {
            keygen(kind, &at(&format!("host_{kind}")));
            config.push_str(&format!("HostKey {}\n", at(&format!("host_{kind}"))));
        }
        let mut authorized = String::new();
        for kind in ["ed25519", "ecdsa", "rsa"] {
            keygen(kind, &at(kind));
            authorized.push_str(&fs::read_to_string(at(&format!("{kind}.pub"))).unwrap());
        }
        fs::write(at("authorized"), authorized).unwrap();
        fs::write(at("config"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let child = Command::new(program)
            .args(["-D", "-e", "-f", &at("config")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Sshd { child, port, dir })
    }

    fn target(&self, kind: &str) -> SshTarget {
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_owned();
        SshTarget { user, ..target(self.port, SshLogin::Key(self.dir.path().join(kind))) }
    }
}

fn keygen(kind: &str, path: &str) {
    let bits: &[&str] = if kind == "rsa" { &["-b", "2048"] } else { &[] };
    let out = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f", path]).args(bits).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn openssh_takes_the_kit_and_its_key_is_pinned() {
    let Some(sshd) = Sshd::start(&["ed25519", "ecdsa"]) else { return };
    let line = banner(&Endpoint::address("127.0.0.1", sshd.port), soon(10)).await.unwrap();
    assert!(line.starts_with("SSH-2.0-OpenSSH"), "{line}");

    // More than one channel window of script, so that flow control is part of the test.
    let big = crate::guest::KitInput { payload: Some("x\u{1}y\n".repeat(450_000)), ..input() };
    let kit = Kit::new(big).unwrap().with_boot(BOOT);
    let place = sshd.dir.path().join("kit");
    let script = install::script(&kit, &InstallTarget::At(place.display().to_string()));
    let first = deliver_to(&sshd.target("ed25519"), &script, soon(20)).await.unwrap();
    assert_eq!(first.boot_log.trim_ascii(), b"1");
    assert_written(&kit, &place);
    let public = fs::read_to_string(sshd.dir.path().join("host_ed25519.pub")).unwrap();
    assert!(public.starts_with(&first.host_key), "{} is not {public}", first.host_key);

    for kind in ["ed25519", "ecdsa", "rsa"] {
        let pinned = SshTarget { pinned_host_key: Some(first.host_key.clone()), ..sshd.target(kind) };
        let again = deliver_to(&pinned, &script, soon(20)).await.unwrap();
        assert_eq!(again.host_key, first.host_key);
    }
    // The other key of the same server is as good, when that is the one that was pinned.
    let ecdsa = fs::read_to_string(sshd.dir.path().join("host_ecdsa.pub")).unwrap();
    let pinned = SshTarget { pinned_host_key: Some(ecdsa.trim().to_owned()), ..sshd.target("ed25519") };
    assert!(deliver_to(&pinned, &script, soon(20)).await.unwrap().host_key.starts_with("ecdsa"));
}

#[tokio::test]
async fn openssh_with_an_rsa_key_only() {
    let Some(sshd) = Sshd::start(&["rsa"]) else { return };
    banner(&Endpoint::address("127.0.0.1", sshd.port), soon(10)).await.unwrap();
    let done = deliver_to(&sshd.target("rsa"), "echo out; echo err >&2; exit 0", soon(20)).await.unwrap();
    assert!(done.host_key.starts_with("ssh-rsa "));
    let shown = String::from_utf8(done.boot_log).unwrap();
    assert!(shown.contains("out") && shown.contains("err"), "{shown}");
    let pinned = SshTarget { pinned_host_key: Some(done.host_key), ..sshd.target("ed25519") };
    deliver_to(&pinned, "exit 0", soon(20)).await.unwrap();

    let other = SshTarget { pinned_host_key: Some(ed25519().public_key().to_openssh().unwrap()), ..pinned };
    let error = deliver_to(&other, "exit 0", soon(20)).await.unwrap_err();
    assert!(matches!(error, SshError::HostKeyChanged(_)), "{error:?}");
}

#[tokio::test]
async fn openssh_and_what_goes_wrong_in_the_guest() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    banner(&Endpoint::address("127.0.0.1", sshd.port), soon(10)).await.unwrap();

    let error = deliver_to(&sshd.target("ed25519"), "echo no such user >&2; exit 7", soon(20)).await.unwrap_err();
    assert_eq!(error, SshError::Failed { exit: Some(7), tail: "no such user\n".into() });
    let error = deliver_to(&sshd.target("ed25519"), "kill -9 $$", soon(20)).await.unwrap_err();
    assert!(matches!(error, SshError::Failed { exit: None, .. }), "{error:?}");

    let stranger = sshd.dir.path().join("stranger");
    fs::write(&stranger, ed25519().to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
    let refused = SshTarget { login: SshLogin::Key(stranger), ..sshd.target("ed25519") };
    let error = deliver_to(&refused, "exit 0", soon(20)).await.unwrap_err();
    assert!(matches!(error, SshError::LoginRefused(_)), "{error:?}");

    // What holds the channel open after the script's end does not hold us.
    let begun = Instant::now();
    deliver_to(&sshd.target("ed25519"), "sleep 8 & echo started", soon(20)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
    // A script that never ends meets the deadline.
    let error = deliver_to(&sshd.target("ed25519"), "exec sleep 8", soon(2)).await.unwrap_err();
    assert!(matches!(error, SshError::Retry(_)), "{error:?}");
}

/// The real scripts, delivered by the real server: the job runs with its environment, and the calls arrive in their order.
#[tokio::test]
async fn the_real_kit_runs_its_job() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    if !["/usr/bin/curl", "/usr/local/bin/curl", "/opt/homebrew/bin/curl"].iter().any(|c| Path::new(c).exists()) {
        eprintln!("no curl here: the kit cannot report");
        return;
    }
    let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", api.local_addr().unwrap());
    let value = "it's $(touch pwned)\n\"2\" lines";
    let payload = "#!/bin/sh\nprintf %s \"$GREETING\" >\"$MAYFLY_HOME/run/greeting\"\nexit 3\n";
    let kit = Kit::new(crate::guest::KitInput {
        url,
        env: [("GREETING".to_owned(), value.to_owned())].into(),
        payload: Some(payload.into()),
        ..input()
    })
    .unwrap();
    let place = sshd.dir.path().join("kit");
    let script = install::script(&kit, &InstallTarget::At(place.display().to_string()));

    let calls = Arc::new(Mutex::new(Vec::new()));
    let server = serve_api(api, calls.clone());
    let target = sshd.target("ed25519");
    let lived = async {
        banner(&Endpoint::address("127.0.0.1", sshd.port), soon(10)).await.unwrap();
        let done = deliver_to(&target, &script, soon(30)).await.unwrap();
        assert!(String::from_utf8_lossy(&done.boot_log).contains("wrapper started"));
        let finished = |calls: &Vec<String>| calls.iter().any(|c| c.contains("runner_finished"));
        while !finished(&calls.lock()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        lived = timeout(Duration::from_secs(60), lived) => lived.expect("the runner finishes"),
        () = server => unreachable!(),
    }
    assert_eq!(fs::read_to_string(place.join("run/greeting")).unwrap(), value);
    let calls = calls.lock();
    let position =
        |what: &str| calls.iter().position(|c| c.contains(what)).unwrap_or_else(|| panic!("{what}: {calls:#?}"));
    let order = ["guest_ready", "guest_configured", "job_started", "DELETE /vms/", r#""exit_code":3"#].map(position);
    assert!(order.is_sorted(), "{calls:#?}");
    assert!(calls.iter().all(|c| c.contains("authorization: bearer mft_s3cret-token")), "{calls:#?}");
}

/// Takes every call and notes it in lower case, but for its first line.
async fn serve_api(listener: TcpListener, calls: Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let (line, headers) = head.split_once("\r\n").unwrap();
                let headers = headers.to_ascii_lowercase();
                let length = headers.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    calls.lock().push(format!("{line}\n{headers}\n{body}"));
                    break;
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break;
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    }
}

/// Nothing of the kit is in the guest's process list while it is delivered.
#[tokio::test]
async fn no_secret_is_ever_an_argument() {
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    banner(&Endpoint::address("127.0.0.1", sshd.port), soon(10)).await.unwrap();
    let mark = format!("mark{}", std::process::id());
    let script = format!("{{ SECRET={mark}; printf '%s' \"$SECRET\" >/dev/null; sleep 1; exit 0; }}");
    let watch = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut lines = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            lines.extend(fs::read(process.path().join("cmdline")).unwrap_or_default());
        }
        assert!(!String::from_utf8_lossy(&lines).contains(&mark));
    };
    let target = sshd.target("ed25519");
    let (done, ()) = tokio::join!(deliver_to(&target, &script, soon(20)), watch);
    done.unwrap();
}

// ---- a server that misbehaves ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    HangUpAtLogin,
    OnlyPrompts,
    /// Offers passwords and takes them by prompts only; asks in two rounds, the last without a question.
    LikeMacos,
    StillBooting,
    RefuseExec,
    HangUpAtExec,
    Chatty,
}

#[derive(Clone)]
struct Server {
    fault: Fault,
    got: Arc<Mutex<Vec<u8>>>,
}

impl server::Handler for Server {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        let text = "System is booting up. Unprivileged users are not permitted to log in yet.";
        Ok((self.fault == Fault::StillBooting).then(|| text.to_owned()))
    }

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        match self.fault {
            Fault::HangUpAtLogin => Err(russh::Error::Disconnect),
            Fault::OnlyPrompts => Ok(Auth::Reject {
                proceed_with_methods: Some(MethodSet::from(&[MethodKind::KeyboardInteractive][..])),
                partial_success: false,
            }),
            Fault::LikeMacos => Ok(Auth::Reject {
                proceed_with_methods: Some(MethodSet::from(
                    &[MethodKind::PublicKey, MethodKind::Password, MethodKind::KeyboardInteractive][..],
                )),
                partial_success: false,
            }),
            Fault::StillBooting => Ok(Auth::reject()),
            _ if password == "right" => Ok(Auth::Accept),
            _ => Ok(Auth::reject()),
        }
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<server::Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        match response {
            None if self.fault == Fault::StillBooting => Ok(Auth::reject()),
            None => Ok(Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: vec![("Password:".into(), false)].into(),
            }),
            Some(mut answers) => match answers.next() {
                Some(answer) if answer.as_ref() == b"right" && self.fault == Fault::LikeMacos => {
                    Ok(Auth::Partial { name: "".into(), instructions: "".into(), prompts: vec![].into() })
                }
                Some(answer) if answer.as_ref() == b"right" => Ok(Auth::Accept),
                None if self.fault == Fault::LikeMacos => Ok(Auth::Accept),
                _ => Ok(Auth::reject()),
            },
        }
    }

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::reject())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], s: &mut Session) -> Result<(), Self::Error> {
        match self.fault {
            Fault::RefuseExec => s.channel_failure(channel),
            Fault::HangUpAtExec => Err(russh::Error::Disconnect),
            _ => s.channel_success(channel),
        }
    }

    async fn data(&mut self, _: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        self.got.lock().extend_from_slice(data);
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, s: &mut Session) -> Result<(), Self::Error> {
        if self.fault == Fault::Chatty {
            for n in 0..40 {
                s.data(channel, format!("{n:05}").into_bytes().repeat(1000))?;
            }
        }
        s.exit_status_request(channel, 0)?;
        s.eof(channel)?;
        s.close(channel)
    }
}

/// Serves every connection alike and returns the port, and what came in on standard input.
async fn serve(key: PrivateKey, fault: Fault) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = Arc::new(server::Config {
        keys: vec![key],
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        ..server::Config::default()
    });
    let got = Arc::new(Mutex::new(Vec::new()));
    let server = Server { fault, got: got.clone() };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (config, server) = (config.clone(), server.clone());
            tokio::spawn(async move {
                if let Ok(session) = server::run_stream(config, stream, server).await {
                    let _ = session.await;
                }
            });
        }
    });
    (port, got)
}

async fn try_fault(fault: Fault, login: SshLogin) -> Result<SshDelivery, SshError> {
    let (port, _) = serve(ed25519(), fault).await;
    deliver_to(&target(port, login), "exit 0", soon(10)).await
}

#[tokio::test]
async fn the_script_goes_through_standard_input() {
    let key = ed25519();
    let (port, got) = serve(key.clone(), Fault::None).await;
    let kit = Kit::new(input()).unwrap();
    let done = deliver(&target(port, password("right")), &kit, soon(10)).await.unwrap();
    assert_eq!(done.host_key, key.public_key().to_openssh().unwrap().trim());
    assert_eq!(*got.lock(), install::script(&kit, &InstallTarget::OfUser).as_bytes());
}

#[tokio::test]
async fn another_host_key_is_an_error_before_any_login() {
    let (port, got) = serve(ed25519(), Fault::None).await;
    let pinned = Some(ed25519().public_key().to_openssh().unwrap());
    let changed = SshTarget { pinned_host_key: pinned, ..target(port, password("right")) };
    let error = deliver_to(&changed, "exit 0", soon(10)).await.unwrap_err();
    assert!(matches!(error, SshError::HostKeyChanged(_)), "{error:?}");
    assert_eq!(error.code(), Code::GuestHostKeyChanged);
    assert!(got.lock().is_empty());

    let garbage = SshTarget { pinned_host_key: Some("garbage".into()), ..changed };
    assert!(matches!(deliver_to(&garbage, "", soon(10)).await, Err(SshError::HostKeyChanged(_))));
}

#[tokio::test]
async fn passwords_are_requested_in_two_ways_and_never_shown() {
    for fault in [Fault::None, Fault::OnlyPrompts, Fault::LikeMacos] {
        try_fault(fault, password("right")).await.unwrap();
        let error = try_fault(fault, password("wr0ng")).await.unwrap_err();
        assert!(matches!(error, SshError::LoginRefused(_)), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("wr0ng"));
    }
    assert!(!format!("{:?}", target(1, password("wr0ng"))).contains("wr0ng"));
}

#[tokio::test]
async fn a_broken_session_is_worth_another_try() {
    for fault in [Fault::HangUpAtLogin, Fault::StillBooting, Fault::HangUpAtExec, Fault::RefuseExec] {
        let error = try_fault(fault, password("right")).await.expect_err(&format!("{fault:?}"));
        assert!(matches!(error, SshError::Retry(_)), "{error:?}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[tokio::test]
async fn much_output_is_cut_and_its_end_is_kept() {
    let done = try_fault(Fault::Chatty, password("right")).await.unwrap();
    assert_eq!(done.boot_log.len(), 64 << 10);
    assert!(done.boot_log.ends_with(b"0003900039"));
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_a_refused_login() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    for content in [None, Some("not a key")] {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = try_fault(Fault::None, SshLogin::Key(path.clone())).await.unwrap_err();
        assert!(matches!(error, SshError::LoginRefused(_)), "{error:?}");
    }
}

#[tokio::test]
async fn silence_closing_and_refusal_are_worth_another_try() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = deliver_to(&target(port, password("x")), "", soon(1)).await.unwrap_err();
    assert!(matches!(error, SshError::Retry(_)), "{error:?}");

    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closing.local_addr().unwrap().port();
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    let error = deliver_to(&target(port, password("x")), "", soon(5)).await.unwrap_err();
    assert!(matches!(error, SshError::Retry(_)), "{error:?}");

    let port = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port() };
    let error = deliver_to(&target(port, password("x")), "", soon(5)).await.unwrap_err();
    assert!(matches!(error, SshError::Retry(_)), "{error:?}");
}

/// russh keeps a task per connection; dropping ours must end that one too, or a guest would keep half a login.
#[tokio::test]
async fn dropping_the_future_closes_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connected = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Far enough that russh has its task: our identification, then nothing.
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-test\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream
    };
    let login = password("x");
    let target = target(port, login);
    let mut stream = tokio::select! {
        _ = deliver_to(&target, "", soon(20)) => unreachable!("the server says nothing"),
        stream = connected => stream,
    };
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    assert!(timeout(Duration::from_secs(2), read).await.is_ok(), "the connection is still open");
}

#[tokio::test]
async fn a_command_and_a_shell_run_with_their_output_and_exit_code() {
    use super::{
        super::session_output::{SessionExit, SessionOutput, Terminal},
        session::SshSession,
    };
    let Some(sshd) = Sshd::start(&["ed25519"]) else { return };
    let target = sshd.target("ed25519");
    banner(&target.endpoint, soon(20)).await.unwrap();
    let login = SshSession::open(&target, soon(20)).await.unwrap();
    let run = async |command: Option<&str>, terminal: Option<&Terminal>, input: &str| {
        let (mut from, to) = login.run(command, terminal).await.unwrap();
        to.input(input.to_owned().into()).await;
        if terminal.is_none() {
            to.end_of_input().await;
        }
        let (mut out, mut err) = (String::new(), String::new());
        loop {
            match from.next().await.unwrap() {
                SessionOutput::Stdout(bytes) => out.push_str(std::str::from_utf8(&bytes).unwrap()),
                SessionOutput::Stderr(bytes) => err.push_str(std::str::from_utf8(&bytes).unwrap()),
                SessionOutput::Exited(exit) => return (out, err, exit),
            }
        }
    };
    let ended = run(Some("cat; echo wrong >&2; exit 7"), None, "in\n").await;
    assert_eq!(ended, ("in\n".to_owned(), "wrong\n".to_owned(), SessionExit::Code(7)));
    let ended = run(Some("kill -TERM $$"), None, "").await;
    assert_eq!(ended.2, SessionExit::Signal("TERM".to_owned()));
    let terminal = Terminal { term: "xterm".to_owned(), columns: 101, rows: 33 };
    let (out, _, exit) = run(Some("stty size; exit 3"), Some(&terminal), "").await;
    assert_eq!((out.trim(), exit), ("33 101", SessionExit::Code(3)));
    let (_, _, exit) = run(None, None, "exit 5\n").await;
    assert_eq!(exit, SessionExit::Code(5));
}
