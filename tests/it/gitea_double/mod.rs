//! The double of Gitea keeps the contract that the source `gitea` rests on. What is held against it here are payloads of a real
//! server, and what was seen there; a client that passes with the double is only as good as these.

mod jobs;
mod payloads;
mod program;
mod rest;
mod runners;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::support::gitea::Gitea;

const NULL: &str = "1970-01-01T00:00:00Z";

/// A client that tries once, on a connection of its own.
fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).unwrap_or_else(|| panic!("there is no {name}")).to_str().unwrap()
}

/// A job as the API shows it.
async fn shown(gitea: &Gitea, job: u64) -> Value {
    let token = gitea.owner_token().await;
    let (status, _, shown) = gitea.ask("GET", &format!("repos/acme/app/actions/jobs/{job}"), Some(&token)).await;
    assert_eq!(status, 200);
    shown
}

/// Names of the runners that a list shows.
async fn names(gitea: &Gitea) -> Vec<String> {
    let token = gitea.owner_token().await;
    let (_, _, list) = gitea.ask("GET", "orgs/acme/actions/runners", Some(&token)).await;
    list["runners"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

/// A row as the API shows it, or null.
async fn row(gitea: &Gitea, id: u64) -> Value {
    let token = gitea.owner_token().await;
    let (status, _, shown) = gitea.ask("GET", &format!("orgs/acme/actions/runners/{id}"), Some(&token)).await;
    if status == 404 { Value::Null } else { shown }
}

fn states(of: &Value) -> Value {
    json!([of["status"], of["run_attempt"], of["conclusion"], of["runner_name"]])
}
