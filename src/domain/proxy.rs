//! The proxy that guests are told to use.

use std::{fmt, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::network::{AllowedDestination, AllowedHost};

/// Where an HTTP proxy listens, without credentials: `http://proxy.example.org:3128`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyAddress {
    /// Whether the connection to the proxy itself is encrypted.
    tls: bool,
    destination: AllowedDestination,
}

/// What is wrong with a proxy's address. The texts never contain the address, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("expected a URL with a port such as `http://proxy.example.org:3128` or `http://[fd12::5]:3128`")]
    Url,
    #[error(
        "holds a user or password, which other users could read there: put them into a file as `user:password`, and set \
         `network.proxy_credentials_file`"
    )]
    Credentials,
    #[error(
        "guests cannot reach this address ({0}): let the proxy listen on another address, and name that; an address of \
         this host is possible"
    )]
    Unreachable(String),
    #[error("expected `user:password` on one line")]
    CredentialsForm,
    #[error("the user or password holds characters that have to be percent-encoded in a URL")]
    Encoding,
}

impl ProxyAddress {
    /// What a guest must be able to reach to use it.
    pub fn destination(&self) -> &AllowedDestination {
        &self.destination
    }
}

impl FromStr for ProxyAddress {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(ProxyError::Url),
        };
        let place = rest.strip_suffix('/').unwrap_or(rest);
        if place.contains('@') {
            return Err(ProxyError::Credentials);
        }
        if place.contains(['/', '?', '#']) {
            return Err(ProxyError::Url);
        }
        if is_loopback_name(place) {
            return Err(ProxyError::Unreachable("it is the loopback interface".to_owned()));
        }
        let destination: AllowedDestination = match place.parse() {
            Ok(destination) => destination,
            Err(_) => return Err(unreachable(place)),
        };
        // Programs differ in the port that they take if there is none: 80, 443 or 1080.
        if destination.port.is_none() {
            return Err(ProxyError::Url);
        }
        Ok(Self { tls, destination })
    }
}

fn is_loopback_name(place: &str) -> bool {
    let name = place.split(':').next().unwrap_or_default().to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Why a text is no destination: no list opens its address, or it is none.
fn unreachable(place: &str) -> ProxyError {
    let refused = place.parse::<std::net::SocketAddr>().ok().and_then(|address| AllowedHost::refusal(address.ip()));
    refused.map_or(ProxyError::Url, |refusal| ProxyError::Unreachable(refusal.describe().to_owned()))
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, destination } = self;
        f.write_str(if *tls { "https://" } else { "http://" })?;
        match (&destination.host, destination.port) {
            (AllowedHost::Network(network), Some(port)) => {
                write!(f, "{}", std::net::SocketAddr::new(network.addr(), port))
            }
            _ => write!(f, "{destination}"),
        }
    }
}

impl TryFrom<String> for ProxyAddress {
    type Error = ProxyError;

    fn try_from(text: String) -> Result<Self, ProxyError> {
        text.parse()
    }
}

impl From<ProxyAddress> for String {
    fn from(address: ProxyAddress) -> String {
        address.to_string()
    }
}

/// A user and a password as a URL contains them: percent-encoded, with a colon between them.
#[derive(Clone, Debug)]
pub struct ProxyCredentials(SecretString);

impl ProxyCredentials {
    /// From `user:password`, nothing encoded.
    pub fn from_text(text: &SecretString) -> Result<Self, ProxyError> {
        let text = text.expose_secret().trim_end_matches(['\r', '\n']);
        match text.split_once(':') {
            Some((user, password)) if !user.is_empty() && !text.chars().any(char::is_control) => {
                let encoded = |text| utf8_percent_encode(text, RESERVED);
                Ok(Self(SecretString::from(format!("{}:{}", encoded(user), encoded(password)))))
            }
            _ => Err(ProxyError::CredentialsForm),
        }
    }

    /// From the part of a URL before the `@`.
    fn from_url(part: &str) -> Result<Self, ProxyError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%:!$&'()*+,;=".contains(&b);
        if part.is_empty() || !part.bytes().all(plain) {
            return Err(ProxyError::Encoding);
        }
        Ok(Self(SecretString::from(part)))
    }
}

