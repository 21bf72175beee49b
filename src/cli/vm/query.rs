//! The list of vms as commands ask for it.

use serde_json::Value;

use super::super::{client::ApiClient, failure::CommandFailure};

/// Parameters of `GET /vms`.
pub(super) type VmQuery = Vec<(&'static str, String)>;

pub(super) async fn list(client: &ApiClient, query: &VmQuery) -> Result<Vec<Value>, CommandFailure> {
    let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(client.list(&["vms"], &query).await?)
}
