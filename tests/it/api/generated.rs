//! The document held against the service by requests made from it: schemathesis (PyPI), named by `MAYFLY_SCHEMATHESIS`. Run by
//! `.ci/test.sh drift`, which installs it; the other parts leave this module out.

use std::{collections::BTreeMap, process::Stdio};

use mayfly::{domain::SourceName, service};
use serde_json::json;

use super::{Api, api_with};

/// What is well formed may still name a template that is not here, a name that is taken, or come without a token. And a
/// template that was accepted (202) is not there before its image is.
const SETTINGS: &str = r#"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 422, 429, 503]

[[operations]]
include-path-regex = "^/templates/"
checks.ensure_resource_availability.enabled = false
"#;

async fn schemathesis(api: &Api, token: Option<&str>) {
    let program = std::env::var_os("MAYFLY_SCHEMATHESIS")
        .expect("MAYFLY_SCHEMATHESIS names the program; `.ci/test.sh drift` installs it and runs this test");
    let examples = std::env::var("MAYFLY_SCHEMATHESIS_EXAMPLES").unwrap_or("25".to_owned());
    let seconds = std::env::var("MAYFLY_SCHEMATHESIS_SECONDS").unwrap_or("60".to_owned());
    let config = api.dir.path().join("schemathesis.toml");
    std::fs::write(&config, SETTINGS).unwrap();
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--config-file")
        .arg(config)
        .args(["run", &format!("{}/openapi.json", api.url)])
        .args(["--max-examples", &examples, "--max-time", &seconds, "--request-timeout", "20", "--workers", "1"])
        .args(["--generation-deterministic", "--no-color"])
        // Not ready is what a service is that ends its waiting.
        .args(["--exclude-path", "/readyz"])
        // A run that revokes its own token proves nothing more.
        .args(["--exclude-operation-id", "revoke_token"])
        // These go out to registries, and write where they are told: tests stay on loopback and in directories of their own.
        .args(["--exclude-operation-id", "push_template"])
        .args(["--exclude-operation-id", "log_in_to_registry"])
        .args(["--exclude-operation-id", "export_template"])
        // The record of a deleted vm is kept, and says so.
        .args(["--exclude-checks", "use_after_free"])
        .current_dir(api.dir.path())
        .stdin(Stdio::null());
    if let Some(token) = token {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    let output = command.output().await.expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "schemathesis found something: {}\n{said}", output.status);
    // A run that tested nothing would succeed too.
    assert!(said.contains("passed"), "schemathesis says nothing of having tested:\n{said}");
    let _ = std::fs::create_dir_all("target");
    let name = if token.is_some() { "with-token" } else { "without-token" };
    std::fs::write(format!("target/schemathesis-{name}.txt"), said.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_requests_get_documented_answers() {
    for with_token in [true, false] {
        // With a secret, so that what is not signed is refused as it would be.
        let webhook_secrets = BTreeMap::from([(SourceName::github(), vec!["not told".into()])]);
        let api = api_with(Default::default(), service::Settings { webhook_secrets, ..Default::default() }).await;
        // Something to find.
        api.running("running").await;
        api.post("/vms", &api.create, json!({"template": "micro", "name": "queued"})).await.ok(201);
        // Long polls and streams that end at once: there is nothing to be learnt from waiting.
        api.waiting.cancel();
        let admin = api.admin.clone();
        schemathesis(&api, with_token.then_some(admin.as_str())).await;
    }
}
