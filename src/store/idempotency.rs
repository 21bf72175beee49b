//! Recognises a repeated request for a vm: by its idempotency key, or by the name of a live vm.

use sqlx::{Executor, Sqlite};

use super::{Reader, Result, rows::parse_id};
use crate::domain::{Code, Error, TokenId, Vm, VmId};

/// Equal keys of different owners are different keys: a repetition returns a vm, and with it the token of its guest.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub owner: KeyOwner,
    pub key: String,
}

#[derive(Clone, Copy, Debug)]
pub enum KeyOwner {
    /// All API tokens without limits: a caller may repeat a request with a newer token.
    Tokens,
    /// One token with limits.
    Token(TokenId),
    /// The loops of the service.
    Service,
}

impl KeyOwner {
    pub(super) fn column(self) -> String {
        match self {
            KeyOwner::Tokens => "tokens".to_owned(),
            KeyOwner::Token(id) => id.to_string(),
            KeyOwner::Service => "service".to_owned(),
        }
    }
}

/// For a vm that is created with a token with limits: it is given no vm of another token.
#[derive(Clone, Copy, Debug)]
pub struct TokenQuota {
    pub token: TokenId,
    /// Most live vms of the token, this one included.
    pub max_live_vms: Option<u32>,
}

/// Tells requests apart without storing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHash {
    pub current: [u8; 32],
    /// As versions before the secrets were left out made it.
    pub former: Option<[u8; 32]>,
}

impl From<[u8; 32]> for RequestHash {
    fn from(current: [u8; 32]) -> Self {
        Self { current, former: None }
    }
}

impl RequestHash {
    fn is(&self, stored: &[u8]) -> bool {
        stored == self.current || self.former.is_some_and(|former| stored == former)
    }
}

/// A vm that was requested with this key or name.
pub(super) struct Requested {
    pub vm: VmId,
    hash: Vec<u8>,
}

pub(super) async fn with_key<'e>(
    db: impl Executor<'e, Database = Sqlite>,
    IdempotencyKey { owner, key }: &IdempotencyKey,
) -> Result<Option<Requested>> {
    let owner = owner.column();
    let row = sqlx::query!("SELECT vm_id, request_hash FROM idempotency_keys WHERE owner = ? AND key = ?", owner, key)
        .fetch_optional(db)
        .await?;
    row.map(|row| Ok(Requested { vm: parse_id(&row.vm_id)?, hash: row.request_hash })).transpose()
}

pub(super) async fn with_name<'e>(db: impl Executor<'e, Database = Sqlite>, name: &str) -> Result<Option<Requested>> {
    let row = sqlx::query!("SELECT id, request_hash FROM vms WHERE name = ? AND deleted_at IS NULL", name)
        .fetch_optional(db)
        .await?;
    row.map(|row| Ok(Requested { vm: parse_id(&row.id)?, hash: row.request_hash })).transpose()
}

impl Requested {
    pub fn check_key(&self, hash: &RequestHash) -> Result<()> {
        if hash.is(&self.hash) {
            return Ok(());
        }
        let detail = format!(
            "this Idempotency-Key made the vm {} with another body; use a new key for another vm, or repeat the same body (only \
             secrets may differ)",
            self.vm
        );
        let error = Error::new(Code::IdempotencyMismatch, detail);
        Err(error.field("header:Idempotency-Key", format!("was used with another body for the vm {}", self.vm)).into())
    }

    pub fn check_name(&self, hash: &RequestHash) -> Result<()> {
        if hash.is(&self.hash) {
            return Ok(());
        }
        let detail = format!("the vm {} has this name and was requested with another body", self.vm);
        Err(Error::new(Code::VmNameInUse, detail).field("/name", "choose a name that no live vm has").into())
    }
}

/// Refuses the vm of another token to a token with limits.
pub(super) fn check_token(vm: &Vm, quota: Option<TokenQuota>) -> Result<()> {
    if quota.is_some_and(|quota| vm.spec.created_by != Some(quota.token)) {
        return Err(Error::new(Code::VmNameInUse, "a vm that was created with another token has this name")
            .field("/name", "choose a name that no live vm has")
            .into());
    }
    Ok(())
}

impl Reader {
    /// The vm of an earlier request like this one. To be asked before a request is validated: what was accepted once is
    /// answered again, although its template may be gone or the host smaller. `Ledger::open` asks again, in the
    /// transaction that stores the vm.
    pub async fn requested(
        &self,
        key: Option<&IdempotencyKey>,
        name: Option<&str>,
        hash: &RequestHash,
        quota: Option<TokenQuota>,
    ) -> Result<Option<Vm>> {
        if let Some(key) = key
            && let Some(known) = with_key(self.pool(), key).await?
        {
            known.check_key(hash)?;
            return self.vm(known.vm).await;
        }
        if let Some(name) = name
            && let Some(known) = with_name(self.pool(), name).await?
        {
            known.check_name(hash)?;
            let vm = self.vm(known.vm).await?;
            vm.as_ref().map_or(Ok(()), |vm| check_token(vm, quota))?;
            return Ok(vm);
        }
        Ok(None)
    }
}
