//! Implements `HostProbe` for the real machine, with a time limit for each query.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::timeout;

use super::probe::{Busy, FileKind, FileStatus, HostProbe, LOOK, Probed, Ran, Space, System, Unseen};
use crate::{
    domain::Arch,
    drivers::{
        process::{self, CommandLine},
        qemu,
    },
    platform::{
        clock, error_chain,
        http::{ClientOptions, Trust},
        process::{Command, CommandError, find_program},
    },
};

/// A service on this machine answers sooner or is stuck.
const ANSWER: Duration = Duration::from_secs(3);

pub struct MachineFacts {
    http: reqwest::Client,
}

impl MachineFacts {
    pub fn new() -> Result<Self, String> {
        let http = ClientOptions {
            total_timeout: Some(ANSWER),
            use_proxy: false,
            // Nothing secret is sent, and the service's certificate is not valid for the loopback address.
            trust: Trust::AnyServer,
            ..ClientOptions::new(ANSWER)
        };
        let http = http.build().map_err(|error| format!("cannot set up HTTP: {}", error_chain(&error)))?;
        Ok(Self { http })
    }
}

async fn get(http: &reqwest::Client, url: &str) -> Probed<Vec<u8>> {
    /// Any program may listen there, so the answer is bounded.
    const LIMIT: usize = 4 << 20;
    let unseen = |error: &reqwest::Error| match error {
        e if e.is_timeout() => Unseen::TimedOut(ANSWER),
        e if e.is_connect() => Unseen::Absent,
        e => Unseen::Other(e.to_string()),
    };
    let mut answer = http.get(url).send().await.map_err(|e| unseen(&e))?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(Unseen::Other(format!("it answered {}", answer.status())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| unseen(&e))? {
        if body.len() + chunk.len() > LIMIT {
            return Err(Unseen::Other("it answered without end".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// File systems hang, too: a server that went away. The thread that waits for it is left to its fate.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Probed<T> {
    match timeout(LOOK, tokio::task::spawn_blocking(work)).await {
        Err(_) => Err(Unseen::TimedOut(LOOK)),
        Ok(Err(error)) => Err(Unseen::Other(error.to_string())),
        Ok(Ok(Err(error))) => Err(Unseen::from_io(&error)),
        Ok(Ok(Ok(value))) => Ok(value),
    }
}

#[async_trait]
impl HostProbe for MachineFacts {
    fn system(&self) -> System {
        if cfg!(target_os = "macos") { System::Macos } else { System::Linux }
    }

    fn uid(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }

    fn env(&self) -> Vec<(String, String)> {
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
    }

    fn find_program(&self, program: &Path) -> Option<PathBuf> {
        find_program(program)
    }

    async fn run(&self, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Probed<Ran> {
        let mut command = Command::new(program, LOOK).args(args);
        for (key, value) in env {
            command = command.env(key, value);
        }
        match command.run().await {
            Ok(output) => {
                Ok(Ran { code: output.status.code(), stdout: output.stdout_text(), stderr: output.stderr_tail })
            }
            Err(CommandError::Missing { .. }) => Err(Unseen::Absent),
            Err(CommandError::Deadline { .. }) => Err(Unseen::TimedOut(LOOK)),
            Err(error) => Err(Unseen::Other(error.to_string())),
        }
    }

    async fn read(&self, path: &Path, limit: usize) -> Probed<Vec<u8>> {
        let path = path.to_owned();
        blocking(move || {
            use io::Read;
            // Opening a pipe would wait for its writer.
            if !std::fs::metadata(&path)?.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            let mut bytes = Vec::new();
            std::fs::File::open(&path)?.take(limit as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    async fn entry(&self, path: &Path) -> Probed<FileStatus> {
        let path = path.to_owned();
        blocking(move || {
            let meta = std::fs::metadata(path)?;
            let kind = match meta.file_type() {
                t if t.is_dir() => FileKind::Directory,
                t if t.is_file() => FileKind::File,
                _ => FileKind::Other,
            };
            Ok(FileStatus {
                kind,
                mode: meta.permissions().mode() & 0o7777,
                uid: meta.uid(),
                device: meta.dev(),
                size: meta.len(),
                modified: Timestamp::from_second(meta.mtime()).map_err(io::Error::other)?,
            })
        })
        .await
    }

    async fn resolve(&self, path: &Path) -> Probed<PathBuf> {
        let path = path.to_owned();
        blocking(move || path.canonicalize()).await
    }

    async fn names(&self, dir: &Path) -> Probed<Vec<String>> {
        let dir = dir.to_owned();
        blocking(move || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                names.extend(entry?.file_name().into_string());
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn may_read_and_write(&self, path: &Path) -> Probed<()> {
        use rustix::fs::{Access, AtFlags, CWD};
        let path = path.to_owned();
        blocking(move || {
            // With the effective user, which counts for opening files.
            rustix::fs::accessat(CWD, path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS).map_err(Into::into)
        })
        .await
    }

    async fn space(&self, path: &Path) -> Probed<Space> {
        let path = path.to_owned();
        blocking(move || {
            let volume = rustix::fs::statvfs(&path)?;
            Ok(Space {
                free: volume.f_bavail.saturating_mul(volume.f_frsize),
                total: volume.f_blocks.saturating_mul(volume.f_frsize),
                file_system: file_system(&path)?,
            })
        })
        .await
    }

    async fn listen(&self, address: SocketAddr) -> Result<(), Busy> {
        match tokio::net::TcpListener::bind(address).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::AddrInUse => Busy::Taken,
                io::ErrorKind::AddrNotAvailable => Busy::NoSuchAddress,
                io::ErrorKind::PermissionDenied => Busy::Denied,
                _ => Busy::Other(error.to_string()),
            }),
        }
    }

    async fn get(&self, url: &str) -> Probed<Vec<u8>> {
        get(&self.http, url).await
    }

    async fn get_over(&self, socket: &Path, path: &str) -> Probed<Vec<u8>> {
        let http = ClientOptions {
            total_timeout: Some(ANSWER),
            use_proxy: false,
            trust: Trust::NoServer,
            unix_socket: Some(socket.to_owned()),
            ..ClientOptions::new(ANSWER)
        };
        let http = http.build().map_err(|error| Unseen::Other(error_chain(&error)))?;
        get(&http, &format!("http://localhost{path}")).await
    }

    async fn processes(&self) -> Vec<(i32, CommandLine)> {
        timeout(LOOK, process::all()).await.map_or_else(|_| Vec::new(), Result::unwrap_or_default)
    }

    async fn boot_guest(&self, binary: &Path) -> Result<(String, Option<String>), String> {
        let arch = Arch::of_this_host().ok_or("this processor is not one that Mayfly knows")?;
        let scratch = std::env::temp_dir();
        let sandbox = qemu::sandbox::check(binary).await.is_ok();
        let (accelerator, note) = qemu::probe::find(binary, arch, sandbox, &scratch).await?;
        Ok((accelerator.as_str().to_owned(), note))
    }
}

#[cfg(target_os = "linux")]
fn file_system(path: &Path) -> io::Result<Option<String>> {
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "a pattern of 32 bits on every processor"
    )]
    let magic = rustix::fs::statfs(path)?.f_type as u32;
    let name = match magic {
        0xef53 => "ext4",
        0x9123_683e => "btrfs",
        0x5846_5342 => "xfs",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0x794c_7630 => "overlay",
        0x0102_1994 => "tmpfs",
        0xf2f5_2010 => "f2fs",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        _ => return Ok(None),
    };
    Ok(Some(name.to_owned()))
}

#[cfg(target_os = "macos")]
fn file_system(path: &Path) -> io::Result<Option<String>> {
    let name: Vec<u8> =
        rustix::fs::statfs(path)?.f_fstypename.iter().map(|c| c.to_ne_bytes()[0]).take_while(|b| *b != 0).collect();
    Ok(String::from_utf8(name).ok().filter(|name| !name.is_empty()))
}
