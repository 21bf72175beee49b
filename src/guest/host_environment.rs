//! What the host adds to the environment of a guest's runner and job: its proxies, and certificates of authorities that the
//! guest trusts in addition to its own.

use std::collections::BTreeMap;

use secrecy::SecretString;

/// The additional certificates (PEM) in the bundle.
pub const EXTRA_CERTIFICATES: &str = "ca-extra.pem";
/// Those of the guest and the additional ones, which `boot.sh` writes beside it.
const ALL_CERTIFICATES: &str = "ca-bundle.pem";
/// Programs that take further authorities from the file in this variable.
const ADDING: &str = "NODE_EXTRA_CA_CERTS";
/// Programs that trust the authorities in the file of this variable and no other ones: OpenSSL with what is built on it
/// (GitHub's runner on Linux, Go, Ruby), Git, curl, and Python's Requests.
const REPLACING: [&str; 4] = ["SSL_CERT_FILE", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"];

#[derive(Clone, Debug, Default)]
pub struct HostEnvironment {
    /// Names and values of variables, such as those that name a proxy.
    pub variables: Vec<(&'static str, SecretString)>,
    /// Text (PEM).
    pub certificates: Option<String>,
}

/// The value of a variable.
#[derive(Debug)]
pub enum HostValue<'a> {
    Text(&'a SecretString),
    /// The path of a file of the bundle, whose directory only the guest knows.
    File(&'static str),
}

impl HostEnvironment {
    /// The variables that the job does not set itself. Programs read the upper or the lower case of a name, so a variable of
    /// the job replaces both.
    pub fn without(&self, job: &BTreeMap<String, String>) -> Vec<(&'static str, HostValue<'_>)> {
        let texts = self.variables.iter().map(|(name, value)| (*name, HostValue::Text(value)));
        let replacing = REPLACING.map(|name| (name, HostValue::File(ALL_CERTIFICATES)));
        let files = [(ADDING, HostValue::File(EXTRA_CERTIFICATES))].into_iter().chain(replacing);
        let files = files.filter(|_| self.certificates.is_some());
        let own = |name: &str| job.keys().any(|key| key.eq_ignore_ascii_case(name));
        texts.chain(files).filter(|(name, _)| !own(name)).collect()
    }
}
