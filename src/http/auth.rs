//! Authenticates and authorises callers. Every handler that needs a token declares it as an argument; the order of
//! arguments ensures that the token is checked before anything else of the request.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    http::{HeaderMap, header, request::Parts},
};
use secrecy::SecretString;

use super::{Http, problem::Problem, surface::Surface};
use crate::domain::{
    Code, GuestRole, VmId,
    token::{Caller, CallerToken, TokenScope},
};

/// The scope that a handler requires of an API token.
pub trait Needs: Send + 'static {
    const SCOPE: TokenScope;
}
pub struct Read;
pub struct Create;
pub struct Admin;
impl Needs for Read {
    const SCOPE: TokenScope = TokenScope::Read;
}
impl Needs for Create {
    const SCOPE: TokenScope = TokenScope::Create;
}
impl Needs for Admin {
    const SCOPE: TokenScope = TokenScope::Admin;
}

/// The caller has an API token with this scope. A vm's own token is never accepted.
pub struct Allowed<N> {
    pub token: CallerToken,
    needs: PhantomData<N>,
}

/// The caller has an API token with the scope admin, or uses the socket in the data directory: a user who can open it can also
/// read the service's key and its database.
pub struct AdminOrLocal;

/// The vm in the path, and a caller with access to it: an API token with this scope, or that vm's own token.
pub struct OfVm<N> {
    pub id: VmId,
    pub caller: Caller,
    needs: PhantomData<N>,
}

/// The vm in the path, called by a token of its own.
pub struct OwnVm {
    pub id: VmId,
    pub role: GuestRole,
}

/// The vm in the path, called by its wrapper's token.
pub struct OfWrapper(pub VmId);

/// The vm in the path, for handlers that have already required an API token.
pub struct PathVm(pub VmId);

impl FromRequestParts<Arc<Http>> for PathVm {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        path_id(parts, http).await.map(PathVm)
    }
}

impl<N: Needs> FromRequestParts<Arc<Http>> for Allowed<N> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        match caller(parts, http).await? {
            Caller::Token(token) => {
                scoped(token.scope, N::SCOPE)?;
                Ok(Self { token, needs: PhantomData })
            }
            Caller::Guest(..) => Err(foreign()),
        }
    }
}

impl FromRequestParts<Arc<Http>> for AdminOrLocal {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        if parts.extensions.get::<Surface>() == Some(&Surface::Local) {
            return Ok(Self);
        }
        Allowed::<Admin>::from_request_parts(parts, http).await.map(|_| Self)
    }
}

impl<N: Needs> FromRequestParts<Arc<Http>> for OfVm<N> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        let caller = caller(parts, http).await?;
        let asked = path_id(parts, http).await;
        let id = match &caller {
            // An unknown vm and another vm get the same answer, so that a guest learns nothing about others.
            Caller::Guest(own, _) => asked.ok().filter(|id| id == own).ok_or_else(foreign)?,
            Caller::Token(token) => {
                scoped(token.scope, N::SCOPE)?;
                asked?
            }
        };
        Ok(Self { id, caller, needs: PhantomData })
    }
}

impl FromRequestParts<Arc<Http>> for OwnVm {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        match caller(parts, http).await? {
            Caller::Guest(id, role) if path_id(parts, http).await.is_ok_and(|asked| asked == id) => {
                Ok(Self { id, role })
            }
            Caller::Guest(..) => Err(foreign()),
            Caller::Token(_) => Err(Problem::new(Code::AuthScopeMissing, "only the vm's own token may do this")),
        }
    }
}

impl FromRequestParts<Arc<Http>> for OfWrapper {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Self, Problem> {
        let OwnVm { id, role } = OwnVm::from_request_parts(parts, http).await?;
        match role {
            GuestRole::Wrapper => Ok(Self(id)),
            GuestRole::Job => Err(Problem::new(Code::AuthScopeMissing, "this is for the wrapper, not for the job")),
        }
    }
}

fn scoped(has: TokenScope, needed: TokenScope) -> Result<(), Problem> {
    if has.includes(needed) {
        return Ok(());
    }
    Err(Problem::new(
        Code::AuthScopeMissing,
        format!("this needs the scope {}, the token has {}", needed.as_str(), has.as_str()),
    ))
}

fn foreign() -> Problem {
    Problem::new(Code::AuthScopeMissing, "a vm's own token reads, reports and ends that vm, and nothing else")
}

/// The id in the path. Text that is not an id is answered like an unknown vm.
async fn path_id(parts: &mut Parts, http: &Arc<Http>) -> Result<VmId, Problem> {
    let no_vm = |what: &str| Problem::new(Code::VmNotFound, format!("no vm has the id {what}"));
    match Path::<String>::from_request_parts(parts, http).await {
        Ok(Path(id)) => id.parse().map_err(|_| no_vm(&format!("{id:?} (ids are UUIDs)"))),
        Err(_) => Err(no_vm("in this path")),
    }
}

async fn caller(parts: &Parts, http: &Http) -> Result<Caller, Problem> {
    let token = bearer(&parts.headers)?;
    let caller = http.services.tokens.authenticate(&token).await?;
    match (&caller, parts.extensions.get::<Surface>()) {
        (Caller::Guest(..), _) | (_, Some(Surface::Admin | Surface::Local)) => Ok(caller),
        // Guests can reach the guest listener, so API tokens must not be sent there, and none is accepted.
        (Caller::Token(_), _) => {
            Err(Problem::new(Code::AuthScopeMissing, "this listener serves guests: it takes a vm's own token only"))
        }
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Result<SecretString, Problem> {
    let missing = |detail: &str| Problem::new(Code::AuthRequired, detail);
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Err(missing("the request has no Authorization header"));
    };
    if given.next().is_some() {
        return Err(missing("the request has more than one Authorization header"));
    }
    // The value is never repeated in an answer or a log line.
    let value = value.to_str().map_err(|_| missing("the Authorization header is not plain ASCII"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(token.trim().to_owned().into())
        }
        _ => Err(missing("the Authorization header is not of the form: Bearer <token>")),
    }
}
