//! Sessions in guests: a caller of the API runs a command in the guest of a vm, or a shell.
//!
//! The service itself logs in, with the SSH login of the vm's template, or through the agent in the guest if the template has no
//! login and its guests are provisioned through their agent. It passes input and output on. The caller gets neither
//! key nor password nor address. Each session is recorded in the vm's events before anything runs in it: which token, and
//! not what ran, because commands contain secrets. A session ends with its vm, with its caller and with the service.

use std::{collections::HashMap, hash::Hash, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use crate::guest::session::{SessionError, SessionExit, SessionOutput, SessionReader, SessionWriter, Terminal};
use crate::{
    domain::{
        Code, Error, Event, Handover, Result, State, TokenId, Vm, VmId,
        token::{CallerToken, TokenScope},
    },
    drivers::{registry::DriverRegistry, ways::guest_ways},
    guest::{
        session::GuestLogin,
        ssh::{SshLogin, SshTarget},
    },
    parts::Parts,
    platform::{Clock, clock},
    store::{Expect, Ledger, Reader},
    templates::Catalog,
};

/// Open sessions at once.
pub const SESSIONS_PER_VM: u32 = 8;
pub const SESSIONS_PER_TOKEN: u32 = 16;
pub const SESSIONS: u32 = 64;
/// Sessions of one vm in its whole life: each is an event of its record.
pub const SESSIONS_OF_A_LIFE: u32 = 10_000;
/// A session in which neither side sends anything for this long is ended.
pub const IDLE: Duration = Duration::from_secs(30 * 60);
/// Time limit of the connection and the login.
const LOGIN: Duration = Duration::from_secs(15);
/// Longest command line, in bytes.
pub const LONGEST_COMMAND: usize = 64 << 10;
const LARGEST_TERMINAL: u32 = 10_000;

/// What runs in a session.
#[derive(Debug)]
pub struct SessionRequest {
    /// The program and its arguments. Empty: the user's shell.
    pub command: Vec<String>,
    pub terminal: Option<Terminal>,
}

#[derive(Clone)]
pub struct Sessions {
    ledger: Ledger,
    reader: Reader,
    drivers: Arc<DriverRegistry>,
    catalog: Arc<Catalog>,
    clock: Clock,
    open: Arc<Mutex<OpenSessions>>,
}

/// How many sessions are open.
#[derive(Default)]
struct OpenSessions {
    all: u32,
    vms: HashMap<VmId, u32>,
    tokens: HashMap<TokenId, u32>,
}

impl OpenSessions {
    fn enter(&mut self, vm: VmId, token: TokenId) -> Result<()> {
        let count = |n: Option<&u32>| n.copied().unwrap_or_default();
        let (of_vm, of_token) = (count(self.vms.get(&vm)), count(self.tokens.get(&token)));
        for (who, open, most) in [
            ("the vm", of_vm, SESSIONS_PER_VM),
            ("the token", of_token, SESSIONS_PER_TOKEN),
            ("the service", self.all, SESSIONS),
        ] {
            if open >= most {
                return Err(crowded(format!("{who} has {most} open sessions")));
            }
        }
        self.all += 1;
        self.vms.insert(vm, of_vm + 1);
        self.tokens.insert(token, of_token + 1);
        Ok(())
    }

    fn leave(&mut self, vm: VmId, token: TokenId) {
        self.all -= 1;
        leave(&mut self.vms, vm);
        leave(&mut self.tokens, token);
    }
}

/// One session among those that may be open at once.
struct SessionPermit {
    open: Arc<Mutex<OpenSessions>>,
    vm: VmId,
    token: TokenId,
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.open.lock().leave(self.vm, self.token);
    }
}

fn leave<K: Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// A login in the guest of a vm. Ends with this value.
pub struct GuestSession {
    login: GuestLogin,
    attempt: u32,
    changes: watch::Receiver<Option<Arc<Vm>>>,
    _permit: SessionPermit,
}

