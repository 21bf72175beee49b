//! Images from a real registry into a catalog, over a network that does what networks do, and by processes that are killed.

mod refusals;
mod updates;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mayfly::{
    domain::{Code, GuestOs, Handover, Template},
    platform::retry::Retry,
    registry::{
        RegistryError, RegistryOptions,
        credentials::{CredentialError, CredentialSource, RegistryCredential},
    },
    templates::{
        Catalog, NewTemplate, SpaceLimits,
        progress::PullProgress,
        pull::{PullError, PullRequest, Puller, Settings},
    },
};
use tokio::sync::watch;

use crate::support::{
    proxy::{Fault, Proxy, Rule, Seen, Tokens},
    registry::{Login, Registry},
    small_disk::{empty, fill, small_disk},
    tart_image::{Broken, Content, Encoding, TartImage, digest},
};

const REPOSITORY: &str = "acme/macos";
const BLOBS: &str = "/v2/*/blobs/*";

/// Says one password first, and another one once that was refused.
struct Keys {
    first: Option<Login>,
    renewed: Option<Login>,
    asked: AtomicUsize,
}

impl Keys {
    fn none() -> Arc<Keys> {
        Arc::new(Keys { first: None, renewed: None, asked: AtomicUsize::new(0) })
    }

    fn of(first: Login, renewed: Login) -> Arc<Keys> {
        Arc::new(Keys { first: Some(first), renewed: Some(renewed), asked: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl CredentialSource for Keys {
    async fn get(&self, _: &str, renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let login = if renew { &self.renewed } else { &self.first };
        Ok(login.as_ref().map(|login| RegistryCredential {
            username: login.user.clone(),
            secret: login.password.clone().into(),
            expires_at: None,
        }))
    }
}

fn login() -> Login {
    Login::new("puller", "open sesame")
}

/// A catalog in a directory of its own, and who pulls into it.
struct Host {
    dir: tempfile::TempDir,
    puller: Puller,
    catalog: Catalog,
}

fn settings(ca_file: PathBuf) -> Settings {
    Settings {
        registry: RegistryOptions {
            ca_file: Some(ca_file),
            idle_timeout: Duration::from_secs(2),
            retry: Retry {
                attempts: 4,
                first_pause: Duration::from_millis(5),
                longest_pause: Duration::from_millis(50),
            },
            ..RegistryOptions::default()
        },
        concurrency: 4,
    }
}

impl Host {
    fn new(registry: &Registry) -> Host {
        Self::with(registry, Keys::none())
    }

    fn with(registry: &Registry, keys: Arc<Keys>) -> Host {
        Self::in_dir(tempfile::tempdir().unwrap(), registry, keys)
    }

    /// A host whose configuration names this server.
    fn that_knows(server: &Proxy, registry: &Registry, keys: Arc<Keys>) -> Host {
        let host = Self::with(registry, keys.clone());
        let mut settings = settings(registry.authority.file());
        settings.registry.origins.push(server.url().parse().unwrap());
        Host { puller: Puller::new(host.catalog.clone(), settings, keys), ..host }
    }

    fn in_dir(dir: tempfile::TempDir, registry: &Registry, keys: Arc<Keys>) -> Host {
        Self::limited(dir, registry, keys, SpaceLimits::default())
    }

    fn limited(dir: tempfile::TempDir, registry: &Registry, keys: Arc<Keys>, limits: SpaceLimits) -> Host {
        let catalog = Catalog::open_with(dir.path().join("templates"), limits).unwrap();
        let puller = Puller::new(catalog.clone(), settings(registry.authority.file()), keys);
        Host { dir, puller, catalog }
    }

    async fn pull(&self, reference: &str, name: &str) -> Result<Template, Arc<PullError>> {
        let request = PullRequest::new(reference.parse().unwrap(), name);
        let progress = watch::Sender::default();
        let pull = self.puller.pull(&request, &progress);
        tokio::time::timeout(Duration::from_secs(60), pull).await.expect("a pull ends")
    }

    /// Names and digests: what can be seen.
    fn visible(&self) -> Vec<String> {
        let templates = self.dir.path().join("templates");
        let mut names: Vec<String> = [templates.clone(), templates.join("names")]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !matches!(name.as_str(), "names" | "staging" | ".lock"))
            .collect();
        names.sort();
        names
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.dir.path().join("templates/staging")).unwrap().count()
    }
}

/// Every kind of chunk, none of them aligned to anything, one of them twice.
fn image(seed: u64) -> TartImage {
    let chunks = [
        Content::Text(seed, 300_000),
        Content::Zeros(400_000),
        Content::Noise(seed + 1, 1_100_001),
        Content::Holes(seed + 2, 900_000),
        Content::Text(seed, 300_000),
        Content::Zeros(400_000),
        Content::Noise(seed + 3, 48_319),
    ];
    TartImage::new(&chunks, Encoding::Linked)
}

fn same(template: &Template, image: &TartImage) {
    let files = &template.files;
    assert!(fs::read(&files.disk).unwrap() == image.disk, "the disk is another one");
    assert_eq!(fs::read(files.config.as_ref().unwrap()).unwrap(), image.config);
    assert!(fs::read(files.nvram.as_ref().unwrap()).unwrap() == image.nvram);
}

/// How often each blob was asked for from its beginning.
fn blobs(seen: &[Seen]) -> Vec<(String, u64)> {
    let blobs = seen.iter().filter(|s| s.path.contains("/blobs/") && s.status == Some(200));
    blobs.map(|s| (s.path.rsplit('/').next().unwrap().to_owned(), s.sent)).collect()
}

/// What has to come from a registry, each once: all but zeros.
fn wanted(image: &TartImage) -> BTreeSet<String> {
    let zeros = digest(&vec![0; 400_000]);
    let layers = image
        .layers
        .iter()
        .filter(|layer| layer.annotations.values().all(|value| value.as_str() != Some(zeros.as_str())));
    layers.map(|layer| layer.digest()).collect()
}

#[tokio::test]
async fn a_pulled_template_is_the_image_and_each_blob_comes_once() {
    let registry = Registry::open().await;
    let image = image(10);
    let pinned = image.push(&registry, REPOSITORY, "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());

    let progress = watch::Sender::new(PullProgress::default());
    let request = PullRequest::new(reference.parse().unwrap(), "macos");
    let template = host.puller.pull(&request, &progress).await.unwrap();
    same(&template, &image);
    assert_eq!((template.name.as_str(), template.driver.as_str()), ("macos", "tart"));
    assert_eq!((template.os, template.handover), (GuestOs::Macos, Handover::Agent));
    assert_eq!((template.cpus, template.memory_mib), (1, 192));
    assert_eq!(template.disk_virtual_bytes, image.disk.len() as u64);
    let disk = fs::metadata(&template.files.disk).unwrap();
    // Two chunks of zeros and half of another one are holes.
    assert!(disk.blocks() * 512 < disk.len() - 1_100_000, "{} of {} bytes", disk.blocks() * 512, disk.len());
    assert_eq!(disk.mode() & 0o7777, 0o444);
    assert_eq!(host.visible(), ["macos".to_owned(), template.digest.replace(':', "-")]);
    assert_eq!(host.staged(), 0);

    let fetched = blobs(&proxy.seen());
    assert_eq!(fetched.len(), wanted(&image).len(), "{fetched:?}");
    assert_eq!(fetched.iter().map(|(digest, _)| digest.clone()).collect::<BTreeSet<_>>(), wanted(&image));
    let last = progress.borrow().clone();
    let bytes: u64 = fetched.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!((last.bytes_done, last.bytes_total), (bytes, bytes));
    assert_eq!((last.chunks_done, last.chunks_total), (7, 7));

    // Again, also under another name, and by another catalog on the same directory: the manifest is asked for and no blob.
    let again = Catalog::open(host.dir.path().join("templates")).unwrap();
    assert_eq!(again.get("macos").await.unwrap(), template);
    assert_eq!(host.pull(&reference, "macos").await.unwrap(), template);
    let twin = host.pull(&reference, "twin").await.unwrap();
    assert_eq!((twin.digest, twin.name.as_str()), (template.digest.clone(), "twin"));
    assert_eq!(blobs(&proxy.seen()), fetched);

    // By digest there is nothing to ask for.
    let asked = proxy.seen().len();
    let reference = format!("{}/{REPOSITORY}@{pinned}", proxy.address());
    assert_eq!(host.pull(&reference, "macos").await.unwrap(), template);
    assert_eq!(proxy.seen().len(), asked);

    // Other settings make another template, of what is here.
    let request = PullRequest { user: Some("runner".into()), ..PullRequest::new(reference.parse().unwrap(), "other") };
    let other = host.puller.pull(&request, &progress).await.unwrap();
    same(&other, &image);
    assert_eq!((other.user.as_str(), other.digest == template.digest), ("runner", false));
    // Configuration and nvram; no chunk.
    assert_eq!(blobs(&proxy.seen()).len(), fetched.len() + 2);
    assert!(fs::metadata(&other.files.disk).unwrap().blocks() * 512 < disk.len() - 1_100_000);
}

#[tokio::test]
async fn whatever_the_network_does_the_image_arrives() {
    let registry = Registry::open().await;
    let image = image(20);
    image.push(&registry, REPOSITORY, "1").await;
    let elsewhere = Proxy::before(&registry).elsewhere().signed().start().await;
    let cut = || Rule::get(BLOBS, Fault::Cut { after: 3000 }).nth(1..=3);
    let big = format!("*{}", image.chunk(2).digest());
    let cases: Vec<(&str, Vec<Rule>)> = vec![
        ("hang-up", vec![Rule::get("*", Fault::Hangup).nth(1..=3)]),
        ("cut", vec![cut()]),
        ("cut where nothing has come", vec![Rule::get(BLOBS, Fault::Cut { after: 0 }).nth(1..=3)]),
        ("cut again and again", vec![Rule::get(&big, Fault::Cut { after: 400_000 }).nth(1..=2)]),
        ("cut, and no ranges", vec![cut(), Rule::get(BLOBS, Fault::IgnoreRange)]),
        (
            "cut, and another range",
            vec![cut(), Rule::get(BLOBS, Fault::ContentRange("bytes 0-9/10".into())).nth(4..=5)],
        ),
        ("503", vec![Rule::get("*", Fault::status(503)).nth(1..=3)]),
        ("429", vec![Rule::get("*", Fault::retry_after(429, "0")).nth(2..=3)]),
        ("truncated", vec![Rule::get(BLOBS, Fault::Truncate { to: 4000 }).nth(1..=2)]),
        ("too long", vec![Rule::get(&big, Fault::ContentLength(2_000_000)).first()]),
        ("too short", vec![Rule::get(&big, Fault::ContentLength(1_000)).first()]),
        ("flipped", vec![Rule::get(&big, Fault::Flip { at: 500_000 }).first()]),
        ("flipped in the manifest", vec![Rule::get("*/manifests/*", Fault::Flip { at: 20 }).first()]),
        ("redirected", vec![Rule::get(BLOBS, Fault::Redirect { base: elsewhere.url() })]),
        ("silence", vec![Rule::get(&big, Fault::Hold { after: 100_000 }).first()]),
    ];
    for (what, rules) in cases {
        let proxy = Proxy::before(&registry).start().await;
        rules.into_iter().for_each(|rule| proxy.on(rule));
        let host = Host::that_knows(&elsewhere, &registry, Keys::none());
        let pulled = host.pull(&format!("{}/{REPOSITORY}@{}", proxy.address(), image.digest()), "macos").await;
        let template = pulled.unwrap_or_else(|e| panic!("{what}: {e}\n{:#?}", proxy.seen()));
        same(&template, &image);
        assert_eq!(host.staged(), 0, "{what}");
    }
    assert!(!elsewhere.seen().is_empty());
}

#[tokio::test]
async fn received_data_is_not_requested_again() {
    let registry = Registry::open().await;
    let image = TartImage::new(&[Content::Noise(1, 4_000_256)], Encoding::Stored);
    image.push(&registry, REPOSITORY, "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let blob = image.chunk(0).digest();
    // More often than there are attempts, but it gets on each time.
    proxy.on(Rule::get(&format!("*{blob}"), Fault::Cut { after: 1_100_000 }).nth(1..=3));
    proxy.on(Rule::get(&format!("*{blob}"), Fault::Cut { after: 0 }).nth(4..=5));
    let host = Host::new(&registry);
    same(&host.pull(&format!("{}/{REPOSITORY}:1", proxy.address()), "macos").await.unwrap(), &image);
    let ranges: Vec<_> = proxy.asked("GET", &blob).into_iter().map(|seen| seen.range).collect();
    let from = |n: u64| Some(format!("bytes={n}-"));
    let rest = from(3_300_000);
    assert_eq!(ranges, [None, from(1_100_000), from(2_200_000), rest.clone(), rest.clone(), rest]);
    let sent: u64 = proxy.asked("GET", &blob).iter().map(|seen| seen.sent).sum();
    assert_eq!(sent, image.chunk(0).blob.len() as u64);
}

#[tokio::test]
async fn a_permanent_refusal_ends_the_retries() {
    let registry = Registry::open().await;
    let image = image(30);
    image.push(&registry, REPOSITORY, "1").await;
    let big = image.chunk(2).digest();
    for (fault, expected, most) in [
        (Fault::status(503), "503", 4),
        (Fault::status(404), "does not have", 2),
        (Fault::retry_after(429, "86400"), "429", 1),
        (Fault::Hangup, "cannot be reached", 4),
        (Fault::Truncate { to: 1000 }, "unusable answer", 2),
    ] {
        let proxy = Proxy::before(&registry).start().await;
        proxy.on(Rule::get(&format!("*{big}"), fault));
        let host = Host::new(&registry);
        let reference = format!("{}/{REPOSITORY}:1", proxy.address());
        let error = host.pull(&reference, "macos").await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("layer 3 (the disk from byte 700000 on)"), "{error}");
        assert!(error.contains(&image.digest()), "{error}");
        assert_eq!(proxy.asked("GET", &big).len(), most, "{error}");
        assert_eq!(host.visible(), [""; 0]);

        // What was good is kept.
        proxy.clear();
        same(&host.pull(&reference, "macos").await.unwrap(), &image);
    }
    let proxy = Proxy::before(&registry).start().await;
    let missing = Host::new(&registry).pull(&format!("{}/{REPOSITORY}:2", proxy.address()), "macos").await.unwrap_err();
    assert!(matches!(&*missing, PullError::Registry(RegistryError::NotFound { .. })), "{missing}");
}

#[tokio::test]
async fn credentials_are_shown_to_whom_they_belong_and_renewed() {
    let registry = Registry::closed(login()).await;
    let image = image(40);
    image.push(&registry, REPOSITORY, "1").await;
    let old = || Login::new("puller", "old password");

    // By Basic: the registry's own.
    let proxy = Proxy::before(&registry).start().await;
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());
    let keys = Keys::of(old(), login());
    let host = Host::with(&registry, keys.clone());
    same(&host.pull(&reference, "macos").await.unwrap(), &image);
    assert_eq!(keys.asked.load(Ordering::SeqCst), 2);
    for (keys, expected) in [(Keys::none(), "none is known"), (Keys::of(old(), old()), "refuses access")] {
        let error = Host::with(&registry, keys).pull(&reference, "macos").await.unwrap_err();
        assert!(matches!(&*error, PullError::Registry(RegistryError::Denied { .. })), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected) && !text.contains("old password") && !text.contains("sesame"), "{text}");
    }

    // By tokens, which end in the middle; blobs are elsewhere, and what opens the registry must not go there.
    let elsewhere = Proxy::before(&registry).elsewhere().signed().start().await;
    let tokens = Tokens::lasting(Duration::from_secs(60)).only_for(login()).with_parameter("tenant=blue");
    let proxy = Proxy::before(&registry).bearer(tokens).start().await;
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());
    let big = format!("*{}", image.chunk(2).digest());
    proxy.on(Rule::get(&big, Fault::Hold { after: 300_000 }).first().and(Fault::Cut { after: 300_001 }));
    proxy.on(Rule::get(BLOBS, Fault::Redirect { base: elsewhere.url() }));
    let host = Host::that_knows(&elsewhere, &registry, Keys::of(old(), login()));
    let meddle = async {
        proxy.until("a blob is held", |all| all.iter().any(|s| s.sent == 300_000)).await;
        proxy.expire_tokens();
        proxy.release();
    };
    let (pulled, ()) = tokio::join!(host.pull(&reference, "macos"), meddle);
    same(&pulled.unwrap(), &image);
    assert!(elsewhere.seen().iter().any(|seen| seen.range.is_some()), "the rest came from elsewhere");
    assert!(elsewhere.seen().iter().all(|seen| seen.authorization.is_none() && seen.status.unwrap() < 300));
    let given = proxy.asked("GET", "/token").iter().filter(|seen| seen.status == Some(200)).count();
    assert_eq!(given, 2, "{:#?}", proxy.asked("GET", "/token"));
}

