//! `[github]` as the client takes it.

use super::{GitHub, source::Found};
use crate::runners::github::{Options, Server, Source};

impl GitHub {
    pub(super) fn check(&self, found: &mut Found) {
        if let Err(why) = Server::new(&self.url, None) {
            found.refuse("github.url", why);
        } else if let Err(why) = self.server() {
            found.refuse("github.api_url", why);
        }
        if self.token_file.is_some() && self.app_id.is_some() {
            found.refuse("github.token_file", "an App is set, too (`github.app_id`): give one of them");
        }
        for (key, set) in [
            ("github.private_key_file", self.private_key_file.is_some()),
            ("github.installation_id", self.installation_id.is_some()),
        ] {
            if set && self.app_id.is_none() {
                found.refuse(key, "needs `github.app_id` beside it");
            }
        }
        let version = &self.api_version;
        if version.is_empty() || !version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            found.refuse("github.api_version", "expected a version of the API such as 2022-11-28");
        }
    }

    fn server(&self) -> Result<Server, String> {
        Server::new(&self.url, self.api_url.as_deref())
    }

    /// How this GitHub is spoken to.
    pub fn options(&self) -> Result<Options, String> {
        let mut options = Options::new(self.server()?);
        options.ca_file = self.ca_file.clone();
        options.api_version = self.api_version.clone();
        Ok(options)
    }

    /// Who we are to it; `None` when nobody said.
    pub fn source(&self, env: impl Fn(&str) -> Option<String>) -> Result<Option<Source>, String> {
        let app_id = self.app_id.as_ref().map(|id| id.0.as_str());
        Source::choose(app_id, self.installation_id, self.private_key_file.clone(), self.token_file.clone(), env)
    }
}