impl Sessions {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, drivers, catalog, clock, .. } = parts.clone();
        Self { ledger, reader, drivers, catalog, clock, open: Arc::default() }
    }

    /// Logs in to the guest, and records that. Nothing runs in it yet.
    pub async fn open(&self, id: VmId, token: &CallerToken) -> Result<GuestSession> {
        let vm = self.vm(id).await?;
        may_look_into(&vm, token)?;
        // Subscribes before the login: an end of the vm meanwhile is seen.
        let changes = self.ledger.changes().of(id);
        has_a_guest(&vm)?;
        let permit = self.permit(id, token.id)?;
        if vm.sessions >= SESSIONS_OF_A_LIFE {
            return Err(crowded(format!("the vm has had {SESSIONS_OF_A_LIFE} sessions")));
        }
        let target = self.target(&vm).await?;
        let login = target.log_in().await.map_err(not_reached)?;
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        if let (SessionTarget::Ssh(target), Some(host_key), None) = (&target, login.host_key(), &vm.host_key) {
            let event = Event::EndpointFound { ssh: target.endpoint.clone(), host_key: Some(host_key.to_owned()) };
            self.ledger.apply(id, expect, event, self.clock.now()).await?;
        }
        let name = self.reader.token(token.id).await?.map(|token| token.name).unwrap_or_default();
        let event = Event::SessionOpened { token: token.id, token_name: name };
        let applied = self.ledger.apply(id, Expect::Anything, event, self.clock.now()).await?;
        has_a_guest(&applied.vm)?;
        tracing::info!(vm.id = %id, token.id = %token.id, "session opened in the vm's guest");
        Ok(GuestSession { login, attempt: vm.attempt, changes, _permit: permit })
    }

    async fn vm(&self, id: VmId) -> Result<Vm> {
        self.reader.vm(id).await?.ok_or_else(|| Error::new(Code::VmNotFound, format!("no vm has the id {id}")))
    }

    fn permit(&self, vm: VmId, token: TokenId) -> Result<SessionPermit> {
        self.open.lock().enter(vm, token)?;
        Ok(SessionPermit { open: self.open.clone(), vm, token })
    }

    /// Where to log in, and how.
    async fn target(&self, vm: &Vm) -> Result<SessionTarget> {
        let spec = vm.spec.resolved().ok_or_else(|| Error::internal("a vm with a guest and without a template"))?;
        let template = self.catalog.get(&spec.template_digest).await?;
        let unusable = |detail: String| Error::new(Code::GuestAccessUnsupported, detail);
        let login = SshLogin::of(&template).await.map_err(|error| {
            unusable(format!("the password of the template {} cannot be read: {error}", template.name))
        })?;
        if login.is_none() && spec.handover != Handover::Agent {
            return Err(unusable(format!(
                "the template {} has neither `ssh_key` nor `ssh_password`: register it again with one that its guests \
                 accept for the user {}",
                template.name, template.user
            )));
        }
        let driver = self.drivers.get(&spec.driver).ok_or_else(|| {
            Error::new(Code::HostUnavailable, format!("the driver {} is not enabled in this service", spec.driver))
        })?;
        let not_yet = |detail: &str| Error::new(Code::VmNotReady, format!("{}: {detail}", vm.spec.name)).retry_after(2);
        let ways = match guest_ways(driver.as_ref(), &vm.instance()).await {
            Ok(Some(ways)) => ways,
            Ok(None) => return Err(not_yet("its guest does not run")),
            Err(error) => return Err(Error::new(error.code, error.summary)),
        };
        let Some(login) = login else {
            let unknown = || not_yet("the agent of its guest is not known yet");
            return ways.agent.map(SessionTarget::Agent).ok_or_else(unknown);
        };
        match ways.ssh {
            Ok(Some(endpoint)) => Ok(SessionTarget::Ssh(SshTarget {
                endpoint,
                user: template.user.clone(),
                login,
                pinned_host_key: vm.host_key.clone(),
            })),
            Ok(None) => Err(not_yet("the address of its guest is not known yet")),
            Err((code, why)) => Err(Error::new(code, why)),
        }
    }
}

/// The way into a guest.
enum SessionTarget {
    Ssh(SshTarget),
    /// The socket of the agent in it.
    Agent(PathBuf),
}

impl SessionTarget {
    async fn log_in(&self) -> Result<GuestLogin, SessionError> {
        let deadline = clock::monotonic() + LOGIN;
        match self {
            SessionTarget::Ssh(target) => GuestLogin::over_ssh(target, deadline).await,
            SessionTarget::Agent(socket) => GuestLogin::through_agent(socket, deadline).await,
        }
    }
}

impl GuestSession {
    pub async fn run(&self, request: &SessionRequest) -> Result<(SessionReader, SessionWriter)> {
        let command = command_line(&request.command)?;
        if let Some(terminal) = &request.terminal {
            check_terminal(terminal)?;
        }
        self.login.run(command.as_deref(), request.terminal.as_ref()).await.map_err(not_reached)
    }

    /// Returns when the guest is no longer there for this session.
    pub async fn ended(&mut self) -> Error {
        let attempt = self.attempt;
        let gone =
            |vm: &Option<Arc<Vm>>| vm.as_ref().is_some_and(|vm| has_a_guest(vm).is_err() || vm.attempt != attempt);
        match self.changes.wait_for(gone).await {
            Ok(vm) => {
                let state = vm.as_ref().map_or(State::Deleted, |vm| vm.state);
                Error::new(Code::VmEnded, format!("the session has ended because the vm is {state}"))
            }
            Err(_) => Error::new(Code::ShuttingDown, "the service is ending"),
        }
    }
}

/// A caller with the scope `admin` looks into every vm, another one only into those that it has created: its creator
/// decided what runs in a vm.
fn may_look_into(vm: &Vm, token: &CallerToken) -> Result<()> {
    if token.scope == TokenScope::Admin || vm.spec.created_by == Some(token.id) {
        return Ok(());
    }
    let detail = format!("{} was not created with this token, which has not the scope admin", vm.spec.name);
    Err(Error::new(Code::AuthVmForeign, detail))
}

