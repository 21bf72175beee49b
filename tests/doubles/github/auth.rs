//! Who asks, and what they may.

#![expect(clippy::result_large_err, reason = "a refusal is an answer like any other, and nothing here is in a hurry")]

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::ApiRequest,
    keys,
    reply::Reply,
    world::{Place, World},
};

#[derive(Clone)]
pub struct Token {
    pub holder: Holder,
    pub expires_at: Option<Timestamp>,
    /// Refused once, as a token may be that not every part of GitHub knows yet.
    pub unknown_times: u32,
}

#[derive(Clone)]
pub enum Holder {
    Installation {
        id: u64,
        permissions: BTreeMap<String, String>,
    },
    /// A person's, by scopes. `sees` names organisations and repositories.
    Classic {
        scopes: String,
        sees: Vec<String>,
    },
    FineGrained {
        permissions: BTreeMap<String, String>,
        sees: Vec<String>,
    },
}

#[derive(Clone)]
pub enum Who {
    App(u64),
    Token(Holder),
}

impl Who {
    /// Whose requests are counted together.
    pub fn bucket(&self, text: &str) -> String {
        match self {
            Who::App(id) => format!("app {id}"),
            Who::Token(Holder::Installation { id, .. }) => format!("installation {id}"),
            Who::Token(_) => format!("user {text}"),
        }
    }
}

pub fn text(asked: &ApiRequest) -> Option<&str> {
    let header = asked.headers.get("authorization")?.to_str().ok()?;
    header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("token "))
}

/// Who asks, or what they are told instead.
pub fn who(world: &mut World, asked: &ApiRequest) -> Result<Who, Reply> {
    let Some(text) = text(asked) else { return Err(Reply::refuse(401, "Requires authentication")) };
    let for_apps =
        asked.path.first().is_some_and(|p| p == "app") || asked.path.last().is_some_and(|p| p == "installation");
    if text.starts_with("ey") && text.matches('.').count() == 2 {
        if !for_apps {
            return Err(Reply::refuse(401, "A JSON web token could not be decoded"));
        }
        return app(world, text);
    }
    if for_apps {
        return Err(Reply::refuse(401, "A JSON web token could not be decoded"));
    }
    let now = world.now();
    let Some(token) = world.tokens.get_mut(text) else { return Err(Reply::refuse(401, "Bad credentials")) };
    if token.expires_at.is_some_and(|at| at <= now) {
        return Err(Reply::refuse(401, "Bad credentials"));
    }
    if token.unknown_times > 0 {
        token.unknown_times -= 1;
        return Err(Reply::refuse(401, "Bad credentials"));
    }
    Ok(Who::Token(token.holder.clone()))
}

fn app(world: &World, token: &str) -> Result<Who, Reply> {
    let undecodable = || Reply::refuse(401, "A JSON web token could not be decoded");
    let claims = keys::claims(token).ok_or_else(undecodable)?;
    let issuer = claims["iss"].as_str().map(str::to_owned).or_else(|| claims["iss"].as_u64().map(|n| n.to_string()));
    let issuer = issuer.ok_or_else(undecodable)?;
    let Some(app) = world.apps.iter().find(|app| app.client_id == issuer || app.id.to_string() == issuer) else {
        return Err(Reply::refuse(404, "Integration not found"));
    };
    let claims = app.key.verify(token).ok_or_else(undecodable)?;
    let second = |name: &str| claims[name].as_i64().and_then(|s| Timestamp::from_second(s).ok());
    let (Some(issued), Some(expires)) = (second("iat"), second("exp")) else {
        return Err(Reply::refuse(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
        ));
    };
    let now = world.now();
    if issued > now {
        return Err(Reply::refuse(
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
        ));
    }
    if expires <= now {
        return Err(Reply::refuse(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires",
        ));
    }
    if expires.duration_since(now) > SignedDuration::from_mins(10) {
        return Err(Reply::refuse(401, "'Expiration time' claim ('exp') is too far in the future"));
    }
    Ok(Who::App(app.id))
}

fn level(granted: &BTreeMap<String, String>, name: &str) -> u8 {
    match granted.get(name).map(String::as_str) {
        Some("admin") => 3,
        Some("write") => 2,
        Some("read") => 1,
        _ => 0,
    }
}

fn sees(sees: &[String], place: &Place) -> bool {
    let parts: Vec<&str> = place.split('/').collect();
    sees.iter().any(|s| s == parts[1] || (parts.len() == 3 && *s == format!("{}/{}", parts[1], parts[2])))
}

/// Whether they may do this there: `permission` is an App's, `scope` a classic token's.
pub fn may(world: &World, who: &Who, place: &Place, permission: &str, write: bool, scope: &str) -> Result<(), Reply> {
    if !world.places.contains_key(place) {
        return Err(Reply::not_found());
    }
    let needed = format!("{permission}={}", if write { "write" } else { "read" });
    let enough = |granted: &BTreeMap<String, String>| level(granted, permission) >= if write { 2 } else { 1 };
    let forbidden = |text: &str| Reply::refuse(403, text).with("x-accepted-github-permissions", &needed);
    match who {
        Who::App(_) => Err(Reply::refuse(401, "A JSON web token could not be decoded")),
        Who::Token(Holder::Installation { id, permissions }) => {
            let Some(installation) = world.installations.get(id) else {
                return Err(Reply::refuse(401, "Bad credentials"));
            };
            if installation.suspended_at.is_some() {
                return Err(Reply::refuse(403, "This installation has been suspended"));
            }
            let parts: Vec<&str> = place.split('/').collect();
            let there = parts[1] == installation.account
                && (parts.len() < 3 || installation.repositories.as_ref().is_none_or(|names| names.contains(parts[2])));
            match there {
                false => Err(Reply::not_found().with("x-accepted-github-permissions", &needed)),
                true if enough(permissions) => Ok(()),
                true => Err(forbidden("Resource not accessible by integration")),
            }
        }
        Who::Token(Holder::FineGrained { permissions, sees: list }) => match sees(list, place) {
            false => Err(Reply::not_found().with("x-accepted-github-permissions", &needed)),
            true if enough(permissions) => Ok(()),
            true => Err(forbidden("Resource not accessible by personal access token")),
        },
        Who::Token(Holder::Classic { scopes, sees: list }) => {
            let has = scopes.split(',').any(|s| s.trim() == scope);
            match (sees(list, place), has) {
                (false, _) => Err(Reply::not_found().with("x-accepted-oauth-scopes", scope)),
                (true, true) => Ok(()),
                (true, false) => {
                    Err(Reply::refuse(403, "Must have admin rights to Repository.")
                        .with("x-accepted-oauth-scopes", scope))
                }
            }
        }
    }
}
