//! Parses columns of rows.

use super::{Result, StoreError};
use crate::domain::{Vm, VmId};

pub(super) fn parse_vm(record: &str) -> Result<Vm> {
    serde_json::from_str(record).map_err(|e| unreadable(format!("a vm's record: {e}")))
}

pub(super) fn parse_id(id: &str) -> Result<VmId> {
    id.parse().map_err(|e| unreadable(format!("a vm's id {id:?}: {e}")))
}

pub(super) fn unreadable(what: impl Into<String>) -> StoreError {
    StoreError::Unreadable(what.into())
}
