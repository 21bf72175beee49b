//! An image as Tart pushes it, made without any of the library's code: a mistake in the format would otherwise be made twice
//! and never seen.

use reqwest::{Method, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{registry::Registry, tart};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.cirruslabs.tart.config.v1";
pub const DISK: &str = "application/vnd.cirruslabs.tart.disk.v2";
pub const DISK_V1: &str = "application/vnd.cirruslabs.tart.disk.v1";
pub const OVERLAY: &str = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
pub const NVRAM: &str = "application/vnd.cirruslabs.tart.nvram.v1";
const STUB: &str = "application/vnd.oci.image.config.v1+json";

pub const SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
pub const CONTENT: &str = "org.cirruslabs.tart.uncompressed-content-digest";
pub const DISK_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";

const BLOCK: usize = 64 << 10;

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What one chunk of the disk holds.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    Zeros(usize),
    /// Does not compress. The same seed gives the same bytes.
    Noise(u64, usize),
    /// Compresses, also against what came up to 64 KiB before.
    Text(u64, usize),
    /// Text with long runs of zeros in it: what becomes holes.
    Holes(u64, usize),
    /// One byte again and again: packs to next to nothing, and takes all of its space on the disk.
    Constant(u8, usize),
}

impl Content {
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Content::Zeros(size) => vec![0; size],
            Content::Noise(seed, size) => {
                let mut random = Random(seed);
                let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes())
                    .take(size.div_ceil(8))
                    .collect::<Vec<_>>()
                    .concat();
                bytes.truncate(size);
                bytes
            }
            Content::Text(seed, size) => {
                let mut random = Random(seed);
                // Few enough words that each comes again within the window, and many enough that it does not come at once.
                let words: Vec<String> = (0..2000).map(|_| format!("{:x} ", random.next())).collect();
                let mut bytes = Vec::with_capacity(size + 32);
                while bytes.len() < size {
                    bytes.extend_from_slice(words[(random.next() % words.len() as u64) as usize].as_bytes());
                }
                bytes.truncate(size);
                bytes
            }
            Content::Constant(byte, size) => vec![byte; size],
            Content::Holes(seed, size) => {
                let mut bytes = Content::Text(seed, size).bytes();
                // The middle half, which begins and ends at no boundary of anything.
                bytes[size / 4..size - size / 4].fill(0);
                bytes
            }
        }
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How chunks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Each block by itself.
    Independent,
    /// Blocks refer to what came up to 64 KiB before, as Apple's own encoder lets them.
    Linked,
    /// Nothing is compressed.
    Stored,
}

/// One stream in Apple's framing.
pub fn apple_lz4(bytes: &[u8], encoding: Encoding) -> Vec<u8> {
    let mut out = Vec::new();
    for start in (0..bytes.len()).step_by(BLOCK) {
        let plain = &bytes[start..bytes.len().min(start + BLOCK)];
        let packed = match encoding {
            Encoding::Independent => Some(lz4_flex::block::compress(plain)),
            Encoding::Linked => {
                Some(lz4_flex::block::compress_with_dict(plain, &bytes[start.saturating_sub(BLOCK)..start]))
            }
            Encoding::Stored => None,
        };
        match packed.filter(|packed| packed.len() < plain.len()) {
            Some(packed) => {
                out.extend_from_slice(b"bv41");
                out.extend_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
                out.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
                out.extend_from_slice(&packed);
            }
            None => {
                out.extend_from_slice(b"bv4-");
                out.extend_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
                out.extend_from_slice(plain);
            }
        }
    }
    out.extend_from_slice(b"bv4$");
    out
}

