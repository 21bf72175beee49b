//! Who asks, and what they may.

#![expect(clippy::result_large_err, reason = "a refusal is an answer like any other, and no path here is hot")]

use axum::http::Method;

use crate::{
    accounts::Repository,
    api::Request,
    reply::Reply,
    world::{Scope, World},
};

pub struct Caller {
    pub login: String,
    pub administrator: bool,
    scopes: Vec<String>,
}

/// What is asked of a repository, an organisation, a user or the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Jobs,
    Runners,
}

pub fn token(request: &Request) -> Option<&str> {
    let (scheme, token) = request.header("authorization")?.split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer");
    known.then(|| token.trim())
}

/// Who asks; `None` without a token. A token that is not known is refused on every path.
pub fn caller(world: &World, request: &Request) -> Result<Option<Caller>, Reply> {
    let Some(text) = token(request) else { return Ok(None) };
    let known = world.tokens.get(text).and_then(|token| Some((token, world.users.get(&token.user)?)));
    let Some((token, user)) = known else {
        return Err(Reply::refuse(world, 401, "invalid username, password or token"));
    };
    let (login, administrator) = (user.login.clone(), user.administrator);
    Ok(Some(Caller { login, administrator, scopes: token.scopes.clone() }))
}

/// The caller, if its token is good for this category (`repository`, `organization`, `admin`, `user`).
pub fn scoped(world: &World, request: &Request, category: &str) -> Result<Caller, Reply> {
    let Some(caller) = caller(world, request)? else { return Err(anonymous(world, request)) };
    let level = if request.method == Method::GET { "read" } else { "write" };
    let enough = |scope: &String| {
        scope == "all" || *scope == format!("{level}:{category}") || *scope == format!("write:{category}")
    };
    if caller.scopes.iter().any(enough) {
        return Ok(caller);
    }
    let held = caller.scopes.join(",");
    let said = format!(
        "token does not have at least one of required scope(s), required=[{level}:{category}], token scope={held}"
    );
    Err(Reply::refuse(world, 403, &said))
}

/// Without a token, what is private looks as if it did not exist.
fn anonymous(world: &World, request: &Request) -> Reply {
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let hidden = match path.as_slice() {
        [_, _, "repos", owner, name, ..] => world.repository(owner, name).is_none_or(|repository| repository.private),
        [_, _, "orgs", name, ..] => world.organization(name).is_none(),
        _ => false,
    };
    if hidden { Reply::not_found(world) } else { Reply::refuse(world, 401, "token is required") }
}

/// `read`, `write`, `admin` or `owner`; `None` if the repository does not exist for this caller.
fn mode(world: &World, caller: &Caller, repository: &Repository) -> Option<&'static str> {
    let organization = world.organizations.get(&repository.owner);
    let owner = repository.owner == caller.login
        || caller.administrator
        || organization.is_some_and(|organization| organization.owners.contains(&caller.login));
    if owner {
        return Some("owner");
    }
    match repository.collaborators.get(&caller.login).map(String::as_str) {
        Some("admin") => Some("admin"),
        Some("write") => Some("write"),
        Some(_) => Some("read"),
        None => (!repository.private).then_some("read"),
    }
}

/// The scope that the path names, if the caller may do this there.
pub fn repository(world: &World, caller: &Caller, owner: &str, name: &str, right: Right) -> Result<Scope, Reply> {
    let repository = world.repository(owner, name).ok_or_else(|| Reply::not_found(world))?;
    match mode(world, caller, repository) {
        None => Err(Reply::not_found(world)),
        Some("owner") => Ok(Scope::Repository(repository.full_name())),
        Some(_) if right == Right::Jobs => Ok(Scope::Repository(repository.full_name())),
        // A collaborator with all rights but ownership is refused, too.
        Some(_) => Err(Reply::refuse(world, 403, "user should be the owner of the repo")),
    }
}

/// Members see jobs, owners alone runners.
pub fn organization(world: &World, caller: &Caller, name: &str, right: Right) -> Result<Scope, Reply> {
    let organization = world.organization(name).ok_or_else(|| Reply::not_found(world))?;
    let scope = Scope::Organization(organization.name.clone());
    let owner = caller.administrator || organization.owners.contains(&caller.login);
    match right {
        _ if owner => Ok(scope),
        Right::Jobs if organization.members.contains(&caller.login) => Ok(scope),
        Right::Jobs => Err(Reply::refuse(world, 403, "Must be an organization member")),
        Right::Runners => Err(Reply::refuse(world, 403, "Must be an organization owner")),
    }
}

pub fn system(world: &World, caller: &Caller) -> Result<Scope, Reply> {
    if caller.administrator {
        return Ok(Scope::System);
    }
    Err(Reply::refuse(world, 403, "user should be the site admin"))
}

/// What `permissions` says of a repository.
pub fn permissions(world: &World, caller: &Caller, repository: &Repository) -> (bool, bool, bool) {
    match mode(world, caller, repository) {
        Some("owner" | "admin") => (true, true, true),
        Some("write") => (false, true, true),
        Some(_) => (false, false, true),
        None => (false, false, false),
    }
}