/// Whether there is a guest that can be logged in to.
fn has_a_guest(vm: &Vm) -> Result<()> {
    let waits = |what: &str| {
        let detail = format!("{} is {}: {what}", vm.spec.name, vm.state);
        Err(Error::new(Code::VmNotReady, detail).retry_after(5))
    };
    match vm.state {
        State::Configuring | State::Running | State::Draining | State::Kept => Ok(()),
        State::Queued => waits("it has no guest yet; `queue` of the vm says what it waits for"),
        State::Cloning => waits("its guest is being made"),
        State::Booting => waits("its guest does not answer yet; the console's log shows how far it is"),
        State::Stopping | State::Deleting | State::Deleted => {
            let detail = format!(
                "{} is {}; a vm that is created with `keep_on_failure` keeps its guest if it fails",
                vm.spec.name, vm.state
            );
            Err(Error::new(Code::VmEnded, detail))
        }
    }
}

/// Quoted for the shell of the user in the guest.
fn command_line(command: &[String]) -> Result<Option<String>> {
    if command.is_empty() {
        return Ok(None);
    }
    let invalid = |what: String| Error::new(Code::RequestInvalid, "the command cannot be run").field("/command", what);
    let line = shlex::try_join(command.iter().map(String::as_str)).map_err(|error| invalid(error.to_string()))?;
    if line.len() > LONGEST_COMMAND {
        return Err(invalid(format!("at most {LONGEST_COMMAND} bytes; longer texts go through its standard input")));
    }
    Ok(Some(line))
}

fn check_terminal(terminal: &Terminal) -> Result<()> {
    let invalid = |field: &str, what: String| {
        Err(Error::new(Code::RequestInvalid, "there can be no such terminal").field(format!("/terminal/{field}"), what))
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if terminal.term.is_empty() || terminal.term.len() > 64 || !terminal.term.chars().all(plain) {
        return invalid("term", "1 to 64 letters, digits, '.', '_', '+' or '-'".to_owned());
    }
    for (field, size) in [("columns", terminal.columns), ("rows", terminal.rows)] {
        if !(1..=LARGEST_TERMINAL).contains(&size) {
            return invalid(field, format!("1 to {LARGEST_TERMINAL}"));
        }
    }
    Ok(())
}

fn not_reached(error: SessionError) -> Error {
    Error::new(error.code, error.detail)
}

fn crowded(detail: String) -> Error {
    Error::new(Code::Overloaded, detail).retry_after(5)
}

/// Whether the size can be that of a terminal.
pub fn is_terminal_size(columns: u32, rows: u32) -> bool {
    [columns, rows].iter().all(|size| (1..=LARGEST_TERMINAL).contains(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenId {
        TokenId(uuid::Uuid::now_v7())
    }

    #[test]
    fn each_limit_of_open_sessions_holds_and_is_named() {
        let refused = |open: &mut OpenSessions, vm, token| open.enter(vm, token).unwrap_err();
        let mut open = OpenSessions::default();
        let (vm, one, other) = (VmId::mint(), token(), token());
        for n in 0..SESSIONS_PER_VM {
            open.enter(vm, if n % 2 == 0 { one } else { other }).unwrap();
        }
        let error = refused(&mut open, vm, token());
        assert_eq!((error.code, error.detail.as_str()), (Code::Overloaded, "the vm has 8 open sessions"));
        for _ in SESSIONS_PER_VM / 2..SESSIONS_PER_TOKEN {
            open.enter(VmId::mint(), one).unwrap();
        }
        assert_eq!(refused(&mut open, VmId::mint(), one).detail, "the token has 16 open sessions");
        while open.all < SESSIONS {
            open.enter(VmId::mint(), token()).unwrap();
        }
        assert_eq!(refused(&mut open, VmId::mint(), token()).detail, "the service has 64 open sessions");
        // One that ends makes room, and nothing is remembered of those that have ended.
        open.leave(vm, one);
        open.enter(VmId::mint(), one).unwrap();
        let open = Arc::new(Mutex::new(OpenSessions::default()));
        open.lock().enter(vm, one).unwrap();
        drop(SessionPermit { open: open.clone(), vm, token: one });
        let open = open.lock();
        assert!(open.all == 0 && open.vms.is_empty() && open.tokens.is_empty());
    }

    #[test]
    fn arguments_reach_the_guest_as_they_were_given() {
        let line = |words: &[&str]| command_line(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(line(&[]).unwrap(), None);
        assert_eq!(line(&["echo", "it's", "$HOME"]).unwrap().unwrap(), r#"echo "it's" '$HOME'"#);
        for wrong in [vec!["\0".to_owned()], vec!["x".repeat(LONGEST_COMMAND + 1)]] {
            let error = command_line(&wrong).unwrap_err();
            assert_eq!(error.fields[0].pointer, "/command");
        }
    }
}
