//! Queries what the credentials may do: the App, its installations, rate limits.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    GitHubClient, GitHubCredential, GitHubError, ResourceView, Scope, auth::Purpose, budget::Class, client::As,
    model::or_default,
};

/// Granted permissions: permission → `read`, `write` or `admin`.
pub type Permissions = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitHubApp {
    pub id: u64,
    #[serde(default)]
    pub slug: Option<String>,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: Permissions,
    #[serde(default, deserialize_with = "or_default")]
    pub events: Vec<String>,
}

/// An installation of an App in an organisation, a user's account or an enterprise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    pub id: u64,
    #[serde(default)]
    pub account: Option<Account>,
    #[serde(default)]
    pub target_type: Option<String>,
    /// The granted permissions, which may be fewer than those that the App requests now.
    #[serde(default, deserialize_with = "or_default")]
    pub permissions: Permissions,
    #[serde(default, deserialize_with = "or_default")]
    pub events: Vec<String>,
    /// `all` repositories, or `selected` ones.
    #[serde(default)]
    pub repository_selection: Option<String>,
    /// A suspended installation gets no token.
    #[serde(default)]
    pub suspended_at: Option<Timestamp>,
}

/// A user or organisation has a login, an enterprise has a slug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    #[serde(alias = "slug")]
    pub login: String,
}

/// The rate limits by resource.
pub type RateLimit = Vec<ResourceView>;

impl GitHubClient {
    /// The App that the private key belongs to.
    pub async fn app(&self) -> Result<GitHubApp, GitHubError> {
        self.get(As::App, &self.request(Method::GET, vec!["app".to_owned()], &[], "the App itself")).await
    }

    pub async fn installations(&self) -> Result<Vec<Installation>, GitHubError> {
        let path = vec!["app".to_owned(), "installations".to_owned()];
        let call = self.request(Method::GET, path, &[("per_page", "100".to_owned())], "the App's installations");
        Ok(self.pages::<Vec<Installation>>(As::App, call).await?.concat())
    }

    /// The installation that acts in this scope.
    pub async fn installation_of(&self, scope: &Scope) -> Result<Installation, GitHubError> {
        let what = format!("the App's installation in {scope}");
        let call = self.request(Method::GET, scope.path(&["installation"]), &[], &what);
        let found: Installation = self.get(As::App, &call).await?;
        self.known.learn_installation(scope, found.id);
        Ok(found)
    }

    pub async fn installation(&self, id: u64) -> Result<Installation, GitHubError> {
        let path = vec!["app".to_owned(), "installations".to_owned(), id.to_string()];
        self.get(As::App, &self.request(Method::GET, path, &[], &format!("the App's installation {id}"))).await
    }

    /// The configured installation, if there is one.
    pub fn configured_installation(&self) -> Option<u64> {
        match self.credential() {
            GitHubCredential::App { installation, .. } => installation,
            GitHubCredential::Token(_) => None,
        }
    }

    /// The rate limits of the credentials of this scope; a token does not depend on the scope. The request costs
    /// nothing. Empty if there are no limits, as on most Enterprise Servers.
    pub async fn rate_limit(&self, scope: Option<&Scope>) -> Result<RateLimit, GitHubError> {
        #[derive(Deserialize)]
        struct Answer {
            resources: BTreeMap<String, Value>,
        }
        #[derive(Deserialize)]
        struct Resource {
            limit: u64,
            remaining: u64,
            #[serde(default)]
            used: Option<u64>,
            reset: i64,
        }
        let mut call = self.request(Method::GET, vec!["rate_limit".to_owned()], &[], "the rate limits");
        call.class = Class::Free;
        let name = scope.map_or(As::Holder, |scope| As::For(scope, Purpose::Runners));
        let answer: Answer = match self.get(name, &call).await {
            // An Enterprise Server without limits has no such endpoint.
            Err(GitHubError::NotVisible { .. }) => return Ok(Vec::new()),
            answer => answer?,
        };
        let mut limits = Vec::new();
        for (resource, value) in answer.resources {
            // Resources of another form are not used by Mayfly.
            let Ok(r) = serde_json::from_value::<Resource>(value) else { continue };
            let resets_at = Timestamp::from_second(r.reset)
                .map_err(|_| self.unparsable(&call, format!("the reset of {resource} at {}", r.reset)))?;
            let used = r.used.unwrap_or(r.limit.saturating_sub(r.remaining));
            limits.push(ResourceView { resource, limit: r.limit, remaining: r.remaining, used, resets_at });
        }
        Ok(limits)
    }
}
