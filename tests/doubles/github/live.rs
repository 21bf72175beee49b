//! What goes on by itself, and how runner programs talk to this server: `tests/doubles/github/runner/` is one.
//!
//! ```text
//! POST /_runner/{session|poll|renew|log|completejob|disconnect}    authorization: bearer <encoded_jit_config>
//! ```
//!
//! `poll` holds the line until there is a job, a while at most: 200 with the job's number and name on lines of their own, or
//! 204. `log` takes a part of the log as it is. `completejob` takes the result as `conclusion`; whatever else its query says
//! is kept as the job's outputs.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, header},
    response::Response,
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{Double, reply::Reply, webhooks, work};

/// How long a poll waits: shorter than the real one's 50 s, so that a program that is gone is noticed.
const LINE_HELD: Duration = Duration::from_secs(5);

/// While the knob `live` is on: jobs go to idle runners, leases end, webhooks that were late are sent.
pub async fn go_on(double: Arc<Double>) {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let sends = {
            let mut world = double.world.lock().expect("no code panics with it");
            if !world.knobs.live {
                continue;
            }
            work::sweep(&mut world);
            let given = work::dispatch(&mut world);
            if given.body.is_some_and(|body| body["given"].as_array().is_some_and(|given| !given.is_empty())) {
                double.given.notify_waiters();
            }
            webhooks::due(&mut world)
        };
        webhooks::send(&double, sends);
    }
}

pub async fn handle(
    double: &Arc<Double>,
    what: &str,
    headers: &HeaderMap,
    query: Vec<(String, String)>,
    body: &[u8],
) -> Response {
    let jit = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("bearer "));
    let outputs: Map<String, Value> = query.into_iter().map(|(k, v)| (k, json!(v))).collect();
    let told = json!({
        "jit": jit, "text": String::from_utf8_lossy(body), "conclusion": outputs.get("conclusion"), "outputs": outputs,
    });
    if what == "poll" {
        return poll(double, &told).await;
    }
    let what = if what == "session" { "connect" } else { what };
    say(double, what, &told).into_response()
}

fn say(double: &Arc<Double>, what: &str, told: &Value) -> Reply {
    let (reply, sends) = {
        let mut world = double.world.lock().expect("no code panics with it");
        let reply = work::runner_says(&mut world, what, told);
        (reply, webhooks::due(&mut world))
    };
    webhooks::send(double, sends);
    reply
}

async fn poll(double: &Arc<Double>, told: &Value) -> Response {
    let until = Instant::now() + LINE_HELD;
    loop {
        let given = double.given.notified();
        let reply = say(double, "poll", told);
        let job = reply.body.as_ref().map(|body| body["job"].clone()).unwrap_or_default();
        if !reply.status.is_success() {
            return reply.into_response();
        }
        if let (Some(id), Some(name)) = (job["id"].as_u64(), job["name"].as_str()) {
            return Response::new(Body::from(format!("{id}\n{name}\n")));
        }
        if timeout_at(until, given).await.is_err() {
            return Reply::empty(204).into_response();
        }
    }
}
