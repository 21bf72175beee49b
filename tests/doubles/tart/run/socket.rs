//! `control.sock` in the VM's directory: each connection is passed on to the agent in the guest, or closed.

use std::sync::Arc;

use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{agent, ssh::Shell};
use crate::control::{Agent, Guest as Kind};

/// Who simulates the agent.
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
    if let Player::Guest(shell) = &served.player {
        let shell = Arc::clone(shell);
        tokio::spawn(async move { shell.keep().await });
    }
    let (answered, connections) = mpsc::unbounded_channel();
    tokio::spawn(agent::serve(served.player.clone(), served.ip, UnboundedReceiverStream::new(connections)));
    while let Ok((connection, _)) = listener.accept().await {
        let listens = match &served.player {
            Player::Nobody => false,
            Player::Host => true,
            Player::Guest(shell) => shell.session().is_some(),
        };
        // Where nobody listens in the guest, the connection is simply closed.
        if listens {
            let _ = answered.send(Ok(connection));
        }
    }
}
