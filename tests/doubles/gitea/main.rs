//! Plays Gitea 1.26 as a source of CI jobs, for tests: REST API, webhooks, and the protocol of its runners.
//!
//! It shares no code with the service, so that the two cannot share a mistake. Tests prepare it and inject faults under
//! `/_double/`, see `control.rs`; time is the system's plus what tests add to it. It prints the URL below which it serves on
//! standard output, and ends when standard input does. It listens on the address in `GITEA_DOUBLE_ADDRESS`, else on loopback;
//! `GITEA_DOUBLE_PATH` is the path below which it serves, if any (`/git`). `/_double/` is never below that path.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod access;
mod accounts;
mod api;
mod connect;
mod control;
mod faults;
mod jobs;
mod page;
mod reply;
mod routes;
mod runners;
mod show;
mod state;
mod webhooks;
mod world;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{io::AsyncReadExt, sync::mpsc};

use world::World;

/// Everything is behind one lock: a request sees the world as it is at one moment.
pub struct Double {
    pub world: Mutex<World>,
    /// Where `/_double/` is.
    pub origin: String,
    /// The path below which the rest is: empty, or with a slash at its beginning and none at its end.
    pub path: String,
    pub outbox: mpsc::UnboundedSender<webhooks::Sent>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let variable = |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
        let address = variable("GITEA_DOUBLE_ADDRESS", "127.0.0.1");
        let path = variable("GITEA_DOUBLE_PATH", "").trim_end_matches('/').to_owned();
        let listener = tokio::net::TcpListener::bind((address, 0)).await.expect("a port of an address of this host");
        let origin = format!("http://{}", listener.local_addr().expect("it is bound"));
        let root = format!("{origin}{path}");
        let (outbox, to_send) = mpsc::unbounded_channel();
        let double = Arc::new(Double { world: Mutex::new(World::new(&root)), origin: origin.clone(), path, outbox });
        tokio::spawn(webhooks::send(double.clone(), to_send));
        tokio::spawn(keep_time(double.clone()));
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

/// Does what time does without any request: tasks are given up, delayed webhooks are sent.
async fn keep_time(double: Arc<Double>) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let mut world = double.world.lock().expect("no code panics with it");
        jobs::sweep(&mut world);
        webhooks::hand_over(&mut world, &double.outbox);
    }
}
