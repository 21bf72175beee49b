//! Ids of jobs and runners at their servers.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The id of a job or a runner at its source: a number at GitHub and Gitea, a UUID at Buildkite.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum RemoteId {
    Number(u64),
    Text(String),
}

impl RemoteId {
    /// `None`: no id of a server that counts.
    pub fn number(&self) -> Option<u64> {
        match self {
            RemoteId::Number(number) => Some(*number),
            RemoteId::Text(_) => None,
        }
    }

    /// From its text in a column of the database. Only what is written like a number is one.
    pub fn from_column(text: String) -> RemoteId {
        match text.parse::<u64>() {
            Ok(number) if number.to_string() == text => RemoteId::Number(number),
            _ => RemoteId::Text(text),
        }
    }
}

impl fmt::Display for RemoteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteId::Number(number) => write!(f, "{number}"),
            RemoteId::Text(text) => f.write_str(text),
        }
    }
}

impl From<u64> for RemoteId {
    fn from(number: u64) -> RemoteId {
        RemoteId::Number(number)
    }
}

impl PartialEq<u64> for RemoteId {
    fn eq(&self, number: &u64) -> bool {
        self.number() == Some(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stays_one_in_json_and_in_a_column() {
        let uuid = "0193a6d2-0000-4000-8000-000000000001";
        for (id, json) in [
            (RemoteId::Number(u64::MAX), u64::MAX.to_string()),
            (RemoteId::Text(uuid.into()), format!("{uuid:?}")),
            (RemoteId::Text("007".into()), "\"007\"".to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&id).unwrap(), json);
            assert_eq!(serde_json::from_str::<RemoteId>(&json).unwrap(), id);
            assert_eq!(RemoteId::from_column(id.to_string()), id);
        }
    }
}
