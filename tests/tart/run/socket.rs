//! `control.sock` in the VM's directory: each connection is passed on to the agent in the guest, or closed.

use tokio::net::UnixListener;

use crate::control::{Agent, Guest as Kind};

pub struct Served {
    _agent: Agent,
}

impl Served {
    pub fn new(agent: Agent, _kind: &Kind, _ip: String) -> Served {
        Served { _agent: agent }
    }
}

/// The current directory is the VM's. What an earlier run left is replaced; what this one leaves stays.
pub async fn serve(_served: Served) {
    let _ = std::fs::remove_file("control.sock");
    let Ok(listener) = UnixListener::bind("control.sock") else { return };
    while let Ok((connection, _)) = listener.accept().await {
        drop(connection);
    }
}
