//! `control.sock` in the VM's directory: each connection is passed on to the agent in the guest, or closed.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{agent, ssh::Shell};
use crate::control::{Agent, Guest as Kind};

/// A guest that is emulated takes its time to answer, and one that boots never does.
const ANSWERS: Duration = Duration::from_secs(5);

/// Who plays the agent.
#[derive(Clone)]
pub enum Player {
    Nobody,
    Host,
    Guest(Arc<Shell>),
}

pub struct Served {
    player: Player,
    ip: String,
}

impl Served {
    pub fn new(agent: Agent, kind: &Kind, ip: String) -> Served {
        let player = match (agent, kind) {
            (Agent::None, _) => Player::Nobody,
            (Agent::Guest, Kind::Qemu(qemu)) => Player::Guest(Arc::new(Shell::new(qemu, &ip))),
            (Agent::Host | Agent::Guest, _) => Player::Host,
        };
        Served { player, ip }
    }
}

/// The current directory is the VM's. What an earlier run left is replaced; what this one leaves stays.
pub async fn serve(served: Served) {
    let _ = std::fs::remove_file("control.sock");
    let Ok(listener) = UnixListener::bind("control.sock") else { return };
    let (answered, connections) = mpsc::unbounded_channel();
    tokio::spawn(agent::serve(served.player.clone(), served.ip, UnboundedReceiverStream::new(connections)));
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(pass_on(connection, served.player.clone(), answered.clone()));
    }
}

/// Where nobody listens in the guest, the connection is simply closed.
async fn pass_on(
    connection: UnixStream,
    player: Player,
    answered: mpsc::UnboundedSender<Result<UnixStream, std::io::Error>>,
) {
    let listens = match &player {
        Player::Nobody => false,
        Player::Host => true,
        Player::Guest(shell) => timeout(ANSWERS, shell.session()).await.is_ok_and(|s| s.is_ok()),
    };
    if listens {
        let _ = answered.send(Ok(connection));
    }
}
