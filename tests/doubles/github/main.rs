//! Plays GitHub's REST API and webhooks, for tests: the paths, answers, headers, limits and bad habits that runners meet.
//!
//! It shares no code with the service, so that the two cannot share a mistake: tokens of Apps are verified here with the public
//! key alone. Tests tell it what there is, and what goes wrong, under `/_double/`, see `control.rs`; time is the system's plus
//! what tests add to it. It says on standard output where it listens, and ends when standard input does. It listens on the
//! address in `GITHUB_DOUBLE_ADDRESS`, else on loopback.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod api;
mod auth;
mod control;
mod faults;
mod jit;
mod keys;
mod limits;
mod live;
mod page;
mod reply;
mod routes;
mod webhooks;
mod work;
mod world;

use std::sync::{Arc, Mutex};

use tokio::io::AsyncReadExt;

use world::World;

/// Everything, behind one lock: a request sees the world as it is at one moment.
pub struct Double {
    pub world: Mutex<World>,
    pub http: reqwest::Client,
    pub origin: String,
    /// Somebody who waits for a job may have one now.
    pub given: tokio::sync::Notify,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address = std::env::var("GITHUB_DOUBLE_ADDRESS").unwrap_or_else(|_| "127.0.0.1".to_owned());
        let listener = tokio::net::TcpListener::bind((address, 0)).await.expect("a port of an address of this host");
        let origin = format!("http://{}", listener.local_addr().expect("it has one"));
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(std::time::Duration::from_secs(10))
            .build()
            .expect("a client");
        let double = Arc::new(Double {
            world: Mutex::new(World::default()),
            http,
            origin: origin.clone(),
            given: Default::default(),
        });
        tokio::spawn(live::go_on(double.clone()));
        let app = axum::Router::new().fallback(api::handle).with_state(double);
        use std::io::Write;
        writeln!(std::io::stdout(), "{origin}").expect("somebody waits for it");
        let served = axum::serve(listener, app);
        tokio::select! {
            _ = served => {}
            // Whoever started it is gone.
            _ = async { let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await; } => {}
        }
    });
    // Reading standard input holds a thread.
    runtime.shutdown_background();
}
