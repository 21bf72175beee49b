//! Provisioning and sessions through the agent in the guest. An agent of our own simulates the one of Tart: it runs commands on this machine, under
//! a user and in a home that the test gives it, and kills them when their stream ends.

mod sessions;
mod terminal;

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use mayfly::{
    domain::{Code, VmId, runner::RunnerKind},
    guest::{
        Kit, KitInput,
        agent::{Error, deliver, ready},
    },
};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process, test_kill_process_group};
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{NamedService, StreamingService},
};

const TOKEN: &str = "mft_s3cret-Token";

fn soon(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Waits for what happens outside of this process.
async fn until(what: &str, seconds: u64, condition: impl Fn() -> bool) {
    let deadline = soon(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- the protocol, as the other side of it reads it ----

#[derive(Clone, PartialEq, prost::Message)]
struct ExecRequest {
    #[prost(oneof = "Asked", tags = "1, 2, 3")]
    asked: Option<Asked>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Asked {
    #[prost(message, tag = "1")]
    Command(Command),
    #[prost(message, tag = "2")]
    StandardInput(IoChunk),
    #[prost(message, tag = "3")]
    TerminalResize(TerminalSize),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Command {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    args: Vec<String>,
    #[prost(bool, tag = "3")]
    interactive: bool,
    #[prost(bool, tag = "4")]
    tty: bool,
    #[prost(message, optional, tag = "5")]
    terminal_size: Option<TerminalSize>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct TerminalSize {
    #[prost(uint32, tag = "1")]
    rows: u32,
    #[prost(uint32, tag = "2")]
    cols: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IoChunk {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecResponse {
    #[prost(oneof = "Said", tags = "1, 2, 3")]
    said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Said {
    #[prost(message, tag = "1")]
    Exit(Exit),
    #[prost(message, tag = "2")]
    StandardOutput(IoChunk),
    #[prost(message, tag = "3")]
    StandardError(IoChunk),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Exit {
    #[prost(int32, tag = "1")]
    code: i32,
}

// ---- the agent ----

#[derive(Clone, Copy, Debug, Default)]
enum Fault {
    #[default]
    None,
    /// So long before it takes up a command.
    Slow(Duration),
    /// Takes the connection and says nothing, as a guest does whose other side is stuck.
    Silent,
    /// The connection breaks when so much of the input has come.
    BreaksAfter(usize),
    /// Takes leave of the pipes before they are read to the end: no exit code, and less output than there was.
    ForgetsTheEnd,
    /// Takes any end for a good one.
    SaysZero,
    /// Another service listens there.
    Stranger,
}

#[derive(Clone)]
struct Agent {
    home: PathBuf,
    fault: Fault,
    commands: Arc<Mutex<Vec<Command>>>,
    groups: Arc<Mutex<Vec<Pid>>>,
    broken: mpsc::Sender<()>,
}

type Answers = mpsc::Sender<Result<ExecResponse, Status>>;

fn said(said: Said) -> Result<ExecResponse, Status> {
    Ok(ExecResponse { said: Some(said) })
}

/// A command's process group, which ends with the stream.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

impl Agent {
    async fn exec(self, mut requests: Streaming<ExecRequest>, answers: Answers) -> Result<(), Status> {
        let first = requests.message().await?.and_then(|r| r.asked);
        let Some(Asked::Command(command)) = first else {
            return Err(Status::failed_precondition("the first message must be a command"));
        };
        self.commands.lock().unwrap().push(command.clone());
        if let Fault::Slow(time) = self.fault {
            tokio::time::sleep(time).await;
        }
        if command.tty {
            return terminal::exec(&command, &self.home, requests, answers).await;
        }
        let mut child = tokio::process::Command::new(&command.name)
            .args(&command.args)
            .env_clear()
            // This machine is not the guest.
            .env("MAYFLY_NO_POWER_OFF", "1")
            .env("HOME", &self.home)
            .env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.home.join("bin").display()))
            .current_dir(&self.home)
            .process_group(0)
            .stdin(if command.interactive { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Status::internal(e.to_string()))?;
        let group = Group(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap());
        self.groups.lock().unwrap().push(group.0);

        let out = pump(child.stdout.take().unwrap(), answers.clone(), Said::StandardOutput);
        let err = pump(child.stderr.take().unwrap(), answers.clone(), Said::StandardError);
        let mut input = child.stdin.take();
        let mut taken = 0;
        let feed = async {
            loop {
                match requests.message().await {
                    Ok(Some(ExecRequest { asked: Some(Asked::StandardInput(piece)) })) => {
                        assert!(command.interactive, "input for a command that reads none");
                        assert!(piece.data.len() <= 4 << 20, "over the limit of a gRPC server");
                        taken += piece.data.len();
                        if matches!(self.fault, Fault::BreaksAfter(most) if taken >= most) {
                            let _ = self.broken.send(()).await;
                            std::future::pending::<()>().await;
                        }
                        if piece.data.is_empty() {
                            input = None;
                        } else if let Some(pipe) = &mut input {
                            let _ = pipe.write_all(&piece.data).await;
                        }
                    }
                    Ok(Some(other)) => panic!("{other:?} in the middle of a command"),
                    // The end of the stream is the end of its command.
                    Ok(None) | Err(_) => return,
                }
            }
        };
        let work = async {
            // As the real one: the output's end is waited for, so a process that keeps it open keeps the call open.
            if matches!(self.fault, Fault::ForgetsTheEnd) {
                tokio::select! {
                    biased;
                    status = child.wait() => return status,
                    _ = async { tokio::join!(out, err) } => {}
                }
            } else {
                tokio::join!(out, err);
            }
            child.wait().await
        };
        tokio::select! {
            status = work => {
                let code = match self.fault {
                    Fault::ForgetsTheEnd => return Err(Status::unknown("read |0: file already closed")),
                    Fault::SaysZero => 0,
                    _ => status.map_err(|e| Status::internal(e.to_string()))?.code().unwrap_or(-1),
                };
                let _ = answers.send(said(Said::Exit(Exit { code }))).await;
            }
            () = feed => {}
            () = answers.closed() => {}
        }
        drop(group);
        let _ = child.wait().await;
        Ok(())
    }
}

async fn pump(mut from: impl tokio::io::AsyncRead + Unpin, to: Answers, wrap: fn(IoChunk) -> Said) {
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if to.send(said(wrap(IoChunk { data: bytes[..count].to_vec() }))).await.is_err() {
            return;
        }
    }
}

impl StreamingService<ExecRequest> for Agent {
    type Response = ExecResponse;
    type ResponseStream = ReceiverStream<Result<ExecResponse, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<ExecRequest>>) -> Self::Future {
        let agent = self.clone();
        Box::pin(async move {
            if matches!(agent.fault, Fault::Silent) {
                std::future::pending::<()>().await;
            }
            let (answers, stream) = mpsc::channel(1);
            tokio::spawn(async move {
                if let Err(status) = agent.exec(request.into_inner(), answers.clone()).await {
                    let _ = answers.send(Err(status)).await;
                }
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

impl NamedService for Agent {
    const NAME: &'static str = "Agent";
}

impl Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let agent = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/Agent/Exec" || matches!(agent.fault, Fault::Stranger) {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<ExecResponse, ExecRequest>::default());
            Ok(grpc.streaming(agent, request).await)
        })
    }
}

/// The process that runs the vm: its socket is there from the beginning, the agent behind it is not.
struct Guest {
    root: tempfile::TempDir,
    socket: PathBuf,
    home: PathBuf,
    /// Connections that are closed at once, until an agent listens in the guest.
    absent_for: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    commands: Arc<Mutex<Vec<Command>>>,
    groups: Arc<Mutex<Vec<Pid>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.server.abort();
        for group in self.groups.lock().unwrap_or_else(|e| e.into_inner()).drain(..) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        // Only after a failed test: a wrapper ends by itself when it is heard.
        if let Some(group) = self.wrapper().and_then(|wrapper| rustix::process::getpgid(Some(wrapper)).ok()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Guest {
    fn start(fault: Fault) -> Guest {
        Guest::with(fault, "vm")
    }

    fn with(fault: Fault, vm: &str) -> Guest {
        let root = tempfile::Builder::new().prefix("mfa").tempdir_in("/tmp").unwrap();
        let (dir, home) = (root.path().join(vm), root.path().join("home"));
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(home.join("bin")).unwrap();
        // As Tart does it by going there: the path may be longer than an address.
        let link = root.path().join("d");
        symlink(&dir, &link).unwrap();
        let listener = UnixListener::bind(link.join("control.sock")).unwrap();
        let (broken, mut breaks) = mpsc::channel(1);
        let (commands, groups) = (Arc::<Mutex<Vec<Command>>>::default(), Arc::<Mutex<Vec<Pid>>>::default());
        let (absent_for, accepted) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let agent = Agent { home: home.clone(), fault, commands: commands.clone(), groups: groups.clone(), broken };
        let (still_absent, counted) = (absent_for.clone(), accepted.clone());
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, SeqCst);
                if still_absent.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                    drop(stream);
                    continue;
                }
                let stream = stream.into_std().unwrap();
                let cut = stream.try_clone().unwrap();
                tokio::spawn(serve(agent.clone(), UnixStream::from_std(stream).unwrap()));
                if matches!(agent.fault, Fault::BreaksAfter(_)) && breaks.recv().await.is_some() {
                    cut.shutdown(std::net::Shutdown::Both).unwrap();
                }
            }
        });
        let guest =
            Guest { socket: dir.join("control.sock"), root, home, absent_for, accepted, commands, groups, server };
        // Not root, whoever runs this: root's kits go to a directory of the system.
        guest.program("id", "case $1 in -u) echo 501 ;; *) exec /usr/bin/id \"$@\" ;; esac");
        guest
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.home.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self) -> PathBuf {
        self.home.join(".mayfly/run")
    }

    fn groups_are_gone(&self) -> bool {
        self.groups.lock().unwrap().iter().all(|g| test_kill_process_group(*g).is_err())
    }

    fn wrapper(&self) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(self.run().join("wrapper.pid")).ok()?.trim().parse().ok()?)
    }
}

/// One connection, and with it all of its streams.
async fn serve(agent: Agent, stream: UnixStream) {
    let one = tokio_stream::iter([Ok::<_, std::io::Error>(stream)]);
    let _ = tonic::transport::Server::builder().add_service(agent).serve_with_incoming(one).await;
}

// ---- the service's side of a guest ----

/// Takes whatever a guest says and remembers it.
struct Api {
    url: String,
    calls: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Api {
    async fn start() -> Api {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let taken = calls.clone();
        let app = axum::Router::new().fallback(move |method: axum::http::Method, body: String| {
            taken.lock().unwrap().push(format!("{method} {body}"));
            async { axum::http::StatusCode::ACCEPTED }
        });
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Api { url, calls, server }
    }

    fn count(&self, what: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| c.contains(what)).count()
    }
}

fn kit(url: &str, payload: Option<String>) -> Kit {
    Kit::new(KitInput {
        vm_id: VmId::mint(),
        url: url.to_owned(),
        token: SecretString::from(TOKEN),
        job_token: SecretString::from("mfj_of-the-job"),
        runner: None,
        kind: if payload.is_some() { RunnerKind::Command } else { RunnerKind::None },
        attempt: 1,
        heartbeat_seconds: 60,
        handover: mayfly::domain::Handover::Agent,
        start_seconds: 60,
        user: String::new(),
        env: Default::default(),
        host_environment: Default::default(),
        ready: None,
        payload,
    })
    .unwrap()
}

// ---- tests ----

#[tokio::test]
async fn the_kit_is_delivered_and_its_wrapper_outlives_the_stream() {
    let (guest, api) = (Guest::start(Fault::None), Api::start().await);
    let root = guest.root.path();
    let release = root.join("release");
    // Large enough for several messages, and for several windows of HTTP/2.
    let filler = ": filler\n".repeat(60_000);
    let kit = kit(
        &api.url,
        // With the directory gone the test is over, however it ended.
        Some(format!(
            "#!/bin/sh\necho ran\nuntil [ -e '{}' ] || [ ! -d '{}' ]; do sleep 0.05; done\n{filler}",
            release.display(),
            root.display()
        )),
    );

    ready(&guest.socket, soon(20)).await.unwrap();
    let first = deliver(&guest.socket, &kit, soon(40)).await.unwrap();
    let log = String::from_utf8_lossy(&first.boot_log).into_owned();
    assert!(log.contains("wrapper started"), "{log}");
    let wrapper = guest.wrapper().unwrap();

    // The streams are over, and what they started is gone: all process groups but the wrapper's.
    assert!(!guest.groups.lock().unwrap().contains(&wrapper));
    until("the commands end with their streams", 10, || guest.groups_are_gone()).await;
    let again = deliver(&guest.socket, &kit, soon(40)).await.unwrap();
    let log = String::from_utf8_lossy(&again.boot_log).into_owned();
    assert!(log.contains("already started"), "{log}");
    assert_eq!(guest.wrapper(), Some(wrapper));
    assert!(test_kill_process(wrapper).is_ok(), "the wrapper died with its stream");
    assert!(!guest.run().join("wrapper.exit").exists());

    fs::write(&release, "").unwrap();
    until("the wrapper says that the job is over", 40, || api.count("runner_finished") == 1).await;
    assert_eq!(api.count("job_started"), 1);
    assert_eq!(fs::read_to_string(guest.run().join("wrapper.exit")).unwrap(), "0\n");

    for command in guest.commands.lock().unwrap().iter() {
        let line = format!("{} {}", command.name, command.args.join(" "));
        assert!(line.starts_with("/bin/sh -c /bin/sh -s ") && line.len() < 200, "{line}");
    }
}

#[tokio::test]
async fn an_agent_that_comes_late_is_waited_for() {
    let guest = Guest::start(Fault::Slow(Duration::from_millis(700)));
    guest.absent_for.store(4, SeqCst);
    let socket = guest.root.path().join("later/control.sock");
    let appears = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fs::create_dir(guest.root.path().join("later")).unwrap();
        symlink(&guest.socket, &socket).unwrap();
    };
    let (seen, ()) = tokio::join!(ready(&socket, soon(30)), appears);
    seen.unwrap();
    assert!(guest.accepted.load(SeqCst) > 4);
}

#[tokio::test]
async fn an_agent_that_never_comes_meets_the_deadline() {
    let guest = Guest::start(Fault::None);
    guest.absent_for.store(usize::MAX, SeqCst);
    let begun = Instant::now();
    let error = ready(&guest.socket, begun + Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, Error::Retry(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(error.code(), Code::GuestNotReady);
    assert!(error.to_string().contains("no gRPC session") || error.to_string().contains("broke off"), "{error}");

    let nowhere = guest.root.path().join("nowhere.sock");
    let error = ready(&nowhere, soon(1)).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let error = deliver(&nowhere, &kit("http://127.0.0.1:1", None), soon(1)).await.unwrap_err();
    assert!(matches!(error, Error::Retry(_)), "{error:?}");
}

#[tokio::test]
async fn silence_meets_the_deadline() {
    let guest = Guest::start(Fault::Silent);
    let begun = Instant::now();
    let error = ready(&guest.socket, begun + Duration::from_millis(800)).await.unwrap_err();
    assert!(matches!(error, Error::Retry(_)), "{error:?}");
    let error = deliver(&guest.socket, &kit("http://127.0.0.1:1", None), soon(1)).await.unwrap_err();
    assert!(matches!(&error, Error::Retry(why) if why.contains("did not answer in time")), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_nothing_half_done() {
    let guest = Guest::start(Fault::BreaksAfter(64 << 10));
    let kit = kit("http://127.0.0.1:1", Some("#".repeat(300_000)));
    let error = deliver(&guest.socket, &kit, soon(20)).await.unwrap_err();
    assert!(matches!(&error, Error::Retry(why) if why.contains("broke off")), "{error:?}");
    assert!(!error.to_string().contains('\n') && !error.to_string().contains(TOKEN));
    until("the command ends with its stream", 10, || guest.groups_are_gone()).await;
    assert!(!guest.home.join(".mayfly").exists());
}

#[tokio::test]
async fn a_failing_script_is_reported_with_its_output() {
    let guest = Guest::start(Fault::None);
    fs::write(guest.home.join(".mayfly"), "in the way").unwrap();
    let kit = kit("http://127.0.0.1:1", None);
    let error = deliver(&guest.socket, &kit, soon(20)).await.unwrap_err();
    assert!(matches!(&error, Error::Failed { exit: 1.., tail } if tail.contains(".mayfly")), "{error:?}");
    assert_eq!(error.code(), Code::GuestNotConfigured);

    guest.program("id", "kill -9 $PPID");
    let error = deliver(&guest.socket, &kit, soon(20)).await.unwrap_err();
    assert!(matches!(error, Error::Failed { exit: 137, .. }), "{error:?}");
}

#[tokio::test]
async fn the_end_is_known_whatever_the_agent_says_of_it() {
    let (guest, api) = (Guest::start(Fault::ForgetsTheEnd), Api::start().await);
    for _ in 0..10 {
        ready(&guest.socket, soon(20)).await.unwrap();
    }
    let done = deliver(&guest.socket, &kit(&api.url, None), soon(40)).await.unwrap();
    assert!(String::from_utf8_lossy(&done.boot_log).trim_end().ends_with(|c: char| c.is_ascii_digit()));
    until("the wrapper has ended", 20, || api.count("guest_configured") == 1).await;

    let guest = Guest::start(Fault::SaysZero);
    ready(&guest.socket, soon(20)).await.unwrap();
    // The script fails; then the shell around it is killed, which nothing but the agent could tell.
    fs::write(guest.home.join(".mayfly"), "in the way").unwrap();
    let error = deliver(&guest.socket, &kit(&api.url, None), soon(20)).await.unwrap_err();
    assert!(matches!(error, Error::Failed { exit: 1.., .. }), "{error:?}");
    guest.program("id", "kill -9 $(ps -o ppid= -p $PPID); sleep 1");
    let error = deliver(&guest.socket, &kit(&api.url, None), soon(20)).await.unwrap_err();
    assert!(matches!(&error, Error::Retry(why) if why.contains("without a word")), "{error:?}");
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_its_end_is_kept() {
    let (guest, api) = (Guest::start(Fault::None), Api::start().await);
    guest.program(
        "id",
        "case $1 in -u) yes a flood | head -c 3000000 >&2; echo 501 ;; *) exec /usr/bin/id \"$@\" ;; esac",
    );
    let done = deliver(&guest.socket, &kit(&api.url, None), soon(40)).await.unwrap();
    assert_eq!(done.boot_log.len(), 64 << 10);
    let log = String::from_utf8_lossy(&done.boot_log).into_owned();
    assert!(log.starts_with("a flood") || log.contains("\na flood"), "the flood is not there");
    assert!(log.trim_end().lines().last().unwrap().contains("wrapper started"), "{}", &log[log.len() - 300..]);
    until("the wrapper has ended", 20, || api.count("guest_configured") == 1).await;
}

#[tokio::test]
async fn a_socket_with_a_long_path_is_reached() {
    let guest = Guest::with(Fault::None, &"a-long-name-of-a-vm/".repeat(12));
    assert!(guest.socket.as_os_str().len() > 200);
    ready(&guest.socket, soon(20)).await.unwrap();
}

/// A caller that gives up must not leave a script behind that somebody else may start again meanwhile.
#[tokio::test]
async fn dropping_the_future_ends_the_script() {
    let guest = Guest::start(Fault::None);
    guest.program("id", "echo $$ >\"$HOME/blocked\"; exec sleep 300");
    let blocked = guest.home.join("blocked");
    let kit = kit("http://127.0.0.1:1", None);
    let pid = || Pid::from_raw(fs::read_to_string(&blocked).ok()?.trim().parse().ok()?);
    tokio::select! {
        done = deliver(&guest.socket, &kit, soon(60)) => panic!("{done:?}"),
        () = until("the script runs", 20, || pid().is_some()) => {}
    }
    let pid = pid().unwrap();
    until("the script is gone", 10, || gone(pid)).await;
}

/// Dead, or waiting to be reaped by a parent that has other things to do.
fn gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("stat"));
    stat.map_or(true, |s| s.rsplit(") ").next().is_some_and(|s| s.starts_with('Z')))
}

#[tokio::test]
async fn something_else_behind_the_socket_is_not_tried_for_long() {
    let guest = Guest::start(Fault::Stranger);
    let error = deliver(&guest.socket, &kit("http://127.0.0.1:1", None), soon(20)).await.unwrap_err();
    assert!(matches!(error, Error::Unusable(_)), "{error:?}");

    // No gRPC at all.
    let other = guest.root.path().join("other.sock");
    let listener = UnixListener::bind(&other).unwrap();
    let server = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    };
    let kit = kit("http://127.0.0.1:1", None);
    tokio::select! {
        done = timeout(Duration::from_secs(20), deliver(&other, &kit, soon(5))) => {
            assert!(matches!(done.expect("it ends"), Err(Error::Retry(_))));
        }
        () = server => unreachable!(),
    }
}