/// What is wrong with an image. The registry takes them all; digests that do not fit are made by changing what it holds
/// ([`Registry::rot`]) or what comes over the wire.
#[derive(Debug, Clone, Copy)]
pub enum Broken {
    /// A chunk does not say how large it is.
    NoSize {
        chunk: usize,
    },
    /// A chunk does not say what its content's digest is.
    NoContentDigest {
        chunk: usize,
    },
    /// A chunk's content has another digest than it says.
    WrongContentDigest {
        chunk: usize,
    },
    /// A chunk's content has this many bytes more (or fewer) than it says; so the following chunks would overlap it, or
    /// leave a gap.
    WrongSize {
        chunk: usize,
        by: i64,
    },
    /// A number that is none.
    SizeIsText {
        chunk: usize,
    },
    /// The blob is larger or smaller than its descriptor says.
    WrongBlobSize {
        chunk: usize,
        by: i64,
    },
    /// The disk is said to be larger or smaller than its chunks together.
    WrongDiskSize {
        by: i64,
    },
    /// A chunk is left out.
    Missing {
        chunk: usize,
    },
    /// The chunk's stream ends early. Its digests and its blob's size are right.
    Truncated {
        chunk: usize,
        to: usize,
    },
    /// The stream of the chunk goes on with zeros far beyond what it says.
    Bomb {
        chunk: usize,
        blocks: usize,
    },
    /// A block claims four gigabytes.
    HugeBlock {
        chunk: usize,
    },
    /// Bytes that are no stream at all.
    NotLz4 {
        chunk: usize,
    },
    /// Chunks of Tart's first format, which are slices of one stream.
    V1,
    /// A stacked disk.
    Overlay,
    TwoConfigs,
    NoConfig,
    NoNvram,
    NoDisk,
    /// NVRAM before the disk.
    Disorder,
    /// A container image of the same parts.
    Foreign,
}

#[derive(Debug, Clone)]
pub struct Layer {
    pub media_type: &'static str,
    pub blob: Vec<u8>,
    /// Said in the descriptor; may lie.
    pub size: i64,
    pub annotations: Map<String, Value>,
}

impl Layer {
    fn new(media_type: &'static str, blob: Vec<u8>) -> Layer {
        Layer { media_type, size: blob.len() as i64, blob, annotations: Map::new() }
    }

    fn chunk(content: &[u8], blob: Vec<u8>) -> Layer {
        let mut layer = Layer::new(DISK, blob);
        layer.annotations.insert(SIZE.to_owned(), content.len().to_string().into());
        layer.annotations.insert(CONTENT.to_owned(), digest(content).into());
        layer
    }

    pub fn digest(&self) -> String {
        digest(&self.blob)
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type, "digest": self.digest(), "size": self.size, "annotations": self.annotations,
        })
    }
}

#[derive(Debug, Clone)]
pub struct TartImage {
    /// config.json, disk.img and nvram.bin as they are to come out.
    pub config: Vec<u8>,
    pub disk: Vec<u8>,
    pub nvram: Vec<u8>,
    /// In the order of the manifest.
    pub layers: Vec<Layer>,
    stub: Vec<u8>,
    disk_size: i64,
}

impl TartImage {
    pub fn new(chunks: &[Content], encoding: Encoding) -> TartImage {
        Self::with(&tart::config("darwin"), chunks, encoding)
    }

    /// With a VM's configuration of one's own.
    pub fn with(config: &Value, chunks: &[Content], encoding: Encoding) -> TartImage {
        Self::of_contents(config, chunks.iter().map(|chunk| chunk.bytes()).collect(), encoding)
    }

    /// Of a disk that there is.
    pub fn of_disk(config: &Value, disk: &[u8], encoding: Encoding) -> TartImage {
        Self::of_contents(config, disk.chunks(16 << 20).map(<[u8]>::to_vec).collect(), encoding)
    }

    fn of_contents(config: &Value, contents: Vec<Vec<u8>>, encoding: Encoding) -> TartImage {
        let format = config.get("diskFormat").and_then(Value::as_str).unwrap_or("raw");
        let stub = json!({
            "architecture": config["arch"], "os": config["os"],
            "config": {"Labels": {"org.cirruslabs.tart.disk.format": format}},
        });
        let config = serde_json::to_vec_pretty(config).unwrap();
        let nvram = Content::Noise(0x6e76, 4096).bytes();
        let mut layers = vec![Layer::new(CONFIG, config.clone())];
        layers.extend(contents.iter().map(|content| Layer::chunk(content, apple_lz4(content, encoding))));
        layers.push(Layer::new(NVRAM, nvram.clone()));
        let disk = contents.concat();
        let disk_size = disk.len() as i64;
        TartImage { config, disk, nvram, layers, stub: canonical(&stub), disk_size }
    }

