//! Sends requests with credentials, and renews tokens in time, and once after a refusal.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use parking_lot::RwLock;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    BudgetView, CredentialLocation, GitHubCredential, GitHubError, GitHubOptions, Scope,
    auth::{CredentialIdentity, InstallationCache, InstallationToken, Purpose},
    budget::{Class, Moment},
    cache::Cache,
    exchange::{ApiExchange, ApiResponse, Call, Observed},
    refusal,
    runner_group::RunnerGroupCache,
};

/// The credentials of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum As<'a> {
    /// The App itself; a token cannot replace it.
    App,
    /// The owner of the token; an App cannot replace it.
    Holder,
    /// The credentials for this scope.
    For(&'a Scope, Purpose),
}

/// An access token, and what to do if it is refused.
struct Proof {
    who: CredentialIdentity,
    token: SecretString,
    slot: Option<(super::auth::TokenSlot, u64)>,
    fresh: bool,
}

pub struct GitHubClient {
    pub(super) exchange: ApiExchange,
    source: CredentialLocation,
    credential: RwLock<GitHubCredential>,
    pub(super) known: InstallationCache,
    pub(super) cache: Cache,
    pub(super) groups: RunnerGroupCache,
    tokens_made: AtomicU64,
}

impl fmt::Debug for GitHubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.exchange.server();
        f.debug_struct("Client")
            .field("server", &server)
            .field("source", &self.source.describe())
            .finish_non_exhaustive()
    }
}

impl GitHubClient {
    /// Reads the credentials and the certificates, and connects to nothing.
    pub fn new(options: GitHubOptions, source: CredentialLocation) -> Result<GitHubClient, GitHubError> {
        let credential = source.load().map_err(|what| GitHubError::Settings { what })?;
        Ok(GitHubClient {
            exchange: ApiExchange::new(options)?,
            source,
            credential: RwLock::new(credential),
            known: InstallationCache::default(),
            cache: Cache::default(),
            groups: Default::default(),
            tokens_made: AtomicU64::new(0),
        })
    }

    /// Metadata of the answers so far.
    pub fn observed(&self) -> Observed {
        self.exchange.observed()
    }

    /// The rate limit budgets, for metrics.
    pub fn budgets(&self) -> Vec<BudgetView> {
        let now = Moment::now(&self.exchange.options().clock);
        self.known.budgets().into_iter().map(|(who, budget)| budget.view(who.describe(), now)).collect()
    }

    /// Whether the credentials are an App, which has installations, or a personal access token.
    pub fn is_app(&self) -> bool {
        matches!(self.credential(), GitHubCredential::App { .. })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.exchange.options().clock.now()
    }

    pub(super) fn server(&self) -> String {
        self.exchange.server()
    }

    pub(super) fn credential(&self) -> GitHubCredential {
        self.credential.read().clone()
    }

    /// A request to this path. GET and DELETE may be repeated; the caller decides about other methods.
    pub(super) fn request(&self, method: Method, path: Vec<String>, query: &[(&str, String)], what: &str) -> Call {
        Call {
            url: self.exchange.options().server.url(&path, query),
            repeatable: method.is_idempotent(),
            method,
            body: None,
            what: what.to_owned(),
            class: Class::Usual,
            secret: false,
            if_none_match: None,
        }
    }

    /// The answer, after one more attempt with a new token if the first one was refused.
    pub(super) async fn call(
        &self,
        name: As<'_>,
        call: &Call,
    ) -> Result<(CredentialIdentity, ApiResponse), GitHubError> {
        let mut second = false;
        loop {
            let proof = self.proof(name).await?;
            let budget = self.known.budget(&proof.who);
            let answer = self.exchange.send(call, &proof.token, &budget).await?;
            // A server to which we were redirected does not decide whether our token is valid.
            if answer.status == StatusCode::UNAUTHORIZED && answer.ours && !second && self.renew(&proof).await {
                second = true;
                continue;
            }
            return Ok((proof.who, answer));
        }
    }

    /// The answer, if it has this status.
    pub(super) async fn expect(
        &self,
        name: As<'_>,
        call: &Call,
        status: StatusCode,
    ) -> Result<ApiResponse, GitHubError> {
        let (_, answer) = self.call(name, call).await?;
        if answer.status == status { Ok(answer) } else { Err(self.refused(call, &answer)) }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, name: As<'_>, call: &Call) -> Result<T, GitHubError> {
        let answer = self.expect(name, call, StatusCode::OK).await?;
        self.parsed(call, &answer.body)
    }

    /// The general meaning of a refusal that has no special meaning for the caller.
    pub(super) fn refused(&self, call: &Call, answer: &ApiResponse) -> GitHubError {
        if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED {
            return self.unparsable(call, format!("the status {}", answer.status.as_u16()));
        }
        refusal::meaning(&self.server(), &call.what, answer.status, &answer.headers, &answer.body)
    }

