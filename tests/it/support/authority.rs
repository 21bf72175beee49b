//! A private certificate authority, as most have one who run a registry of their own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

pub struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate for this machine by all the names that tests use, and its key.
pub struct Issued {
    cert: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tests' authority");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    /// The authority's own certificate (PEM): what a client has to trust.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    pub fn issue(&self) -> Issued {
        self.issue_with(|_| {})
    }

    pub fn issue_expired(&self) -> Issued {
        self.issue_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    fn issue_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1", "127.0.0.2"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        // Subject and issuer of one name would look self-signed to some clients.
        params.distinguished_name.push(DnType::CommonName, "tests' server");
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        Issued { cert: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    /// Trusts this authority and no other, asks servers directly, and goes where it is sent only when the test does.
    pub fn client(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(self.file()).unwrap()).unwrap();
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap()
    }
}

impl Issued {
    pub fn write(&self, cert: &Path, key: &Path) {
        std::fs::write(cert, self.cert.pem()).unwrap();
        std::fs::write(key, self.key.serialize_pem()).unwrap();
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        let chain: Vec<CertificateDer<'static>> = vec![self.cert.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(server)
    }
}
