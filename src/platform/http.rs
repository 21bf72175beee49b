//! Outbound HTTP clients.
//!
//! Every client names Mayfly and its version, sends no `Referer`, and has a timeout for connecting. What else differs between
//! clients is a field of [`ClientOptions`].

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Certificate, Client, ClientBuilder, Response, redirect};

use super::reach::{CheckedClient, ServerReach};

/// How an HTTP client connects. [`ClientOptions::new`] gives the strictest one: no redirects, the system's certificates.
pub struct ClientOptions {
    pub connect_timeout: Duration,
    /// For a whole request, until the last byte of its answer. `None`: no limit.
    pub total_timeout: Option<Duration>,
    /// Until the answer begins, and between two pieces of it. `None`: no limit.
    pub read_timeout: Option<Duration>,
    pub redirects: redirect::Policy,
    pub trust: Trust,
    /// Whether the proxy settings of the environment apply. A proxy for the outside world does not know this host's loopback
    /// addresses, so a client for them must not use it.
    pub use_proxy: bool,
    /// HTTP/1.1 only, so that each request in flight has a connection of its own.
    pub http1_only: bool,
    /// Every connection goes to this socket, whatever host the URL names.
    pub unix_socket: Option<PathBuf>,
}

/// Which certificates a server may show.
pub enum Trust {
    /// One that an authority of the system signed.
    System,
    /// One that an authority of the system or one of these signed.
    SystemAnd(Vec<Certificate>),
    /// None: for servers that are asked in plain HTTP. Works on machines that have no authorities installed.
    NoServer,
    /// Any certificate. Only for requests that carry no secret to a loopback address.
    AnyServer,
}

impl ClientOptions {
    pub fn new(connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            total_timeout: None,
            read_timeout: None,
            redirects: redirect::Policy::none(),
            trust: Trust::System,
            use_proxy: true,
            http1_only: false,
            unix_socket: None,
        }
    }

    /// A client for servers that the operator chose.
    pub fn build(self) -> reqwest::Result<Client> {
        self.builder().build()
    }

    /// A client for servers that others name. Redirects are followed as `redirects` says, within the same reach if it was
    /// made by [`ServerReach::redirects`].
    pub fn build_within(self, reach: ServerReach) -> reqwest::Result<CheckedClient> {
        let client = self.builder().dns_resolver(Arc::new(reach.clone())).build()?;
        Ok(CheckedClient::new(client, reach))
    }

    fn builder(self) -> ClientBuilder {
        let mut builder = Client::builder()
            .user_agent(concat!("mayfly/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .referer(false)
            .redirect(self.redirects);
        if let Some(limit) = self.total_timeout {
            builder = builder.timeout(limit);
        }
        if let Some(limit) = self.read_timeout {
            builder = builder.read_timeout(limit);
        }
        if !self.use_proxy {
            builder = builder.no_proxy();
        }
        if self.http1_only {
            builder = builder.http1_only();
        }
        if let Some(socket) = self.unix_socket {
            builder = builder.unix_socket(socket);
        }
        match self.trust {
            Trust::System => builder,
            Trust::SystemAnd(certificates) => builder.tls_certs_merge(certificates),
            Trust::NoServer => builder.tls_certs_only([]),
            Trust::AnyServer => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
        }
    }
}

/// The certificates of a PEM file, at least one. The error names the file.
pub fn read_certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let unusable = |why: String| format!("the certificates in {}: {why}", path.display());
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable("the file holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// The whole body, or `None` when it is larger than `largest` bytes. Reads no further than that.
pub async fn bounded_body(mut response: Response, largest: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > largest {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// Whether a URL's host, with or without the brackets of an IPv6 address, is this machine's loopback.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognized_by_address_and_by_exact_name() {
        for host in ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_certificate_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        assert!(read_certificates(&file).unwrap_err().contains(file.to_str().unwrap()));
        std::fs::write(&file, "no certificate").unwrap();
        let error = read_certificates(&file).unwrap_err();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
