//! A template from a registry, as its users ask for it: one request, one command.

use serde_json::json;

use crate::support::{
    Serve,
    registry::Registry,
    tart_image::{Content, Encoding, TartImage},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_a_template_by_one_request() {
    let registry = Registry::open().await;
    let image = TartImage::new(
        &[Content::Text(1, 1 << 20), Content::Zeros(1 << 20), Content::Noise(2, 1 << 18)],
        Encoding::Linked,
    );
    image.push(&registry, "ci/base", "v1").await;
    let ca_file = registry.authority.file().display().to_string();
    let serve =
        Serve::start(&[("MAYFLY_REGISTRY__CA_FILE", &ca_file), ("MAYFLY_DRIVERS__QEMU__ENABLED", "false")]).await;

    let reference = format!("{}/ci/base:v1", registry.address);
    let (status, template) = serve.post("/templates", json!({"name": "base", "image": reference})).await;
    assert_eq!(status, 201, "{template}");
    assert_eq!(
        (&template["driver"], &template["os"], &template["handover"]),
        (&json!("tart"), &json!("macos"), &json!("agent"))
    );
    let digest = template["digest"].as_str().unwrap();
    let dir = serve.dir.join("templates").join(digest.replace(':', "-"));
    assert!(std::fs::read(dir.join("disk")).unwrap() == image.disk, "the disk is another one");
    assert_eq!(std::fs::read(dir.join("config")).unwrap(), image.config);
    assert_eq!(std::fs::read(dir.join("nvram")).unwrap(), image.nvram);

    // By the command, and again: nothing new.
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .args(["template", "pull", &reference, "--url", &serve.url, "--json"])
        .env("MAYFLY_TOKEN", serve.token())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["digest"], template["digest"]);

    for (body, status, code) in [
        (json!({"name": "x", "image": format!("{}/ci/base:none", registry.address)}), 422, "image.refused"),
        (json!({"name": "x", "image": "no registry"}), 400, "request.invalid"),
        (json!({"name": "x", "image": reference, "os": "linux"}), 400, "request.invalid"),
        (json!({"name": "x"}), 400, "request.invalid"),
    ] {
        let (answered, problem) = serve.post("/templates", body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
    }
    let names: Vec<_> = serve.get("/templates").await["items"].as_array().unwrap().clone();
    assert_eq!(names.len(), 1, "{names:?}");
}
