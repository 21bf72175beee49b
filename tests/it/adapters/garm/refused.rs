//! What cannot be done is said in one sentence, which GARM stores and shows to administrators.

use serde_json::{Value, json};

use super::{Garm, POOL, token, token_for};

const SECRET: &str = "hush-hush-secret";

#[tokio::test]
async fn a_request_that_cannot_be_met_is_refused_with_its_reason() {
    let garm = Garm::new().await;
    let create = |changes: Value| garm.create_with("garm-a1", &token(SECRET, 0), changes);
    for (call, named) in [
        (create(json!({"image": "nothing"})), "Mayfly has no template \"nothing\""),
        (create(json!({"flavor": "huge"})), "flavor: \"huge\" is not known, only default"),
        (create(json!({"extra_specs": {"cpus": 64}})), "cpus: 1 to 8"),
        (create(json!({"extra_specs": {"labels": {"owner": "me"}}})), "extra_specs: labels: \"owner\""),
        (create(json!({"instance-token": SECRET})), "instance-token: expected a JSON Web Token"),
        (
            create(json!({"instance-token": token_for(SECRET, 0, 779)})),
            "raise the runner bootstrap timeout of the pool",
        ),
        (create(json!({"name": [SECRET]})), "name is not of the type that GARM sends"),
        (create(json!({"callback-url": ""})), "`callback-url` is missing"),
        (create(json!({"ca-cert-bundle": "not base64!"})), "ca-cert-bundle: expected base64"),
        (
            create(
                json!({"tools": [{"os": "linux", "filename": "act_runner-linux", "download_url": "https://h.example/a"}]}),
            ),
            "Gitea",
        ),
        (create(json!({"pool_id": ""})).pool(""), "GARM_POOL_ID is not set"),
        (garm.call("CreateInstance").pool(POOL), "the request on standard input:"),
    ] {
        let ran = call.ran().await.ends(1);
        assert!(ran.err.contains(named), "{named}: {}", ran.err);
        assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 1), "{}", ran.err);
        assert!(!ran.err.contains(SECRET), "{}", ran.err);
    }
    assert_eq!(garm.vms().await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_way_to_the_service_is_named_when_it_does_not_work() {
    let garm = Garm::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let wrong = garm.write("wrong-token", SECRET);
    let reader = garm.write("read-token", &garm.api.read);
    let token_file = garm.path("token");
    let config = |name: &str, url: &str, token: &std::path::Path| {
        let seconds = if url == closed { 1 } else { 20 };
        garm.write(name, &format!("url = '{url}'\ntoken_file = '{}'\ntimeout_seconds = {seconds}\n", token.display()))
    };
    let url = garm.api.url.clone();
    for (config, named) in [
        (config("a.toml", &url, &wrong), "wrong-token is not accepted"),
        (config("b.toml", &url, &garm.path("no-such-file")), "`token_file` in "),
        (config("c.toml", &closed, &token_file), "no answer from Mayfly at 127.0.0.1:"),
        (config("d.toml", "ftp://h.example", &token_file), "d.toml: expected a URL"),
        (garm.write("e.toml", "urll = 'x'"), "e.toml: line 1: unknown field"),
        (garm.path("missing.toml"), "missing.toml: No such file"),
        (garm.write("f.toml", ""), "no service is named: set `url` and `token_file`, or `data_dir`, in "),
    ] {
        for call in [garm.list(POOL), garm.create("garm-a1", &token(SECRET, 0)), garm.delete("garm-a1")] {
            let ran = call.config(&config).ran().await.ends(1);
            assert!(ran.err.contains(named), "{named}: {}", ran.err);
            assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 1), "{}", ran.err);
            assert!(!ran.err.contains(SECRET), "{}", ran.err);
        }
    }
    // A token that may only read.
    let reads = config("g.toml", &url, &reader);
    let ran = garm.create("garm-a1", &token(SECRET, 0)).config(&reads).ran().await.ends(1);
    assert!(ran.err.contains("auth."), "{}", ran.err);
    assert_eq!(garm.list(POOL).config(&reads).ran().await.ends(0).out, "[]");
}
