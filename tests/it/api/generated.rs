//! The document held against the service by requests made from it. Needs schemathesis (PyPI), named by
//! `MAYFLY_SCHEMATHESIS`, so it is run when asked for: `cargo test --test it generated -- --ignored`.

use std::process::Stdio;

use serde_json::json;

use super::api;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs schemathesis; see MAYFLY_SCHEMATHESIS"]
async fn generated_requests_get_documented_answers() {
    let program = std::env::var_os("MAYFLY_SCHEMATHESIS").unwrap_or("schemathesis".into());
    let examples = std::env::var("MAYFLY_SCHEMATHESIS_EXAMPLES").unwrap_or("40".to_owned());
    let api = api().await;
    // Something to find.
    api.running("running").await;
    api.post("/vms", &api.create, json!({"template": "micro", "name": "queued"})).await.ok(201);
    // Long polls and streams that end at once: there is nothing to be learnt from waiting.
    api.waiting.cancel();
    // What is well formed may still name a template that is not here, or a name that is taken; and the bounds of budgets are
    // checked by the service and not told by the schema.
    let config = api.dir.path().join("schemathesis.toml");
    let settings =
        "[checks.positive_data_acceptance]\nexpected-statuses = [\"2xx\", 400, 403, 404, 409, 422, 429, 503]\n";
    std::fs::write(&config, settings).unwrap();
    let status = tokio::process::Command::new(program)
        .arg("--config-file")
        .arg(config)
        .args(["run", &format!("{}/openapi.json", api.url)])
        .args(["--header", &format!("Authorization: Bearer {}", api.admin)])
        .args(["--max-examples", &examples, "--max-time", "60", "--request-timeout", "20", "--workers", "1"])
        .args(["--generation-deterministic", "--no-color"])
        // Not ready is what a service is that ends its waiting.
        .args(["--exclude-path", "/readyz"])
        // A run that revokes its own token proves nothing more.
        .args(["--exclude-operation-id", "revoke_token"])
        // The record of a deleted vm is kept, and says so.
        .args(["--exclude-checks", "use_after_free"])
        .args(std::env::var("MAYFLY_SCHEMATHESIS_MORE").unwrap_or_default().split_whitespace())
        .current_dir(api.dir.path())
        .stdin(Stdio::null())
        .status()
        .await
        .expect("schemathesis runs");
    assert!(status.success(), "schemathesis found something: {status}");
}
