//! moto's server (PyPI), which simulates Amazon's services on loopback.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Ended when it is dropped.
pub struct Moto {
    child: Child,
    pub url: String,
}

impl Moto {
    pub async fn start(env: &[(&str, &str)]) -> Self {
        let cache = std::env::var_os("MAYFLY_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            cache
                .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"))
                .join("mayfly")
        });
        let program = cache.join("moto-venv/bin/moto_server");
        assert!(program.exists(), "there is no {}: `.ci/deps.sh test` installs it", program.display());
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (found, url) = tokio::sync::oneshot::channel();
        // To the end: a server that cannot write its log stops.
        std::thread::spawn(move || {
            let mut found = Some(found);
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("Running on ")
                    && let Some(found) = found.take()
                {
                    let _ = found.send(url.trim().to_owned());
                }
            }
        });
        let mut moto = Moto { child, url: String::new() };
        moto.url = tokio::time::timeout(Duration::from_secs(60), url)
            .await
            .expect("moto says where it listens in time")
            .expect("moto says where it listens");
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
