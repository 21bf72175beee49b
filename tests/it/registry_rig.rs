//! The rig that pulling is tested with does what it says: otherwise a test that expects a failure would get one from the rig.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::support::{
    proxy::{Fault, Front, Proxy, Rule, Tokens},
    registry::{Login, Registry},
    tart,
    tart_image::{
        Broken, CONFIG, CONTENT, Content, DISK, DISK_SIZE, DISK_V1, Encoding, INDEX, MANIFEST, NVRAM, OVERLAY, SIZE,
        TartImage, apple_lz4, canonical, digest,
    },
};

fn login() -> Login {
    Login::new("AWS", "eyJwYXlsb2FkIjoi-is-long")
}

fn image() -> TartImage {
    let chunks = [
        Content::Text(1, 300_000),
        Content::Zeros(200_000),
        Content::Noise(2, 100_001),
        Content::Holes(3, 150_000),
        Content::Zeros(200_000),
    ];
    TartImage::new(&chunks, Encoding::Linked)
}

// Formats

/// A decoder of its own, from the format's description: neither the library's nor the LZ4 crate's. `window` is how far back
/// matches may reach before their block.
fn decode(stream: &[u8], window: usize) -> Result<Vec<u8>, String> {
    let word = |at: usize| {
        let bytes = stream.get(at..at + 4).ok_or(format!("the stream ends at {at}"))?;
        Ok::<usize, String>(u32::from_le_bytes(bytes.try_into().unwrap()) as usize)
    };
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        match stream.get(at..at + 4) {
            Some(b"bv4$") => return Ok(out),
            Some(b"bv4-") => {
                let size = word(at + 4)?;
                out.extend_from_slice(stream.get(at + 8..at + 8 + size).ok_or("a stored block is short")?);
                at += 8 + size;
            }
            Some(b"bv41") => {
                let (plain, packed) = (word(at + 4)?, word(at + 8)?);
                let block = stream.get(at + 12..at + 12 + packed).ok_or("a compressed block is short")?;
                let (begun, oldest) = (out.len(), out.len().saturating_sub(window));
                block_into(block, &mut out, oldest)?;
                if out.len() - begun != plain || plain > 65_536 {
                    return Err(format!("a block has {} bytes and says {plain}", out.len() - begun));
                }
                at += 12 + packed;
            }
            other => return Err(format!("no block begins with {other:?} at {at}")),
        }
    }
}

fn block_into(block: &[u8], out: &mut Vec<u8>, oldest: usize) -> Result<(), String> {
    let mut bytes = block.iter().copied();
    let mut next = || bytes.next().ok_or("a block ends within a sequence");
    let long = |nibble: u8, next: &mut dyn FnMut() -> Result<u8, &'static str>| {
        let mut length = usize::from(nibble);
        let mut more = if nibble == 15 { 255 } else { 0 };
        while more == 255 {
            more = next()?;
            length += usize::from(more);
        }
        Ok::<usize, &'static str>(length)
    };
    loop {
        let token = next()?;
        for _ in 0..long(token >> 4, &mut next)? {
            out.push(next()?);
        }
        // The last sequence has literals only.
        let Ok(low) = next() else { return Ok(()) };
        let offset = usize::from(u16::from_le_bytes([low, next()?]));
        let from = out.len().checked_sub(offset).filter(|from| *from >= oldest && offset > 0);
        let from = from.ok_or("a match reaches too far back")?;
        for i in 0..long(token & 15, &mut next)? + 4 {
            out.push(out[from + i]);
        }
    }
}

