//! Delivers the bootstrap bundle over SSH: logs in, sends one script to a shell, and waits until `boot.sh` has
//! started the wrapper.
//!
//! - The guest's host key is pinned at the first connection, because the key of a new guest cannot be known before.
//!   From then on another key, or no key, is an error.
//! - The script goes through standard input: a command line would show its secrets to every process of the guest.
//! - Dropping the future closes the connection. Processes in the guest continue; a repeated delivery is safe.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use russh::{
    AlgorithmKind, ChannelMsg, Disconnect, MethodKind,
    client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse},
    keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::either::Either;

use super::{
    install::{self, InstallTarget},
    kit::Kit,
    output::{TailBuffer, one_line},
    ready_kit,
};
use crate::{
    domain::{Code, Template, endpoint::Endpoint},
    platform::clock,
};

pub mod session;

/// Time limit of a connection and login: a silent forwarded port must not use up the whole budget in one attempt.
const LOGIN: Duration = Duration::from_secs(30);
/// How long the end of the output may arrive after the exit code.
const TRAILING_OUTPUT: Duration = Duration::from_millis(500);

/// The login of a guest.
#[derive(Clone, Debug)]
pub enum SshLogin {
    /// Path of an OpenSSH, PKCS#1 or PKCS#8 private key without a passphrase.
    Key(PathBuf),
    Password(SecretString),
}

impl SshLogin {
    /// The login that the template was registered with. `None`: it has none.
    pub async fn of(template: &Template) -> io::Result<Option<SshLogin>> {
        if let Some(key) = &template.files.ssh_key {
            return Ok(Some(SshLogin::Key(key.clone())));
        }
        let Some(file) = &template.files.ssh_password else { return Ok(None) };
        let text = tokio::fs::read_to_string(file).await?;
        Ok(Some(SshLogin::Password(text.trim_end_matches(['\r', '\n']).to_owned().into())))
    }
}

#[derive(Clone, Debug)]
pub struct SshTarget {
    pub endpoint: Endpoint,
    pub user: String,
    pub login: SshLogin,
    /// The key that an earlier delivery to this guest returned (OpenSSH public key format); `None` at the first
    /// contact.
    pub pinned_host_key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshDelivery {
    /// The key to pin: OpenSSH public key format, without a comment.
    pub host_key: String,
    /// The output of `boot.sh`; only its end if it is long.
    pub boot_log: Vec<u8>,
}

/// Why it failed. Each message is one line without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SshError {
    /// The guest may not be ready yet, or the failure is temporary: a retry may help.
    #[error("{0}")]
    Retry(String),
    /// The guest answers and refuses the login. A guest that creates its users while booting may accept it later.
    #[error("{0}")]
    LoginRefused(String),
    #[error("{0}")]
    HostKeyChanged(String),
    /// The script ran and failed in the guest.
    #[error("the script that was run in the guest ended with {}", .exit.map_or("a signal".to_owned(), |c| format!("exit code {c}")))]
    Failed {
        exit: Option<u32>,
        /// The end of its output. Only for the log, because the guest controls it.
        tail: String,
    },
}

impl SshError {
    pub fn code(&self) -> Code {
        match self {
            SshError::Retry(_) => Code::GuestNotReady,
            SshError::LoginRefused(_) => Code::GuestLoginRefused,
            SshError::HostKeyChanged(_) => Code::GuestHostKeyChanged,
            SshError::Failed { exit: Some(ready_kit::EXIT_NOT_READY), .. } => Code::GuestCheckFailed,
            SshError::Failed { .. } => Code::GuestNotConfigured,
        }
    }
}

/// Writes the bundle into the guest and starts it: `/opt/mayfly` for root, `~/.mayfly` for others.
pub async fn deliver(target: &SshTarget, kit: &Kit, deadline: Instant) -> Result<SshDelivery, SshError> {
    deliver_to(target, &install::script(kit, &InstallTarget::OfUser), deadline).await
}

/// Permits a provisioned guest to start its job.
pub async fn start(target: &SshTarget, attempt: u32, deadline: Instant) -> Result<(), SshError> {
    deliver_to(target, &install::start_script(attempt, &InstallTarget::OfUser), deadline).await.map(drop)
}

/// Asks a provisioned guest to power itself off. It may take its time, or ignore it.
pub async fn power_off(target: &SshTarget, deadline: Instant) -> Result<(), SshError> {
    deliver_to(target, &install::power_off_script(&InstallTarget::OfUser), deadline).await.map(drop)
}

async fn deliver_to(target: &SshTarget, script: &str, deadline: Instant) -> Result<SshDelivery, SshError> {
    let mut connection = SshConnection::to(target, client_config(), deadline).await?;
    let at = connection.at.clone();
    let boot_log = timeout_at(deadline, connection.run(script))
        .await
        .map_err(|_| SshError::Retry(format!("the script that was run at {at} did not end in time")))??;
    let host_key = connection.shown_host_key()?;
    connection.close().await;
    Ok(SshDelivery { host_key, boot_log })
}

