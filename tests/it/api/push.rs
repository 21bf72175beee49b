//! A template into a registry, as its users ask for it: one request, one command.

use serde_json::{Value, json};

use crate::support::{Serve, registry::Registry, tart_image::Content};

#[tokio::test(flavor = "multi_thread")]
async fn a_template_becomes_an_image_by_one_request() {
    let registry = Registry::open().await;
    let ca_file = registry.authority.file().display().to_string();
    let serve = Serve::start(&[("MAYFLY_REGISTRY__CA_FILE", &ca_file)]).await;
    let disk = serve.dir.join("disk.raw");
    std::fs::write(&disk, Content::Holes(1, 3 << 20).bytes()).unwrap();
    let (status, template) =
        serve.post("/templates", json!({"name": "small", "disk": disk, "disk_format": "raw", "memory_mib": 99})).await;
    assert_eq!(status, 201, "{template}");

    let reference = format!("{}/ci/small:1", registry.address);
    let (status, pushed) = serve.post("/templates/small/push", json!({"image": reference})).await;
    assert_eq!(status, 200, "{pushed}");
    assert_eq!((&pushed["image"], &pushed["layers"]), (&json!(reference), &json!(1)));
    assert!(pushed["bytes_uploaded"].as_u64().unwrap() > 0);

    // By the command, and in parts: nothing new.
    let run = async |args: &[&str]| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
            .args(["template"])
            .args(args)
            .args(["--url", &serve.url])
            .env("MAYFLY_TOKEN", serve.token())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let said = run(&["push", "small", &reference, "--chunk-size", "5", "--json"]).await;
    let again: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&again["digest"], &again["bytes_uploaded"]), (&pushed["digest"], &json!(0)));
    let said = run(&["push", "small", &reference]).await;
    assert!(said.contains(pushed["digest"].as_str().unwrap()) && said.contains("reused"), "{said}");

    // And back, under another name: what it was pulled as is in the image.
    let said = run(&["pull", &reference, "--as", "back", "--json"]).await;
    let back: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(back["state"], "done", "{back:#}");
    let back = serve.get("/templates/back").await;
    assert_eq!((&back["memory_mib"], &back["driver"]), (&json!(99), &json!("qemu")));
    let place = |digest: &Value| serve.dir.join("templates").join(digest.as_str().unwrap().replace(':', "-"));
    let read = |digest: &Value| std::fs::read(place(digest).join("disk")).unwrap();
    assert!(read(&back["digest"]) == read(&template["digest"]), "the disk is another one");

    for (path, body, status, code) in [
        ("/templates/none/push", json!({"image": reference}), 404, "template.not_found"),
        ("/templates/small/push", json!({"image": "nowhere"}), 400, "request.invalid"),
        ("/templates/small/push", json!({"image": reference, "chunk_size_mb": 0}), 400, "request.invalid"),
        ("/templates/small/push", json!({"image": reference, "colour": "red"}), 400, "request.invalid"),
        (
            "/templates/small/push",
            json!({"image": format!("{}@{}", reference.trim_end_matches(":1"), pushed["digest"].as_str().unwrap())}),
            422,
            "image.push_refused",
        ),
    ] {
        let (answered, problem) = serve.post(path, body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
    }
    // Nobody listens there: that is told while its user still looks.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let began = std::time::Instant::now();
    let (_, problem) = serve.post("/templates/small/push", json!({"image": format!("{closed}/ci/small:1")})).await;
    assert_eq!(problem["code"], "image.push_failed", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(&format!("{closed} cannot be reached")), "{problem}");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}
