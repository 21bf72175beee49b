//! Plays Buildkite as a source of CI jobs, for tests: the stacks API, and the part of the agent API with which an agent
//! registers, takes the job that it was started for, and ends it.
//!
//! It shares no code with the service, so that the two cannot share a mistake. It follows Buildkite's documents of the stacks
//! API and of job acquisition tokens (2026), the vendor's Go client, and the source of its agent, which works with it
//! (`tests/peers/buildkite.py`); what they leave open is noted where it is decided.
//! Tests prepare it and inject faults under `/_double/`, see `control.rs`; time is the system's plus what tests add to it. It
//! prints the URL of the API on standard output, and ends when standard input does. It listens on the address in
//! `BUILDKITE_DOUBLE_ADDRESS`, else on loopback.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod agents;
mod api;
mod control;
mod faults;
mod limits;
mod reply;
mod stacks;
mod world;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use tokio::io::AsyncReadExt;

use world::World;

/// Everything is behind one lock: a request sees the world as it is at one moment.
pub struct Double {
    pub world: Mutex<World>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address = std::env::var("BUILDKITE_DOUBLE_ADDRESS").unwrap_or_else(|_| "127.0.0.1".to_owned());
        let listener = tokio::net::TcpListener::bind((address, 0)).await.expect("a port of an address of this host");
        let root = format!("http://{}/v3", listener.local_addr().expect("it is bound"));
        let double = Arc::new(Double { world: Mutex::new(World::new(&root)) });
        let app = axum::Router::new().fallback(api::handle).with_state(double);
        writeln!(std::io::stdout(), "{root}").expect("the starting program reads it");
        let served = axum::serve(listener, app);
        tokio::select! {
            _ = served => {}
            // The program that started it is gone.
            _ = async { let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await; } => {}
        }
    });
    // Reading standard input holds a thread.
    runtime.shutdown_background();
}
