//! Logging in: the registry is asked, what it refuses is not kept, and what is kept opens it.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    Serve,
    proxy::{Proxy, Tokens},
    registry::{Login, Registry},
    tart_image::{Content, Encoding, TartImage},
};

const PASSWORD: &str = "open sesame, hunter2";

async fn closed() -> Registry {
    Registry::closed(Login::new("ci", PASSWORD)).await
}

/// A service that trusts the registry's authority, by a table of its own.
async fn serve(registry: &Registry, hosts: &[&str]) -> Serve {
    let ca_file = registry.authority.file();
    let tables: String = hosts.iter().map(|host| format!("[registries.{host:?}]\nca_file = {ca_file:?}\n")).collect();
    Serve::prepared(|dir| {
        fs::write(dir.join("mayfly.toml"), tables).unwrap();
        vec![("MAYFLY_DRIVERS__QEMU__ENABLED".into(), "false".into())]
    })
    .await
}

async fn mayfly(serve: &Serve, args: &[&str], stdin: Option<&str>) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
    command.args(args).args(["--url", &serve.url]).env("MAYFLY_TOKEN", serve.token()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // One that has no use for it may have closed it.
    let _ = input.write_all(stdin.unwrap_or_default().as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn kept(serve: &Serve) -> Vec<String> {
    let entries = fs::read_dir(serve.dir.join("registries")).into_iter().flatten();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}

async fn put(serve: &Serve, host: &str, body: Value) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/registries/{host}/login", serve.url);
    let answer = http.put(url).bearer_auth(serve.token()).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_checked_stored_used_and_removed() {
    let registry = closed().await;
    let image = TartImage::new(&[Content::Noise(1, 102_400)], Encoding::Linked);
    image.push(&registry, "ci/base", "v1").await;
    let host = registry.address.as_str();
    let serve = serve(&registry, &[host]).await;
    let image = format!("{host}/ci/base:v1");
    let refused = |pull: &Value| {
        assert_eq!((&pull["state"], &pull["error"]["code"]), (&json!("failed"), &json!("image.refused")), "{pull}");
    };

    refused(&serve.pull("base", &image).await);

    // A wrong one is not kept, and a right one is.
    let login = ["template", "login", host, "--username", "ci", "--password-stdin"];
    let (code, _, said) = mayfly(&serve, &login, Some("hunter2 is wrong\n")).await;
    assert!(code == 1 && said.contains("[login.refused]") && !said.contains("hunter2"), "{said}");
    assert!(kept(&serve).is_empty());
    let (code, out, said) = mayfly(&serve, &login, Some(&format!("{PASSWORD}\n"))).await;
    assert_eq!((code, out.trim_end()), (0, format!("{host}  logged in as ci").as_str()), "{said}");
    let file = serve.dir.join("registries").join(format!("{}.json", host.replace(':', "%3A")));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // At once, though the refusal was just now.
    let pull = serve.pull("base", &image).await;
    assert_eq!(pull["state"], "done", "{pull}");

    // No password is shown anywhere.
    let (code, out, _) = mayfly(&serve, &["template", "logins", "--json"], None).await;
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &listed["items"][0]["registry"]), (0, &json!(host)));
    assert_eq!((&listed["items"][0]["source"], listed["items"].as_array().unwrap().len()), (&json!("login"), 1));
    let (_, table, _) = mayfly(&serve, &["template", "logins"], None).await;
    assert!(table.contains(host) && table.contains("ci"), "{table}");
    for text in [&out, &table, &serve.log()] {
        assert!(!text.contains("hunter2"), "{text}");
    }

    let (code, out, _) = mayfly(&serve, &["template", "logout", host], None).await;
    assert_eq!((code, out), (0, format!("{host}  logged out\n")));
    assert!(kept(&serve).is_empty());
    let (code, _, said) = mayfly(&serve, &["template", "logout", host], None).await;
    assert!(code == 1 && said.contains("[login.not_found]"), "{said}");
    // Pulled under another name, the image's manifest is asked for again.
    refused(&serve.pull("new", &image).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_token_service_is_asked_for_a_token() {
    let registry = closed().await;
    let proxy = Proxy::before(&registry)
        .bearer(Tokens::lasting(Duration::from_secs(60)).only_for(Login::new("ci", PASSWORD)))
        .start()
        .await;
    let host = proxy.address();
    let serve = serve(&registry, &[&host]).await;
    let (status, problem) = put(&serve, &host, json!({"username": "ci", "password": "hunter2"})).await;
    assert_eq!((status, &problem["code"]), (422, &json!("login.refused")), "{problem}");
    let asked = proxy.seen().len();
    // Its entrance, and its token service: no password is tried twice.
    assert_eq!(asked, 2, "{:#?}", proxy.seen());
    let (status, done) = put(&serve, &host, json!({"username": "ci", "password": PASSWORD})).await;
    assert_eq!((status, &done["checked"]), (200, &json!(true)), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchecked_login_has_a_notice() {
    let registry = Registry::open().await;
    let host = registry.address.as_str();
    let serve = serve(&registry, &[host]).await;
    // A registry that accepts requests without credentials cannot check them.
    let (status, done) = put(&serve, host, json!({"username": "ci", "password": "x"})).await;
    assert_eq!((status, &done["checked"]), (200, &json!(false)), "{done}");
    assert!(done["notices"][0].as_str().unwrap().contains("without credentials"), "{done}");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (status, problem) = put(&serve, &free, json!({"username": "ci", "password": "x"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("registry.unavailable")), "{problem}");
    let (status, done) = put(&serve, &free, json!({"username": "ci", "password": "x", "check": false})).await;
    assert_eq!((status, &done["checked"]), (200, &json!(false)), "{done}");

    for (host, body, pointer) in [
        (host, json!({"username": "a:b", "password": "x"}), "/username"),
        (host, json!({"username": "ci", "password": ""}), "/password"),
        (host, json!({"username": "ci", "password": 424242}), "/password"),
        (host, json!({"username": "ci"}), "/password"),
        ("no%20host", json!({"username": "ci", "password": "x"}), "path:host"),
    ] {
        let (status, problem) = put(&serve, host, body).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (400, &json!(pointer)), "{problem}");
        assert!(!problem.to_string().contains("424242"), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_configuration_opens_the_registry_and_counts_before_a_login() {
    let registry = closed().await;
    TartImage::new(&[Content::Noise(1, 102_400)], Encoding::Linked).push(&registry, "ci/base", "v1").await;
    let host = registry.address.as_str();
    let ca_file = registry.authority.file();
    let serve = Serve::prepared(|dir| {
        let password = dir.join("password");
        fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        let table =
            format!("[registries.{host:?}]\nca_file = {ca_file:?}\nusername = \"ci\"\npassword_file = \"password\"\n");
        fs::write(dir.join("mayfly.toml"), table).unwrap();
        vec![("MAYFLY_DRIVERS__QEMU__ENABLED".into(), "false".into())]
    })
    .await;
    let (status, done) = put(&serve, host, json!({"username": "other", "password": "x", "check": false})).await;
    assert_eq!(status, 200);
    assert!(done["notices"][0].as_str().unwrap().contains("count before this login"), "{done}");
    let pull = serve.pull("base", &format!("{host}/ci/base:v1")).await;
    assert_eq!(pull["state"], "done", "{pull}");
    let listed = serve.get("/registries").await;
    let sources: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| &item["source"]).collect();
    assert_eq!(sources, [&json!("configuration"), &json!("login")]);
}

#[tokio::test]
async fn a_password_is_read_from_a_terminal_and_never_from_an_argument() {
    let program = env!("CARGO_BIN_EXE_mayfly");
    let run = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).env("MAYFLY_TOKEN", "x").kill_on_drop(true);
        let output = command.output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["template", "login", "a.io", "-u", "ci", "--password", "x"]).await;
    assert!(code == 2 && said.contains("--password-stdin"), "{said}");
    let (code, said) =
        run(&["template", "login", "a.io", "-u", "ci", "--password-stdin", "--url", "http://127.0.0.1:1"]).await;
    assert!(code == 2 && said.contains("standard input is empty"), "{said}");
    let clear = ["template", "login", "a.io", "-u", "ci", "--password-stdin", "--url", "http://mayfly.example.com"];
    let (code, said) = run(&clear).await;
    assert!(code == 2 && said.contains("in clear"), "{said}");
}
