//! TLS from certificate files: with a private authority, as most who use it have one.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::{USAGE, mode, refused, says, temp, used};
use crate::support::Serve;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), mode(0o600)).unwrap();
    }
}

/// An authority, and a certificate of it for this machine.
fn certificates() -> Files {
    let files = Files { dir: temp() };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    files.write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    files.write("cert.pem", &cert.pem());
    files.write("key.pem", &key.serialize_pem());
    files.write("other-key.pem", &KeyPair::generate().unwrap().serialize_pem());
    files
}

fn client(files: Option<&Files>) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    let trusted = files.map(|f| reqwest::Certificate::from_pem(&std::fs::read(f.path("ca.pem")).unwrap()).unwrap());
    builder.tls_certs_only(trusted).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_clients_that_trust_its_authority_and_none_in_plain_text() {
    let files = certificates();
    let (cert, key) = (files.shown("cert.pem"), files.shown("key.pem"));
    let mut serve = Serve::start(&[("MAYFLY_SERVER__TLS_CERT", &cert), ("MAYFLY_SERVER__TLS_KEY", &key)]).await;
    assert!(serve.url.starts_with("https://"), "{}", serve.url);
    let address = serve.url.trim_start_matches("https://").to_owned();
    let vms = format!("{}/vms", serve.url);

    let got = client(Some(&files)).get(&vms).bearer_auth(serve.token()).send().await.unwrap();
    assert_eq!(got.status(), 200);
    let named = vms.replace("127.0.0.1", "localhost");
    assert_eq!(client(Some(&files)).get(named).bearer_auth(serve.token()).send().await.unwrap().status(), 200);
    client(None).get(&vms).send().await.expect_err("who does not trust the authority is warned");
    client(None).get(format!("http://{address}/vms")).send().await.expect_err("nothing is said in clear");

    let cli = |extra: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_mayfly"))
            .env_clear()
            .arg("--data-dir")
            .arg(&serve.dir)
            .args(["--url", &serve.url])
            .env("MAYFLY_TOKEN", serve.token())
            .args(extra)
            .args(["vm", "list", "--json"])
            .output()
            .unwrap()
    };
    let ran = cli(&["--ca-file", &files.shown("ca.pem")]);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let ran = cli(&[]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(4), "{said}");
    says(&said, &["certificate", "--ca-file"]);
    let ran = cli(&["--ca-file", &files.shown("key.pem")]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{said}");
    says(&said, &["--ca-file", "key.pem"]);

    // Connections that never say hello do not hold up the end.
    let silent = std::net::TcpStream::connect(&address).unwrap();
    let mut stammering = std::net::TcpStream::connect(&address).unwrap();
    stammering.write_all(&[0x16, 0x03, 0x01]).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    assert_eq!(serve.stop(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?} to end", began.elapsed());
    drop((silent, stammering));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_refused_at_the_start() {
    let files = certificates();
    files.write("empty.pem", "");
    let serve = used().await;
    for (cert, key, words) in [
        ("key.pem", "key.pem", ["certificate", "key.pem"]),
        ("empty.pem", "key.pem", ["certificate", "empty.pem"]),
        ("cert.pem", "cert.pem", ["private key", "cert.pem"]),
        ("cert.pem", "empty.pem", ["private key", "empty.pem"]),
        ("cert.pem", "other-key.pem", ["other-key.pem", "cert.pem"]),
    ] {
        let (cert, key) = (files.shown(cert), files.shown(key));
        let settings = [("MAYFLY_SERVER__TLS_CERT", &*cert), ("MAYFLY_SERVER__TLS_KEY", &*key)];
        says(&refused(&serve.dir, &settings, USAGE), &words);
    }
    let meta = std::fs::metadata(serve.dir.join("mayfly.db")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}