/// All but the unreserved characters (RFC 3986), which no URL encodes.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A proxy and the credentials that it asks for.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub address: ProxyAddress,
    pub credentials: Option<ProxyCredentials>,
}

impl Proxy {
    /// From a URL that may hold credentials, as in the environment variable `HTTPS_PROXY`.
    pub fn from_url(text: &str) -> Result<Self, ProxyError> {
        let Some((scheme, rest)) = text.trim().split_once("://") else { return Err(ProxyError::Url) };
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(ProxyCredentials::from_url(credentials)?), place),
            None => (None, rest),
        };
        Ok(Self { address: format!("{scheme}://{place}").parse()?, credentials })
    }

    /// As programs expect it in `HTTPS_PROXY`.
    pub fn url(&self) -> SecretString {
        let address = self.address.to_string();
        match (&self.credentials, address.split_once("://")) {
            (Some(ProxyCredentials(credentials)), Some((scheme, place))) => {
                SecretString::from(format!("{scheme}://{}@{place}", credentials.expose_secret()))
            }
            _ => SecretString::from(address),
        }
    }
}

/// A destination that is reached without the proxy, in the syntax of `NO_PROXY`, which differs between programs: a name, a
/// domain with a dot before it, an address, a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyException(String);

impl FromStr for ProxyException {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usual = |b: u8| b.is_ascii_alphanumeric() || b"-._:/[]*".contains(&b);
        if text == "*" {
            return Err("`*` turns the proxy off for everything: remove the proxy instead".to_owned());
        }
        if text.is_empty() || text.len() > 255 || !text.bytes().all(usual) {
            return Err(
                "expected names, domains, addresses and networks such as `.corp.example` or `10.1.2.3`".to_owned()
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ProxyException {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ProxyException> for String {
    fn from(exception: ProxyException) -> String {
        exception.0
    }
}

/// What guests are told about proxies.
#[derive(Clone, Debug, Default)]
pub struct GuestProxies {
    /// For HTTPS.
    pub https: Option<Proxy>,
    /// For HTTP without encryption.
    pub http: Option<Proxy>,
    pub exceptions: Vec<ProxyException>,
}

impl GuestProxies {
    /// Each proxy that is set.
    pub fn iter(&self) -> impl Iterator<Item = &Proxy> {
        self.https.iter().chain(&self.http)
    }

    /// The environment variables, in both spellings: programs read one or the other. `direct`: hosts of the guest's own
    /// network, which no proxy reaches. Empty if no proxy is set.
    pub fn variables(&self, direct: &[String]) -> Vec<(&'static str, SecretString)> {
        let mut variables = Vec::new();
        for (names, proxy) in
            [(["https_proxy", "HTTPS_PROXY"], &self.https), (["http_proxy", "HTTP_PROXY"], &self.http)]
        {
            let Some(proxy) = proxy else { continue };
            variables.extend(names.map(|name| (name, proxy.url())));
        }
        if !variables.is_empty() {
            let own = ["localhost", "127.0.0.1", "::1"].into_iter().chain(direct.iter().map(String::as_str));
            let mut hosts: Vec<&str> = Vec::new();
            for host in own.chain(self.exceptions.iter().map(|exception| exception.0.as_str())) {
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
            let list = hosts.join(",");
            variables.extend(["no_proxy", "NO_PROXY"].map(|name| (name, SecretString::from(list.clone()))));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, url, destination) in [
            ("http://proxy.corp:3128", "http://proxy.corp:3128", "proxy.corp:3128"),
            ("http://Proxy.Corp:80/", "http://proxy.corp:80", "proxy.corp:80"),
            ("https://10.1.2.3:8443", "https://10.1.2.3:8443", "10.1.2.3/32:8443"),
            ("http://[fd12::5]:3128", "http://[fd12::5]:3128", "[fd12::5/128]:3128"),
        ] {
            let address: ProxyAddress = text.parse().unwrap();
            assert_eq!((address.to_string(), address.destination().to_string()), (url.into(), destination.into()));
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }

    #[test]
    fn wrong_addresses_are_refused_and_not_repeated() {
        for text in [
            "",
            "proxy.corp:3128",
            "socks5://a.b:1",
            "http://",
            "http://proxy.corp",
            "http://10.1.2.3",
            "http://a.b:0",
            "http://a.b:99999",
            "http://a.b:1/path",
            "http://a.b:1?x",
            "http://10.0.0.0/8:1",
            "http://hunter2 x:1",
        ] {
            assert_eq!(text.parse::<ProxyAddress>(), Err(ProxyError::Url), "{text:?}");
        }
        for text in ["http://u:hunter2@a.b:1", "http://hunter2@a.b:1", "https://u:hunt@er2@a.b:1"] {
            let said = text.parse::<ProxyAddress>().unwrap_err();
            assert!(said == ProxyError::Credentials && !said.to_string().contains("hunt"), "{said}");
        }
        for (text, why) in [
            ("http://127.0.0.1:3128", "loopback"),
            ("http://localhost:3128", "loopback"),
            ("http://LocalHost:3128", "loopback"),
            ("http://cache.localhost:3128", "loopback"),
            ("http://[::1]:3128", "loopback"),
            ("http://0.0.0.0:3128", "loopback"),
            ("http://169.254.1.2:3128", "link-local"),
            ("http://[fe80::1]:3128", "link-local"),
            ("http://224.0.0.1:3128", "not the address of one host"),
        ] {
            let said = text.parse::<ProxyAddress>().unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("let the proxy listen on another address"), "{text}: {said}");
        }
    }

    #[test]
    fn credentials_are_encoded_once_and_never_shown() {
        let credentials = ProxyCredentials::from_text(&SecretString::from("us er:p@ss:%41/é\n")).unwrap();
        let proxy = Proxy { address: "http://a.b:1".parse().unwrap(), credentials: Some(credentials) };
        assert_eq!(proxy.url().expose_secret(), "http://us%20er:p%40ss%3A%2541%2F%C3%A9@a.b:1");
        assert!(!format!("{proxy:?}").contains("p%40"), "{proxy:?}");
        for wrong in ["", "user", ":password", "a\nb:c", "user\n"] {
            let said = ProxyCredentials::from_text(&SecretString::from(wrong)).unwrap_err();
            assert_eq!(said, ProxyError::CredentialsForm);
        }
        let proxy = Proxy::from_url("http://user:p%40ss@proxy.corp:3128/").unwrap();
        assert_eq!(proxy.url().expose_secret(), "http://user:p%40ss@proxy.corp:3128");
        assert_eq!(Proxy::from_url("http://a.b:1").unwrap().url().expose_secret(), "http://a.b:1");
        for wrong in ["http://u:hun\"ter2@a.b:1", "http://u:hun ter2@a.b:1", "http://@a.b:1", "http://u@x@a.b:1"] {
            assert_eq!(Proxy::from_url(wrong).unwrap_err(), ProxyError::Encoding);
        }
        assert!(matches!(Proxy::from_url("http://u:hunter2@127.0.0.1:1"), Err(ProxyError::Unreachable(_))));
    }

    #[test]
    fn the_variables_have_both_spellings_and_the_guests_own_network() {
        let proxies = GuestProxies {
            https: Some(Proxy::from_url("http://a.b:1").unwrap()),
            http: None,
            exceptions: vec![".corp".parse().unwrap(), "10.0.2.100".parse().unwrap()],
        };
        let variables = proxies.variables(&["10.0.2.100".into(), "10.0.2.2".into()]);
        let shown: Vec<_> = variables.iter().map(|(name, value)| (*name, value.expose_secret())).collect();
        let direct = "localhost,127.0.0.1,::1,10.0.2.100,10.0.2.2,.corp";
        assert_eq!(
            shown,
            [
                ("https_proxy", "http://a.b:1"),
                ("HTTPS_PROXY", "http://a.b:1"),
                ("no_proxy", direct),
                ("NO_PROXY", direct)
            ]
        );
        let none = GuestProxies { exceptions: vec![".corp".parse().unwrap()], ..GuestProxies::default() };
        assert!(none.variables(&["10.0.2.2".into()]).is_empty());
        for wrong in ["", "a b", "a,b", "a'b", "ä"] {
            assert!(wrong.parse::<ProxyException>().is_err(), "{wrong:?}");
        }
        assert!("*".parse::<ProxyException>().unwrap_err().contains("remove the proxy"));
    }
}
