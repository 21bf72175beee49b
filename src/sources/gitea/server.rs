//! The addresses of one Gitea server.

use reqwest::Url;

use crate::{domain::AllowedDestination, platform::http::is_loopback};

/// A Gitea server: its address as in a browser, which may have a path. `https`, or on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiteaServer {
    root: Url,
}

impl GiteaServer {
    pub fn new(text: &str) -> Result<GiteaServer, String> {
        const EXPECTED: &str = "expected the address of Gitea such as https://git.example.com";
        // Not repeated completely: it may contain a token.
        let mut root = Url::parse(text.trim()).map_err(|e| format!("{EXPECTED}: {e}"))?;
        if root.host_str().is_none_or(str::is_empty) || !matches!(root.scheme(), "https" | "http") {
            return Err(EXPECTED.to_owned());
        }
        if !root.username().is_empty()
            || root.password().is_some()
            || root.query().is_some()
            || root.fragment().is_some()
        {
            return Err("expected an address without user, password, query or fragment".to_owned());
        }
        if root.scheme() == "http" && !root.host_str().is_some_and(is_loopback) {
            return Err("expected https: over plain http tokens would travel in clear".to_owned());
        }
        let path = root.path().trim_end_matches('/').to_owned();
        root.set_path(&path);
        Ok(GiteaServer { root })
    }

    /// The address as in a browser.
    pub fn web(&self) -> &Url {
        &self.root
    }

    /// The address for the runner's file, without a slash at its end: the runner appends a path to it.
    pub(super) fn address(&self) -> String {
        self.root.as_str().trim_end_matches('/').to_owned()
    }

    /// For messages: the host, with a port that is not the default.
    pub fn name(&self) -> String {
        let host = self.root.host_str().unwrap_or_default();
        self.root.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Where runners and their jobs reach it. An address of the loopback interface is left out: no guest may reach it.
    pub fn destinations(&self) -> Vec<AllowedDestination> {
        let (Some(host), Some(port)) = (self.root.host_str(), self.root.port_or_known_default()) else {
            return Vec::new();
        };
        format!("{host}:{port}").parse().into_iter().collect()
    }

    /// A URL of the REST API; each part is one path segment, whatever it contains.
    pub(super) fn api(&self, path: &[String], query: &[(&str, String)]) -> Url {
        let mut url = self.below(["api", "v1"]);
        url.path_segments_mut().expect("http and https URLs have a path").extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// The URL of a method of the service that runners use.
    pub(super) fn runner_service(&self, method: &str) -> Url {
        self.below(["api", "actions", "runner.v1.RunnerService", method])
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.root.host_str().is_some_and(is_loopback)
    }

    fn below<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.root.clone();
        url.path_segments_mut().expect("http and https URLs have a path").pop_if_empty().extend(path);
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_below_a_path() {
        for (text, address, api, runners) in [
            (
                "https://git.example.com/",
                "https://git.example.com",
                "https://git.example.com/api/v1/repos/a%20b/x?limit=1",
                "https://git.example.com/api/actions/runner.v1.RunnerService/Register",
            ),
            (
                "http://127.0.0.1:3000/git/",
                "http://127.0.0.1:3000/git",
                "http://127.0.0.1:3000/git/api/v1/repos/a%20b/x?limit=1",
                "http://127.0.0.1:3000/git/api/actions/runner.v1.RunnerService/Register",
            ),
        ] {
            let server = GiteaServer::new(text).unwrap();
            assert_eq!(server.address(), address);
            let path = ["repos", "a b", "x"].map(str::to_owned);
            assert_eq!(server.api(&path, &[("limit", "1".to_owned())]).as_str(), api);
            assert_eq!(server.runner_service("Register").as_str(), runners);
        }
    }

    #[test]
    fn guests_may_reach_it_unless_it_is_on_the_loopback_interface() {
        let found = |text: &str| {
            let found = GiteaServer::new(text).unwrap().destinations();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found("https://git.example.com"), ["git.example.com:443"]);
        assert_eq!(found("https://10.1.2.3:3000/git"), ["10.1.2.3/32:3000"]);
        assert!(found("http://127.0.0.1:3000").is_empty());
    }

    #[test]
    fn what_would_show_tokens_is_refused_and_not_repeated() {
        for wrong in
            ["http://git.example.com", "https://hunter2@git.example.com", "https://x?t=hunter2", "x", "ftp://x"]
        {
            let said = GiteaServer::new(wrong).unwrap_err();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
