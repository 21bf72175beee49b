//! Which servers a client may connect to.
//!
//! This host can reach servers that others cannot: its own loopback interface, its private networks, a cloud's metadata
//! service. A remote server that names an address (a token service, a redirect, an upload) must not make Mayfly send
//! requests there on its behalf. So a client connects to public addresses and to the origins that the configuration
//! names, and to nothing else.
//!
//! Names are judged by the addresses to which they resolve, when the connection is made, so that an answer of DNS cannot
//! differ between check and use. With a proxy, the proxy resolves names, and only literal addresses are judged here.

use std::{
    collections::HashSet,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Client, Method, RequestBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};

use super::error_chain::cause;

#[derive(Clone, Debug)]
pub struct ServerReach {
    allowed: Arc<AllowedServers>,
    is_public: fn(IpAddr) -> bool,
}

#[derive(Debug, Default)]
struct AllowedServers {
    origins: HashSet<(String, String, u16)>,
    /// The hosts of those origins, and of proxies.
    hosts: HashSet<String>,
}

/// A server that may not be connected to. The text names the address, and nothing else of the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    #[error("{origin} has an address that is not public")]
    NotPublic { origin: String },
    #[error("{origin} is another port or scheme of a server that the configuration names")]
    OtherOrigin { origin: String },
    #[error("{origin} is no address of a server")]
    NoServer { origin: String },
}

impl ReachError {
    /// The server: an origin, or a name alone if it was refused because of its addresses.
    pub fn server(&self) -> &str {
        match self {
            ReachError::NotPublic { origin } | ReachError::OtherOrigin { origin } | ReachError::NoServer { origin } => {
                origin
            }
        }
    }
}

impl ServerReach {
    /// Public addresses, and these origins.
    pub fn new(allowed: impl IntoIterator<Item = Url>, is_public: fn(IpAddr) -> bool) -> Self {
        let origins: HashSet<_> = allowed.into_iter().filter_map(|url| origin(&url)).collect();
        let hosts = origins.iter().map(|(_, host, _)| host.clone()).chain(proxies()).collect();
        Self { allowed: Arc::new(AllowedServers { origins, hosts }), is_public }
    }

    /// Whether a request may be sent to this URL. The addresses of its name are judged later, by [`Resolve`].
    pub fn check(&self, url: &Url) -> Result<(), ReachError> {
        let text = || url.origin().ascii_serialization();
        let Some(wanted) = origin(url) else { return Err(ReachError::NoServer { origin: text() }) };
        if self.allowed.origins.contains(&wanted) {
            return Ok(());
        }
        let host = &wanted.1;
        match literal(host) {
            Some(address) if (self.is_public)(address) => Ok(()),
            Some(_) => Err(ReachError::NotPublic { origin: text() }),
            None if host == "localhost" || host.ends_with(".localhost") => {
                Err(ReachError::NotPublic { origin: text() })
            }
            // Names of these hosts may have any address.
            None if self.allowed.hosts.contains(host) => Err(ReachError::OtherOrigin { origin: text() }),
            None => Ok(()),
        }
    }

    /// Follows up to `most` redirects to servers that may be reached, and that `accepts`.
    pub fn redirects(
        &self,
        most: usize,
        accepts: impl Fn(&Url) -> Result<(), &'static str> + Send + Sync + 'static,
    ) -> redirect::Policy {
        let reach = self.clone();
        redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > most {
                return attempt.error("too many redirects");
            }
            if let Err(error) = reach.check(attempt.url()) {
                return attempt.error(error);
            }
            match accepts(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(why) => attempt.error(why),
            }
        })
    }
}

impl Resolve for ServerReach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.clone();
        Box::pin(async move {
            let name = name.as_str();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
            if reach.allowed.hosts.contains(name) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let any = !found.is_empty();
            let public: Vec<_> = found.into_iter().filter(|address| (reach.is_public)(address.ip())).collect();
            if any && public.is_empty() {
                return Err(io::Error::other(ReachError::NotPublic { origin: name.to_owned() }).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// A client that sends requests only to servers in its reach.
#[derive(Clone, Debug)]
pub struct CheckedClient {
    client: Client,
    reach: ServerReach,
}

impl CheckedClient {
    pub(super) fn new(client: Client, reach: ServerReach) -> Self {
        Self { client, reach }
    }

    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, ReachError> {
        self.reach.check(&url)?;
        Ok(self.client.request(method, url))
    }

    pub fn get(&self, url: Url) -> Result<RequestBuilder, ReachError> {
        self.request(Method::GET, url)
    }
}

/// The cause of this error, if it is a server that may not be reached. Another attempt has the same result.
pub fn refused<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ReachError> {
    cause(error)
}

fn origin(url: &Url) -> Option<(String, String, u16)> {
    let host = url.host_str()?.to_ascii_lowercase();
    let host = host.trim_end_matches('.').to_owned();
    Some((url.scheme().to_owned(), host, url.port_or_known_default()?))
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The hosts of the proxies of the environment, which usually have private addresses.
fn proxies() -> impl Iterator<Item = String> {
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].into_iter().filter_map(
        |name| {
            let text = std::env::var(name).ok()?;
            let url = Url::parse(&text).ok().filter(Url::has_host);
            let url = url.or_else(|| Url::parse(&format!("http://{text}")).ok())?;
            origin(&url).map(|(_, host, _)| host)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_public(address: IpAddr) -> bool {
        !(address.is_loopback() || address.to_string().starts_with("10."))
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn reach() -> ServerReach {
        ServerReach::new(
            [url("https://registry.corp/v2/"), url("http://127.0.0.1:5000/"), url("http://[::1]:6000")],
            is_public,
        )
    }

    #[test]
    fn public_addresses_and_configured_origins_are_reached() {
        for text in [
            "https://ghcr.io/token",
            "https://192.0.2.1/x",
            "https://registry.corp/token",
            "http://127.0.0.1:5000/token",
        ] {
            assert_eq!(reach().check(&url(text)), Ok(()), "{text}");
        }
        for text in [
            "https://127.0.0.1/x",
            "http://127.0.0.1:8470/x",
            "https://127.0.0.1:5000/",
            "https://10.0.0.1",
            "http://[::1]/",
            "https://localhost/",
            "https://a.localhost:5000/",
            "http://0x7f000001/",
        ] {
            assert!(matches!(reach().check(&url(text)), Err(ReachError::NotPublic { .. })), "{text}");
        }
        // Its name may resolve to anything.
        for text in ["http://registry.corp/", "https://registry.corp:8443/", "https://REGISTRY.corp.:8443/"] {
            assert!(matches!(reach().check(&url(text)), Err(ReachError::OtherOrigin { .. })), "{text}");
        }
        let error = reach().check(&url("http://10.0.0.1:81/secret?token=x")).unwrap_err();
        assert_eq!(error.to_string(), "http://10.0.0.1:81 has an address that is not public");
    }

    #[tokio::test]
    async fn a_name_is_judged_by_its_addresses_when_it_is_used() {
        let client =
            |reach: ServerReach| reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(reach)).build().unwrap();
        // Port 9 is not listened on; what matters is whether a connection is tried.
        let error = client(reach()).get("http://localhost:9/").send().await.unwrap_err();
        assert!(matches!(refused(&error), Some(ReachError::NotPublic { .. })), "{error:?}");
        let named = ServerReach::new([url("http://localhost:9/")], is_public);
        let error = client(named).get("http://localhost:9/").send().await.unwrap_err();
        assert!(error.is_connect() && refused(&error).is_none(), "{error:?}");
    }
}