#[test]
fn streams_are_what_apple_describes() {
    let contents = [
        Content::Text(7, 200_000),
        Content::Noise(8, 131_072),
        Content::Zeros(1 << 20),
        Content::Holes(9, 300_001),
        Content::Text(10, 1),
        Content::Text(10, 65_537),
    ];
    for content in contents {
        let bytes = content.bytes();
        for encoding in [Encoding::Independent, Encoding::Linked, Encoding::Stored] {
            let stream = apple_lz4(&bytes, encoding);
            assert!(decode(&stream, 65_536).as_deref() == Ok(&bytes[..]), "{content:?} {encoding:?}");
            if encoding != Encoding::Linked {
                assert!(decode(&stream, 0).as_deref() == Ok(&bytes[..]), "{content:?} {encoding:?} stand alone");
            }
        }
    }
    assert_eq!(apple_lz4(b"", Encoding::Linked), b"bv4$");
    assert_eq!(apple_lz4(b"abc", Encoding::Independent), b"bv4-\x03\0\0\0abcbv4$");
    let text = Content::Text(7, 200_000).bytes();
    let linked = apple_lz4(&text, Encoding::Linked);
    decode(&linked, 0).expect_err("blocks refer to what came before them");
    assert!(linked.len() < apple_lz4(&text, Encoding::Independent).len());
    assert!(apple_lz4(&text, Encoding::Independent).len() < text.len());
    // Both kinds of block in one stream, and a match that reaches into a stored one.
    let noise = Content::Noise(11, 65_536).bytes();
    let again = apple_lz4(&[&noise[..], &noise[32_768..]].concat(), Encoding::Linked);
    assert!(again.starts_with(b"bv4-") && again[8 + 65_536..].starts_with(b"bv41"));
    assert!(decode(&again, 65_536).unwrap()[65_536..] == noise[32_768..]);
}

#[test]
fn content_is_the_same_for_the_same_seed_only() {
    for make in [Content::Noise, Content::Text, Content::Holes] {
        assert_eq!(make(1, 10_001).bytes(), make(1, 10_001).bytes());
        assert_eq!(make(1, 10_001).bytes().len(), 10_001);
        assert_ne!(make(1, 10_001).bytes(), make(2, 10_001).bytes());
    }
    let holes = Content::Holes(1, 40_000).bytes();
    assert!(holes[10_000..30_000].iter().all(|byte| *byte == 0) && holes[..10_000].iter().any(|byte| *byte != 0));
    // Known from elsewhere: an all-zero chunk is recognised by its digest.
    let zeros = "sha256:5647f05ec18958947d32874eeb788fa396a05d0bab7c1b71f112ceb7e9b31eee";
    assert_eq!(digest(&Content::Zeros(2 << 20).bytes()), zeros);
}

#[test]
fn a_manifest_is_what_tart_writes() {
    let image = image();
    let bytes = image.manifest();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with("{\"annotations\":{\"org.cirruslabs.tart.uncompressed-disk-size\":\"950001\","), "{text}");
    assert!(text.contains("\"mediaType\":\"application\\/vnd.oci.image.manifest.v1+json\""), "{text}");
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let types: Vec<&str> = layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
    assert_eq!(types, [CONFIG, DISK, DISK, DISK, DISK, DISK, NVRAM]);
    let mut disk = Vec::new();
    for (described, layer) in layers.iter().zip(&image.layers) {
        assert_eq!(described["digest"], layer.digest());
        assert_eq!(described["size"], layer.blob.len());
        if layer.media_type != DISK {
            assert_eq!(described["annotations"], serde_json::json!({}));
            continue;
        }
        let content = decode(&layer.blob, 65_536).unwrap();
        assert_eq!(described["annotations"][SIZE], content.len().to_string());
        assert_eq!(described["annotations"][CONTENT], digest(&content));
        disk.extend(content);
    }
    assert!(disk == image.disk);
    assert_eq!(image.layers[0].blob, image.config);
    assert_eq!(image.layers[6].blob, image.nvram);
    assert_eq!(serde_json::from_slice::<Value>(&image.config).unwrap(), tart::config("darwin"));
    assert_eq!(image.chunk(1).digest(), image.chunk(4).digest(), "zeros of one length are one blob");
    assert_eq!(canonical(&serde_json::json!({"b": [1, null], "a": "x/\"y\""})), br#"{"a":"x\/\"y\"","b":[1,null]}"#);
}

