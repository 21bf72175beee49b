//! Templates into a real registry, over a network that does what networks do, and back.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mayfly::{
    domain::{Arch, BudgetsPatch, Code, Handover, Template, template::DiskFormat},
    platform::retry::Retry,
    registry::{
        RegistryError, RegistryOptions,
        credentials::{CredentialError, CredentialSource, RegistryCredential},
    },
    templates::{
        Catalog, NewTemplate,
        progress::PullProgress,
        pull::{self, PullError, PullRequest, Puller},
        push::{self, PushError, PushRequest, Pushed, Pusher},
    },
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    proxy::{Fault, Proxy, Rule, Seen, Tokens},
    registry::{Login, Registry},
    tart,
    tart_image::{self, Content, Encoding, TartImage, canonical, digest, push_manifest},
};

const PIECE: u64 = 1 << 20;
const UPLOADS: &str = "/v2/*/blobs/uploads/*";

const ARTIFACT: &str = "application/vnd.mayfly.template.v1";
const SETTINGS: &str = "application/vnd.mayfly.template.config.v1+json";
const SIZE: &str = "dev.mayfly.template.uncompressed-size";
const CONTENT: &str = "dev.mayfly.template.uncompressed-digest";

/// The first password until it is refused, and then the other.
struct Keys {
    login: Option<Login>,
    asked: AtomicUsize,
}