/// What a registry names is fetched with this host's position in the network, so only what is public or configured is.
#[tokio::test]
async fn a_registry_does_not_choose_what_is_fetched_from_this_host() {
    let registry = Registry::open().await;
    let image = image(60);
    image.push(&registry, REPOSITORY, "1").await;
    let challenge = |base: &str| {
        let header = format!("Bearer realm=\"{base}/token\",service=\"tests\"");
        Fault::Answer { status: 401, headers: vec![("www-authenticate".to_owned(), header)] }
    };
    // Another service of this host, which answers everybody.
    let other = Proxy::before(&registry).elsewhere().start().await;
    for rule in [
        Rule::get(BLOBS, Fault::Redirect { base: other.url() }),
        Rule::get(BLOBS, Fault::Redirect { base: "https://169.254.169.254".into() }),
        Rule::get("*/manifests/*", Fault::Redirect { base: other.url().replace("127.0.0.2", "localhost") }),
        Rule::get("*/manifests/*", challenge(&other.url())),
        Rule::get("*/manifests/*", challenge("https://10.0.0.1")),
    ] {
        let proxy = Proxy::before(&registry).start().await;
        proxy.on(rule);
        let began = std::time::Instant::now();
        let error = Host::with(&registry, Keys::of(login(), login()))
            .pull(&format!("{}/{REPOSITORY}:1", proxy.address()), "macos")
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("has an address that is not public") && text.contains("[registries."), "{text}");
        assert_eq!(mayfly::domain::Error::from(&*error).code, mayfly::domain::Code::ImageRefused, "{text}");
        // It is not tried again.
        assert!(began.elapsed() < Duration::from_secs(10), "{text}");
    }
    assert_eq!(other.seen().len(), 0, "{:#?}", other.seen());
}

