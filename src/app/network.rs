//! Composes what guests in the mode `internet` may reach.

use crate::{config::Config, domain::AllowedDestination};

/// The configured list, and the job sources without being listed. Each entry once.
pub(super) fn allowed(config: &Config) -> Vec<AllowedDestination> {
    let mut allowed = config.network.allow.clone();
    // The URLs were checked with the configuration.
    let sources = config.github.server().map(|server| server.destinations()).unwrap_or_default();
    for destination in sources {
        if !allowed.contains(&destination) {
            allowed.push(destination);
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_sources_are_allowed_without_being_listed() {
        let allowed_by = |text: &str| {
            let config = Config::from_sources("/data".into(), text, [], Vec::new()).unwrap();
            allowed(&config).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(allowed_by("").is_empty());
        let list = "network.allow = [\"10.1.0.0/16\", \"ghes.corp:443\"]\n";
        assert_eq!(allowed_by(list), ["10.1.0.0/16", "ghes.corp:443"]);
        let github = "github.url = \"https://ghes.corp\"\ngithub.api_url = \"https://api.corp:8443\"\n";
        assert_eq!(allowed_by(github), ["ghes.corp:443", "api.corp:8443"]);
        assert_eq!(allowed_by(&format!("{list}{github}")), ["10.1.0.0/16", "ghes.corp:443", "api.corp:8443"]);
    }
}
