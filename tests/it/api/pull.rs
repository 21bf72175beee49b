//! A template from a registry, as its users ask for it: by a request, by a command, and over the service's death.

use serde_json::{Value, json};

use crate::support::{
    Serve,
    proxy::{Fault, Proxy, Rule},
    registry::Registry,
    tart_image::{Content, Encoding, TartImage},
};

async fn serve(registry: &Registry) -> Serve {
    let ca_file = registry.authority.file().display().to_string();
    Serve::start(&[("MAYFLY_REGISTRY__CA_FILE", &ca_file), ("MAYFLY_DRIVERS__QEMU__ENABLED", "false")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_a_template_by_one_request() {
    let registry = Registry::open().await;
    let image = TartImage::new(
        &[Content::Text(1, 1 << 20), Content::Zeros(1 << 20), Content::Noise(2, 1 << 18)],
        Encoding::Linked,
    );
    image.push(&registry, "ci/base", "v1").await;
    let serve = serve(&registry).await;

    let reference = format!("{}/ci/base:v1", registry.address);
    let pull = serve.pull("base", &reference).await;
    assert_eq!(pull["state"], "done", "{pull:#}");
    let template = serve.get("/templates/base").await;
    assert_eq!(template["digest"], pull["digest"]);
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
    let command = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
        let output = command.args(args).args(["--url", &serve.url]).env("MAYFLY_TOKEN", serve.token()).output();
        let output = output.await.unwrap();
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.code(), out, err)
    };
    let (code, out, err) = command(&["template", "pull", &reference, "--json"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["digest"], template["digest"]);
    let (code, out, err) = command(&["template", "pull", &reference]).await;
    assert_eq!((code, out.as_str()), (Some(0), format!("base  {digest}\n").as_str()), "{err}");
    let nowhere = format!("{}/ci/base:none", registry.address);
    let (code, out, err) = command(&["template", "pull", &nowhere, "--as", "x"]).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("[image.refused]"), "{err}");

    for (body, status, code) in [
        (json!({"name": "x", "image": "no registry"}), 400, "request.invalid"),
        (json!({"name": "x", "image": reference, "os": "linux"}), 400, "request.invalid"),
        (json!({"name": "x"}), 400, "request.invalid"),
    ] {
        let (answered, problem) = serve.post("/templates", body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
    }
    let names: Vec<_> = serve.get("/templates").await["items"].as_array().unwrap().clone();
    assert_eq!(names.len(), 1, "{names:?}");
    // Four were asked for: one for each new request.
    let pulls = serve.get("/pulls").await;
    let states: Vec<_> = pulls["items"].as_array().unwrap().iter().map(|p| p["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["failed", "done", "done", "done"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_after_the_service_was_killed() {
    let registry = Registry::open().await;
    let image = TartImage::new(&[Content::Noise(1, 1 << 18), Content::Noise(2, 1 << 20)], Encoding::Linked);
    image.push(&registry, "ci/base", "v1").await;
    let proxy = Proxy::before(&registry).start().await;
    let (small, large) = (image.chunk(0).digest(), image.chunk(1).digest());
    proxy.on(Rule::get(&format!("*{large}"), Fault::Hold { after: 300_000 }).first());
    let mut serve = serve(&registry).await;
    let body = json!({"name": "base", "image": format!("{}/ci/base:v1", proxy.address())});
    let (status, pull) = serve.post("/templates", body).await;
    assert_eq!(status, 202, "{pull}");
    let id = pull["id"].as_str().unwrap().to_owned();
    // The first chunk counts once it is on disk, which the row's progress says.
    let mut chunks = 0;
    for _ in 0..300 {
        chunks = serve.get(&format!("/pulls/{id}")).await["progress"]["chunks_done"].as_u64().unwrap();
        if chunks == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(chunks, 1, "{}", serve.log());
    let before = proxy.asked("GET", &small).len();
    serve.kill();
    proxy.release();
    serve.spawn().await;
    let pull = serve.pull_ended(&id).await;
    assert_eq!(pull["state"], "done", "{pull:#}");
    assert_eq!(serve.get("/templates/base").await["digest"], pull["digest"]);
    assert_eq!(proxy.asked("GET", &small).len(), before, "what was verified was fetched again");
    // One pull from its beginning to its end, whoever served.
    let events = serve.get("/templates/base/events").await;
    let kinds: Vec<_> = events["items"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["pull_started", "name_moved", "pulled"]);
}