#[test]
fn what_is_broken_is_broken_in_one_way() {
    let whole = image();
    let manifest = |image: &TartImage| serde_json::from_slice::<Value>(&image.manifest()).unwrap();
    let broken = |how| whole.clone().broken(how);
    let said = |how, chunk: usize, key: &str| manifest(&broken(how))["layers"][chunk + 1]["annotations"][key].clone();
    let types = |how| -> Vec<String> {
        let layers = manifest(&broken(how))["layers"].as_array().unwrap().clone();
        layers.iter().map(|layer| layer["mediaType"].as_str().unwrap().to_owned()).collect()
    };

    assert_eq!(said(Broken::NoSize { chunk: 2 }, 2, SIZE), Value::Null);
    assert_eq!(said(Broken::NoContentDigest { chunk: 2 }, 2, CONTENT), Value::Null);
    assert_eq!(said(Broken::WrongContentDigest { chunk: 0 }, 0, CONTENT), digest(b"something else"));
    assert_eq!(said(Broken::WrongSize { chunk: 2, by: -1 }, 2, SIZE), "100000");
    assert_eq!(said(Broken::SizeIsText { chunk: 2 }, 2, SIZE), "512 MiB");
    let lies = manifest(&broken(Broken::WrongBlobSize { chunk: 2, by: 5 }));
    assert_eq!(lies["layers"][3]["size"], whole.chunk(2).blob.len() + 5);
    let lies = manifest(&broken(Broken::WrongDiskSize { by: 1 << 40 }));
    assert_eq!(lies["annotations"][DISK_SIZE], (950_001u64 + (1 << 40)).to_string());

    assert_eq!(types(Broken::Missing { chunk: 4 }).len(), 6);
    assert_eq!(broken(Broken::Missing { chunk: 4 }).chunk(1).digest(), whole.chunk(1).digest());
    assert_eq!(types(Broken::V1), [CONFIG, DISK_V1, DISK_V1, NVRAM]);
    let slices: Vec<u8> = broken(Broken::V1).layers[1..3].iter().flat_map(|layer| layer.blob.clone()).collect();
    assert!(decode(&slices, 65_536).unwrap() == whole.disk);
    assert_eq!(types(Broken::Overlay)[6..], [OVERLAY, NVRAM]);
    assert_eq!(types(Broken::TwoConfigs)[..3], [CONFIG, CONFIG, DISK]);
    assert_eq!(types(Broken::NoConfig)[0], DISK);
    assert_eq!(types(Broken::NoNvram)[5..], [DISK]);
    assert_eq!(types(Broken::NoDisk), [CONFIG, NVRAM]);
    assert_eq!(types(Broken::Disorder)[..3], [CONFIG, NVRAM, DISK]);
    assert!(types(Broken::Foreign).iter().all(|it| it == "application/vnd.oci.image.layer.v1.tar+gzip"));

    let stream = |how, chunk: usize| {
        let image = broken(how);
        assert_eq!(image.chunk(chunk).size, image.chunk(chunk).blob.len() as i64);
        decode(&image.chunk(chunk).blob, 65_536)
    };
    stream(Broken::Truncated { chunk: 0, to: 1000 }, 0).expect_err("the stream ends early");
    assert_eq!(stream(Broken::Bomb { chunk: 2, blocks: 100 }, 2).unwrap().len(), 100_001 + 6_553_600);
    stream(Broken::HugeBlock { chunk: 1 }, 1).expect_err("the block lies");
    stream(Broken::NotLz4 { chunk: 1 }, 1).expect_err("that is no stream");
}

