//! Disk images from S3 and to it. moto's server simulates S3; a relay of ours before it does what networks do, and remembers what
//! was asked.
//!
//! The SDK finds its way by the environment, which a running process cannot change for itself: each transfer is made by a
//! process of its own, this test binary again. That one can be killed, too.

mod relay;
mod service;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mayfly::{
    platform::retry::Retry,
    registry::{
        BandwidthLimits,
        s3::{Location, S3},
    },
};
use relay::{Fault, Relay};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{moto::Moto, tart_image::Content};

const MIB: usize = 1 << 20;
/// Pieces of the transfers here, the least that S3 takes.
const PIECE: usize = 5 * MIB;

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Noise, with more than a buffer of zeros in it.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = Content::Noise(seed, size).bytes();
    let end = (9 * MIB).min(size);
    bytes[(6 * MIB).min(size)..end].fill(0);
    bytes
}

/// What a process is asked to do, in a directory of its own.
struct Host {
    dir: tempfile::TempDir,
    url: String,
}

impl Host {
    fn at(url: &str) -> Host {
        Host { dir: tempfile::tempdir().unwrap(), url: url.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, task: &Value, env: &[(&str, &str)]) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "s3::does_what_it_is_told", "--ignored", "--nocapture"])
            .env_clear()
            .env("HOME", self.dir.path())
            .env("AWS_CONFIG_FILE", self.path("none"))
            .env("AWS_SHARED_CREDENTIALS_FILE", self.path("none"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT00000")
            .env("AWS_SECRET_ACCESS_KEY", "hunter2")
            .env("AWS_ENDPOINT_URL_S3", &self.url)
            .env("MAYFLY_TEST_TASK", task.to_string())
            .env("MAYFLY_TEST_DIR", self.dir.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().unwrap()
    }

    async fn run(&self, task: Value, env: &[(&str, &str)]) -> Value {
        let answer = self.path("answer.json");
        let _ = std::fs::remove_file(&answer);
        let output = tokio::time::timeout(Duration::from_secs(120), self.start(&task, env).wait_with_output());
        let output = output.await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("hunter2"), "{said}");
        serde_json::from_slice(&std::fs::read(answer).expect(&said)).unwrap()
    }

    async fn fetch(&self, from: &str) -> Value {
        self.run(json!({"fetch": from}), &[]).await
    }

    async fn store(&self, bytes: &[u8], to: &str, overwrite: bool) -> Value {
        let file = self.path("file");
        std::fs::write(&file, bytes).unwrap();
        self.run(json!({"store": to, "file": file, "overwrite": overwrite}), &[]).await
    }

    /// What is left of transfers in this directory.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for kind in ["downloads", "uploads"] {
            let entries = std::fs::read_dir(self.path("s3").join(kind)).into_iter().flatten();
            for path in entries.map(|entry| entry.unwrap().path()) {
                match std::fs::read_dir(&path) {
                    Ok(files) => left.extend(files.map(|f| f.unwrap().file_name().into_string().unwrap())),
                    Err(_) => left.push(path.file_name().unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        left.retain(|name| name != ".lock");
        left.sort();
        left
    }
}

#[tokio::test]
#[ignore = "the other tests start it, each in an environment of its own"]
async fn does_what_it_is_told() {
    let variable = |name: &str| std::env::var(name).expect("started by another test");
    let dir = PathBuf::from(variable("MAYFLY_TEST_DIR"));
    let task: Value = serde_json::from_str(&variable("MAYFLY_TEST_TASK")).unwrap();
    let retry = Retry { attempts: 4, first_pause: Duration::from_millis(5), longest_pause: Duration::from_millis(50) };
    let s3 = S3::new(dir.join("s3"), BandwidthLimits::default()).with(retry, PIECE as u64);
    let done = Arc::new(AtomicU64::new(0));
    let progress = {
        let done = done.clone();
        move |now: u64, _of: u64| done.store(now, Ordering::SeqCst)
    };
    let location = |key: &str| task[key].as_str().map(|text| text.parse::<Location>().unwrap());
    let answer = if let Some(from) = location("fetch") {
        match s3.fetch(&from, &progress).await {
            Ok(fetched) => {
                let bytes = std::fs::read(fetched.path()).unwrap();
                assert_eq!(fetched.digest.hex(), hex(&bytes));
                json!({"sha256": hex(&bytes), "size": fetched.size, "notices": fetched.notices, "progress": done.load(Ordering::SeqCst)})
            }
            Err(error) => json!({"error": error.to_string()}),
        }
    } else {
        let (to, file) = (location("store").unwrap(), task["file"].as_str().unwrap().to_owned());
        match s3.store(Path::new(&file), &to, task["overwrite"] == true, &progress).await {
            Ok(stored) => json!({"sha256": stored.digest.hex(), "size": stored.size}),
            Err(error) => json!({"error": error.to_string()}),
        }
    };
    std::fs::write(dir.join("answer.json"), answer.to_string()).unwrap();
}

#[track_caller]
fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_goes_there_and_comes_back() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    for (name, size) in [("small", 1), ("one", PIECE), ("several", 3 * PIECE + 12345)] {
        let bytes = content(size as u64, size);
        let at = format!("s3://images/some dir/{name}+ü.img");
        let sum = hex(&bytes);
        assert_eq!(host.store(&bytes, &at, false).await, json!({"sha256": sum, "size": size}), "{name}");
        let found = host.fetch(&at).await;
        assert_eq!(found, json!({"sha256": sum, "size": size, "notices": [], "progress": size}), "{name}");
        assert_eq!(host.fetch(&format!("{at}#sha256={sum}")).await["sha256"], sum.as_str());

        // What is there is replaced when that is asked for, and not otherwise.
        let other = content(99, size);
        assert!(error(&host.store(&other, &at, false).await).contains("already exists"));
        assert_eq!(host.fetch(&at).await["sha256"], sum.as_str());
        assert_eq!(host.store(&other, &at, true).await["sha256"], hex(&other).as_str());
        assert_eq!(host.fetch(&at).await["sha256"], hex(&other).as_str());
    }
    assert_eq!(host.left(), [""; 0]);
    assert_eq!(relay.uploads("images").await, [""; 0]);
    // In ranges, several at a time.
    assert!(relay.seen().iter().filter(|s| s.range.as_deref() == Some("bytes=5242880-10485759")).count() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_refused_and_unverified_content_has_a_notice() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    let bytes = content(1, PIECE + 1000);
    relay.put("/images/bare", &bytes, &[]).await;
    relay.put("/images/liar", &bytes, &[("x-amz-meta-sha256", &hex(b"other"))]).await;
    relay.put("/images/crc", &bytes, &[("x-amz-checksum-algorithm", "CRC32")]).await;
    relay.put("/images/empty", b"", &[]).await;

    let bare = host.fetch("s3://images/bare").await;
    assert_eq!(bare["sha256"], hex(&bytes).as_str());
    let notice = bare["notices"][0].as_str().unwrap();
    assert!(notice.contains("could not be verified") && notice.contains(&hex(&bytes)), "{notice}");
    let given = host.fetch(&format!("s3://images/bare#sha256={}", hex(&bytes))).await;
    assert_eq!(given["notices"], json!([]));
    let wrong = host.fetch(&format!("s3://images/bare#sha256={}", hex(b"other"))).await;
    assert!(error(&wrong).contains("is not what it should be") && error(&wrong).contains("given"), "{wrong}");
    let liar = host.fetch("s3://images/liar").await;
    assert!(error(&liar).contains("metadata"), "{liar}");
    assert!(error(&host.fetch("s3://images/empty").await).contains("it is empty"));

    // A byte that flips on the way.
    relay.on("bare", Fault::Flip { at: 1000 }, 1);
    let flipped = host.fetch(&format!("s3://images/bare#sha256={}", hex(&bytes))).await;
    assert!(error(&flipped).contains("is not what it should be"), "{flipped}");
    assert_eq!(host.left(), [""; 0], "what is wrong is not gone on with");
    assert_eq!(host.fetch(&format!("s3://images/bare#sha256={}", hex(&bytes))).await["size"], bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_through_faults() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    let bytes = content(2, 4 * PIECE + 77);
    for fault in [Fault::Status(503), Fault::Hangup] {
        relay.on("image", fault, 3);
        assert_eq!(host.store(&bytes, "s3://images/image", true).await["sha256"], hex(&bytes).as_str(), "{fault:?}");
        relay.on("image", fault, 3);
        assert_eq!(host.fetch("s3://images/image").await["sha256"], hex(&bytes).as_str(), "{fault:?}");
    }
    relay.on("image", Fault::Cut { after: 2 * MIB }, 4);
    let before = relay.seen().len();
    assert_eq!(host.fetch("s3://images/image").await["sha256"], hex(&bytes).as_str());
    // Gone on with where it was cut, and not from the beginning of the range.
    let ranges: Vec<_> = relay.seen()[before..].iter().filter_map(|s| s.range.clone()).collect();
    assert!(ranges.iter().any(|r| r.starts_with("bytes=") && !is_beginning(r)), "{ranges:?}");
}

/// Whether a range begins where a piece does.
fn is_beginning(range: &str) -> bool {
    let start: usize = range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
    start.is_multiple_of(PIECE)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_whose_process_is_killed_goes_on_and_does_not_when_the_object_is_another_one() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    let bytes = content(3, 6 * PIECE);
    relay.put("/images/image", &bytes, &[("x-amz-meta-sha256", &hex(&bytes))]).await;

    let killed = async || {
        // The range that begins here never ends.
        relay.on("image", Fault::Hold { range: 5 * PIECE }, 1);
        let mut child = host.start(&json!({"fetch": "s3://images/image"}), &[]);
        let journal = async {
            loop {
                let lines = std::fs::read_dir(host.path("s3/downloads"))
                    .into_iter()
                    .flatten()
                    .filter_map(|dir| std::fs::read_to_string(dir.unwrap().path().join("journal")).ok())
                    .map(|text| text.lines().count());
                if lines.max() == Some(6) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), journal).await.expect("all the others come");
        child.kill().await.unwrap();
        relay.release();
    };
    killed().await;
    assert_eq!(host.left(), ["journal", "object"]);
    let before = relay.seen().len();
    assert_eq!(host.fetch("s3://images/image").await["sha256"], hex(&bytes).as_str());
    let ranges: Vec<_> = relay.seen()[before..].iter().filter_map(|s| s.range.clone()).collect();
    assert_eq!(ranges, [format!("bytes={}-{}", 5 * PIECE, 6 * PIECE - 1)]);
    assert_eq!(host.left(), [""; 0]);

    // Of the same size, and another one.
    killed().await;
    let other = content(4, 6 * PIECE);
    relay.put("/images/image", &other, &[]).await;
    let before = relay.seen().len();
    assert_eq!(host.fetch("s3://images/image").await["sha256"], hex(&other).as_str());
    assert_eq!(relay.seen()[before..].iter().filter(|s| s.range.is_some()).count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changes_during_the_download_is_reported() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    relay.put("/images/image", &content(5, 6 * PIECE), &[]).await;
    relay.on("image", Fault::Hold { range: 5 * PIECE }, 1);
    let child = host.start(&json!({"fetch": "s3://images/image"}), &[]);
    tokio::time::timeout(Duration::from_secs(60), relay.held()).await.expect("it begins");
    relay.put("/images/image", &content(6, 6 * PIECE), &[]).await;
    relay.release();
    assert!(child.wait_with_output().await.unwrap().status.success());
    let answer: Value = serde_json::from_slice(&std::fs::read(host.path("answer.json")).unwrap()).unwrap();
    assert!(error(&answer).contains("was changed while it was read"), "{answer}");
    assert_eq!(host.left(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_leaves_nothing() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    let bytes = content(7, 3 * PIECE);

    // A part that is refused each time.
    relay.on("partNumber=2", Fault::Status(403), 100);
    let refused = host.store(&bytes, "s3://images/image", false).await;
    assert!(error(&refused).contains("access is denied"), "{refused}");
    assert_eq!((relay.uploads("images").await, host.left()), (vec![], vec![]));
    relay.clear();

    // A process that is killed: the next one ends what it has begun.
    relay.on("partNumber=3", Fault::Hold { range: 0 }, 1);
    let file = host.path("file");
    let mut child = host.start(&json!({"store": "s3://images/image", "file": file, "overwrite": false}), &[]);
    tokio::time::timeout(Duration::from_secs(60), relay.held()).await.expect("it begins");
    child.kill().await.unwrap();
    relay.release();
    assert_eq!((relay.uploads("images").await.len(), host.left().len()), (1, 1));
    assert_eq!(host.store(&bytes, "s3://images/other", false).await["sha256"], hex(&bytes).as_str());
    assert_eq!((relay.uploads("images").await, host.left()), (vec![], vec![]));
    assert!(error(&host.fetch("s3://images/image").await).contains("s3://images/image does not exist"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_said() {
    let moto = Moto::start(&[]).await;
    let relay = Relay::before(&moto.url).await;
    relay.bucket("images").await;
    let host = Host::at(&relay.url);
    let fetch = |at: &str| json!({"fetch": at});
    let missing = host.fetch("s3://images/none").await;
    assert_eq!(error(&missing), "s3://images/none does not exist");
    let bucket = host.fetch("s3://no-images/none").await;
    assert!(error(&bucket).starts_with("the bucket \"no-images\" does not exist"), "{bucket}");
    let bucket = host.store(b"x", "s3://no-images/none", false).await;
    assert!(error(&bucket).starts_with("the bucket \"no-images\" does not exist"), "{bucket}");
    let nobody = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let nobody = host.run(fetch("s3://images/none"), &nobody).await;
    assert!(error(&nobody).starts_with("S3: there are no AWS credentials"), "{nobody}");
    relay.on("none", Fault::Status(403), 2);
    let denied = host.fetch("s3://images/none").await;
    assert!(error(&denied).contains("access is denied") && error(&denied).contains("AccessDenied"), "{denied}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let away = host.run(fetch("s3://images/none"), &[("AWS_ENDPOINT_URL_S3", &url)]).await;
    assert!(error(&away).contains("cannot be reached"), "{away}");
}