#[tokio::test]
async fn a_pull_that_was_dropped_goes_on_where_it_was() {
    let registry = Registry::open().await;
    let image = image(50);
    image.push(&registry, REPOSITORY, "1").await;
    for (turn, (blob, after)) in
        [(image.chunk(2), 0), (image.chunk(2), 65_000), (image.chunk(3), 3000), (image.chunk(6), 40_000)]
            .into_iter()
            .enumerate()
    {
        let proxy = Proxy::before(&registry).start().await;
        let reference = format!("{}/{REPOSITORY}:1", proxy.address());
        let host = Host::new(&registry);
        proxy.on(Rule::get(&format!("*{}", blob.digest()), Fault::Hold { after }));
        let others = wanted(&image).len() - 1;
        let templates = host.dir.path().join("templates");
        tokio::select! {
            pulled = host.pull(&reference, "macos") => panic!("turn {turn}: {pulled:?}"),
            () = until_journal(&templates, others) => {}
        }
        assert_eq!(host.visible(), [""; 0]);
        let before = blobs(&proxy.seen());
        proxy.clear();
        // A service that starts meanwhile leaves it alone.
        let host = Host {
            catalog: Catalog::open(host.dir.path().join("templates")).unwrap(),
            puller: Puller::new(host.catalog.clone(), settings(registry.authority.file()), Keys::none()),
            dir: host.dir,
        };
        same(&host.pull(&reference, "macos").await.unwrap(), &image);
        let after: Vec<_> = blobs(&proxy.seen()).split_off(before.len());
        assert_eq!(after.iter().map(|(digest, _)| digest.clone()).collect::<Vec<_>>(), [blob.digest()], "turn {turn}");
        assert_eq!(host.staged(), 0);
    }
}