impl Keys {
    fn of(registry: &Registry) -> Arc<Keys> {
        let login = registry.login.as_ref().map(|login| Login::new(&login.user, &login.password));
        Arc::new(Keys { login, asked: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl CredentialSource for Keys {
    async fn get(&self, _: &str, _: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.login.as_ref().map(|login| RegistryCredential {
            username: login.user.clone(),
            secret: login.password.clone().into(),
            expires_at: None,
        }))
    }
}

/// A catalog in a directory of its own, and who pulls into it and pushes from it.
struct Host {
    dir: tempfile::TempDir,
    catalog: Catalog,
    puller: Puller,
    pusher: Pusher,
}

impl Host {
    fn new(registry: &Registry) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        let options = RegistryOptions {
            ca_file: Some(registry.authority.file()),
            idle_timeout: Duration::from_secs(2),
            retry: Retry {
                attempts: 4,
                first_pause: Duration::from_millis(5),
                longest_pause: Duration::from_millis(50),
            },
            ..RegistryOptions::default()
        };
        let keys = Keys::of(registry);
        let settings = pull::Settings { registry: options.clone(), concurrency: 4 };
        let puller = Puller::new(catalog.clone(), settings, keys.clone());
        let settings = push::Settings { registry: options, concurrency: 2, piece_size: PIECE };
        let pusher = Pusher::new(catalog.clone(), settings, keys);
        Host { dir, catalog, puller, pusher }
    }

    async fn push(&self, template: &str, image: &str) -> Result<Pushed, PushError> {
        self.push_in_parts(template, image, None).await
    }

    async fn push_in_parts(&self, template: &str, image: &str, part_size: Option<u64>) -> Result<Pushed, PushError> {
        let request = PushRequest { template: template.into(), image: image.parse().unwrap(), part_size };
        let progress = watch::Sender::default();
        let push = self.pusher.push(&request, &progress);
        let pushed = tokio::time::timeout(Duration::from_secs(60), push).await.expect("a push ends");
        // Whatever came of it, it leaves nothing behind, once the thread that packs a piece has seen its end.
        let left = || fs::read_dir(self.dir.path().join("templates/staging")).unwrap().count();
        let gone = async {
            while left() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nothing is left behind");
        if pushed.is_ok() {
            let PullProgress { bytes_done, bytes_total, chunks_done, chunks_total, .. } = *progress.borrow();
            assert_eq!((bytes_done, chunks_done), (bytes_total, chunks_total));
        }
        pushed
    }

    async fn pull(&self, image: &str, name: &str) -> Result<Template, Arc<PullError>> {
        self.pull_as(PullRequest::new(image.parse().unwrap(), name)).await
    }

    async fn pull_as(&self, request: PullRequest) -> Result<Template, Arc<PullError>> {
        let progress = watch::Sender::default();
        let pull = self.puller.pull(&request, &progress);
        tokio::time::timeout(Duration::from_secs(60), pull).await.expect("a pull ends")
    }

    fn file(&self, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A template of a VM of Tart's.
    async fn of_tart(&self, name: &str, image: &TartImage) -> Template {
        let new = NewTemplate {
            config: Some(self.file("config.json", &image.config)),
            nvram: Some(self.file("nvram.bin", &image.nvram)),
            ..NewTemplate::of_disk(name, self.file("disk.img", &image.disk))
        };
        self.catalog.register(new).await.unwrap()
    }

    /// One of everything that a template of qemu may have.
    async fn of_qemu(&self, name: &str, disk: &[u8]) -> Template {
        let new = NewTemplate {
            arch: Some(Arch::Aarch64),
            disk_format: Some(DiskFormat::Raw),
            kernel: Some(self.file("vmlinuz", &Content::Text(7, 200_000).bytes())),
            initramfs: Some(self.file("initramfs.img", &Content::Noise(8, 1_300_000).bytes())),
            firmware: Some(self.file("firmware.fd", &vec![0; 65_536])),
            ssh_key: Some(self.secret()),
            cmdline: Some("console=ttyS0 root=/dev/vda".into()),
            cpus: Some(3),
            memory_mib: Some(320),
            handover: Some(Handover::Ssh),
            user: Some("builder".into()),
            budgets: BudgetsPatch { boot_seconds: Some(33), ..BudgetsPatch::default() },
            ..NewTemplate::of_disk(name, self.file("disk.raw", disk))
        };
        self.catalog.register(new).await.unwrap()
    }

    fn secret(&self) -> std::path::PathBuf {
        let key = self.dir.path().join("id_ed25519");
        if !key.exists() {
            let key = key.to_str().unwrap();
            let made =
                std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", key]).status();
            assert!(made.unwrap().success());
        }
        key
    }
}

fn disk(seed: u64) -> Vec<u8> {
    let pieces = [
        Content::Text(seed, PIECE as usize),
        Content::Zeros(PIECE as usize),
        Content::Noise(seed + 1, PIECE as usize),
        Content::Zeros(PIECE as usize),
        Content::Text(seed, PIECE as usize),
        Content::Holes(seed + 2, 700_416),
    ];
    pieces.map(Content::bytes).concat()
}

/// A VM whose disk has every kind of piece, one of them twice.
fn vm(seed: u64) -> TartImage {
    let contents = [
        Content::Text(seed, PIECE as usize),
        Content::Zeros(PIECE as usize),
        Content::Noise(seed + 1, PIECE as usize),
        Content::Zeros(PIECE as usize),
        Content::Text(seed, PIECE as usize),
        Content::Holes(seed + 2, 700_416),
    ];
    TartImage::with(&tart::config("darwin"), &contents, Encoding::Linked)
}

fn same_files(a: &Template, b: &Template) {
    let files = |t: &Template| {
        let f = t.files.clone();
        [Some(f.disk), f.kernel, f.initramfs, f.firmware, f.config, f.nvram]
            .map(|path| path.map(|p| fs::read(p).unwrap()))
    };
    assert!(files(a) == files(b), "the files are others");
}

/// What it says of itself, besides what follows from where it is.
fn same_settings(a: &Template, b: &Template) {
    let said = |t: &Template| {
        let (driver, user, cmdline) = (t.driver.clone(), t.user.clone(), t.cmdline.clone());
        (driver, t.os, t.arch, t.disk_format, t.disk_virtual_bytes, t.cpus, t.memory_mib, t.handover, user, cmdline)
    };
    assert_eq!(said(a), said(b));
    assert_eq!(a.budgets, b.budgets);
}

async fn manifest(registry: &Registry, repository: &str, tag: &str) -> Vec<u8> {
    let request = registry.request(Method::GET, &format!("/v2/{repository}/manifests/{tag}"));
    let answer = request.header("accept", tart_image::MANIFEST).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{repository}:{tag}");
    answer.bytes().await.unwrap().to_vec()
}

async fn absent(registry: &Registry, repository: &str, tag: &str) -> bool {
    let request = registry.request(Method::GET, &format!("/v2/{repository}/manifests/{tag}"));
    request.header("accept", tart_image::MANIFEST).send().await.unwrap().status() == 404
}

/// A stream in Apple's framing, as its own decoder may be assumed to read it: blocks of 64 KiB at most, each by itself.
fn unpack(mut stream: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let word = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap()) as usize;
    loop {
        let (magic, rest) = stream.split_at(4);
        match magic {
            b"bv41" => {
                let (size, packed) = (word(rest), word(&rest[4..]));
                assert!(size <= 65_536);
                plain.extend(lz4_flex::block::decompress(&rest[8..8 + packed], size).unwrap());
                stream = &rest[8 + packed..];
            }
            b"bv4-" => {
                let size = word(rest);
                assert!(size <= 65_536);
                plain.extend_from_slice(&rest[4..4 + size]);
                stream = &rest[4 + size..];
            }
            b"bv4$" => {
                assert!(rest.is_empty());
                return plain;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Reads an image as Tart does that wants everything just so. Gives configuration, disk and nvram.
fn as_tart_reads(registry: &Registry, bytes: &[u8]) -> [Vec<u8>; 3] {
    let value: Value = serde_json::from_slice(bytes).unwrap();
    assert!(bytes == canonical(&value), "keys are in order, compact, and slashes are escaped");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&value), ["annotations", "config", "layers", "mediaType", "schemaVersion"]);
    assert_eq!(
        keys(&value["annotations"]),
        ["org.cirruslabs.tart.uncompressed-disk-size", "org.cirruslabs.tart.upload-time"]
    );
    let time = value["annotations"]["org.cirruslabs.tart.upload-time"].as_str().unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z') && !time.contains('.'), "{time}");
    let stub = registry.held(value["config"]["digest"].as_str().unwrap()).unwrap();
    assert_eq!(
        String::from_utf8(stub).unwrap(),
        r#"{"architecture":"arm64","config":{"Labels":{"org.cirruslabs.tart.disk.format":"raw"}},"os":"darwin"}"#
    );
    let layers = value["layers"].as_array().unwrap();
    let types: Vec<&str> = layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
    assert_eq!((types[0], types[types.len() - 1]), (tart_image::CONFIG, tart_image::NVRAM));
    assert!(types.len() > 2 && types[1..types.len() - 1].iter().all(|t| *t == tart_image::DISK), "{types:?}");
    let blob = |layer: &Value| {
        assert_eq!(keys(layer), ["annotations", "digest", "mediaType", "size"]);
        let blob = registry.held(layer["digest"].as_str().unwrap()).unwrap();
        assert_eq!(layer["size"], blob.len());
        blob
    };
    let mut disk = Vec::new();
    for layer in &layers[1..layers.len() - 1] {
        let plain = unpack(&blob(layer));
        assert_eq!(keys(&layer["annotations"]).len(), 2);
        assert_eq!(layer["annotations"][tart_image::SIZE], plain.len().to_string());
        assert_eq!(layer["annotations"][tart_image::CONTENT], digest(&plain));
        disk.extend(plain);
    }
    assert_eq!(value["annotations"][tart_image::DISK_SIZE], disk.len().to_string());
    for plain in [&layers[0], &layers[layers.len() - 1]] {
        assert_eq!(plain["annotations"], json!({}));
    }
    [blob(&layers[0]), disk, blob(&layers[layers.len() - 1])]
}

/// From the registry into a directory, and from there into another repository, by somebody else's program.
async fn copy_by_skopeo(registry: &Registry, repository: &str, to: &str, digest: &str) {
    let dir = tempfile::tempdir().unwrap();
    let at = format!("dir:{}", dir.path().display());
    let source = format!("docker://{}/{repository}:1", registry.address);
    let target = format!("docker://{}/{to}:1", registry.address);
    for (from, to) in [(&source, &at), (&at, &target)] {
        let copied = registry.skopeo(&["copy", "--preserve-digests", from, to]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    assert_eq!(tart_image::digest(&fs::read(dir.path().join("manifest.json")).unwrap()), digest);
    assert_eq!(tart_image::digest(&manifest(registry, to, "1").await), digest);
}

fn uploads(seen: &[Seen]) -> usize {
    seen.iter().filter(|s| s.method == "PUT" && s.path.contains("/blobs/uploads/") && s.status == Some(201)).count()
}

#[tokio::test]
async fn a_vm_of_tarts_is_pushed_as_tart_would_and_pulled_back() {
    let registry = Registry::closed(Login::new("pusher", "open sesame")).await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let image = vm(10);
    let template = host.of_tart("macos", &image).await;
    let reference = format!("{}/acme/macos:1", proxy.address());
    let pushed = host.push("macos", &reference).await.unwrap();
    assert_eq!((pushed.image.to_string(), pushed.layers), (reference.clone(), 8));
    let bytes = manifest(&registry, "acme/macos", "1").await;
    assert_eq!(digest(&bytes), pushed.digest.to_string());
    assert_eq!(as_tart_reads(&registry, &bytes), [image.config.clone(), image.disk.clone(), image.nvram.clone()]);
    // Each blob once: the two pieces of zeros are one, and so are the two of the same text.
    let layers: Value = serde_json::from_slice(&bytes).unwrap();
    let layer = |at: usize| &layers["layers"][at]["digest"];
    assert_eq!((layer(2), layer(1)), (layer(4), layer(5)));
    assert_eq!(uploads(&proxy.seen()), 7);
    assert_eq!(pushed.bytes_reused, 0);

    // Again: nothing to do, and the image stays what it is.
    let asked = proxy.seen().len();
    let again = host.push("macos", &reference).await.unwrap();
    assert_eq!((again.digest, again.bytes_uploaded), (pushed.digest, 0));
    assert_eq!(again.bytes_reused, pushed.bytes_uploaded);
    assert!(proxy.seen()[asked..].iter().all(|s| matches!(s.method.as_str(), "GET" | "HEAD")), "{:#?}", proxy.seen());
    // By its digest as well, to another tag: one manifest.
    let tagged = host.push(&template.digest, &reference.replace(":1", ":2")).await.unwrap();
    assert_eq!((tagged.bytes_uploaded, uploads(&proxy.seen())), (0, 7));

    let other = Host::new(&registry);
    let pulled = other.pull(&reference, "macos").await.unwrap();
    same_files(&template, &pulled);
    same_settings(&template, &pulled);
    copy_by_skopeo(&registry, "acme/macos", "copies/macos", &pushed.digest.to_string()).await;
}

#[tokio::test]
async fn a_template_of_qemu_is_pushed_and_pulled_back() {
    let registry = Registry::closed(Login::new("pusher", "open sesame")).await;
    let host = Host::new(&registry);
    let template = host.of_qemu("micro", &disk(20)).await;
    let reference = format!("{}/acme/micro:1", registry.address);
    let pushed = host.push("micro", &reference).await.unwrap();

    let value: Value = serde_json::from_slice(&manifest(&registry, "acme/micro", "1").await).unwrap();
    assert_eq!((&value["artifactType"], &value["config"]["mediaType"]), (&json!(ARTIFACT), &json!(SETTINGS)));
    let types: Vec<&str> =
        value["layers"].as_array().unwrap().iter().map(|l| l["mediaType"].as_str().unwrap()).collect();
    let kind = |what: &str| format!("application/vnd.mayfly.template.{what}.v1");
    let expected = ["kernel", "initramfs", "firmware", "disk", "disk", "disk", "disk", "disk", "disk"].map(kind);
    assert_eq!(types, expected);
    assert_eq!(pushed.layers, 9);
    let settings = String::from_utf8(registry.held(value["config"]["digest"].as_str().unwrap()).unwrap()).unwrap();
    assert!(settings.contains(r#""budgets":{"boot_seconds":33}"#) && !settings.contains("ssh_key"), "{settings}");
    // No key in any blob: what is there is what the manifest names, and that is what was looked at.
    let key = fs::read_to_string(template.files.ssh_key.as_ref().unwrap()).unwrap();
    let secret = key.lines().nth(1).unwrap();
    for layer in value["layers"].as_array().unwrap() {
        let plain = unpack(&registry.held(layer["digest"].as_str().unwrap()).unwrap());
        assert_eq!(layer["annotations"][SIZE], plain.len().to_string());
        assert_eq!(layer["annotations"][CONTENT], digest(&plain));
        assert!(!String::from_utf8_lossy(&plain).contains(secret));
    }

    let other = Host::new(&registry);
    let pulled = other.pull(&reference, "micro").await.unwrap();
    same_files(&template, &pulled);
    same_settings(&template, &pulled);
    assert_eq!((pulled.files.ssh_key.clone(), pulled.files.ssh_password.clone()), (None, None));
    // Here already, under any name, also by its digest.
    assert_eq!(other.pull(&reference, "micro").await.unwrap(), pulled);
    let pinned = format!("{}/acme/micro@{}", registry.address, pushed.digest);
    assert_eq!(other.pull(&pinned, "twin").await.unwrap().digest, pulled.digest);

    // What is given with the pull counts more.
    let request = PullRequest {
        cpus: Some(1),
        user: Some("root".into()),
        ssh_key: Some(other.secret()),
        budgets: BudgetsPatch { boot_seconds: Some(44), ..BudgetsPatch::default() },
        ..PullRequest::new(pinned.parse().unwrap(), "other")
    };
    let changed = other.pull_as(request.clone()).await.unwrap();
    same_files(&changed, &pulled);
    assert_eq!((changed.cpus, changed.memory_mib, changed.user.as_str()), (1, 320, "root"));
    assert_eq!((changed.budgets.boot_seconds, changed.budgets.idle_seconds), (Some(44), None));
    assert!(changed.files.ssh_key.is_some() && changed.digest != pulled.digest);
    assert_eq!(other.pull_as(request).await.unwrap(), changed);
    assert_eq!(other.pull(&pinned, "micro").await.unwrap().digest, pulled.digest);

    copy_by_skopeo(&registry, "acme/micro", "copies/micro", &pushed.digest.to_string()).await;
}

#[tokio::test]
async fn a_qcow2_disk_goes_as_it_is() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    let path = host.dir.path().join("disk.qcow2");
    let made =
        std::process::Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("8M").status();
    assert!(made.unwrap().success());
    let template = host.catalog.register(NewTemplate::of_disk("small", &path)).await.unwrap();
    let reference = format!("{}/acme/small:1", registry.address);
    host.push("small", &reference).await.unwrap();
    let other = Host::new(&registry);
    let pulled = other.pull(&reference, "small").await.unwrap();
    same_files(&template, &pulled);
    assert_eq!((pulled.disk_format, pulled.disk_virtual_bytes), (DiskFormat::Qcow2, 8 << 20));
    same_settings(&template, &pulled);
}

#[tokio::test]
async fn what_the_registry_has_is_not_sent() {
    let registry = Registry::open().await;
    let proxy = Proxy::before(&registry).start().await;
    // By another encoder: the same contents are other blobs.
    let image = vm(30);
    image.push(&registry, "acme/macos", "1").await;
    let host = Host::new(&registry);
    let template = host.pull(&format!("{}/acme/macos:1", proxy.address()), "macos").await.unwrap();
    let before = proxy.seen().len();
    let copy = format!("{}/other/macos:1", proxy.address());
    let pushed = host.push("macos", &copy).await.unwrap();
    let seen = proxy.seen().split_off(before);
    assert_eq!((pushed.bytes_uploaded, uploads(&seen)), (0, 0), "{seen:#?}");
    let mounted = seen.iter().filter(|s| s.method == "POST" && s.status == Some(201));
    assert!(mounted.clone().all(|s| s.query.contains("mount=sha256") && s.query.contains("from=acme%2Fmacos")));
    // Five distinct pieces at most, the configuration, the nvram and what registries insist on.
    assert_eq!(mounted.count(), 7);
    let bytes = manifest(&registry, "other/macos", "1").await;
    let ours: Value = serde_json::from_slice(&bytes).unwrap();
    let theirs: Value = serde_json::from_slice(&image.manifest()).unwrap();
    assert_eq!(ours["layers"], theirs["layers"]);
    same_files(&Host::new(&registry).pull(&copy, "macos").await.unwrap(), &template);

    // A new version: what has changed is sent, and the rest is what is at the tag.
    let new = [image.disk[..PIECE as usize].to_vec(), Content::Noise(999, PIECE as usize).bytes()].concat();
    let new = [new, image.disk[2 * PIECE as usize..].to_vec()].concat();
    let changed = NewTemplate {
        config: Some(host.file("config.json", &image.config)),
        nvram: Some(host.file("nvram.bin", &image.nvram)),
        ..NewTemplate::of_disk("changed", host.file("disk.img", &new))
    };
    let changed = host.catalog.register(changed).await.unwrap();
    let before = proxy.seen().len();
    let updated = host.push("changed", &copy).await.unwrap();
    assert_eq!(uploads(&proxy.seen()[before..]), 1);
    assert!((PIECE..PIECE + 200).contains(&updated.bytes_uploaded), "{updated:?}");
    same_files(&Host::new(&registry).pull(&copy, "macos").await.unwrap(), &changed);

    // A registry that mounts nothing gets it the long way.
    proxy.on(Rule::new("POST", UPLOADS, Fault::status(404)).nth(1..=1));
    let third = format!("{}/third/macos:1", proxy.address());
    assert!(host.push("macos", &third).await.unwrap().bytes_uploaded > 0);
    same_files(&Host::new(&registry).pull(&third, "macos").await.unwrap(), &template);
}

#[tokio::test]
async fn whatever_the_network_does_the_image_arrives() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    let template = host.of_qemu("micro", &disk(40)).await;
    let rule = |method: &str, fault: Fault| Rule::new(method, UPLOADS, fault);
    let part = Some(1_000_000);
    let cases: Vec<(&str, Vec<Rule>, Option<u64>)> = vec![
        ("in parts", vec![], part),
        (
            "hang-up",
            vec![Rule::new("HEAD", "*", Fault::Hangup).nth(1..=2), rule("POST", Fault::Hangup).nth(2..=3)],
            None,
        ),
        (
            "hang-up at the end",
            vec![rule("PUT", Fault::Hangup).nth(1..=2), rule("PUT", Fault::Hangup).nth(6..=6)],
            None,
        ),
        ("cut in the middle", vec![rule("PUT", Fault::CutRequest { after: 100_000 }).nth(1..=3)], None),
        ("cut in the middle of a part", vec![rule("PATCH", Fault::CutRequest { after: 500_000 }).first()], part),
        ("the answer is lost", vec![rule("PUT", Fault::LoseAnswer).nth(1..=3)], None),
        ("the answer to a part is lost", vec![rule("PATCH", Fault::LoseAnswer).first()], part),
        ("503", vec![rule("POST", Fault::status(503)).nth(1..=2), rule("PUT", Fault::status(503)).nth(3..=4)], None),
        ("429", vec![rule("PUT", Fault::retry_after(429, "1")).nth(2..=2)], None),
        ("the upload is forgotten", vec![rule("PUT", Fault::status(404)).nth(1..=2)], None),
        ("the part is refused", vec![rule("PATCH", Fault::status(416)).first()], part),
        ("the manifest's answer is lost", vec![Rule::new("PUT", "*/manifests/*", Fault::LoseAnswer).first()], None),
        ("503 for the manifest", vec![Rule::new("PUT", "*/manifests/*", Fault::status(503)).nth(1..=2)], None),
    ];
    for (at, (what, rules, part_size)) in cases.into_iter().enumerate() {
        let proxy = Proxy::before(&registry).start().await;
        rules.into_iter().for_each(|rule| proxy.on(rule));
        // A repository of its own, so that nothing is there yet.
        let repository = format!("case{at}/micro");
        let reference = format!("{}/{repository}:1", proxy.address());
        let started = std::time::Instant::now();
        let pushed = host.push_in_parts("micro", &reference, part_size).await;
        let pushed = pushed.unwrap_or_else(|e| panic!("{what}: {e}\n{:#?}", proxy.seen()));
        assert!(what != "429" || started.elapsed() >= Duration::from_secs(1), "it was asked to wait");
        let patches = proxy.seen().iter().filter(|s| s.method == "PATCH").count();
        assert_eq!(patches > 0, part_size.is_some(), "{what}");
        assert_eq!(digest(&manifest(&registry, &repository, "1").await), pushed.digest.to_string(), "{what}");
        let other = Host::new(&registry);
        let pulled = other.pull(&format!("{}/{repository}:1", registry.address), "micro").await.unwrap();
        same_files(&template, &pulled);
    }
}

#[tokio::test]
async fn a_push_that_was_cut_off_goes_on_where_it_was() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    let template = host.of_tart("macos", &vm(50)).await;
    for turn in 1..=6_u64 {
        let proxy = Proxy::before(&registry).start().await;
        let repository = format!("turn{turn}/macos");
        let reference = format!("{}/{repository}:1", proxy.address());
        // So many blobs arrive, and then nothing does.
        proxy.on(Rule::new("PUT", UPLOADS, Fault::CutRequest { after: 0 }).nth(turn + 1..));
        let error = host.push("macos", &reference).await.unwrap_err();
        assert!(matches!(&error, PushError::Registry { error: RegistryError::Unreachable { .. }, .. }), "{error}");
        assert!(error.to_string().contains("macos") && error.to_string().contains(&repository), "{error}");
        assert!(absent(&registry, &repository, "1").await);
        let there = uploads(&proxy.seen());
        // One that was under way when the push gave up may not have arrived.
        assert!((1..=turn).contains(&(there as u64)), "{there} of {turn}");
        proxy.clear();
        let before = proxy.seen().len();
        let pushed = host.push("macos", &reference).await.unwrap();
        assert_eq!(there + uploads(&proxy.seen()[before..]), 7, "each blob is sent once");
        assert!(pushed.bytes_reused > 0);
        same_files(&Host::new(&registry).pull(&reference, "macos").await.unwrap(), &template);
    }

    // Whoever waits for it may go away in the middle.
    let proxy = Proxy::before(&registry).start().await;
    let reference = format!("{}/dropped/macos:1", proxy.address());
    proxy.on(Rule::new("PUT", UPLOADS, Fault::Slow { bytes_per_second: 1 }).nth(3..));
    let request = PushRequest { template: "macos".into(), image: reference.parse().unwrap(), part_size: None };
    let progress = watch::Sender::default();
    tokio::select! {
        pushed = host.pusher.push(&request, &progress) => panic!("{pushed:?}"),
        () = proxy.until("two blobs are there", |all| uploads(all) >= 2) => {}
    }
    assert!(absent(&registry, "dropped/macos", "1").await);
    proxy.clear();
    host.push("macos", &reference).await.unwrap();
    same_files(&Host::new(&registry).pull(&reference, "macos").await.unwrap(), &template);
}

/// This program once more, as a process that pushes and may be killed.
struct Killed(std::process::Child);

impl Killed {
    fn push(templates: &Path, image: &str, ca: &Path) -> Killed {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "push::as_a_process_of_its_own", "--ignored", "--nocapture"])
            .env("MAYFLY_TEST_PUSH_DIR", templates)
            .env("MAYFLY_TEST_PUSH_IMAGE", image)
            .env("MAYFLY_TEST_PUSH_CA", ca)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::inherit())
            .spawn()
            .unwrap();
        Killed(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "is started by another test"]
async fn as_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(format!("MAYFLY_TEST_PUSH_{name}")).expect("started by another test");
    let catalog = Catalog::open(variable("DIR").into()).unwrap();
    let options = RegistryOptions { ca_file: Some(variable("CA").into()), ..RegistryOptions::default() };
    let settings = push::Settings { registry: options, concurrency: 2, piece_size: PIECE };
    let pusher = Pusher::new(catalog, settings, Arc::new(Keys { login: None, asked: AtomicUsize::new(0) }));
    let request = PushRequest { template: "macos".into(), image: variable("IMAGE").parse().unwrap(), part_size: None };
    pusher.push(&request, &watch::Sender::default()).await.unwrap();
}

#[tokio::test]
async fn a_push_that_was_killed_goes_on_where_it_was() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    let template = host.of_tart("macos", &vm(90)).await;
    let templates = host.dir.path().join("templates");
    let proxy = Proxy::before(&registry).start().await;
    let reference = format!("{}/killed/macos:1", proxy.address());
    for blobs in [2, 4, 6] {
        // So many are there in the end; with the next it is stuck, and tries again and again.
        let more = (blobs - uploads(&proxy.seen())) as u64;
        proxy.clear();
        proxy.on(Rule::new("PUT", UPLOADS, Fault::CutRequest { after: 0 }).nth(more + 1..));
        let child = Killed::push(&templates, &reference, &registry.authority.file());
        proxy.until("so many blobs are there", |all| uploads(all) >= blobs).await;
        drop(child);
        assert!(absent(&registry, "killed/macos", "1").await);
    }
    proxy.clear();
    // A start sweeps what was left of packed pieces.
    Catalog::open(templates.clone()).unwrap();
    assert_eq!(fs::read_dir(templates.join("staging")).unwrap().count(), 0);
    let pushed = host.push("macos", &reference).await.unwrap();
    assert_eq!(uploads(&proxy.seen()), 7, "each blob is sent once");
    assert!(pushed.bytes_reused > 0 && pushed.bytes_uploaded > 0);
    same_files(&Host::new(&registry).pull(&reference, "macos").await.unwrap(), &template);
}

#[tokio::test]
async fn tokens_that_end_are_renewed_and_those_for_reading_are_not_enough() {
    let login = || Login::new("pusher", "open sesame");
    let registry = Registry::closed(login()).await;
    let host = Host::new(&registry);
    let template = host.of_tart("macos", &vm(60)).await;
    let tokens = Tokens::lasting(Duration::from_secs(60)).only_for(login());
    let proxy = Proxy::before(&registry).bearer(tokens).start().await;
    let reference = format!("{}/acme/macos:1", proxy.address());
    let expire = async {
        for blobs in [1, 3, 5] {
            proxy.until("so many blobs are there", |all| uploads(all) >= blobs).await;
            proxy.expire_tokens();
        }
    };
    let (pushed, ()) = tokio::join!(host.push("macos", &reference), expire);
    pushed.unwrap();
    let refused = proxy.seen().iter().filter(|s| s.status == Some(401) && s.authorization.is_some()).count();
    assert!(refused > 0, "some were sent with a token that had ended");
    same_files(&Host::new(&registry).pull(&reference, "macos").await.unwrap(), &template);

    let tokens = Tokens::lasting(Duration::from_secs(60)).only_for(login()).read_only();
    let proxy = Proxy::before(&registry).bearer(tokens).start().await;
    let reference = format!("{}/acme/closed:1", proxy.address());
    let error = host.push("macos", &reference).await.unwrap_err();
    assert!(matches!(&error, PushError::Registry { error: RegistryError::Denied { .. }, .. }), "{error}");
    let text = format!("{error} {error:?}");
    assert!(text.contains("more permissions") && text.contains("acme/closed") && !text.contains("sesame"), "{text}");
    assert!(proxy.seen().len() < 40, "nobody asks for ever: {:#?}", proxy.seen());
    // By a registry that says so itself.
    let proxy = Proxy::before(&registry).start().await;
    proxy.on(Rule::new("POST", UPLOADS, Fault::status(403)));
    let error = host.push("macos", &format!("{}/acme/closed:1", proxy.address())).await.unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("more permissions"), "{error}");
    assert!(absent(&registry, "acme/closed", "1").await);
    // Too large for it in one request.
    proxy.clear();
    proxy.on(Rule::new("PUT", UPLOADS, Fault::status(413)));
    let error = host.push("macos", &format!("{}/acme/closed:1", proxy.address())).await.unwrap_err().to_string();
    assert!(error.contains("413") && error.contains("--chunk-size"), "{error}");
}

#[tokio::test]
async fn what_must_not_be_pushed_is_not() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    let image = vm(70);
    let template = host.of_tart("macos", &image).await;
    let at = |tag: &str| format!("{}/acme/macos{tag}", registry.address);

    let error = host.push("none", &at(":1")).await.unwrap_err();
    assert!(matches!(&error, PushError::Template(e) if e.code == Code::TemplateNotFound), "{error}");
    let error = host.push("macos", &at(&format!("@{}", image.digest()))).await.unwrap_err().to_string();
    assert!(error.contains("must be a tag"), "{error}");
    let error = host.push_in_parts("macos", &at(":1"), Some(999_999)).await.unwrap_err().to_string();
    assert!(error.contains("1 MB"), "{error}");

    // A tag that names something else keeps it.
    let container = vm(71).broken(tart_image::Broken::Foreign);
    let foreign = container.push(&registry, "acme/macos", "container").await;
    vm(71).push_list(&registry, "acme/macos", "list", &[("darwin", "arm64")]).await;
    for (tag, expected) in [("container", "tar+gzip"), ("list", "several platforms")] {
        let error = host.push("macos", &at(&format!(":{tag}"))).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("choose another tag"), "{error}");
    }
    assert_eq!(digest(&manifest(&registry, "acme/macos", "container").await), foreign);
    // An image of a VM in a format that is no longer read may be replaced.
    vm(72).broken(tart_image::Broken::V1).push(&registry, "acme/macos", "old").await;
    host.push("macos", &at(":old")).await.unwrap();