// Registry

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_is_pushed() {
    let registry = Registry::closed(login()).await;
    let image = image();
    let pushed = image.push(&registry, "team/macos", "latest").await;
    assert_eq!(pushed, image.digest());

    let reference = format!("docker://{}/team/macos:latest", registry.address);
    let ran = registry.skopeo(&["inspect", "--raw", &reference]).await;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.stdout, image.manifest());
    let to = tempfile::tempdir().unwrap();
    let ran = registry.skopeo(&["copy", "--quiet", &reference, &format!("dir:{}", to.path().display())]).await;
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(std::fs::read(to.path().join("manifest.json")).unwrap(), image.manifest());
    for layer in &image.layers {
        let file = to.path().join(layer.digest().strip_prefix("sha256:").unwrap());
        assert!(std::fs::read(file).unwrap() == layer.blob);
        assert!(registry.held(&layer.digest()).unwrap() == layer.blob);
    }
    assert!(registry.held(&digest(b"never pushed")).is_none());

    let url = format!("{}/v2/team/macos/manifests/latest", registry.url());
    let client = registry.authority.client();
    let refused = client.get(&url).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(refused.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic "));
    assert_eq!(client.get(&url).basic_auth("AWS", Some("wrong")).send().await.unwrap().status(), 401);
    let strangers = reqwest::Client::builder().no_proxy().build().unwrap();
    strangers.get(&url).send().await.expect_err("who does not trust the authority is warned");

    let rotten = image.chunk(2).digest();
    registry.rot(&rotten, |bytes| bytes[5000] ^= 1);
    let got = fetch(registry.request(Method::GET, &format!("/v2/team/macos/blobs/{rotten}"))).await;
    assert_eq!((got.status, got.body.len()), (StatusCode::OK, image.chunk(2).blob.len()));
    assert_eq!(got.body[5000], image.chunk(2).blob[5000] ^ 1, "the registry does not look");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_takes_every_broken_image() {
    let registry = Registry::open().await;
    let config = tart::config("linux");
    let whole = TartImage::with(&config, &[Content::Text(1, 70_000), Content::Noise(2, 70_000)], Encoding::Independent);
    let every = [
        Broken::NoSize { chunk: 0 },
        Broken::NoContentDigest { chunk: 0 },
        Broken::WrongContentDigest { chunk: 0 },
        Broken::WrongSize { chunk: 0, by: 1 },
        Broken::SizeIsText { chunk: 0 },
        Broken::WrongBlobSize { chunk: 0, by: -1 },
        Broken::WrongDiskSize { by: -1 },
        Broken::Missing { chunk: 0 },
        Broken::Truncated { chunk: 0, to: 100 },
        Broken::Bomb { chunk: 0, blocks: 10 },
        Broken::HugeBlock { chunk: 0 },
        Broken::NotLz4 { chunk: 0 },
        Broken::V1,
        Broken::Overlay,
        Broken::TwoConfigs,
        Broken::NoConfig,
        Broken::NoNvram,
        Broken::NoDisk,
        Broken::Disorder,
        Broken::Foreign,
    ];
    for how in every {
        let broken = whole.clone().broken(how);
        let pushed = broken.push(&registry, "team/broken", "it").await;
        assert_ne!(pushed, whole.digest(), "{how:?}");
        let got = fetch(registry.request(Method::GET, "/v2/team/broken/manifests/it").header("accept", MANIFEST)).await;
        assert!(got.body == broken.manifest(), "{how:?}");
        assert_eq!(got.headers["docker-content-digest"], pushed.as_str());
    }
    let list = whole.push_list(&registry, "team/list", "it", &[("linux", "s390x"), ("darwin", "arm64")]).await;
    let got = fetch(registry.request(Method::GET, "/v2/team/list/manifests/it").header("accept", INDEX)).await;
    assert_eq!(digest(&got.body), list);
    let list: Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(list["manifests"][1]["digest"], whole.digest());
    assert_eq!(list["manifests"][0]["platform"]["architecture"], "s390x");
}

// Proxy

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    /// The body ended before its end.
    broke: bool,
}

/// All that comes, however it ends.
async fn fetch(request: RequestBuilder) -> Got {
    let mut response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let (mut body, mut broke) = (Vec::new(), false);
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Got { status, headers, body, broke },
            Err(_) => {
                broke = true;
                return Got { status, headers, body, broke };
            }
        }
    }
}

/// A registry with one large blob, and a proxy before it.
struct Rig {
    registry: Registry,
    proxy: Proxy,
    blob: Vec<u8>,
    path: String,
}