/// A connection to the guest's SSH port.
pub(super) type SshStream = Either<TcpStream, UnixStream>;

pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<SshStream> {
    Ok(match endpoint {
        Endpoint::Address { host, port } => Either::Left(TcpStream::connect((host.as_str(), *port)).await?),
        Endpoint::Socket { socket } => Either::Right(UnixStream::connect(socket).await?),
    })
}

/// Aborts the connection when its owner is dropped: russh's own task would keep it.
struct SshDisconnect(OwnedFd);

impl SshDisconnect {
    fn of(stream: &SshStream) -> io::Result<Self> {
        let descriptor = match stream {
            Either::Left(stream) => stream.as_fd(),
            Either::Right(stream) => stream.as_fd(),
        };
        descriptor.try_clone_to_owned().map(Self)
    }
}

impl Drop for SshDisconnect {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// The server's answers, recorded by russh's task.
#[derive(Clone, Default)]
struct ServerNotes(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    host_key: Option<PublicKey>,
    banner: String,
}

impl ServerNotes {
    fn note(&self, f: impl FnOnce(&mut Notes)) {
        f(&mut self.0.lock());
    }

    fn host_key(&self) -> Option<String> {
        let mut key = None;
        self.note(|n| key.clone_from(&n.host_key));
        let mut key = key?;
        key.set_comment("");
        key.to_openssh().ok().map(|k| k.trim().to_owned())
    }

    fn banner(&self) -> String {
        let mut banner = String::new();
        self.note(|n| banner.clone_from(&n.banner));
        banner
    }
}

struct Watcher {
    pinned: Option<PublicKey>,
    seen: ServerNotes,
}

impl client::Handler for Watcher {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let key = shown.public_key();
        let known = self.pinned.as_ref().is_none_or(|p| p.key_data() == key.key_data());
        self.seen.note(|n| n.host_key = Some(key));
        Ok(known)
    }

    async fn auth_banner(&mut self, text: &str, _: &mut client::Session) -> Result<(), Self::Error> {
        self.seen.note(|n| n.banner.extend(text.chars().take(512)));
        Ok(())
    }
}

struct SshConnection {
    handle: Handle<Watcher>,
    seen: ServerNotes,
    at: String,
    _cut: SshDisconnect,
}

fn client_config() -> client::Config {
    client::Config { nodelay: true, keepalive_interval: Some(Duration::from_secs(15)), ..client::Config::default() }
}

impl SshConnection {
    /// A connection on which the target's user is logged in.
    async fn to(target: &SshTarget, config: client::Config, deadline: Instant) -> Result<SshConnection, SshError> {
        let deadline = deadline.min(clock::monotonic() + LOGIN);
        let at = target.endpoint.to_string();
        let mut connection = timeout_at(deadline, SshConnection::open(target, config, &at))
            .await
            .map_err(|_| SshError::Retry(format!("{at} did not answer in time while connecting")))??;
        timeout_at(deadline, connection.log_in(target))
            .await
            .map_err(|_| SshError::Retry(format!("{at} did not answer in time while logging in")))??;
        Ok(connection)
    }

    fn shown_host_key(&self) -> Result<String, SshError> {
        self.seen.host_key().ok_or_else(|| SshError::Retry(format!("{} showed no host key", self.at)))
    }

