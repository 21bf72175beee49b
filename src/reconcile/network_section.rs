//! The section `[network]`.

use std::path::PathBuf;

use toml::Value;

use crate::{
    domain::{
        AllowedDestination,
        proxy::{GuestProxies, Proxy, ProxyAddress, ProxyCredentials, ProxyException},
    },
    platform::{
        files::read_secret,
        pem::read_certificate_text,
        settings::{SettingType, section},
    },
};

/// Largest file with additional certificates, in bytes: each guest gets a copy.
const LARGEST_BUNDLE: u64 = 256 << 10;

impl SettingType for Vec<AllowedDestination> {
    const KIND: &'static str = "list of addresses, networks and names";

    fn fault(value: &Value) -> Option<String> {
        let texts = value.as_array()?.iter().filter_map(Value::as_str);
        texts.filter_map(|text| text.parse::<AllowedDestination>().err()).next()
    }
}

impl SettingType for ProxyAddress {
    const KIND: &'static str = "URL with a port";

    /// Never repeats the value, which may hold a password.
    fn fault(value: &Value) -> Option<String> {
        value.as_str()?.parse::<ProxyAddress>().err().map(|error| error.to_string())
    }
}

impl SettingType for Vec<ProxyException> {
    const KIND: &'static str = "list of names, domains, addresses and networks";

    fn fault(value: &Value) -> Option<String> {
        let texts = value.as_array()?.iter().filter_map(Value::as_str);
        texts.filter_map(|text| text.parse::<ProxyException>().err()).next()
    }
}

section! {
    /// What guests may reach, and what they are told about the way there; docs/networks.md explains it.
    pub struct NetworkSection {
        /// What guests in the mode `internet` may reach besides public addresses: networks, addresses and names, each with
        /// an optional port, such as `10.1.0.0/16`, `10.1.2.3:443`, `[fd12::/48]:443` or `gitea.example.org:3000`. A
        /// network does not include addresses of this host; one service of this host is listed by its address and port.
        allow: Vec<AllowedDestination> = Vec::new();
        /// Proxy for HTTPS that guests are told to use, such as `http://proxy.example.org:3128`. Guests in the mode
        /// `internet` may reach its address without an entry in `allow`.
        https_proxy: Option<ProxyAddress> = None;
        /// The same for HTTP without encryption.
        http_proxy: Option<ProxyAddress> = None;
        /// What guests reach without the proxy: names, domains, addresses and networks, in the syntax of `NO_PROXY`. The
        /// guest's own network and the guest API need no entry.
        no_proxy: Vec<ProxyException> = Vec::new();
        /// File with the user and password for both proxies, as `user:password`, readable by the service's user only.
        /// Jobs can read them in the guest.
        proxy_credentials_file: Option<PathBuf> = None;
        /// `true`: guests are told the proxies in the service's own environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`,
        /// also in lower case), instead of those of this section. Their URLs may hold a user and password.
        proxy_from_environment: bool = false;
        /// File with certificates (PEM) of authorities that guests trust in addition to their own.
        ca_bundle_file: Option<PathBuf> = None;
    }
}

/// What is wrong with the settings that involve other keys, files or the service's environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {message}")]
pub struct NetworkFault {
    /// The setting or environment variable.
    pub key: &'static str,
    pub message: String,
}

