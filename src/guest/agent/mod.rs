//! Delivers the bootstrap bundle through the agent in the guest: without network, login or key.
//!
//! The process that runs a Tart VM listens on `control.sock` in the VM's directory and connects each client to the
//! agent in the guest, which runs commands for any client.
//!
//! - A connection proves nothing: the socket accepts as soon as the VM runs, and closes at once while no agent
//!   listens. Only a command that succeeded proves that the agent works.
//! - A command lives as long as its stream. What has to survive must leave its session, which `boot.sh` does.
//! - The script goes through standard input: a command line would show its secrets to every process of the guest.
//! - Commands run as the agent's user, with its environment.
//! - Dropping the future closes the connection, which ends a running script. A repeated delivery is safe.

mod exec;
mod messages;
pub mod session;
mod socket;

use std::{path::Path, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use self::exec::{Agent, Ended};
use super::{
    install::{self, InstallTarget},
    kit::Kit,
    readiness, ready_kit,
};
use crate::{domain::Code, platform::clock};

/// Time limit of a command that does nothing. An emulated guest needs seconds for it.
const PROBE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 2;
/// Longest silence of the agent before the script starts: a dead connection must not use up the whole budget.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentDelivery {
    /// The output of `boot.sh`; only its end if it is long.
    pub boot_log: Vec<u8>,
}

/// Why it failed. Each message is one line without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The guest may not be ready yet, or the failure is temporary: a retry may help.
    #[error("{0}")]
    Retry(String),
    /// A server answers that does not run commands.
    #[error("{0}")]
    Unusable(String),
    /// The script ran and failed in the guest.
    #[error("the kit's boot script ended with exit code {exit}")]
    Failed {
        /// Above 128 if a signal ended it.
        exit: u32,
        /// The end of its output. Only for the log, because the guest controls it.
        tail: String,
    },
}

impl Error {
    pub fn code(&self) -> Code {
        match self {
            Error::Retry(_) => Code::GuestNotReady,
            Error::Failed { exit: ready_kit::EXIT_NOT_READY, .. } => Code::GuestCheckFailed,
            Error::Unusable(_) | Error::Failed { .. } => Code::GuestNotConfigured,
        }
    }
}

/// Waits until the agent runs commands. Dropping the future ends all probes.
pub async fn ready(socket: &Path, until: Instant) -> Result<(), Error> {
    let probe = || async {
        match timeout(PROBE, async { answers(&Agent::connect(socket).await?).await }).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Retry("it does not answer".to_owned())),
        }
    };
    readiness::first(AT_ONCE, until, probe).await.map_err(|last| {
        let last = last.map_or("no probe came to an end".to_owned(), |e: Error| e.to_string());
        let text = format!("no agent at {} before the deadline: {last}", socket.display());
        Error::Retry(text)
    })
}

/// Writes the bundle into the guest and starts it: `/opt/mayfly` for root, `~/.mayfly` for others.
pub async fn deliver(socket: &Path, kit: &Kit, until: Instant) -> Result<AgentDelivery, Error> {
    run_script(socket, &install::script(kit, &InstallTarget::OfUser), until).await
}

/// Permits a provisioned guest to start its job.
pub async fn start(socket: &Path, attempt: u32, until: Instant) -> Result<(), Error> {
    run_script(socket, &install::start_script(attempt, &InstallTarget::OfUser), until).await.map(drop)
}

async fn run_script(socket: &Path, script: &str, until: Instant) -> Result<AgentDelivery, Error> {
    let slow = |what: &str| Error::Retry(format!("the agent at {} {what}", socket.display()));

    let first_word = async {
        let agent = Agent::connect(socket).await?;
        answers(&agent).await?;
        Ok::<_, Error>(agent)
    };
    let agent = timeout_at(until.min(clock::monotonic() + ANSWER), first_word)
        .await
        .map_err(|_| slow("did not answer in time"))??;
    let Ended { exit, output } = timeout_at(until, agent.run(script.as_bytes()))
        .await
        .map_err(|_| slow("did not come to the end of the kit's boot script in time"))??;
    match exit {
        0 => Ok(AgentDelivery { boot_log: output.into_bytes() }),
        exit => Err(Error::Failed { exit, tail: output.tail() }),
    }
}

async fn answers(agent: &Agent) -> Result<(), Error> {
    match agent.run(b"").await?.exit {
        0 => Ok(()),
        code => Err(Error::Retry(format!("its shell ends with exit code {code}"))),
    }
}
