use std::{collections::BTreeSet, path::Path};

use mayfly::http;
use serde_json::Value;

use super::api;

fn document() -> Value {
    serde_json::from_str(&http::openapi_json()).unwrap()
}

/// The committed document is what the code says. `UPDATE_OPENAPI=1` writes it anew.
#[test]
fn the_committed_document_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/mayfly.json");
    let generated = http::openapi_json();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "openapi/mayfly.json is not what the code says; write it anew with: UPDATE_OPENAPI=1 cargo test --test it document"
    );
}

#[tokio::test]
async fn the_served_document_is_the_generated_one() {
    let api = api().await;
    let got = api.get("/openapi.json", "").await;
    assert_eq!(got.text, http::openapi_json());
    assert_eq!(got.header("content-type"), "application/json");
}

#[test]
fn every_route_is_in_it() {
    let document = document();
    let routes: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|m| format!("{} {path}", m.to_uppercase())).collect::<Vec<_>>()
        })
        .collect();
    let expected = [
        "GET /",
        "GET /events",
        "GET /healthz",
        "GET /host",
        "GET /metrics",
        "GET /openapi.json",
        "GET /jobs",
        "GET /webhooks/{source}/deliveries",
        "POST /webhooks/{source}",
        "GET /vms/{id}/registration",
        "GET /vms/{id}/runner",
        "GET /pools",
        "GET /pools/{name}",
        "PUT /pools/{name}",
        "DELETE /pools/{name}",
        "GET /problems",
        "GET /problems/{code}",
        "GET /pulls",
        "GET /pulls/{id}",
        "DELETE /pulls/{id}",
        "GET /readyz",
        "GET /reconcile",
        "GET /templates",
        "POST /templates",
        "GET /templates/{name}",
        "PUT /templates/{name}",
        "POST /templates/import",
        "POST /templates/{name}/export",
        "DELETE /templates/{name}",
        "PATCH /templates/{name}",
        "PUT /templates/{name}/pin",
        "DELETE /templates/{name}/pin",
        "POST /templates/{name}/rollback",
        "POST /templates/{name}/verify",
        "POST /templates/prune",
        "GET /templates/{name}/events",
        "GET /templates/{name}/watch",
        "PUT /templates/{name}/watch",
        "DELETE /templates/{name}/watch",
        "POST /templates/{name}/push",
        "GET /registries",
        "PUT /registries/{host}/login",
        "DELETE /registries/{host}/login",
        "GET /tokens",
        "GET /tokens/{id}",
        "POST /tokens",
        "POST /tokens/local-admin/rotate",
        "DELETE /tokens/{id}",
        "GET /vms",
        "POST /vms",
        "GET /vms/{id}",
        "DELETE /vms/{id}",
        "GET /vms/{id}/events",
        "POST /vms/{id}/events",
        "GET /vms/{id}/exec",
        "GET /vms/{id}/logs",
    ];
    assert_eq!(routes, expected.iter().map(|r| (*r).to_owned()).collect());
    assert_eq!(document["openapi"], "3.1.0");
}

/// Every reference in the document leads somewhere.
#[test]
fn references_resolve() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|v| walk(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    walk(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}