    /// The chunk of this number, from 0.
    pub fn chunk(&self, chunk: usize) -> &Layer {
        self.layers.iter().filter(|layer| layer.media_type == DISK).nth(chunk).expect("the disk has so many chunks")
    }

    fn at(&mut self, chunk: usize) -> &mut Layer {
        self.layers.iter_mut().filter(|layer| layer.media_type == DISK).nth(chunk).expect("the disk has so many chunks")
    }

    fn pack(&mut self, chunk: usize, blob: Vec<u8>) {
        let layer = self.at(chunk);
        layer.size = blob.len() as i64;
        layer.blob = blob;
    }

    pub fn broken(mut self, how: Broken) -> TartImage {
        match how {
            Broken::NoSize { chunk } => drop(self.at(chunk).annotations.remove(SIZE)),
            Broken::NoContentDigest { chunk } => drop(self.at(chunk).annotations.remove(CONTENT)),
            Broken::WrongContentDigest { chunk } => {
                self.at(chunk).annotations[CONTENT] = digest(b"something else").into();
            }
            Broken::WrongSize { chunk, by } => {
                let said: i64 = self.at(chunk).annotations[SIZE].as_str().unwrap().parse().unwrap();
                self.at(chunk).annotations[SIZE] = (said + by).to_string().into();
            }
            Broken::SizeIsText { chunk } => self.at(chunk).annotations[SIZE] = "512 MiB".into(),
            Broken::WrongBlobSize { chunk, by } => self.at(chunk).size += by,
            Broken::WrongDiskSize { by } => self.disk_size += by,
            Broken::Missing { chunk } => {
                let mut chunks = self.layers.iter().enumerate().filter(|(_, layer)| layer.media_type == DISK);
                let at = chunks.nth(chunk).expect("the disk has so many chunks").0;
                self.layers.remove(at);
            }
            Broken::Truncated { chunk, to } => {
                let blob = self.chunk(chunk).blob[..to].to_vec();
                self.pack(chunk, blob);
            }
            Broken::Bomb { chunk, blocks } => {
                let blob = &self.chunk(chunk).blob;
                let mut bomb = blob[..blob.len() - 4].to_vec();
                bomb.extend_from_slice(&apple_lz4(&vec![0; blocks * BLOCK], Encoding::Independent));
                self.pack(chunk, bomb);
            }
            Broken::HugeBlock { chunk } => {
                let mut blob = b"bv41\xff\xff\xff\xff".to_vec();
                blob.extend_from_slice(&16u32.to_le_bytes());
                blob.extend_from_slice(&[0; 16]);
                blob.extend_from_slice(b"bv4$");
                self.pack(chunk, blob);
            }
            Broken::NotLz4 { chunk } => self.pack(chunk, b"<html>try again later</html>".to_vec()),
            Broken::V1 => {
                let stream = apple_lz4(&self.disk, Encoding::Linked);
                self.layers.retain(|layer| layer.media_type != DISK);
                let slices = stream.chunks(stream.len().div_ceil(2)).map(|slice| Layer::new(DISK_V1, slice.to_vec()));
                self.layers.splice(1..1, slices.collect::<Vec<_>>());
            }
            Broken::Overlay => {
                let mut overlay = self.chunk(0).clone();
                overlay.media_type = OVERLAY;
                self.layers.insert(self.layers.len() - 1, overlay);
            }
            Broken::TwoConfigs => self.layers.insert(1, Layer::new(CONFIG, b"{\"version\":1}".to_vec())),
            Broken::NoConfig => self.layers.retain(|layer| layer.media_type != CONFIG),
            Broken::NoNvram => self.layers.retain(|layer| layer.media_type != NVRAM),
            Broken::NoDisk => self.layers.retain(|layer| layer.media_type != DISK),
            Broken::Disorder => {
                let nvram = self.layers.pop().unwrap();
                self.layers.insert(1, nvram);
            }
            Broken::Foreign => {
                for layer in &mut self.layers {
                    layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
                    layer.annotations.clear();
                }
            }
        }
        self
    }