    // What rots on this host does not spread: whole files, and a disk that was pulled in other pieces.
    let other = Host::new(&registry);
    let chunks = [Content::Text(1, 700_000), Content::Noise(2, 1_800_096)];
    TartImage::new(&chunks, Encoding::Independent).push(&registry, "acme/uneven", "1").await;
    let uneven = other.pull(&format!("{}/acme/uneven:1", registry.address), "uneven").await.unwrap();
    other.push("uneven", &at(":uneven")).await.unwrap();
    for (host, template, file) in [
        (&host, &template, template.files.nvram.as_ref().unwrap()),
        (&host, &template, &template.files.disk),
        (&other, &uneven, &uneven.files.disk),
    ] {
        let sound = fs::read(file).unwrap();
        let mut rotten = sound.clone();
        *rotten.last_mut().unwrap() ^= 1;
        replace(file, &rotten);
        let error = host.push(&template.name, &at(":rot")).await.unwrap_err();
        assert!(matches!(error, PushError::Damaged { .. }), "{error}");
        assert!(absent(&registry, "acme/macos", "rot").await);
        replace(file, &sound);
    }

    // Whoever removes it while it is pushed is told to wait.
    let proxy = Proxy::before(&registry).start().await;
    proxy.on(Rule::new("POST", UPLOADS, Fault::retry_after(503, "1")).nth(1..=1));
    let reference = format!("{}/locked/macos:1", proxy.address());
    let removed = async {
        proxy.until("it has begun", |all| all.iter().any(|s| s.method == "POST")).await;
        host.catalog.remove("macos").await.unwrap_err().code
    };
    let (pushed, code) = tokio::join!(host.push("macos", &reference), removed);
    pushed.unwrap();
    assert_eq!(code, Code::TemplateInUse);
    host.catalog.remove("macos").await.unwrap();
}

