//! Delivers a kit through the agent in the guest: no network, no login, no key.
//!
//! The process that runs a Tart vm listens on `control.sock` in the vm's directory and joins each connection to the agent in
//! the guest, which runs commands for whoever asks.
//!
//! - A connection proves nothing: the socket accepts as soon as the vm runs and closes at once while no agent listens. Only a
//!   command that ran and ended well does.
//! - The command lives as long as its stream. What is to outlive us has to leave its session, which `boot.sh` sees to.
//! - The script goes through standard input: a command line would show its secrets to every process of the guest.
//! - Commands run as the agent's user, with its environment. What the guest finds of it is the guest's affair.
//! - Dropping the future closes the connection, and with it ends a script that is still under way. Delivering again is safe.

mod exec;
mod messages;
mod socket;

use std::{path::Path, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use self::exec::{Agent, Ended};
use super::{
    install::{self, InstallTarget},
    kit::Kit,
    readiness,
};
use crate::{domain::Code, platform::clock};

/// One command that does nothing. An emulated guest needs seconds for it.
const PROBE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 2;
/// As long as the agent may stay silent before the script: a connection that leads nowhere must not eat the whole budget.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentDelivery {
    /// What `boot.sh` printed; the end of it when it was much.
    pub boot_log: Vec<u8>,
}

/// Why it did not work. Each message is one line without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The guest may not be ready yet, or the connection had a moment: trying again may help.
    #[error("{0}")]
    Retry(String),
    /// Something answers that runs no commands for us.
    #[error("{0}")]
    Unusable(String),
    /// The script ran and failed in the guest.
    #[error("the kit's boot script ended with exit code {exit}")]
    Failed {
        /// Above 128 when a signal ended it.
        exit: u32,
        /// The end of its output. For the log: it is the guest's word.
        tail: String,
    },
}

impl Error {
    pub fn code(&self) -> Code {
        match self {
            Error::Retry(_) => Code::GuestNotReady,
            Error::Unusable(_) | Error::Failed { .. } => Code::GuestNotConfigured,
        }
    }
}

/// Waits until the agent runs commands. Dropping the future ends every probe.
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

/// Writes the kit into the guest and starts it: `/opt/mayfly` for root, `~/.mayfly` for others.
pub async fn deliver(socket: &Path, kit: &Kit, until: Instant) -> Result<AgentDelivery, Error> {
    run_script(socket, &install::script(kit, &InstallTarget::OfUser), until).await
}

/// Tells a guest that was given its kit that its job may start.
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