    /// The manifest's exact bytes.
    pub fn manifest(&self) -> Vec<u8> {
        canonical(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": STUB, "digest": digest(&self.stub), "size": self.stub.len()},
            "layers": self.layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
            "annotations": {
                DISK_SIZE: self.disk_size.to_string(),
                "org.cirruslabs.tart.upload-time": "2026-02-23T17:55:36Z",
            },
        }))
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest())
    }

    /// Pushes blobs and manifest; the answer is the manifest's digest.
    pub async fn push(&self, registry: &Registry, repository: &str, tag: &str) -> String {
        for blob in self.layers.iter().map(|layer| &layer.blob).chain([&self.stub]) {
            push_blob(registry, repository, blob).await;
        }
        push_manifest(registry, repository, tag, MANIFEST, self.manifest()).await
    }

    /// Pushes it as one of several in a list, for the platforms named. The answer is the list's digest.
    pub async fn push_list(
        &self,
        registry: &Registry,
        repository: &str,
        tag: &str,
        platforms: &[(&str, &str)],
    ) -> String {
        let inner = self.push(registry, repository, &self.digest()).await;
        let size = self.manifest().len();
        let entry = |(os, architecture): &(&str, &str)| {
            json!({
                "mediaType": MANIFEST, "digest": inner, "size": size,
                "platform": {"os": os, "architecture": architecture},
            })
        };
        let entries: Vec<Value> = platforms.iter().map(entry).collect();
        let list = canonical(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}));
        push_manifest(registry, repository, tag, INDEX, list).await
    }
}

pub async fn push_blob(registry: &Registry, repository: &str, blob: &[u8]) {
    let digest = digest(blob);
    let head = registry.request(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}")).send().await.unwrap();
    if head.status() == 200 {
        return;
    }
    let begun = registry.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/")).send().await.unwrap();
    assert_eq!(begun.status(), 202, "an upload begins: {}", registry.log());
    let location = begun.headers()[header::LOCATION].to_str().unwrap();
    let path = location.strip_prefix(&registry.url()).unwrap_or(location).to_owned();
    let request = registry.request(Method::PUT, &path).query(&[("digest", &digest)]);
    let put = request.header(header::CONTENT_TYPE, "application/octet-stream").body(blob.to_vec()).send();
    assert_eq!(put.await.unwrap().status(), 201, "a blob is taken: {}", registry.log());
}

/// Any bytes as a manifest, as far as the registry takes them.
pub async fn push_manifest(
    registry: &Registry,
    repository: &str,
    tag: &str,
    media_type: &str,
    manifest: Vec<u8>,
) -> String {
    let digest = digest(&manifest);
    let request = registry.request(Method::PUT, &format!("/v2/{repository}/manifests/{tag}"));
    let put = request.header(header::CONTENT_TYPE, media_type).body(manifest).send().await.unwrap();
    assert_eq!(put.status(), 201, "a manifest is taken: {}", registry.log());
    digest
}

/// JSON as Tart writes it: keys in order, nothing between, slashes escaped. The digest is of these bytes.
pub fn canonical(value: &Value) -> Vec<u8> {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(object) => {
                let mut keys: Vec<&String> = object.keys().collect();
                keys.sort();
                out.push('{');
                for (i, key) in keys.into_iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push(':');
                    write(&object[key], out);
                }
                out.push('}');
            }
            Value::Array(array) => {
                out.push('[');
                for (i, value) in array.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write(value, out);
                }
                out.push(']');
            }
            other => out.push_str(&other.to_string()),
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    // Outside of strings JSON has no slash.
    out.replace('/', "\\/").into_bytes()
}
