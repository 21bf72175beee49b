//! The token service that registries send their clients to, with tokens that do not last.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::registry::Login;

pub struct Tokens {
    lifetime: Duration,
    /// Who gets one. Everybody, without.
    login: Option<Login>,
    /// Whatever is asked for, nobody may push.
    read_only: bool,
    /// A parameter of the token service's address, without which nobody gets one.
    parameter: Option<&'static str>,
    issued: Mutex<HashMap<String, Grant>>,
}

struct Grant {
    /// (repository, action)
    may: Vec<(String, String)>,
    until: Instant,
}

impl Tokens {
    pub fn lasting(lifetime: Duration) -> Tokens {
        Tokens { lifetime, login: None, read_only: false, parameter: None, issued: Default::default() }
    }

    pub fn only_for(mut self, login: Login) -> Tokens {
        self.login = Some(login);
        self
    }

    pub fn with_parameter(mut self, parameter: &'static str) -> Tokens {
        self.parameter = Some(parameter);
        self
    }

    pub fn read_only(mut self) -> Tokens {
        self.read_only = true;
        self
    }

    pub(super) fn expire(&self) {
        self.issued.lock().unwrap().clear();
    }

    /// `None` for whoever is not known.
    pub(super) fn issue(&self, query: &str, authorization: Option<&str>) -> Option<Value> {
        if let Some(login) = &self.login
            && authorization != Some(&format!("Basic {}", login.basic()))
        {
            return None;
        }
        if self.parameter.is_some_and(|parameter| !query.split('&').any(|given| given == parameter)) {
            return None;
        }
        let mut may = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            // repository:NAME:pull,push; the name may hold a port, and so a colon
            if key == "scope"
                && let Some((name, actions)) = value.strip_prefix("repository:").and_then(|v| v.rsplit_once(':'))
            {
                let actions = actions.split(',').filter(|action| !self.read_only || *action == "pull");
                may.extend(actions.map(|action| (name.to_owned(), action.to_owned())));
            }
        }
        let token = Uuid::new_v4().to_string();
        self.issued.lock().unwrap().insert(token.clone(), Grant { may, until: Instant::now() + self.lifetime });
        Some(json!({
            "token": token, "access_token": token,
            "expires_in": self.lifetime.as_secs(), "issued_at": jiff::Timestamp::now().to_string(),
        }))
    }

    /// The challenge for whoever may not.
    pub(super) fn challenge(
        &self,
        base: &str,
        method: &str,
        path: &str,
        authorization: Option<&str>,
    ) -> Result<(), String> {
        let action = if matches!(method, "GET" | "HEAD") { "pull" } else { "push" };
        let repository = path.strip_prefix("/v2/").and_then(|rest| {
            ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|part| rest.find(part)).map(|at| &rest[..at])
        });
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let issued = self.issued.lock().unwrap();
        let grant = token.and_then(|token| issued.get(token)).filter(|grant| grant.until > Instant::now());
        let error = match (token, grant, repository) {
            (None, _, _) => "",
            (Some(_), None, _) => ",error=\"invalid_token\"",
            (Some(_), Some(_), None) => return Ok(()),
            (Some(_), Some(grant), Some(name)) if grant.may.iter().any(|(n, a)| n == name && a == action) => {
                return Ok(());
            }
            (Some(_), Some(_), Some(_)) => ",error=\"insufficient_scope\"",
        };
        let actions = if action == "pull" { "pull" } else { "pull,push" };
        let scope = repository.map(|name| format!(",scope=\"repository:{name}:{actions}\"")).unwrap_or_default();
        let parameter = self.parameter.map(|parameter| format!("?{parameter}")).unwrap_or_default();
        Err(format!("Bearer realm=\"{base}/token{parameter}\",service=\"tests\"{scope}{error}"))
    }
}