/// Until so many layers are in the journal of the one pull there is.
async fn until_journal(templates: &Path, layers: usize) {
    let lines = || {
        let staging = fs::read_dir(templates.join("staging")).ok()?.next()?.ok()?.path();
        Some(fs::read_to_string(staging.join("journal")).ok()?.lines().count())
    };
    // Nothing tells when a file grows.
    while lines().unwrap_or(0) < layers + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// This program once more, as a process that pulls and may be killed.
fn child(dir: &Path, reference: &str, ca: &Path) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull::as_a_process_of_its_own", "--ignored", "--nocapture"])
        .env("MAYFLY_TEST_PULL_DIR", dir)
        .env("MAYFLY_TEST_PULL_REFERENCE", reference)
        .env("MAYFLY_TEST_PULL_CA", ca)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    Killed(child)
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "is started by another test"]
async fn as_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(format!("MAYFLY_TEST_PULL_{name}")).expect("started by another test");
    let catalog = Catalog::open(PathBuf::from(variable("DIR"))).unwrap();
    let puller = Puller::new(catalog, settings(variable("CA").into()), Keys::none());
    let request = PullRequest::new(variable("REFERENCE").parse().unwrap(), "macos");
    puller.pull(&request, &watch::Sender::default()).await.unwrap();
    // What was resident at most, for whoever wants to know. Only Linux says it so.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix(" kB")) {
        fs::write(Path::new(&variable("DIR")).join("peak"), peak).unwrap();
    }
}

