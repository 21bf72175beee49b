//! The client of GitHub, and `mayfly github check`, against the double.

mod access;
mod check;
mod jobs;
mod limits;
mod runners;
mod wire;

use mayfly::sources::github::NewRunner;

fn runner(name: &str) -> NewRunner {
    NewRunner {
        name: name.to_owned(),
        group: 1,
        labels: vec!["self-hosted".into(), "macOS-15".into()],
        work_folder: None,
    }
}

/// Method and path of each request, without what is asked to get a token.
fn asked(requests: &[serde_json::Value]) -> Vec<String> {
    requests
        .iter()
        .map(|r| format!("{} {}", r["method"].as_str().unwrap(), r["path"].as_str().unwrap()))
        .filter(|r| !r.ends_with("/installation") && !r.ends_with("/access_tokens"))
        .collect()
}

fn count(requests: &[serde_json::Value], end: &str) -> usize {
    requests.iter().filter(|r| r["path"].as_str().unwrap().ends_with(end)).count()
}
