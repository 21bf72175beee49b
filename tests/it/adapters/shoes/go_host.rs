//! The plugin under the library that myshoes uses: `tests/peers/shoes-host`, a host in Go, named by `MAYFLY_SHOES_HOST`. Run by
//! `.ci/test.sh unit` where there is Go; it builds the host, and leaves this module out otherwise.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::{COOKIE, SECRET, Shoes};
use crate::cli::{has_ended, program};

struct Host {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The plugin of the call.
    plugin: i32,
}

impl Host {
    async fn start(shoes: &Shoes, args: &[&str]) -> Host {
        let host = std::env::var_os("MAYFLY_SHOES_HOST")
            .expect("MAYFLY_SHOES_HOST names the host; `.ci/test.sh unit` builds it and runs this test");
        let usual = shoes.command(program());
        let mut command = Command::new(host);
        command.env_clear().envs(usual.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env_remove(COOKIE.0).args(["-plugin"]).arg(program()).args(args);
        let log = std::fs::File::create(shoes.path(&format!("log-{}", uuid::Uuid::new_v4()))).unwrap();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = line(&mut lines).await;
        Host { child, lines, plugin: first["pid"].as_i64().expect("a pid") as i32 }
    }

    /// The answer of the call, once the plugin has ended without being killed.
    async fn answer(mut self, code: i32) -> Value {
        let answer = line(&mut self.lines).await;
        let status = timeout(Duration::from_secs(20), self.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(code), "{answer}");
        has_ended(self.plugin).await;
        answer
    }
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(Duration::from_secs(60), lines.next_line()).await.expect("a line").unwrap();
    serde_json::from_str(&line.expect("a line")).unwrap()
}

#[tokio::test]
async fn its_health_is_serving_and_it_ends_at_once() {
    let shoes = Shoes::new().await;
    let mut ends = Vec::new();
    for _ in 0..3 {
        let answer = Host::start(&shoes, &["ping"]).await.answer(0).await;
        assert_eq!(answer["code"], "OK");
        ends.push(answer["end_ms"].as_i64().unwrap());
    }
    assert!(ends.iter().any(|ms| *ms < 300), "{ends:?}");
}

#[tokio::test]
async fn instances_are_added_once_and_deleted() {
    let shoes = Shoes::new().await;
    let script = shoes.write("setup.sh", &format!("#!/bin/bash\n# {SECRET}\n"));
    let other = shoes.write("other.sh", "#!/bin/bash\n# another registration token\n");
    let add =
        |script: &'static str| ["-resource-type", "5", "-labels", "self-hosted,linux", "add", "myshoes-a", script];
    let (script, other) = (script.to_str().unwrap().to_owned().leak(), other.to_str().unwrap().to_owned().leak());
    let host = Host::start(&shoes, &add(script)).await;
    let vms = shoes.until_vms(1, "queued").await;
    assert_eq!((&vms[0]["cpus"], &vms[0]["labels"]["myshoes.labels"]), (&json!(2), &json!("self-hosted,linux")));
    shoes.up(&vms[0]).await;
    let first = host.answer(0).await;
    assert_eq!((&first["cloud_id"], &first["shoes_type"]), (&vms[0]["id"], &json!("mayfly")));
    let again = Host::start(&shoes, &add(other)).await.answer(0).await;
    assert_eq!(again["cloud_id"], first["cloud_id"]);
    let id = first["cloud_id"].as_str().unwrap();
    assert_eq!(Host::start(&shoes, &["delete", id]).await.answer(0).await["code"], "OK");
    shoes.api.finish(id.parse().unwrap()).await;
    assert_eq!(Host::start(&shoes, &["delete", id]).await.answer(3).await["code"], "NotFound");
    assert!(!shoes.logs().contains(SECRET));
}

#[tokio::test]
async fn the_deadline_of_the_host_is_the_limit_of_the_queue() {
    let shoes = Shoes::new().await;
    let script = shoes.write("setup.sh", "#!/bin/bash\n");
    let host = Host::start(&shoes, &["-timeout", "5s", "add", "myshoes-a", script.to_str().unwrap()]).await;
    assert_eq!(host.answer(3).await["code"], "ResourceExhausted");
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_host_that_is_killed_leaves_no_plugin_and_no_vm_that_waits() {
    let shoes = Shoes::new().await;
    let script = shoes.write("setup.sh", "#!/bin/bash\n");
    let mut host = Host::start(&shoes, &["add", "myshoes-a", script.to_str().unwrap()]).await;
    shoes.until_vms(1, "queued").await;
    host.child.kill().await.unwrap();
    has_ended(host.plugin).await;
    assert_eq!(shoes.vms().await, Vec::<Value>::new());
}