impl NetworkSection {
    /// What guests are told about proxies. `env`: the service's environment.
    pub fn proxies(&self, env: impl Fn(&str) -> Option<String>) -> Result<GuestProxies, NetworkFault> {
        let fault = |key, message: String| NetworkFault { key, message };
        let set = self.https_proxy.is_some() || self.http_proxy.is_some();
        if self.proxy_from_environment {
            if set || self.proxy_credentials_file.is_some() || !self.no_proxy.is_empty() {
                let message =
                    "the section has settings of a proxy besides it, which have no meaning then: give one of them";
                return Err(fault("network.proxy_from_environment", message.to_owned()));
            }
            return from_environment(env);
        }
        if !set {
            for (key, given) in [
                ("network.proxy_credentials_file", self.proxy_credentials_file.is_some()),
                ("network.no_proxy", !self.no_proxy.is_empty()),
            ] {
                if given {
                    return Err(fault(key, "needs `network.https_proxy` or `network.http_proxy` beside it".to_owned()));
                }
            }
        }
        let read = |path: &PathBuf| {
            let text = read_secret(path)?;
            ProxyCredentials::from_text(&text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let credentials = self.proxy_credentials_file.as_ref().map(read).transpose();
        let credentials = credentials.map_err(|why| fault("network.proxy_credentials_file", why))?;
        let proxy = |address: &ProxyAddress| Proxy { address: address.clone(), credentials: credentials.clone() };
        Ok(GuestProxies {
            https: self.https_proxy.as_ref().map(proxy),
            http: self.http_proxy.as_ref().map(proxy),
            exceptions: self.no_proxy.clone(),
        })
    }

    /// The additional certificates as text (PEM).
    pub fn certificates(&self) -> Result<Option<String>, NetworkFault> {
        let read = |path: &PathBuf| {
            read_certificate_text(path, LARGEST_BUNDLE)
                .map_err(|message| NetworkFault { key: "network.ca_bundle_file", message })
        };
        self.ca_bundle_file.as_ref().map(read).transpose()
    }
}

/// In lower case first, as curl and GitHub's runner do.
fn from_environment(env: impl Fn(&str) -> Option<String>) -> Result<GuestProxies, NetworkFault> {
    let of = |names: [&'static str; 2]| {
        names.into_iter().find_map(|name| Some((name, env(name).filter(|value| !value.trim().is_empty())?)))
    };
    let proxy = |names| {
        let Some((key, text)) = of(names) else { return Ok(None) };
        Proxy::from_url(&text).map(Some).map_err(|error| NetworkFault { key, message: error.to_string() })
    };
    let (https, http) = (proxy(["https_proxy", "HTTPS_PROXY"])?, proxy(["http_proxy", "HTTP_PROXY"])?);
    let mut exceptions = Vec::new();
    if let Some((key, list)) = of(["no_proxy", "NO_PROXY"]) {
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            exceptions.push(entry.parse().map_err(|message| NetworkFault { key, message })?);
        }
    }
    Ok(GuestProxies { https, http, exceptions })
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use secrecy::ExposeSecret as _;

    use super::*;

    fn https(proxies: &GuestProxies) -> Option<String> {
        proxies.https.as_ref().map(|proxy| proxy.url().expose_secret().to_owned())
    }

    #[test]
    fn credentials_come_from_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy");
        std::fs::write(&file, "robot:hunter2@\n").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let section = NetworkSection {
            https_proxy: Some("http://a.b:1".parse().unwrap()),
            proxy_credentials_file: Some(file.clone()),
            ..NetworkSection::default()
        };
        let open = section.proxies(|_| None).unwrap_err();
        assert!(open.key == "network.proxy_credentials_file" && open.message.contains("chmod 600"), "{open}");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        // The environment has no meaning unless it is asked for.
        let proxies = section.proxies(|_| Some("http://c.d:1".into())).unwrap();
        assert_eq!(https(&proxies).as_deref(), Some("http://robot:hunter2%40@a.b:1"));
        assert!(proxies.http.is_none());
        std::fs::write(&file, "hunter2").unwrap();
        let said = section.proxies(|_| None).unwrap_err().to_string();
        assert!(said.contains("expected `user:password`") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn the_environment_is_taken_when_it_is_asked_for() {
        let section = NetworkSection { proxy_from_environment: true, ..NetworkSection::default() };
        let with = |given: &'static [(&str, &str)]| {
            section.proxies(|name| given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(https(&with(&[]).unwrap()), None);
        let proxies = with(&[
            ("HTTPS_PROXY", "http://upper.corp:1"),
            ("https_proxy", "http://u:hunter2@lower.corp:1"),
            ("http_proxy", ""),
            ("HTTP_PROXY", "http://plain.corp:1/"),
            ("NO_PROXY", ".corp, 10.0.0.0/8,"),
        ]);
        let proxies = proxies.unwrap();
        assert_eq!(https(&proxies).as_deref(), Some("http://u:hunter2@lower.corp:1"));
        assert_eq!(proxies.http.unwrap().address.to_string(), "http://plain.corp:1");
        assert_eq!(proxies.exceptions, [".corp".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        for (given, key) in [
            (&[("https_proxy", "http://u:hunter2@127.0.0.1:3128")][..], "https_proxy"),
            (&[("HTTP_PROXY", "u:hunter2@a.b")], "HTTP_PROXY"),
            (&[("NO_PROXY", "*")], "NO_PROXY"),
        ] {
            let said = with(given).unwrap_err();
            assert!(said.key == key && !said.to_string().contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn settings_without_their_counterpart_are_refused() {
        let url: Option<ProxyAddress> = Some("http://a.b:1".parse().unwrap());
        let both = NetworkSection { proxy_from_environment: true, http_proxy: url, ..NetworkSection::default() };
        assert_eq!(both.proxies(|_| None).unwrap_err().key, "network.proxy_from_environment");
        let list = NetworkSection { no_proxy: vec![".corp".parse().unwrap()], ..NetworkSection::default() };
        assert_eq!(list.proxies(|_| None).unwrap_err().key, "network.no_proxy");
        let file = NetworkSection { proxy_credentials_file: Some("/x".into()), ..NetworkSection::default() };
        assert_eq!(file.proxies(|_| None).unwrap_err().key, "network.proxy_credentials_file");
        let missing = NetworkSection { ca_bundle_file: Some("/nowhere.pem".into()), ..NetworkSection::default() };
        assert_eq!(missing.certificates().unwrap_err().key, "network.ca_bundle_file");
    }
}