impl Rig {
    async fn new(registry: Registry, front: impl FnOnce(Front<'_>) -> Front<'_>) -> Rig {
        let image = TartImage::new(&[Content::Noise(1, 600_000)], Encoding::Stored);
        image.push(&registry, "team/macos", "latest").await;
        let blob = image.chunk(0).blob.clone();
        let path = format!("/v2/team/macos/blobs/{}", digest(&blob));
        let proxy = front(Proxy::before(&registry)).start().await;
        Rig { registry, proxy, blob, path }
    }

    async fn open() -> Rig {
        Rig::new(Registry::open().await, |front| front).await
    }

    fn get(&self) -> RequestBuilder {
        self.registry.authority.client().get(format!("{}{}", self.proxy.url(), self.path))
    }

    /// What comes with these faults, and only once.
    async fn with(&self, request: RequestBuilder, faults: &[Fault]) -> Got {
        self.proxy.clear();
        let (first, more) = faults.split_first().unwrap();
        let rule = Rule::get("/v2/*/blobs/sha256:*", first.clone()).first();
        self.proxy.on(more.iter().fold(rule, |rule, fault| rule.and(fault.clone())));
        fetch(request).await
    }

    fn whole(&self, got: &Got) -> bool {
        got.status == 200 && !got.broke && got.body == self.blob
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rule_the_proxy_changes_nothing() {
    let rig = Rig::open().await;
    assert!(rig.whole(&fetch(rig.get()).await));
    let part = fetch(rig.get().header("range", "bytes=1000-1999")).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (206, &rig.blob[1000..2000]));
    assert_eq!(part.headers["content-range"], format!("bytes 1000-1999/{}", rig.blob.len()));
    let client = rig.registry.authority.client();
    let url = format!("{}{}", rig.proxy.url(), rig.path);
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], rig.blob.len().to_string());

    let seen = rig.proxy.seen();
    let methods: Vec<&str> = seen.iter().map(|seen| seen.method.as_str()).collect();
    assert_eq!(methods, ["GET", "GET", "HEAD"]);
    assert_eq!((seen[0].range.as_deref(), seen[1].range.as_deref()), (None, Some("bytes=1000-1999")));
    assert_eq!((seen[0].status, seen[1].status), (Some(200), Some(206)));
    assert_eq!((seen[0].sent, seen[1].sent, seen[2].sent), (rig.blob.len() as u64, 1000, 0));
    assert_eq!(rig.proxy.sent(), rig.blob.len() as u64 + 1000);
    assert_eq!(rig.proxy.asked("GET", &digest(&rig.blob)).len(), 2);

