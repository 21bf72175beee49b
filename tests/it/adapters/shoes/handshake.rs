//! How the process starts, what it answers, and how it ends.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tonic::{Code, Status};

use super::{
    COOKIE, HOST_SECRET, Shoes,
    messages::{Empty, HealthCheckRequest, HealthCheckResponse},
};
use crate::cli::{program, run};

#[tokio::test]
async fn started_by_hand_it_explains_itself() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("shoes-mayfly");
    std::os::unix::fs::symlink(program(), &copy).unwrap();
    for (program, args, cookie) in [
        (program(), &["shoes-provider"][..], None),
        (&copy, &[], None),
        (program(), &[], Some("hush")),
        (&copy, &["--config", "/nowhere"], Some("hush")),
    ] {
        let mut command = Command::new(program);
        command.args(args).env_clear().stdin(Stdio::null());
        if let Some(cookie) = cookie {
            command.env(COOKIE.0, cookie);
        }
        let ran = run(&mut command).await.ends(1);
        assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 1), "{}", ran.err);
        assert!(ran.err.contains("SHOES_PLUGIN_MAGIC_COOKIE") && ran.err.contains("PLUGIN"), "{}", ran.err);
        assert!(!ran.err.contains("hush"), "{}", ran.err);
    }
}

#[tokio::test]
async fn a_host_that_needs_something_else_is_told() {
    let shoes = Shoes::new().await;
    for (variable, value) in [("PLUGIN_PROTOCOL_VERSIONS", "2,3"), ("PLUGIN_CLIENT_CERT", HOST_SECRET)] {
        let mut command = shoes.command(program());
        command.env(variable, value);
        let ran = run(&mut command).await.ends(1);
        assert!(ran.out.is_empty() && ran.err.contains(variable), "{}{}", ran.out, ran.err);
        assert!(!ran.err.contains(HOST_SECRET), "{}", ran.err);
    }
}

/// A copy under any name, of the mode that myshoes gives its plugin, in the host's own directory for sockets.
#[tokio::test]
async fn a_copy_of_any_name_knows_what_it_is() {
    let shoes = Shoes::new().await;
    let copy = shoes.path("my-plugin");
    std::fs::copy(program(), &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o777)).unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let mut command = shoes.command(&copy);
    command.env("PLUGIN_UNIX_SOCKET_DIR", sockets.path());
    let plugin = shoes.plugin_of(command).await;
    let socket = plugin.line.split('|').nth(3).unwrap().to_owned();
    assert!(Path::new(&socket).starts_with(sockets.path()), "{socket}");
    let (_, status) = plugin.shut_down().await;
    assert!(status.success(), "{status}");
    assert_eq!(std::fs::read_dir(sockets.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn it_offers_what_the_host_calls_and_nothing_else() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    let health = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let check = "/grpc.health.v1.Health/Check";
    let answer: HealthCheckResponse = plugin.call(check, health("plugin"), None).await.unwrap();
    assert_eq!(answer.status, 1);
    let answer: Result<HealthCheckResponse, Status> = plugin.call(check, health("other"), None).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
    for path in ["/grpc.health.v1.Health/Watch", "/whywaita.myshoes.Shoes/ListInstances", "/other.Service/AddInstance"]
    {
        let answer: Result<Empty, Status> = plugin.call(path, Empty {}, None).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    // Both streams of the host stay open and hinder nothing.
    for (path, one_request) in [("/plugin.GRPCStdio/StreamStdio", true), ("/plugin.GRPCBroker/StartStream", false)] {
        let mut grpc = tonic::client::Grpc::new(plugin.channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Empty, Empty>::default();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(Empty {}).await.unwrap();
        let sender = Some(sender).filter(|_| !one_request);
        let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let mut stream = grpc.streaming(tonic::Request::new(messages), path, codec).await.unwrap().into_inner();
        drop(sender);
        let next = tokio::time::timeout(Duration::from_millis(100), stream.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
    assert!(plugin.shut_down().await.1.success());
}

#[tokio::test]
async fn it_is_gone_at_once_after_shutdown_and_leaves_nothing() {
    let shoes = Shoes::new().await;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let plugin = shoes.plugin().await;
        let (took, status) = plugin.shut_down().await;
        assert!(status.success() && took < Duration::from_secs(2), "{status} {took:?}");
        best = best.min(took);
    }
    // Each call of the host pays for it. Of several, because other tests run at the same time.
    assert!(best < Duration::from_millis(200), "{best:?}");
    let left: Vec<_> = std::fs::read_dir(shoes.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("mayfly-shoes")), "{left:?}");
}

#[tokio::test]
async fn the_key_of_a_terminal_does_not_end_it() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    for _ in 0..3 {
        kill_process(Pid::from_raw(plugin.pid()).unwrap(), Signal::INT).unwrap();
    }
    let answer = plugin.delete("0191a1b2-0000-7000-8000-000000000000").await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
    assert!(plugin.shut_down().await.1.success());
}
