//! The address of the GitHub API, derived from the web URL by the same rule as in the runner program.

use reqwest::Url;

use crate::{domain::AllowedDestination, platform::http::is_loopback};

/// The addresses of one GitHub. `https`, or on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    web: Url,
    api: Url,
}

impl Server {
    /// From the web URL, such as `https://github.com`. `api` overrides the derived API URL.
    pub fn new(web: &str, api: Option<&str>) -> Result<Server, String> {
        let web = parse(web)?;
        let api = match api {
            Some(api) => parse(api)?,
            None => api_of(&web),
        };
        Ok(Server { web, api })
    }

    pub fn github_com() -> Server {
        Server::new("https://github.com", None).expect("a constant that is parsed in the tests")
    }

    /// The web URL; runners get it.
    pub fn web(&self) -> &Url {
        &self.web
    }

    pub fn api(&self) -> &Url {
        &self.api
    }

    /// Where runners and their jobs reach it: the host and port of the web pages and of the API. Not of github.com, whose
    /// addresses are public. An address of the loopback interface is left out: no guest may reach it.
    pub fn destinations(&self) -> Vec<AllowedDestination> {
        let mut destinations = Vec::new();
        for url in [&self.web, &self.api] {
            let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { continue };
            let own = host == "github.com" || host.ends_with(".github.com");
            if let (false, Ok(destination)) = (own, format!("{host}:{port}").parse())
                && !destinations.contains(&destination)
            {
                destinations.push(destination);
            }
        }
        destinations
    }

    /// For messages: the host, with a port that is not the default.
    pub fn name(&self) -> String {
        let host = self.api.host_str().unwrap_or_default();
        self.api.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// A URL below the API's base; each part is one path segment, whatever it contains.
    pub(super) fn url(&self, path: &[String], query: &[(&str, String)]) -> Url {
        let mut url = self.api.clone();
        url.path_segments_mut().expect("http and https URLs have a path").pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.api.host_str().is_some_and(is_loopback)
    }
}

fn parse(text: &str) -> Result<Url, String> {
    // Not repeated completely: it may contain a token.
    let url = Url::parse(text.trim()).map_err(|e| format!("expected a URL such as https://github.com: {e}"))?;
    if url.host_str().is_none_or(str::is_empty) || !matches!(url.scheme(), "https" | "http") {
        return Err("expected a URL such as https://github.com".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("expected a URL without user, password, query or fragment".to_owned());
    }
    if url.scheme() == "http" && !url.host_str().is_some_and(is_loopback) {
        return Err("expected https: over plain http tokens would travel in clear".to_owned());
    }
    Ok(url)
}

fn api_of(web: &Url) -> Url {
    let host = web.host_str().unwrap_or_default().to_ascii_lowercase();
    let mut api = web.clone();
    api.set_path("/");
    if host == "github.com" || host == "www.github.com" {
        let _ = api.set_host(Some("api.github.com"));
    } else if host == "api.github.com" || (host.starts_with("api.") && host.ends_with(".ghe.com")) {
        // The configured URL is that of the API itself.
    } else if host.ends_with(".ghe.com") {
        let _ = api.set_host(Some(&format!("api.{host}")));
    } else {
        api.set_path("/api/v3");
    }
    api
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_follows_from_the_address() {
        for (web, api) in [
            ("https://github.com", "https://api.github.com/"),
            ("https://www.github.com/", "https://api.github.com/"),
            ("https://api.github.com", "https://api.github.com/"),
            ("https://acme.ghe.com", "https://api.acme.ghe.com/"),
            ("https://api.acme.ghe.com", "https://api.acme.ghe.com/"),
            ("https://github.acme.example", "https://github.acme.example/api/v3"),
            ("https://github.acme.example:8443/api/v3", "https://github.acme.example:8443/api/v3"),
            ("https://notghe.com", "https://notghe.com/api/v3"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/api/v3"),
        ] {
            assert_eq!(Server::new(web, None).unwrap().api().as_str(), api, "{web}");
        }
        let given = Server::new("https://github.com", Some("http://localhost:1/x/")).unwrap();
        assert_eq!(given.url(&["a b".into(), "..c".into()], &[]).as_str(), "http://localhost:1/x/a%20b/..c");
        assert_eq!(Server::github_com().name(), "api.github.com");
    }

    #[test]
    fn guests_may_reach_a_github_of_ones_own() {
        for (web, api, expected) in [
            ("https://github.com", None, &[][..]),
            ("https://www.github.com", None, &[]),
            ("https://acme.ghe.com", None, &["acme.ghe.com:443", "api.acme.ghe.com:443"]),
            ("https://github.acme.example", None, &["github.acme.example:443"]),
            (
                "https://github.acme.example:8443",
                Some("https://api.acme.example"),
                &["github.acme.example:8443", "api.acme.example:443"],
            ),
            ("https://10.1.2.3", None, &["10.1.2.3/32:443"]),
            ("https://[fd12::1]:8443", None, &["[fd12::1/128]:8443"]),
            ("http://127.0.0.1:9000", None, &[]),
            ("https://notgithub.com", None, &["notgithub.com:443"]),
        ] {
            let found = Server::new(web, api).unwrap().destinations();
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{web}");
        }
    }

    #[test]
    fn what_would_show_tokens_is_refused_and_not_repeated() {
        for wrong in
            ["http://github.com", "https://hunter2@github.com", "https://github.com?t=hunter2", "github.com", "ftp://x"]
        {
            let said = Server::new(wrong, None).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