    // Uploads go the same way, and stay on it.
    let begun = client.post(format!("{}/v2/team/macos/blobs/uploads/", rig.proxy.url())).send().await.unwrap();
    assert_eq!(begun.status(), 202);
    let location = begun.headers()["location"].to_str().unwrap();
    assert!(location.starts_with(&rig.proxy.url()), "{location}");
    let blob = Content::Noise(5, 300_000).bytes();
    let put = client.put(location).query(&[("digest", digest(&blob))]).body(blob.clone()).send().await.unwrap();
    assert_eq!(put.status(), 201);
    assert!(rig.registry.held(&digest(&blob)).unwrap() == blob);
    let seen = rig.proxy.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.received, seen.status), ("PUT", 300_000, Some(201)));
    assert!(seen.query.contains("digest=sha256"), "{}", seen.query);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_cut_and_changed_where_the_test_says() {
    let rig = Rig::open().await;
    let size = rig.blob.len();
    for after in [0, 1, 65_536, 599_999] {
        let got = rig.with(rig.get(), &[Fault::Cut { after }]).await;
        assert!(got.broke && got.status == 200 && got.body == rig.blob[..after as usize], "cut after {after}");
        assert_eq!(got.headers["content-length"], size.to_string());
        assert!(rig.whole(&fetch(rig.get()).await), "only once");
    }
    let got = rig.with(rig.get(), &[Fault::Truncate { to: 1234 }]).await;
    assert!(!got.broke && got.body == rig.blob[..1234]);
    assert_eq!(got.headers["content-length"], "1234");
    let got = rig.with(rig.get(), &[Fault::ContentLength(size as u64 + 7)]).await;
    assert!(got.broke && got.body == rig.blob, "the promise of more is not kept");
    assert_eq!(got.headers["content-length"], (size + 7).to_string());
    let got = rig.with(rig.get(), &[Fault::ContentLength(1000)]).await;
    assert!(!got.broke && got.body == rig.blob[..1000]);

    let flipped = |at: usize| {
        let mut blob = rig.blob.clone();
        blob[at] ^= 0xff;
        blob
    };
    let got = rig.with(rig.get(), &[Fault::Flip { at: 123_456 }]).await;
    assert!(got.body == flipped(123_456) && !got.broke);
    let part = |range: &str| rig.get().header("range", format!("bytes={range}"));
    let got = rig.with(part("100000-199999"), &[Fault::Flip { at: 123_456 }]).await;
    assert!(got.body == flipped(123_456)[100_000..200_000], "the offset is the blob's");
    let got = rig.with(part("200000-"), &[Fault::Flip { at: 123_456 }]).await;
    assert!(got.body == rig.blob[200_000..], "that byte is not in this part");

    let got = rig.with(part("1000-1999"), &[Fault::ContentRange("bytes 0-999/5".to_owned())]).await;
    assert_eq!((got.status.as_u16(), got.headers["content-range"].to_str().unwrap()), (206, "bytes 0-999/5"));
    assert!(got.body == rig.blob[1000..2000]);
    let got = rig.with(part("1000-1999"), &[Fault::IgnoreRange]).await;
    assert!(rig.whole(&got) && !got.headers.contains_key("content-range"));
    let got = rig.with(part("1000-1999"), &[Fault::IgnoreRange, Fault::Cut { after: 500 }]).await;
    assert!(got.broke && got.status == 200 && got.body == rig.blob[..500], "two faults at once");

    let begun = Instant::now();
    let got = rig.with(part("0-99999"), &[Fault::Slow { bytes_per_second: 200_000 }]).await;
    assert!(got.body == rig.blob[..100_000] && begun.elapsed() >= Duration::from_millis(490), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_can_come_from_the_proxy_alone() {
    let rig = Rig::open().await;
    let got = rig.with(rig.get(), &[Fault::status(503)]).await;
    assert_eq!((got.status.as_u16(), got.body.len()), (503, 0));
    let got = rig.with(rig.get(), &[Fault::retry_after(429, "2")]).await;
    assert_eq!((got.status.as_u16(), got.headers["retry-after"].to_str().unwrap()), (429, "2"));
    let got = rig.with(rig.get(), &[Fault::status(401)]).await;
    assert_eq!(
        (got.status.as_u16(), got.headers["www-authenticate"].to_str().unwrap()),
        (401, "Basic realm=\"tests\"")
    );
    rig.proxy.clear();
    rig.proxy.on(Rule::get("*", Fault::Hangup).first());
    rig.get().send().await.expect_err("no answer at all");
    assert_eq!(rig.proxy.seen().pop().unwrap().status, None);
    assert!(rig.whole(&fetch(rig.get()).await));

    rig.proxy.clear();
    rig.proxy.on(Rule::get(&rig.path, Fault::status(500)).nth(2..=3));
    rig.proxy.on(Rule::get("/v2/*/blobs/*", Fault::status(502)).nth(3..5));
    rig.proxy.on(Rule::new("PUT", "*", Fault::status(507)));
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(fetch(rig.get()).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 500, 500, 502, 200, 200], "every rule counts by itself, and the first decides");
    let client = rig.registry.authority.client();
    let manifest = format!("{}/v2/team/macos/manifests/latest", rig.proxy.url());
    assert_eq!(client.get(&manifest).header("accept", MANIFEST).send().await.unwrap().status(), 200);
    let put = client.put(manifest).body(vec![0; 3_000_000]).send().await.unwrap();
    assert_eq!(put.status(), 507, "the answer is heard although nobody wanted what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_held_until_the_test_lets_it_go() {
    let rig = Rig::open().await;
    rig.proxy.on(Rule::get("*/blobs/*", Fault::Hold { after: 100_000 }));
    let pull = tokio::spawn(fetch(rig.get()));
    rig.proxy.until("the first part is sent", |seen| seen.iter().any(|seen| seen.sent == 100_000)).await;
    assert!(!pull.is_finished());
    assert_eq!(rig.proxy.sent(), 100_000);
    rig.proxy.release();
    let got = pull.await.unwrap();
    assert!(rig.whole(&got));
    assert!(rig.whole(&fetch(rig.get()).await), "and what comes later is not held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_shows_whether_the_login_came_along() {
    let rig = Rig::new(Registry::closed(login()).await, |front| front).await;
    let storage = Proxy::before(&rig.registry).elsewhere().signed().start().await;
    assert!(storage.address().starts_with("127.0.0.2:"));
    rig.proxy.on(Rule::get("*/blobs/*", Fault::Redirect { base: storage.url() }).nth(1..));

    assert_eq!(fetch(rig.get()).await.status, 401, "the registry refuses before the proxy's rules are looked at");
    let Login { user, password } = login();
    let sent = fetch(rig.get().basic_auth(&user, Some(&password))).await;
    assert_eq!(sent.status, 307);
    let location = sent.headers["location"].to_str().unwrap();
    assert_eq!(location, format!("{}{}", storage.url(), rig.path));
    let client = rig.registry.authority.client();
    assert_eq!(fetch(client.get(location).basic_auth(&user, Some(&password))).await.status, 400);
    assert!(rig.whole(&fetch(client.get(location)).await));

    let schemes = |proxy: &Proxy| proxy.seen().into_iter().map(|seen| seen.authorization).collect::<Vec<_>>();
    assert_eq!(schemes(&rig.proxy), [None, Some("Basic".to_owned())]);
    assert_eq!(schemes(&storage), [Some("Basic".to_owned()), None]);
    assert!(!format!("{:?}{:?}", rig.proxy.seen(), storage.seen()).contains(&login().basic()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_requested_and_expire() {
    let registry = Registry::closed(Login::new("upstream", "only the proxy knows")).await;
    let tokens = Tokens::lasting(Duration::from_secs(300)).only_for(login());
    let rig = Rig::new(registry, |front| front.bearer(tokens)).await;
    rig.proxy.on(Rule::get("/token", Fault::status(503)).first());

    let refused = fetch(rig.get()).await;
    let challenge = refused.headers["www-authenticate"].to_str().unwrap();
    let realm = format!("{}/token", rig.proxy.url());
    assert_eq!(refused.status, 401);
    assert_eq!(challenge, format!("Bearer realm=\"{realm}\",service=\"tests\",scope=\"repository:team/macos:pull\""));

    let client = rig.registry.authority.client();
    let Login { user, password } = login();
    let ask = |scope: &str| client.get(&realm).query(&[("service", "tests"), ("scope", scope)]);
    let scope = "repository:team/macos:pull";
    assert_eq!(fetch(ask(scope).basic_auth(&user, Some(&password))).await.status, 503, "rules are for tokens too");
    assert_eq!(fetch(ask(scope)).await.status, 401);
    assert_eq!(fetch(ask(scope).basic_auth(&user, Some("wrong"))).await.status, 401);
    let token = async |scope: &str| {
        let got = fetch(ask(scope).basic_auth(&user, Some(&password))).await;
        let body: Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(body["expires_in"], 300);
        body["token"].as_str().unwrap().to_owned()
    };
    let good = token(scope).await;
    assert!(rig.whole(&fetch(rig.get().bearer_auth(&good)).await));
    let narrow = token("repository:team/other:pull").await;
    let refused = fetch(rig.get().bearer_auth(&narrow)).await;
    assert_eq!(refused.status, 401);
    assert!(refused.headers["www-authenticate"].to_str().unwrap().ends_with(",error=\"insufficient_scope\""));
    let upload = format!("{}/v2/team/macos/blobs/uploads/", rig.proxy.url());
    assert_eq!(client.post(&upload).bearer_auth(&good).send().await.unwrap().status(), 401, "pulling is not pushing");
    let writer = token("repository:team/macos:pull,push").await;
    assert_eq!(client.post(&upload).bearer_auth(&writer).send().await.unwrap().status(), 202);

    rig.proxy.expire_tokens();
    let refused = fetch(rig.get().bearer_auth(&good)).await;
    assert!(refused.headers["www-authenticate"].to_str().unwrap().ends_with(",error=\"invalid_token\""));
    assert!(rig.whole(&fetch(rig.get().bearer_auth(token(scope).await)).await));

    // And by themselves, for whoever asks; here in clear.
    let brief = Tokens::lasting(Duration::ZERO);
    let proxy = Proxy::before(&rig.registry).plain().bearer(brief).start().await;
    assert!(proxy.url().starts_with("http://127.0.0.1:"));
    let got = fetch(client.get(format!("{}/token?scope={scope}", proxy.url()))).await;
    let body: Value = serde_json::from_slice(&got.body).unwrap();
    let request = client.get(format!("{}{}", proxy.url(), rig.path)).bearer_auth(body["token"].as_str().unwrap());
    assert_eq!(fetch(request).await.status, 401);
}
