//! Pushes to a registry on this host that speaks plain HTTP.

use std::{
    io::{self, Read, Write},
    mem,
};

use mayfly::registry::oci::{Digest, lz4};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use super::{Chunk, Content, Result};

/// Sent at once. A registry puts them together.
const PART: usize = 8 << 20;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub struct Registry {
    runtime: Runtime,
    client: Client,
    base: String,
    repository: String,
}

impl Registry {
    pub fn new(address: &str, repository: &str) -> Result<Registry> {
        Ok(Registry {
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
            client: Client::builder().no_proxy().build()?,
            base: format!("http://{address}"),
            repository: repository.to_owned(),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/v2/{}/{path}", self.base, self.repository))
    }

    fn send(&self, request: RequestBuilder, expected: StatusCode) -> Result<Response> {
        let response = self.runtime.block_on(request.send())?;
        let status = response.status();
        if status != expected {
            let said = self.runtime.block_on(response.text())?;
            return Err(format!("the registry answered {status}, expected {expected}: {said:.300}").into());
        }
        Ok(response)
    }

    fn location(response: &Response) -> Result<String> {
        let location = response.headers().get(header::LOCATION).ok_or("the registry gives no Location")?;
        Ok(location.to_str()?.to_owned())
    }

    pub fn push_chunk(&self, content: &Content) -> Result<Chunk> {
        let mut plain = Hashed { inner: content.bytes(), hasher: Sha256::new() };
        let begun = self.send(self.request(Method::POST, "blobs/uploads/"), StatusCode::ACCEPTED)?;
        let mut upload = Upload {
            registry: self,
            location: Self::location(&begun)?,
            sent: 0,
            part: Vec::with_capacity(PART),
            hasher: Sha256::new(),
        };
        let sizes = lz4::encode(&mut plain, &mut upload)?;
        let (digest, size) = upload.finish()?;
        Ok(Chunk {
            digest,
            size,
            content_digest: Digest::finish(plain.hasher).to_string(),
            content_size: sizes.uncompressed,
            zeros: content.is_zeros(),
        })
    }

    fn push_small(&self, media_type: &str, bytes: Vec<u8>) -> Result<Value> {
        let begun = self.send(self.request(Method::POST, "blobs/uploads/"), StatusCode::ACCEPTED)?;
        let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len());
        let put = self.client.put(Self::location(&begun)?).query(&[("digest", &digest)]).body(bytes);
        self.send(put, StatusCode::CREATED)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
    }

    pub fn push_image(&self, tag: &str, chunks: &[Chunk]) -> Result<()> {
        let vm = json!({
            "version": 1, "os": "darwin", "arch": "arm64", "ecid": "YQ==", "hardwareModel": "Yg==",
            "cpuCountMin": 1, "cpuCount": 4, "memorySizeMin": 64 << 20, "memorySize": 4096_u64 << 20,
            "macAddress": "7a:65:e4:3f:b2:51", "display": {"width": 1024, "height": 768},
        });
        let stub = json!({"architecture": "arm64", "os": "darwin"});
        let tart = |part: &str| format!("application/vnd.cirruslabs.tart.{part}");
        let mut layers = vec![self.push_small(&tart("config.v1"), vm.to_string().into_bytes())?];
        layers.extend(chunks.iter().map(|chunk| {
            json!({
                "mediaType": tart("disk.v2"), "digest": chunk.digest, "size": chunk.size,
                "annotations": {
                    "org.cirruslabs.tart.uncompressed-size": chunk.content_size.to_string(),
                    "org.cirruslabs.tart.uncompressed-content-digest": chunk.content_digest,
                },
            })
        }));
        layers.push(self.push_small(&tart("nvram.v1"), vec![7; 1 << 16])?);
        let disk: u64 = chunks.iter().map(|c| c.content_size).sum();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.push_small("application/vnd.oci.image.config.v1+json", stub.to_string().into_bytes())?,
            "layers": layers,
            "annotations": {"org.cirruslabs.tart.uncompressed-disk-size": disk.to_string()},
        });
        let put = self.request(Method::PUT, &format!("manifests/{tag}")).header(header::CONTENT_TYPE, MANIFEST);
        self.send(put.body(manifest.to_string()), StatusCode::CREATED).map(drop)
    }
}

struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(to)?;
        self.hasher.update(&to[..n]);
        Ok(n)
    }
}

/// A blob whose bytes are not all known yet.
struct Upload<'a> {
    registry: &'a Registry,
    location: String,
    sent: u64,
    part: Vec<u8>,
    hasher: Sha256,
}

impl Upload<'_> {
    fn send_part(&mut self) -> Result<()> {
        let part = mem::replace(&mut self.part, Vec::with_capacity(PART));
        if part.is_empty() {
            return Ok(());
        }
        let end = self.sent + part.len() as u64;
        let patch = self
            .registry
            .client
            .patch(&self.location)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_RANGE, format!("{}-{}", self.sent, end - 1))
            .body(part);
        let response = self.registry.send(patch, StatusCode::ACCEPTED)?;
        self.location = Registry::location(&response)?;
        self.sent = end;
        Ok(())
    }

    fn finish(mut self) -> Result<(String, u64)> {
        self.send_part()?;
        let digest = Digest::finish(mem::take(&mut self.hasher)).to_string();
        let put = self.registry.client.put(&self.location).query(&[("digest", &digest)]);
        self.registry.send(put, StatusCode::CREATED)?;
        Ok((digest, self.sent))
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.send_part().map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
