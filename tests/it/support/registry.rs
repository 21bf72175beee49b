//! A real registry: the distribution's own, on a loopback port with TLS, with a directory of its own.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::authority::Authority;

pub struct Login {
    pub user: String,
    pub password: String,
}

impl Login {
    pub fn new(user: &str, password: &str) -> Login {
        Login { user: user.to_owned(), password: password.to_owned() }
    }

    /// What stands in `Authorization`, and after `"auth":` in Docker's configuration.
    pub fn basic(&self) -> String {
        STANDARD.encode(format!("{}:{}", self.user, self.password))
    }
}

pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
    pub authority: Arc<Authority>,
    /// `127.0.0.1:PORT`: what an image reference starts with.
    pub address: String,
    pub login: Option<Login>,
}

impl Registry {
    /// Whoever trusts the authority may read and write.
    pub async fn open() -> Registry {
        Self::start(Arc::new(Authority::new()), None).await
    }

    /// Nothing without this name and password.
    pub async fn closed(login: Login) -> Registry {
        Self::start(Arc::new(Authority::new()), Some(login)).await
    }

    async fn start(authority: Arc<Authority>, login: Option<Login>) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        authority.issue().write(&at("cert.pem"), &at("key.pem"));
        // JSON is YAML too.
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": at("storage")}, "delete": {"enabled": true}},
            "http": {"addr": "127.0.0.1:0", "tls": {"certificate": at("cert.pem"), "key": at("key.pem")}},
        });
        if let Some(login) = &login {
            htpasswd(&at("htpasswd"), login);
            config["auth"] = json!({"htpasswd": {"realm": "tests", "path": at("htpasswd")}});
        }
        std::fs::write(at("config.yml"), config.to_string()).unwrap();
        // Without the caller's environment: REGISTRY_* would change the configuration.
        let mut child = Command::new("docker-registry")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .arg("serve")
            .arg(at("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts: `.ci/deps.sh test` installs it");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log: Arc<Mutex<Vec<String>>> = Default::default();
        let (found, address) = tokio::sync::oneshot::channel();
        let lines = log.clone();
        std::thread::spawn(move || {
            let mut found = Some(found);
            for line in stderr.lines().map_while(Result::ok) {
                // Written once the port is bound: from then on connections are taken.
                if let Some((_, rest)) = line.split_once("listening on ")
                    && let Some(found) = found.take()
                {
                    let _ = found.send(rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect());
                }
                lines.lock().unwrap().push(line);
            }
        });
        let mut registry = Registry { child, dir, log, authority, address: String::new(), login };
        registry.address = match tokio::time::timeout(Duration::from_secs(20), address).await {
            Ok(Ok(address)) => address,
            _ => panic!("the registry did not say where it listens:\n{}", registry.log()),
        };
        if let Some(login) = &registry.login {
            let auths = json!({"auths": {registry.address.as_str(): {"auth": login.basic()}}});
            std::fs::write(registry.dir.path().join("auth.json"), auths.to_string()).unwrap();
        }
        registry
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// A request with the registry's own login, where it has one.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.authority.client().request(method, format!("{}{path}", self.url()));
        match &self.login {
            Some(login) => request.basic_auth(&login.user, Some(&login.password)),
            None => request,
        }
    }

    /// Runs skopeo, which trusts the registry and may log in.
    pub async fn skopeo(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new("skopeo");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("SSL_CERT_FILE", self.authority.file())
            .arg("--insecure-policy")
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.login.is_some() {
            // A file, because everybody on the machine may read arguments.
            command.env("REGISTRY_AUTH_FILE", self.dir.path().join("auth.json"));
        }
        let ran = tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("skopeo ends");
        ran.expect("skopeo starts: `.ci/deps.sh test` installs it")
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest of SHA-256");
        self.dir.path().join("storage/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// What the registry has under this digest.
    pub fn held(&self, digest: &str) -> Option<Vec<u8>> {
        std::fs::read(self.blob(digest)).ok()
    }

    /// Changes what the registry has under this digest, which it then serves without a look: as a disk that rots, or an
    /// attacker. The length has to stay, because the registry remembers it.
    pub fn rot(&self, digest: &str, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.held(digest).expect("the registry has it");
        change(&mut bytes);
        std::fs::write(self.blob(digest), bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The registry understands bcrypt only.
fn htpasswd(path: &Path, login: &Login) {
    let mut child = Command::new("htpasswd")
        .args(["-c", "-B", "-i"])
        .arg(path)
        .arg(&login.user)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("htpasswd starts: `.ci/deps.sh test` installs it");
    child.stdin.take().unwrap().write_all(login.password.as_bytes()).unwrap();
    let ran = child.wait_with_output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
