//! Composes what guests in the mode `internet` may reach, and what guests are told about the way there.

use std::collections::BTreeMap;

use crate::{
    config::Config,
    domain::{
        AllowedDestination,
        gateway::{GUEST_API, ROUTER},
        proxy::GuestProxies,
    },
    drivers::{cloud_hypervisor::CloudHypervisor, qemu::Qemu},
    guest::HostEnvironment,
    reconcile::NetworkFault,
    sources::SourceSection,
};

/// The configured proxies, with those of the service's own environment if the configuration asks for them.
pub(super) fn proxies(config: &Config) -> Result<GuestProxies, NetworkFault> {
    let proxies = config.network.proxies(|name| std::env::var(name).ok())?;
    if config.network.proxy_from_environment && proxies.iter().next().is_none() {
        tracing::warn!(
            "network.proxy_from_environment is set, and the service's environment has neither HTTPS_PROXY nor HTTP_PROXY: guests \
             are told no proxy"
        );
    }
    Ok(proxies)
}

/// The configured list, and the job sources and proxies without being listed. Each entry once.
pub(super) fn allowed(config: &Config, proxies: &GuestProxies) -> Vec<AllowedDestination> {
    let mut allowed = config.network.allow.clone();
    // The URLs were checked with the configuration.
    let github = config.github.server().map(|server| server.destinations()).unwrap_or_default();
    let named = config.sources.values().flat_map(SourceSection::destinations);
    for destination in
        github.into_iter().chain(named).chain(proxies.iter().map(|proxy| proxy.address.destination().clone()))
    {
        if !allowed.contains(&destination) {
            allowed.push(destination);
        }
    }
    allowed
}

/// What guests get from this host, for each driver. `guest_urls`: the address of the guest API for each driver's guests,
/// which they reach without a proxy.
pub(super) fn host_environments(
    config: &Config,
    proxies: &GuestProxies,
    guest_urls: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, HostEnvironment>, NetworkFault> {
    let certificates = config.network.certificates()?;
    let of_driver = |(driver, url): (&String, &String)| {
        let host = url.parse::<reqwest::Url>().ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let mut direct: Vec<String> = host.into_iter().collect();
        if [Qemu::NAME, CloudHypervisor::NAME].contains(&driver.as_str()) {
            direct.extend([GUEST_API, ROUTER].map(|address| address.to_string()));
        }
        let environment = HostEnvironment { variables: proxies.variables(&direct), certificates: certificates.clone() };
        (driver.clone(), environment)
    };
    Ok(guest_urls.iter().map(of_driver).collect())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn job_sources_are_allowed_without_being_listed() {
        let allowed_by = |text: &str| {
            let config = Config::from_sources("/data".into(), text, [], Vec::new()).unwrap();
            allowed(&config, &config.network.proxies(|_| None).unwrap())
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert!(allowed_by("").is_empty());
        let list = "network.allow = [\"10.1.0.0/16\", \"ghes.corp:443\"]\n";
        assert_eq!(allowed_by(list), ["10.1.0.0/16", "ghes.corp:443"]);
        let github = "github.url = \"https://ghes.corp\"\ngithub.api_url = \"https://api.corp:8443\"\n";
        assert_eq!(allowed_by(github), ["ghes.corp:443", "api.corp:8443"]);
        assert_eq!(allowed_by(&format!("{list}{github}")), ["10.1.0.0/16", "ghes.corp:443", "api.corp:8443"]);
        let proxy = "network.https_proxy = \"http://10.88.0.5:3128\"\nnetwork.http_proxy = \"http://10.88.0.5:3128\"\n";
        assert_eq!(allowed_by(&format!("{proxy}{github}")), ["ghes.corp:443", "api.corp:8443", "10.88.0.5/32:3128"]);
    }

    #[test]
    fn guests_reach_their_own_network_without_a_proxy() {
        let text = "network.https_proxy = \"http://10.88.0.5:3128\"\nnetwork.no_proxy = [\".corp\"]";
        let config = Config::from_sources("/data".into(), text, [], Vec::new()).unwrap();
        let proxies = config.network.proxies(|_| None).unwrap();
        let urls = [("qemu", "http://[fd12::1]:8471"), ("tart", "http://192.168.64.1:8471")];
        let urls = urls.into_iter().map(|(driver, url)| (driver.to_owned(), url.to_owned())).collect();
        let environments = host_environments(&config, &proxies, &urls).unwrap();
        let direct = |driver: &str| {
            let variables = &environments[driver].variables;
            variables.iter().find(|(name, _)| *name == "NO_PROXY").unwrap().1.expose_secret().to_owned()
        };
        assert_eq!(direct("qemu"), "localhost,127.0.0.1,::1,[fd12::1],10.0.2.100,10.0.2.2,.corp");
        assert_eq!(direct("tart"), "localhost,127.0.0.1,::1,192.168.64.1,.corp");
    }
}
