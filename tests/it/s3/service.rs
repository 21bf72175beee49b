//! Import and export by the service's own verbs, as users type them.

use serde_json::{Value, json};

use super::{MIB, PIECE, content, hex, relay::Relay};
use crate::support::{Serve, moto::Moto};

async fn serve(relay: &Relay) -> Serve {
    Serve::start(&[
        ("AWS_ENDPOINT_URL_S3", &relay.url),
        ("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT00000"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ])
    .await
}

async fn mayfly(serve: &Serve, args: &[&str]) -> (i32, Value, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
    command.args(["template"]).args(args).args(["--url", &serve.url, "--json"]).env("MAYFLY_TOKEN", serve.token());
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("hunter2") && !serve.log().contains("hunter2"), "{said}");
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

fn notices(value: &Value) -> String {
    value["notices"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_s3_becomes_a_template_and_a_template_an_image_in_s3() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let serve = serve(&relay).await;
    let disk = content(1, 3 * PIECE + 2 * MIB);
    relay.put("/images/base.img", &disk, &[]).await;

    // What can be known of it is held against it, and what cannot is told.
    let (code, imported, said) =
        mayfly(&serve, &["import", "s3://images/base.img", "--layout", "raw", "--as", "base"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(notices(&imported).contains("could not be verified"), "{imported}");
    let digest = imported["template"]["digest"].as_str().unwrap();
    let file = serve.dir.join("templates").join(digest.replace(':', "-")).join("disk");
    assert!(std::fs::read(file).unwrap() == disk, "the disk is another one");
    let known = format!("s3://images/base.img#sha256={}", hex(&disk));
    let (code, imported, said) = mayfly(&serve, &["import", &known, "--layout", "raw", "--as", "base"]).await;
    assert!(code == 0 && notices(&imported) == "[]", "{said}{imported}");
    let wrong = format!("s3://images/base.img#sha256={}", hex(b"other"));
    let (code, _, said) = mayfly(&serve, &["import", &wrong, "--layout", "raw", "--as", "wrong"]).await;
    assert!(code == 1 && said.contains("object.refused"), "{said}");

    // There, as it is here; and back.
    let (code, exported, said) = mayfly(&serve, &["export", "base", "s3://images/out.img", "--layout", "raw"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(exported["files"], json!([{"path": "s3://images/out.img", "bytes": disk.len()}]));
    let (code, imported, said) =
        mayfly(&serve, &["import", "s3://images/out.img", "--layout", "raw", "--as", "back"]).await;
    assert!(code == 0 && notices(&imported) == "[]", "what we made can be verified: {said}{imported}");
    assert_eq!(imported["template"]["digest"], digest);

    // Nothing is replaced unless that is said.
    let (code, _, said) = mayfly(&serve, &["export", "base", "s3://images/out.img", "--layout", "qcow2"]).await;
    assert!(code == 1 && said.contains("object.exists"), "{said}");
    let replace = ["export", "base", "s3://images/out.img", "--layout", "qcow2", "--overwrite"];
    let (code, _, said) = mayfly(&serve, &replace).await;
    assert_eq!(code, 0, "{said}");
    let (code, imported, said) =
        mayfly(&serve, &["import", "s3://images/out.img", "--layout", "qcow2", "--as", "qcow2"]).await;
    assert_eq!((code, &imported["template"]["disk_format"]), (0, &json!("qcow2")), "{said}");
    assert_eq!(imported["template"]["disk_virtual_bytes"], disk.len());

    for (body, status, code) in [
        (json!({"layout": "tart", "path": "s3://images/x"}), 400, "request.invalid"),
        (json!({"layout": "raw", "path": "s3://images"}), 400, "request.invalid"),
        (json!({"layout": "raw", "path": "/tmp/x", "overwrite": true}), 400, "request.invalid"),
        (json!({"layout": "raw", "path": "s3://no-images/x"}), 422, "object.refused"),
    ] {
        let (answered, problem) = serve.post("/templates/base/export", body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
    }
    for left in ["downloads", "uploads", "exports"] {
        let found = std::fs::read_dir(serve.dir.join("s3").join(left)).into_iter().flatten().flatten();
        for path in found.map(|entry| entry.path()) {
            let inside = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
            assert!(left == "downloads" && inside.iter().all(|name| name == ".lock"), "{}: {inside:?}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beside_an_image_goes_along() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let serve = serve(&relay).await;
    let image = crate::support::image();
    let file = |name: &str| std::fs::read(image.join(name)).unwrap();
    let kernel = ["vmlinuz", "kernel"].into_iter().find(|name| image.join(name).is_file()).expect("the image's kernel");
    relay.put("/images/micro.qcow2", &file("disk.qcow2"), &[]).await;
    relay.put("/images/micro.qcow2.kernel", &file(kernel), &[]).await;
    let (code, imported, said) =
        mayfly(&serve, &["import", "s3://images/micro.qcow2", "--layout", "qcow2", "--as", "micro"]).await;
    assert!(code == 0 && imported["template"]["kernel"] == true, "{said}{imported}");
    assert!(notices(&imported).contains("found beside the disk"), "{imported}");
    let (code, exported, said) = mayfly(&serve, &["export", "micro", "s3://images/out", "--layout", "qcow2"]).await;
    assert_eq!(code, 0, "{said}");
    let paths: Vec<_> = exported["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["s3://images/out", "s3://images/out.kernel"]);
}
