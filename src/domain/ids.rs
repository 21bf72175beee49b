//! Identifiers. A vm's id is a UUIDv7, so ids sort by creation time; everything that the hypervisor or the file system
//! knows of a vm is named after it, which is how a restart tells our instances from strangers'.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl VmId {
    /// Mints a new id. The only identifier made from the clock and randomness; called by `service` alone.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    pub fn instance(self) -> InstanceName {
        InstanceName(format!("{}{}", InstanceName::PREFIX, self.0))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VmId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// What the hypervisor calls a vm: `mayfly-<vm id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(String);

impl InstanceName {
    pub const PREFIX: &str = "mayfly-";

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The vm that this name belongs to, or `None` when it is not one of ours.
    pub fn parse(name: &str) -> Option<VmId> {
        let id = name.strip_prefix(Self::PREFIX)?.parse().ok()?;
        // Only the canonical spelling is ours: `MAYFLY-…` or an id in braces was made by somebody else.
        (VmId::instance(id).0 == name).then_some(id)
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub Uuid);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TokenId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// A pull's id is a UUIDv7 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullId(pub Uuid);

impl PullId {
    /// Called by `service` alone.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for PullId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PullId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_are_ours() {
        let id = VmId::mint();
        assert_eq!(InstanceName::parse(id.instance().as_str()), Some(id));
        for stranger in [
            "mayfly-",
            "mayfly-x",
            &format!("Mayfly-{id}"),
            &format!("mayfly-{}", id.0.simple()),
            &format!("mayfly-{id}-2"),
        ] {
            assert_eq!(InstanceName::parse(stranger), None, "{stranger}");
        }
    }
}
