//! OpenSSH's server on a loopback port, with keys of its own: what the vms of these tests have in place of a guest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::io::{AsyncBufReadExt, BufReader};

pub struct Sshd {
    child: Child,
    pub port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn user() -> String {
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    String::from_utf8(user).unwrap().trim().to_owned()
}

impl Sshd {
    pub async fn start() -> Sshd {
        let _ = fs::create_dir_all("/run/sshd");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for key in ["host", "login"] {
            keygen(&at(key));
        }
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nAuthorizedKeysFile {}\nHostKey {}\n",
            at("login.pub").display(),
            at("host").display()
        );
        fs::write(at("config"), config).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(at("config"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .expect("openssh-server is installed");
        let sshd = Sshd { child, port, dir };
        sshd.answers().await;
        sshd
    }

    async fn answers(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(stream) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await {
                let mut line = String::new();
                if BufReader::new(stream).read_line(&mut line).await.is_ok() && line.starts_with("SSH-") {
                    return;
                }
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(tokio::time::Instant::now() < end, "sshd does not answer: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The private key that it accepts.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("login")
    }
}

fn keygen(path: &Path) {
    let out = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