#[tokio::test]
async fn a_pull_that_was_killed_goes_on_where_it_was() {
    let registry = Registry::open().await;
    let image = image(60);
    image.push(&registry, REPOSITORY, "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());
    let host = Host::new(&registry);
    let templates = host.dir.path().join("templates");
    // Each time one blob further, and each time in the middle of some.
    let order = [2, 3, 6].map(|chunk| image.chunk(chunk));
    for (turn, blob) in order.iter().enumerate() {
        proxy.clear();
        for held in &order[turn..] {
            proxy.on(Rule::get(&format!("*{}", held.digest()), Fault::Hold { after: 1 + held.blob.len() as u64 / 2 }));
        }
        let asked = proxy.asked("GET", &blob.digest()).len();
        let child = child(&templates, &reference, &registry.authority.file());
        let held = 1 + blob.blob.len() as u64 / 2;
        let ending = blob.digest();
        proxy
            .until("the blob is in its middle", |all| {
                let of_blob: Vec<_> = all.iter().filter(|seen| seen.path.ends_with(&ending)).collect();
                of_blob.len() > asked && of_blob.last().is_some_and(|seen| seen.sent == held)
            })
            .await;
        // All that is not held is there.
        let wait = until_journal(&templates, wanted(&image).len() - (order.len() - turn));
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the rest arrives");
        drop(child);
        assert_eq!(host.visible(), [""; 0]);
    }
    proxy.clear();
    same(&host.pull(&reference, "macos").await.unwrap(), &image);
    let asked = blobs(&proxy.seen());
    for digest in wanted(&image) {
        // Whole once; the others were held in their middle.
        let whole = image.layers.iter().find(|layer| layer.digest() == digest).unwrap().blob.len() as u64;
        let times = asked.iter().filter(|(d, bytes)| *d == digest && *bytes == whole).count();
        assert_eq!(times, 1, "{digest} {asked:?}");
        let interrupted = asked.iter().filter(|(d, _)| *d == digest).count() - 1;
        let allowed = order.iter().position(|held| held.digest() == digest).map_or(0, |turn| turn + 1);
        assert!(interrupted <= allowed, "{digest} {asked:?}");
    }
}

#[tokio::test]
async fn concurrent_pulls_of_one_image_are_shared() {
    let registry = Registry::open().await;
    let image = image(70);
    image.push(&registry, REPOSITORY, "1").await;
    image.push(&registry, REPOSITORY, "2").await;
    let proxy = Proxy::before(&registry).start().await;
    let big = image.chunk(2).digest();
    proxy.on(Rule::get(&format!("*{big}"), Fault::Hold { after: 1000 }).first());
    let host = Host::new(&registry);
    let reference = |tag: u8| format!("{}/{REPOSITORY}:{tag}", proxy.address());
    let (first, second, gone) = (reference(1), reference(2), reference(1));
    let manifests =
        |all: &Vec<Seen>| all.iter().filter(|s| s.path.contains("/manifests/") && s.status == Some(200)).count();
    let settings = async {
        // With settings of its own it waits, and then finds everything here.
        let request = PullRequest { user: Some("runner".into()), ..PullRequest::new(first.parse().unwrap(), "third") };
        host.puller.pull(&request, &watch::Sender::default()).await
    };
    // Another process would do the same: it waits for the lock.
    let neighbour = Host {
        catalog: Catalog::open(host.dir.path().join("templates")).unwrap(),
        puller: Puller::new(host.catalog.clone(), self::settings(registry.authority.file()), Keys::none()),
        dir: tempfile::tempdir().unwrap(),
    };
    // The blob is held until the first one has left.
    let left = tokio::sync::Notify::new();
    let meddle = async {
        proxy
            .until("a blob is held and all have asked", |all| {
                manifests(all) >= 5 && all.iter().any(|s| s.path.ends_with(&big) && s.sent == 1000)
            })
            .await;
        left.notified().await;
        proxy.release();
    };
    // Who goes away takes nothing from the others, even when it was the first.
    let leaves = async {
        tokio::select! {
            pulled = host.pull(&gone, "gone") => panic!("{pulled:?}"),
            () = proxy.until("all have asked", |all| manifests(all) >= 5) => left.notify_one(),
        }
    };
    let ((), a, b, c, d, ()) = tokio::join!(
        leaves,
        host.pull(&first, "first"),
        host.pull(&second, "second"),
        settings,
        neighbour.pull(&first, "neighbour"),
        meddle
    );
    let (a, b, c, d) = (a.unwrap(), b.unwrap(), c.unwrap(), d.unwrap());
    same(&a, &image);
    same(&c, &image);
    assert_eq!((a.digest == b.digest, a.digest == d.digest, a.digest == c.digest), (true, true, false));
    assert_eq!((a.name.as_str(), b.name.as_str(), d.name.as_str()), ("first", "second", "neighbour"));
    for layer in wanted(&image).iter().filter(|d| **d != image.layers[0].digest() && **d != image.layers[8].digest()) {
        assert_eq!(proxy.asked("GET", layer).len(), 1, "{layer}");
    }
    assert_eq!(host.catalog.get("gone").await.unwrap_err().code, Code::TemplateNotFound);
    assert_eq!(host.staged(), 0);
}

#[tokio::test]
async fn an_update_fetches_what_is_new_and_moves_the_name() {
    let registry = Registry::open().await;
    let old = image(80);
    old.push(&registry, REPOSITORY, "latest").await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let reference = format!("{}/{REPOSITORY}", proxy.address());
    let first = host.pull(&reference, "macos").await.unwrap();

    // Packed otherwise, so that only contents tell what is new; and one chunk is at another place.
    let chunks = [
        Content::Text(80, 300_000),
        Content::Zeros(400_000),
        Content::Noise(81, 1_100_001),
        Content::Noise(999, 47_999),
        Content::Holes(82, 900_000),
        Content::Text(998, 700_320),
    ];
    let new = TartImage::new(&chunks, Encoding::Independent);
    new.push(&registry, REPOSITORY, "latest").await;
    let before = blobs(&proxy.seen()).len();
    let second = host.pull(&reference, "macos").await.unwrap();
    same(&second, &new);
    let fetched: BTreeSet<String> = blobs(&proxy.seen()).split_off(before).into_iter().map(|(d, _)| d).collect();
    // The configuration and the nvram are files of their own.
    let expected = [&new.layers[0], new.chunk(3), new.chunk(5), &new.layers[7]].map(|layer| layer.digest());
    assert_eq!(fetched, BTreeSet::from(expected));
    assert_eq!(host.catalog.get("macos").await.unwrap().digest, second.digest);
    same(&host.catalog.get(&first.digest).await.unwrap(), &old);

    // What rots on this host's disk is not taken over.
    let rotten = first.files.disk.clone();
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[1_000_000] ^= 1;
    let permissions = fs::metadata(&rotten).unwrap().permissions();
    fs::remove_file(&second.files.disk).unwrap();
    fs::remove_file(&rotten).unwrap();
    fs::write(&rotten, bytes).unwrap();
    fs::set_permissions(&rotten, permissions).unwrap();
    same(&host.pull(&reference, "macos").await.unwrap(), &new);
}

#[tokio::test]
async fn a_name_that_is_taken_by_something_else_stays() {
    let registry = Registry::open().await;
    image(90).push(&registry, REPOSITORY, "1").await;
    image(91).push(&registry, "acme/linux", "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    fs::write(host.dir.path().join("disk.raw"), vec![7; 4096]).unwrap();
    let template = NewTemplate::of_disk("mine", host.dir.path().join("disk.raw"));
    let mine = host.catalog.register(template).await.unwrap();
    host.pull(&format!("{}/acme/linux:1", proxy.address()), "linux").await.unwrap();
    let before = proxy.seen().len();
    let reference = format!("{}/{REPOSITORY}:1", proxy.address());
    for name in ["mine", "linux"] {
        match &*host.pull(&reference, name).await.unwrap_err() {
            PullError::Template(e) => assert_eq!(e.code, Code::TemplateExists),
            other => panic!("{other}"),
        }
    }
    match &*host.pull(&reference, "No Name").await.unwrap_err() {
        PullError::Template(e) => assert_eq!(e.code, Code::TemplateInvalid),
        other => panic!("{other}"),
    }
    assert_eq!(proxy.seen().len(), before);
    assert_eq!(host.catalog.get("mine").await.unwrap(), mine);

    // Settings that cannot be are found before the disk is fetched.
    let request = PullRequest { handover: Some(Handover::Seed), ..PullRequest::new(reference.parse().unwrap(), "new") };
    let error = host.puller.pull(&request, &watch::Sender::default()).await.unwrap_err().to_string();
    assert!(error.contains("handover"), "{error}");
    assert_eq!(blobs(&proxy.seen()[before..]).len(), 2);
}

#[tokio::test]
async fn nothing_is_to_be_seen_of_an_image_that_is_wrong_anywhere() {
    let registry = Registry::open().await;
    let proxy = Proxy::before(&registry).start().await;
    let host = Host::new(&registry);
    let far = 1 << 45;
    let cases: [(&[Broken], &str); 22] = [
        (&[Broken::NoSize { chunk: 2 }], "layer 3"),
        (&[Broken::NoContentDigest { chunk: 2 }], "layer 3"),
        (&[Broken::WrongContentDigest { chunk: 2 }], "layer 3 (the disk from byte 700000 on)"),
        (&[Broken::WrongSize { chunk: 2, by: 1 }], "add up"),
        (&[Broken::WrongSize { chunk: 2, by: 512 }, Broken::WrongDiskSize { by: 512 }], "layer 3"),
        (&[Broken::WrongSize { chunk: 2, by: -512 }, Broken::WrongDiskSize { by: -512 }], "layer 3"),
        (
            &[Broken::WrongSize { chunk: 2, by: 1 << 39 }, Broken::WrongDiskSize { by: 1 << 39 }],
            "the whole file system",
        ),
        (&[Broken::WrongSize { chunk: 2, by: far }, Broken::WrongDiskSize { by: far }], "layer 3"),
        (&[Broken::SizeIsText { chunk: 2 }], "layer 3"),
        (&[Broken::WrongBlobSize { chunk: 2, by: 5 }], "layer 3"),
        (&[Broken::WrongBlobSize { chunk: 2, by: -5 }], "layer 3"),
        (&[Broken::WrongDiskSize { by: 512 }], "add up"),
        (&[Broken::Missing { chunk: 2 }], "add up"),
        (&[Broken::Truncated { chunk: 2, to: 70_000 }], "layer 3"),
        (&[Broken::Bomb { chunk: 2, blocks: 2000 }], "layer 3"),
        (&[Broken::HugeBlock { chunk: 2 }], "layer 3"),
        (&[Broken::NotLz4 { chunk: 2 }], "layer 3"),
        (&[Broken::V1], "no longer supported"),
        (&[Broken::Overlay], "flat disk"),
        (&[Broken::Disorder], "out of order"),
        (&[Broken::TwoConfigs], "2 configuration layers"),
        (&[Broken::Foreign], "tar+gzip"),
    ];
    for (tag, (how, expected)) in cases.iter().enumerate() {
        let broken = how.iter().fold(image(100), |image, how| image.broken(*how));
        broken.push(&registry, REPOSITORY, &format!("t{tag}")).await;
        let error =
            host.pull(&format!("{}/{REPOSITORY}:t{tag}", proxy.address()), "macos").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{how:?}: {error}");
        assert_eq!(host.visible(), [""; 0], "{how:?}");
    }
    image(100).push_list(&registry, REPOSITORY, "list", &[("solaris", "sparc")]).await;
    let error = host.pull(&format!("{}/{REPOSITORY}:list", proxy.address()), "macos").await.unwrap_err().to_string();
    assert!(error.contains("0 images") && error.contains("solaris/sparc"), "{error}");

    // A registry that serves other bytes than it was given; what is mended arrives.
    let image = image(110);
    image.push(&registry, REPOSITORY, "rot").await;
    let reference = format!("{}/{REPOSITORY}:rot", proxy.address());
    for (layer, expected) in [(0, "layer 0"), (8, "layer 8"), (3, "layer 3 (the disk")] {
        let blob = image.layers[layer].digest();
        let flip = |bytes: &mut [u8]| *bytes.last_mut().unwrap() ^= 1;
        registry.rot(&blob, flip);
        let error = host.pull(&reference, "macos").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(host.visible(), [""; 0]);
        registry.rot(&blob, flip);
    }
    same(&host.pull(&reference, "macos").await.unwrap(), &image);
}

#[tokio::test]
async fn of_a_list_the_image_for_this_host_comes() {
    let registry = Registry::open().await;
    let image = image(120);
    let platforms = [("darwin", "arm64"), ("linux", "amd64"), ("solaris", "sparc")];
    let list = image.push_list(&registry, REPOSITORY, "list", &platforms).await;
    let host = Host::new(&registry);
    let template = host.pull(&format!("{}/{REPOSITORY}:list", registry.address), "macos").await.unwrap();
    same(&template, &image);
    // By the digest of the list, or of the image itself: the same template.
    for digest in [list, image.digest()] {
        let again = host.pull(&format!("{}/{REPOSITORY}@{digest}", registry.address), "macos").await.unwrap();
        assert_eq!(again, template);
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_while_an_image_arrives_loses_nothing() {
    let Some(disk) = small_disk(module_path!(), "a_disk_that_fills_up_while_an_image_arrives_loses_nothing", 96) else {
        return;
    };
    let registry = Registry::open().await;
    let image = image(120);
    image.push(&registry, REPOSITORY, "1").await;
    let big = image.chunk(2).digest();
    for pages in [0, 1, 17, 120, 255] {
        let proxy = Proxy::before(&registry).start().await;
        proxy.on(Rule::get(&format!("*{big}"), Fault::Hold { after: 50_000 }).first());
        let host = Host::in_dir(tempfile::tempdir_in(&disk).unwrap(), &registry, Keys::none());
        let templates = host.dir.path().join("templates");
        let reference = format!("{}/{REPOSITORY}:1", proxy.address());
        let meddle = async {
            proxy.until("the big chunk is held", |all| all.iter().any(|s| s.sent == 50_000)).await;
            until_journal(&templates, wanted(&image).len() - 1).await;
            fill(&disk, pages);
            proxy.release();
        };
        let (pulled, ()) = tokio::join!(host.pull(&reference, "macos"), meddle);
        match &*pulled.unwrap_err() {
            PullError::Space { error, .. } => assert_eq!(error.code, Code::HostFull, "{pages}"),
            other => panic!("{pages}: {other}"),
        }
        assert_eq!(host.visible(), [""; 0], "{pages}");

        // Still full: it does not begin. With room again, it goes on where it was.
        let error = host.pull(&reference, "macos").await.unwrap_err().to_string();
        assert!(error.contains("are missing"), "{error}");
        empty(&disk);
        let before = blobs(&proxy.seen()).len();
        same(&host.pull(&reference, "macos").await.unwrap(), &image);
        let after: Vec<_> = blobs(&proxy.seen()).split_off(before).into_iter().map(|(digest, _)| digest).collect();
        assert_eq!(after, slice::from_ref(&big), "{pages}");
        assert_eq!(host.staged(), 0);
    }
}

/// What an image takes is not known from what it has packed: 6 MB that unpack to more than there is.
#[tokio::test]
async fn an_image_that_unpacks_to_more_than_there_is_stops_at_the_limit() {
    let Some(disk) = small_disk(module_path!(), "an_image_that_unpacks_to_more_than_there_is_stops_at_the_limit", 256)
    else {
        return;
    };
    let registry = Registry::open().await;
    let chunks: Vec<Content> = (1..=7).map(|n| Content::Constant(n, 32 << 20)).collect();
    let image = TartImage::new(&chunks, Encoding::Linked);
    let packed: usize = image.layers.iter().map(|layer| layer.blob.len()).sum();
    assert!(packed < 4 << 20, "{packed} bytes are packed");
    image.push(&registry, REPOSITORY, "1").await;
    let min_free_bytes = 80 << 20;
    let limits = SpaceLimits { min_free_bytes, ..SpaceLimits::default() };
    let host = Host::limited(tempfile::tempdir_in(&disk).unwrap(), &registry, Keys::none(), limits);
    // Measured all the time, and not only at the end.
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watched = {
        let (disk, done) = (disk.clone(), done.clone());
        std::thread::spawn(move || {
            let mut least = u64::MAX;
            while !done.load(Ordering::SeqCst) {
                let stat = rustix::fs::statvfs(&disk).unwrap();
                least = least.min(stat.f_bavail * stat.f_frsize);
            }
            least
        })
    };
    let error = host.pull(&format!("{}/{REPOSITORY}:1", registry.address), "macos").await.unwrap_err();
    done.store(true, Ordering::SeqCst);
    let least = watched.join().unwrap();
    match &*error {
        PullError::Space { error, .. } => assert_eq!(error.code, Code::HostFull),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("80 MiB must stay free"), "{error}");
    assert!(least + (1 << 20) >= min_free_bytes, "{least} bytes were free");
    assert!(least < 160 << 20, "nothing was written: {least}");
    assert_eq!(host.visible(), [""; 0]);
}