    pub(super) fn parsed<T: DeserializeOwned>(&self, call: &Call, body: &[u8]) -> Result<T, GitHubError> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            // The error of a wrong type quotes the value.
            let found = if call.secret {
                format!("something else at `{}`, {} bytes in all", error.path(), body.len())
            } else {
                format!("{error}, in {}", refusal::start_of(body))
            };
            self.unparsable(call, found)
        })
    }

    pub(super) fn unparsable(&self, call: &Call, found: String) -> GitHubError {
        GitHubError::Unparsable { server: self.server(), what: call.what.clone(), found }
    }

    pub(super) async fn identity(&self, name: As<'_>) -> Result<CredentialIdentity, GitHubError> {
        match (self.credential(), name) {
            (GitHubCredential::Token(_), _) => Ok(CredentialIdentity::Token),
            (GitHubCredential::App { .. }, As::App) => Ok(CredentialIdentity::App),
            (GitHubCredential::App { .. }, As::For(scope, _)) => {
                self.installation_id(scope).await.map(CredentialIdentity::Installation)
            }
            (GitHubCredential::App { .. }, As::Holder) => Err(needs_a_scope()),
        }
    }

    async fn proof(&self, name: As<'_>) -> Result<Proof, GitHubError> {
        match (self.credential(), name) {
            (GitHubCredential::Token(token), As::For(..) | As::Holder) => {
                Ok(Proof { who: CredentialIdentity::Token, token, slot: None, fresh: false })
            }
            (GitHubCredential::Token(_), As::App) => Err(GitHubError::Settings {
                what: "this takes a GitHub App, and a personal access token is set".to_owned(),
            }),
            (GitHubCredential::App { signer, .. }, As::App) => {
                let token = signer.sign(self.now()).map_err(|what| GitHubError::Settings { what })?;
                Ok(Proof { who: CredentialIdentity::App, token, slot: None, fresh: false })
            }
            (GitHubCredential::App { .. }, As::Holder) => Err(needs_a_scope()),
            (GitHubCredential::App { .. }, As::For(scope, purpose)) => self.installation_proof(scope, purpose).await,
        }
    }

    async fn installation_proof(&self, scope: &Scope, purpose: Purpose) -> Result<Proof, GitHubError> {
        let id = self.installation_id(scope).await?;
        let permission = purpose.permissions(scope);
        let slot = self.known.slot((id, permission));
        let mut held = slot.lock().await;
        let now = self.now();
        let token = match &*held {
            Some(token) if token.usable(now) => token.clone(),
            _ => {
                let token = match self.installation_token(id, permission).await {
                    // The App was uninstalled and perhaps reinstalled.
                    Err(error @ GitHubError::NotVisible { .. }) => {
                        self.known.forget_installation(scope);
                        return Err(error);
                    }
                    made => made?,
                };
                held.insert(token).clone()
            }
        };
        drop(held);
        let fresh = token.fresh(now);
        Ok(Proof {
            who: CredentialIdentity::Installation(id),
            token: token.token,
            slot: Some((slot, token.number)),
            fresh,
        })
    }

    /// Whether one more attempt after a refusal makes sense.
    async fn renew(&self, proof: &Proof) -> bool {
        if let Some((slot, number)) = &proof.slot {
            if proof.fresh {
                // It may not be known to all of GitHub's servers yet.
                tokio::time::sleep(self.exchange.options().fresh_token_pause).await;
                return true;
            }
            let mut held = slot.lock().await;
            // Another task may have renewed it meanwhile.
            if held.as_ref().is_some_and(|t| t.number == *number) {
                *held = None;
            }
            return true;
        }
        // A key or token that was changed on disk needs no restart.
        let Ok(loaded) = self.source.load() else { return false };
        let mut credential = self.credential.write();
        let changed = !credential.same(&loaded);
        *credential = loaded;
        changed
    }

    pub(super) async fn installation_id(&self, scope: &Scope) -> Result<u64, GitHubError> {
        if let GitHubCredential::App { installation: Some(id), .. } = self.credential() {
            return Ok(id);
        }
        if let Some(id) = self.known.installation(scope) {
            return Ok(id);
        }
        Ok(Box::pin(self.installation_of(scope)).await?.id)
    }

    async fn installation_token(
        &self,
        id: u64,
        permission: Option<(&str, &str)>,
    ) -> Result<InstallationToken, GitHubError> {
        #[derive(Deserialize)]
        struct Made {
            token: SecretString,
            expires_at: Timestamp,
        }
        let path = ["app", "installations", &id.to_string(), "access_tokens"].map(str::to_owned).to_vec();
        let what = match permission {
            Some((name, level)) => format!("a token of installation {id} with {name}={level}"),
            None => format!("a token of installation {id}"),
        };
        let mut call = self.request(Method::POST, path, &[], &what);
        call.body = permission
            .map(|(name, level)| json!({"permissions": {name: level}}))
            .or(Some(Value::Object(Default::default())));
        // One more token does not affect the others.
        (call.class, call.repeatable, call.secret) = (Class::Access, true, true);
        let (_, answer) = Box::pin(self.call(As::App, &call)).await?;
        match (answer.status, permission) {
            (StatusCode::CREATED, _) => {}
            (StatusCode::UNPROCESSABLE_ENTITY, Some((name, level))) => {
                return Err(GitHubError::MissingPermission {
                    server: self.server(),
                    what: call.what,
                    accepted: Some(format!("{name}={level}")),
                    said: refusal::said(&answer.body),
                });
            }
            _ => return Err(self.refused(&call, &answer)),
        }
        let made: Made = self.parsed(&call, &answer.body)?;
        Ok(InstallationToken {
            token: made.token,
            made_at: self.now(),
            expires_at: made.expires_at,
            number: self.tokens_made.fetch_add(1, Ordering::Relaxed),
        })
    }
}

fn needs_a_scope() -> GitHubError {
    GitHubError::Settings { what: "an App acts in a repository, an organisation or an enterprise: name one".to_owned() }
}
