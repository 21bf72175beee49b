//! Archives of GitHub's runner, for guests without one: downloaded once, checked against their checksum, and cached
//! on this host.
//!
//! A file whose name is its checksum is complete: it is renamed only after all of it was checked. A crash leaves a
//! `.part` file, which the next attempt overwrites.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use reqwest::Url;
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, sync::Mutex};

use crate::{
    domain::{Arch, Code, Error, GuestOs, Result, network::is_public},
    platform::{
        files::{self, SpaceGuard},
        http::ClientOptions,
        reach::{CheckedClient, ServerReach},
        tasks::blocking_io,
    },
};

/// Longest pause between two parts of a download: a stalled server is given up, a slow one is not.
const STALL: Duration = Duration::from_secs(60);

/// One archive, as published by GitHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerArchive {
    pub url: Url,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
    pub version: String,
}

/// GitHub's names of systems in archives.
pub fn platform(os: GuestOs, arch: Arch) -> &'static str {
    match (os, arch) {
        (GuestOs::Linux, Arch::X86_64) => "linux-x64",
        (GuestOs::Linux, Arch::Aarch64) => "linux-arm64",
        (GuestOs::Macos, Arch::X86_64) => "osx-x64",
        (GuestOs::Macos, Arch::Aarch64) => "osx-arm64",
    }
}

pub const PLATFORMS: [&str; 4] = ["linux-x64", "linux-arm64", "osx-x64", "osx-arm64"];

/// Whether version `a` is `b` or newer, number by number. A part that is not a number counts as 0.
pub fn at_least(a: &str, b: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> { text.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    let (mut a, mut b) = (numbers(a), numbers(b));
    let length = a.len().max(b.len());
    a.resize(length, 0);
    b.resize(length, 0);
    a >= b
}

/// The configured archives, and their cache directory.
#[derive(Clone, Debug)]
pub struct RunnerArchives {
    dir: PathBuf,
    archives: Arc<BTreeMap<String, RunnerArchive>>,
    http: CheckedClient,
    /// One download at a time: concurrent requests usually need the same one.
    gate: Arc<Mutex<()>>,
    space: SpaceGuard,
}

impl RunnerArchives {
    pub fn new(dir: PathBuf, archives: BTreeMap<String, RunnerArchive>) -> RunnerArchives {
        // The configured addresses may redirect to others.
        let reach = ServerReach::new(archives.values().map(|archive| archive.url.clone()), is_public);
        let http = ClientOptions {
            read_timeout: Some(STALL),
            redirects: reach.redirects(10, |_| Ok(())),
            ..ClientOptions::new(Duration::from_secs(15))
        };
        let http = http.build_within(reach).expect("a client with the system's certificates can be made");
        RunnerArchives {
            space: SpaceGuard::new(dir.clone(), 0),
            dir,
            archives: Arc::new(archives),
            http,
            gate: Arc::default(),
        }
    }

    /// Downloads ask this guard.
    pub fn with_space(self, space: SpaceGuard) -> RunnerArchives {
        RunnerArchives { space, ..self }
    }

    pub fn archive(&self, os: GuestOs, arch: Arch) -> Option<&RunnerArchive> {
        self.archives.get(platform(os, arch))
    }

    /// The archive's file, downloaded if it is not cached.
    pub async fn obtain(&self, archive: &RunnerArchive) -> Result<PathBuf> {
        let path = self.dir.join(format!("{}.tar.gz", archive.sha256));
        let _alone = self.gate.lock().await;
        if tokio::fs::try_exists(&path).await.map_err(Error::internal)? {
            return Ok(path);
        }
        let unavailable = |what: String| {
            Error::new(Code::RunnerUnavailable, format!("runner {} cannot be fetched: {what}", archive.version))
        };
        let part = path.with_extension("part");
        self.fetch(archive, &part).await.map_err(unavailable)?;
        publish(&part, &path).await.map_err(|error| unavailable(error.to_string()))?;
        tracing::info!(version = archive.version, url = %archive.url, "downloaded GitHub's runner");
        Ok(path)
    }

    async fn fetch(&self, archive: &RunnerArchive, part: &Path) -> Result<(), String> {
        let text = |error: reqwest::Error| {
            // The redirect target may be a URL with a signature.
            let mut all = error.without_url().to_string();
            all.truncate(300);
            all
        };
        tokio::fs::create_dir_all(&self.dir).await.map_err(|error| error.to_string())?;
        let answer =
            self.http.get(archive.url.clone()).map_err(|error| error.to_string())?.send().await.map_err(text)?;
        let answer = answer.error_for_status().map_err(text)?;
        let mut file = tokio::fs::File::create(part).await.map_err(|error| error.to_string())?;
        let mut hash = Sha256::new();
        let mut body = answer.bytes_stream();
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(text)?;
            hash.update(&bytes);
            let written = async {
                let _permit = self.space.permit(bytes.len() as u64)?;
                file.write_all(&bytes).await
            };
            if let Err(error) = written.await {
                // Nothing continues it, and it may be what fills the disk.
                let _ = tokio::fs::remove_file(part).await;
                return Err(error.to_string());
            }
        }
        file.sync_all().await.map_err(|error| error.to_string())?;
        let found = hex::encode(hash.finalize());
        if found != archive.sha256 {
            // Otherwise it would be taken for the beginning of the right one.
            let _ = tokio::fs::remove_file(part).await;
            return Err(format!("its checksum is {found}, and {} was expected", archive.sha256));
        }
        Ok(())
    }
}

async fn publish(part: &Path, path: &Path) -> io::Result<()> {
    tokio::fs::rename(part, path).await?;
    let dir = path.parent().map(Path::to_owned);
    blocking_io(move || dir.map_or(Ok(()), |dir| files::sync_dir(&dir))).await
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (a, b, expected) in [
            ("2.336.0", "2.329.0", true),
            ("2.329.0", "2.329.0", true),
            ("2.99.0", "2.329.0", false),
            ("3", "2.329.0", true),
            ("2.329", "2.329.0", true),
            ("", "2.329.0", false),
        ] {
            assert_eq!(at_least(a, b), expected, "{a} {b}");
        }
    }

    /// Answers each connection with the next of these bodies.
    async fn server(bodies: Vec<&'static str>) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/runner.tar.gz", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            for body in bodies {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", 7);
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn an_archive_is_fetched_once_and_never_half() {
        let dir = tempfile::tempdir().unwrap();
        let url = server(vec!["wrongly", "ar", "archive"]).await;
        let sha256 = hex::encode(Sha256::digest(b"archive"));
        let archive = RunnerArchive { url, sha256, version: "2.336.0".into() };
        let programs =
            RunnerArchives::new(dir.path().join("runners"), BTreeMap::from([("linux-x64".into(), archive.clone())]));
        assert_eq!(programs.archive(GuestOs::Linux, Arch::X86_64), Some(&archive));
        assert_eq!(programs.archive(GuestOs::Macos, Arch::Aarch64), None);
        let wrong = programs.obtain(&archive).await.unwrap_err();
        assert!(wrong.code == Code::RunnerUnavailable && wrong.detail.contains("checksum"), "{wrong}");
        let cut = programs.obtain(&archive).await.unwrap_err();
        assert_eq!(cut.code, Code::RunnerUnavailable, "{cut}");
        let path = programs.obtain(&archive).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"archive");
        // The server is gone, so a request would fail.
        assert_eq!(programs.obtain(&archive).await.unwrap(), path);
    }
}
