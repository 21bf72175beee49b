//! One queue of a Buildkite cluster, and the stack that serves it.

use reqwest::Url;

use crate::{
    domain::{AllowedDestination, Scope},
    platform::http::is_loopback,
};

/// The address of the API of agents and stacks.
const ENDPOINT: &str = "https://agent.buildkite.com/v3";
const LONGEST_KEY: usize = 80;

/// Which queue is served, and under which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildkiteQueue {
    endpoint: Url,
    organization: String,
    queue: String,
    stack: String,
}

impl BuildkiteQueue {
    /// `endpoint`: `https`, or on this host. Without one: Buildkite's. An error names the setting first.
    pub fn new(
        endpoint: Option<&str>,
        organization: &str,
        queue: &str,
        stack: &str,
    ) -> Result<BuildkiteQueue, (&'static str, String)> {
        let endpoint = parse_endpoint(endpoint.unwrap_or(ENDPOINT)).map_err(|why| ("url", why))?;
        if Scope::organization(organization).is_err() {
            let why = format!(
                "expected the organisation as in addresses of its pages, such as acme; found {organization:.80?}"
            );
            return Err(("organization", why));
        }
        let is_key = |text: &str| {
            (1..=LONGEST_KEY).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        for (setting, value) in [("queue", queue), ("stack", stack)] {
            if !is_key(value) {
                let why = format!("expected 1 to {LONGEST_KEY} letters, digits, `_` or `-`, found {value:.100?}");
                return Err((setting, why));
            }
        }
        let (organization, queue, stack) = (organization.to_owned(), queue.to_owned(), stack.to_owned());
        Ok(BuildkiteQueue { endpoint, organization, queue, stack })
    }

    /// The organisation's page.
    pub fn web(&self) -> Url {
        let mut web = Url::parse("https://buildkite.com").expect("a valid URL");
        web.set_path(&self.organization);
        web
    }

    /// The page of a job.
    pub(super) fn job_page(&self, pipeline: &str, build: u64, job: &str) -> String {
        format!("{}/{pipeline}/builds/{build}#{job}", self.web())
    }

    /// `organisation/pipeline`, as pools name it.
    pub(super) fn repository(&self, pipeline: &str) -> String {
        format!("{}/{pipeline}", self.organization)
    }

    pub fn queue(&self) -> &str {
        &self.queue
    }

    pub fn stack(&self) -> &str {
        &self.stack
    }

    /// The address for the agent in the guest.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// For messages: the host, with a port that is not the default.
    pub fn name(&self) -> String {
        let host = self.endpoint.host_str().unwrap_or_default();
        self.endpoint.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.endpoint.host_str().is_some_and(is_loopback)
    }

    /// Where agents reach it. An address of the loopback interface is left out: no guest may reach it.
    pub fn destinations(&self) -> Vec<AllowedDestination> {
        let (Some(host), Some(port)) = (self.endpoint.host_str(), self.endpoint.port_or_known_default()) else {
            return Vec::new();
        };
        if is_loopback(host) {
            return Vec::new();
        }
        format!("{host}:{port}").parse().into_iter().collect()
    }

    /// A URL of the stacks API; each part is one path segment.
    pub(super) fn api(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.endpoint.clone();
        {
            let mut segments = url.path_segments_mut().expect("http and https URLs have a path");
            segments.pop_if_empty().push("stacks").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

fn parse_endpoint(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected the address of the API of agents, such as https://agent.buildkite.com/v3";
    // Not repeated: it may contain a token.
    let url = Url::parse(text.trim()).map_err(|e| format!("{EXPECTED}: {e}"))?;
    if url.host_str().is_none_or(str::is_empty) || !matches!(url.scheme(), "https" | "http") {
        return Err(EXPECTED.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("expected an address without user, password, query or fragment".to_owned());
    }
    if url.scheme() == "http" && !url.host_str().is_some_and(is_loopback) {
        return Err("expected https: over plain http tokens would travel in clear".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_api_and_of_pages() {
        let queue = BuildkiteQueue::new(None, "acme", "macs", "host-1").unwrap();
        let query = [("queue_key", "macs".to_owned())];
        assert_eq!(
            queue.api(&["host-1", "scheduled-jobs"], &query).as_str(),
            "https://agent.buildkite.com/v3/stacks/host-1/scheduled-jobs?queue_key=macs"
        );
        assert_eq!(queue.endpoint(), "https://agent.buildkite.com/v3");
        assert_eq!(queue.job_page("app", 7, "0193"), "https://buildkite.com/acme/app/builds/7#0193");
        let found: Vec<String> = queue.destinations().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["agent.buildkite.com:443"]);
        let local = BuildkiteQueue::new(Some("http://127.0.0.1:1/v3/"), "acme", "macs", "host-1").unwrap();
        assert!(local.destinations().is_empty());
        assert_eq!(local.api(&["register"], &[]).as_str(), "http://127.0.0.1:1/v3/stacks/register");
    }

    #[test]
    fn a_wrong_setting_is_named_and_a_secret_in_it_is_not_repeated() {
        let wrong = |endpoint, organization, queue, stack| {
            BuildkiteQueue::new(endpoint, organization, queue, stack).unwrap_err()
        };
        for address in ["http://x/v3", "https://hunter2@x/v3", "https://x/v3?t=hunter2", "x"] {
            let (setting, why) = wrong(Some(address), "acme", "q", "s");
            assert!(setting == "url" && !why.contains("hunter2"), "{why}");
        }
        assert_eq!(wrong(None, "ac/me", "q", "s").0, "organization");
        assert_eq!(wrong(None, "acme", "", "s").0, "queue");
        assert_eq!(wrong(None, "acme", "q", "a.b").0, "stack");
    }
}