fn replace(path: &Path, content: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

#[tokio::test]
async fn nothing_is_to_be_seen_of_an_image_of_ours_that_is_wrong_anywhere() {
    let registry = Registry::open().await;
    let host = Host::new(&registry);
    host.of_qemu("micro", &disk(80)).await;
    host.push("micro", &format!("{}/acme/micro:1", registry.address)).await.unwrap();
    let sound: Value = serde_json::from_slice(&manifest(&registry, "acme/micro", "1").await).unwrap();
    let settings: Value =
        serde_json::from_slice(&registry.held(sound["config"]["digest"].as_str().unwrap()).unwrap()).unwrap();
    type Change = Box<dyn Fn(&mut Value, &mut Value)>;
    let manifest = |change: fn(&mut Value)| -> Change { Box::new(move |m, _| change(m)) };
    let said = |key: &'static str, value: Value| -> Change { Box::new(move |_, s| s[key] = value.clone()) };
    let size = |m: &mut Value, layer: usize, by: i64| {
        let says: i64 = m["layers"][layer]["annotations"][SIZE].as_str().unwrap().parse().unwrap();
        m["layers"][layer]["annotations"][SIZE] = (says + by).to_string().into();
    };
    let longer: Change = Box::new(move |m, _| size(m, 0, 1));
    let shorter: Change = Box::new(move |m, _| size(m, 1, -1));
    let cases: Vec<(Change, &str)> = vec![
        (longer, "layer 0"),
        (shorter, "layer 1"),
        (manifest(|m| m["layers"][0]["annotations"][CONTENT] = digest(b"x").into()), "layer 0"),
        (manifest(|m| m["layers"][0]["size"] = 5.into()), "layer 0"),
        (
            manifest(|m| m["layers"][5]["annotations"][CONTENT] = digest(b"x").into()),
            "layer 5 (the disk from byte 2097152",
        ),
        (manifest(|m| drop(m["layers"].as_array_mut().unwrap().remove(5))), "add up"),
        (manifest(|m| m["layers"][1] = m["layers"][0].clone()), "2 kernel layers"),
        (manifest(|m| drop(m["layers"].as_array_mut().unwrap().remove(0))), "needs a kernel"),
        (manifest(|m| m["layers"][0]["mediaType"] = "application/vnd.mayfly.template.tpm.v1".into()), "not known here"),
        (said("version", json!(2)), "version 2"),
        (said("driver", json!("tart")), "Tart's own format"),
        (said("arch", json!("sparc")), "sparc"),
        (said("disk_size", json!(512)), "the image says 512"),
        (said("disk_format", json!("qcow2")), "disk"),
        (said("handover", json!("agent")), "handover"),
        (said("user", json!("../root")), "user"),
        (said("budgets", json!({"boot_seconds": 0})), "boot_seconds"),
    ];
    for (at, (change, expected)) in cases.into_iter().enumerate() {
        let (mut broken, mut says) = (sound.clone(), settings.clone());
        change(&mut broken, &mut says);
        let says = canonical(&says);
        tart_image::push_blob(&registry, "acme/micro", &says).await;
        broken["config"]["digest"] = digest(&says).into();
        broken["config"]["size"] = says.len().into();
        let tag = format!("t{at}");
        push_manifest(&registry, "acme/micro", &tag, tart_image::MANIFEST, canonical(&broken)).await;
        let other = Host::new(&registry);
        let error =
            other.pull(&format!("{}/acme/micro:{tag}", registry.address), "micro").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{at}: {error}");
        assert!(other.catalog.list().await.unwrap().is_empty());
        assert_eq!(fs::read_dir(other.dir.path().join("templates")).unwrap().count(), 3, "{at}");
    }
    // Keys that are not known are for those who know them.
    let says = canonical(&{
        let mut says = settings.clone();
        says["colour"] = "red".into();
        says
    });
    tart_image::push_blob(&registry, "acme/micro", &says).await;
    let mut newer = sound.clone();
    newer["config"]["digest"] = digest(&says).into();
    newer["config"]["size"] = says.len().into();
    push_manifest(&registry, "acme/micro", "newer", tart_image::MANIFEST, canonical(&newer)).await;
    Host::new(&registry).pull(&format!("{}/acme/micro:newer", registry.address), "micro").await.unwrap();
}
