//! Which service is asked, and who gets which token.

use std::{
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Output,
    sync::mpsc,
};

use serde_json::json;

use super::{Mayfly, double::Double, program, run};
use crate::support::Serve;

const ADMIN: &str = "mfa_the-admin-token";

async fn with_list() -> Double {
    let double = Double::start().await;
    double.on("GET /vms", 200, json!({ "items": [], "next_cursor": null }));
    double
}

/// Another local user: listens on a port, answers everything politely, and keeps what it is told.
fn impostor() -> (u16, mpsc::Receiver<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, hears) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 64 * 1024];
            let n = stream.read(&mut buffer).unwrap_or(0);
            let _ = told.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"items\":[]}",
            );
        }
    });
    (port, hears)
}

#[tokio::test]
async fn whoever_listens_on_the_port_is_told_nothing() {
    let mayfly = Mayfly::new();
    let (port, hears) = impostor();
    let url = format!("http://127.0.0.1:{port}");
    // The service that is configured for this port is down, and another program listens there.
    mayfly.write(".mayfly/mayfly.toml", &format!("[server]\nlisten = \"127.0.0.1:{port}\"\n"));
    let ran = mayfly.run(&["vm", "list"]).await.ends(4);
    assert!(ran.err.contains("mayfly serve"), "{}", ran.err);
    // Whoever names the port says which token goes there.
    for mut command in [mayfly.command(&["vm", "list", "--url", &url]), {
        let mut command = mayfly.command(&["vm", "create", "-t", "micro", "--command", "hush-hush"]);
        command.env("MAYFLY_URL", &url);
        command
    }] {
        let ran = run(&mut command).await.ends(5);
        for word in ["--token-file", "MAYFLY_TOKEN", "--data-dir"] {
            assert!(ran.err.contains(word), "{word} is missing: {}", ran.err);
        }
    }
    assert_eq!(hears.try_recv(), Err(mpsc::TryRecvError::Empty), "somebody else was told something");
    let mut command = mayfly.command(&["vm", "list", "--url", &url]);
    run(command.env("MAYFLY_TOKEN", "mfa_given")).await.ends(0);
    let heard = hears.recv().unwrap();
    assert!(heard.contains("mfa_given") && !heard.contains(ADMIN), "{heard}");
}

#[tokio::test]
async fn the_data_directory_chooses_the_service() {
    let (one, other) = (with_list().await, with_list().await);
    let mayfly = Mayfly::of(&one);
    let token = mayfly.write("second/admin.token", "mfa_second\n");
    let dir = token.parent().unwrap();
    other.listen(&dir.join("admin.sock"));
    mayfly.run(&["vm", "list"]).await.ends(0);
    assert_eq!(one.last().headers["authorization"], format!("Bearer {ADMIN}"));
    mayfly.run(&["vm", "list", "--data-dir", dir.to_str().unwrap()]).await.ends(0);
    run(mayfly.command(&["vm", "list"]).env("MAYFLY_DATA_DIR", dir)).await.ends(0);
    assert_eq!((one.asked().len(), other.asked().len()), (1, 2));
    assert_eq!(other.last().headers["authorization"], "Bearer mfa_second");
    // An empty variable counts as not set, and a given token precedes the directory's.
    run(mayfly.command(&["vm", "list"]).env("MAYFLY_URL", "").env("MAYFLY_TOKEN", "mfa_given")).await.ends(0);
    assert_eq!(one.last().headers["authorization"], "Bearer mfa_given");
}

#[tokio::test]
async fn nothing_is_sent_over_a_socket_that_others_may_use() {
    let double = with_list().await;
    let mayfly = Mayfly::of(&double);
    let (dir, socket) = (mayfly.path(".mayfly"), mayfly.path(".mayfly/admin.sock"));
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    for (path, open, private) in [(&dir, 0o755, 0o700), (&socket, 0o666, 0o600)] {
        mode(path, open);
        let ran = mayfly.run(&["vm", "list"]).await.ends(2);
        assert!(ran.err.contains(&format!("{} has mode {open:04o}", path.display())), "{}", ran.err);
        mode(path, private);
    }
    // What another user made there, as far as root may play one.
    if std::os::unix::fs::chown(&socket, Some(12345), None).is_ok() {
        let ran = mayfly.run(&["vm", "list"]).await.ends(2);
        assert!(ran.err.contains("belongs to the user 12345"), "{}", ran.err);
        std::os::unix::fs::chown(&socket, Some(std::fs::metadata(&dir).unwrap().uid()), None).unwrap();
    }
    assert_eq!(double.asked().len(), 0);
    mayfly.run(&["vm", "list"]).await.ends(0);
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "").unwrap();
    let ran = mayfly.run(&["vm", "list"]).await.ends(2);
    assert!(ran.err.contains("is not a socket"), "{}", ran.err);
}

#[tokio::test]
async fn a_socket_is_served_and_one_that_a_dead_service_left_is_replaced() {
    let mut serve =
        Serve::start(&[("MAYFLY_DRIVERS__QEMU__ENABLED", "false"), ("MAYFLY_DRIVERS__FAKE__ENABLED", "true")]).await;
    let socket = serve.dir.join("admin.sock");
    let list = async |dir: &Path| -> Output {
        let mut command = tokio::process::Command::new(program());
        command.env_clear().args(["vm", "list", "--json", "--data-dir"]).arg(dir).kill_on_drop(true);
        command.output().await.unwrap()
    };
    let answered = |ran: &Output| {
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!((ran.status.code(), out.contains("\"items\"")), (Some(0), true), "{out}{err}");
    };
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o600);
    answered(&list(&serve.dir).await);
    let before = std::fs::metadata(&socket).unwrap().ino();
    // A second service does not take the socket of the first one.
    let second = Serve::command(&serve.dir).stderr(std::process::Stdio::null()).status().unwrap();
    assert!(!second.success());
    assert_eq!(std::fs::metadata(&socket).unwrap().ino(), before);
    answered(&list(&serve.dir).await);

    serve.kill();
    assert_eq!(list(&serve.dir).await.status.code(), Some(4), "a dead service does not answer");
    assert!(socket.exists(), "this is what it left");
    serve.spawn().await;
    answered(&list(&serve.dir).await);

    // When a token was used is known after a restart.
    let (_, token) = serve.post("/tokens", json!({"name": "t", "scope": "read"})).await;
    let secret = token["token"].as_str().unwrap();
    let (status, _) = serve.send_as(secret, reqwest::Method::GET, "/vms", None).await;
    assert_eq!(status, 200);
    assert_eq!(serve.stop(), Some(0));
    serve.spawn().await;
    let shown = serve.get(&format!("/tokens/{}", token["id"].as_str().unwrap())).await;
    assert!(shown["last_used_at"].is_string(), "{shown:#}");
}