    async fn open(target: &SshTarget, mut config: client::Config, at: &str) -> Result<SshConnection, SshError> {
        let pinned = match &target.pinned_host_key {
            Some(text) => Some(PublicKey::from_openssh(text).map_err(|_| {
                SshError::HostKeyChanged(format!("the host key pinned for {at} is not an OpenSSH public key"))
            })?),
            None => None,
        };
        if let Some(key) = &pinned {
            // A server with several keys presents the one that the client prefers: without this, a changed default
            // preference would look like a changed key.
            config.preferred.key = algorithms(key).into();
        }

        let retry = |what: &str, e: &dyn std::fmt::Display| SshError::Retry(format!("{what} {at}: {}", one_line(e)));
        let stream = connect(&target.endpoint).await.map_err(|e| retry("cannot connect to", &e))?;
        let cut = SshDisconnect::of(&stream).map_err(|e| retry("cannot use the connection to", &e))?;

        let seen = ServerNotes::default();
        let watcher = Watcher { pinned, seen: seen.clone() };
        match client::connect_stream(Arc::new(config), stream, watcher).await {
            Ok(handle) => Ok(SshConnection { handle, seen, at: at.to_owned(), _cut: cut }),
            Err(russh::Error::UnknownKey) => {
                Err(SshError::HostKeyChanged(format!("{at} shows another host key than the one seen first")))
            }
            Err(russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, .. }) if target.pinned_host_key.is_some() => {
                Err(SshError::HostKeyChanged(format!("{at} no longer has a host key of the kind seen first")))
            }
            Err(e) => Err(retry("no SSH session with", &e)),
        }
    }

    async fn log_in(&mut self, target: &SshTarget) -> Result<(), SshError> {
        let user = target.user.as_str();
        let refused = match &target.login {
            SshLogin::Key(path) => {
                let key = load_key(path.clone()).await?;
                let hash = match key.algorithm() {
                    // Servers that do not announce their algorithms have supported SHA-2 for a decade.
                    Algorithm::Rsa { .. } => match self.handle.best_supported_rsa_hash().await {
                        Ok(hash) => hash.unwrap_or(Some(HashAlg::Sha512)),
                        Err(e) => return Err(self.lost(&e)),
                    },
                    _ => None,
                };
                let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
                let result = self.handle.authenticate_publickey(user, key).await;
                !result.map_err(|e| self.lost(&e))?.success()
            }
            SshLogin::Password(password) => {
                let result = self.handle.authenticate_password(user, password.expose_secret()).await;
                match result.map_err(|e| self.lost(&e))? {
                    AuthResult::Success => false,
                    AuthResult::Failure { remaining_methods, .. }
                        if remaining_methods.contains(&MethodKind::KeyboardInteractive) =>
                    {
                        !self.answer_prompts(user, password).await?
                    }
                    AuthResult::Failure { .. } => true,
                }
            }
        };
        if !refused {
            return Ok(());
        }
        // russh reports a connection that ends here as a refusal.
        if self.handle.is_closed() {
            return Err(SshError::Retry(format!("{} closed the connection while logging in", self.at)));
        }
        // systemd refuses ordinary users until the guest is up (pam_nologin).
        if self.seen.banner().contains("booting up") {
            return Err(SshError::Retry(format!("{} takes no logins yet: it is still booting", self.at)));
        }
        let with = match target.login {
            SshLogin::Key(_) => "the template's key",
            SshLogin::Password(_) => "the password",
        };
        Err(SshError::LoginRefused(format!("{} refused {with} for user {user}", self.at)))
    }

    /// Some servers ask for the password only in this way.
    async fn answer_prompts(&mut self, user: &str, password: &SecretString) -> Result<bool, SshError> {
        let mut response = self.handle.authenticate_keyboard_interactive_start(user, None).await;
        for _ in 0..4 {
            match response.map_err(|e| self.lost(&e))? {
                KeyboardInteractiveAuthResponse::Success => return Ok(true),
                KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(false),
                KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                    let answers = prompts.iter().map(|_| password.expose_secret().to_owned()).collect();
                    response = self.handle.authenticate_keyboard_interactive_respond(answers).await;
                }
            }
        }
        Ok(false)
    }

    /// Runs a script in the guest and returns its output.
    async fn run(&mut self, script: &str) -> Result<Vec<u8>, SshError> {
        let channel = self.handle.channel_open_session().await.map_err(|e| self.lost(&e))?;
        // This command line works in every login shell.
        channel.exec(true, "/bin/sh -s").await.map_err(|e| self.lost(&e))?;
        let (mut from, to) = channel.split();
        let send = async {
            // An error of sending is ignored: the guest's answer or the end of the connection is more precise.
            if to.data(script.as_bytes()).await.is_ok() {
                let _ = to.eof().await;
            }
            std::future::pending::<()>().await;
        };
        let mut output = TailBuffer::default();
        let mut exit: Option<Option<u32>> = None;
        let receive = async {
            loop {
                let message = match exit {
                    None => from.wait().await,
                    // Some servers keep the channel open as long as any process has it open.
                    Some(_) => timeout(TRAILING_OUTPUT, from.wait()).await.unwrap_or(None),
                };
                match message {
                    Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => output.push(&data),
                    Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(Some(exit_status)),
                    Some(ChannelMsg::ExitSignal { .. }) => exit = Some(None),
                    Some(ChannelMsg::Failure) => return Err("it refused to run a shell"),
                    Some(ChannelMsg::Close) | None => return Ok(()),
                    Some(_) => {}
                }
            }
        };
        let received = tokio::select! {
            received = receive => received,
            () = send => unreachable!("it never ends"),
        };
        received.map_err(|why| self.lost(&why))?;
        match exit {
            Some(Some(0)) => Ok(output.into_bytes()),
            Some(exit) => Err(SshError::Failed { exit, tail: output.tail() }),
            None => Err(self.lost(&"the end of the script that was run was not seen")),
        }
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> SshError {
        SshError::Retry(format!("the SSH session with {} broke off: {}", self.at, one_line(why)))
    }

    async fn close(self) {
        let bye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let _ = timeout(TRAILING_OUTPUT, bye).await;
    }
}

fn algorithms(key: &PublicKey) -> Vec<Algorithm> {
    match key.algorithm() {
        Algorithm::Rsa { .. } => {
            [HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }).into()
        }
        other => vec![other],
    }
}

async fn load_key(path: PathBuf) -> Result<russh::keys::PrivateKey, SshError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|e| SshError::LoginRefused(format!("the template's key cannot be read: {}", one_line(&e))))?;
    russh::keys::decode_secret_key(&text, None)
        .map_err(|e| SshError::LoginRefused(format!("the template's key cannot be used: {}", one_line(&e))))
}

#[cfg(test)]
mod tests;
