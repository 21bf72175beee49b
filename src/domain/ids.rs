//! Identifiers. A vm's id is a UUIDv7, so ids sort by creation time. The names of its instances and files derive from
//! it, so that a restarted service recognises them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl VmId {
    /// Creates a new id, from the clock and random bits. Called by `service` only.
    pub fn mint() -> Self {
        Self(Uuid::now_v7())
    }

    /// The instance of the first attempt.
    pub fn instance(self) -> InstanceName {
        InstanceName(format!("{}{}", InstanceName::PREFIX, self.0))
    }

    /// The instance of an attempt. Each attempt has its own name, so that a late command for an earlier attempt
    /// cannot affect this one.
    pub fn instance_of(self, attempt: u32) -> InstanceName {
        match attempt {
            0 | 1 => self.instance(),
            _ => InstanceName(format!("{}{}-{attempt}", InstanceName::PREFIX, self.0)),
        }
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

/// The hypervisor's name for the instance of a vm: `mayfly-<vm id>` for its first attempt, `mayfly-<vm
/// id>-<attempt>` for later ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceName(String);

impl InstanceName {
    pub const PREFIX: &str = "mayfly-";
    /// The length of an id with its hyphens.
    const ID: usize = uuid::fmt::Hyphenated::LENGTH;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The vm that this name belongs to, or `None` if it is not one of Mayfly's.
    pub fn parse(name: &str) -> Option<VmId> {
        Some(Self::read(name)?.vm_id())
    }

    /// Parses a name; `None` if it is not one of Mayfly's. Only the canonical spelling is accepted: another program
    /// made `MAYFLY-…` or an id in braces.
    pub fn read(name: &str) -> Option<InstanceName> {
        let rest = name.strip_prefix(Self::PREFIX)?;
        let (id, attempt) = rest.split_at_checked(Self::ID)?;
        let id = VmId(Uuid::try_parse(id).ok()?);
        let canonical = match attempt.strip_prefix('-') {
            Some(attempt) => id.instance_of(attempt.parse().ok()?),
            None => id.instance(),
        };
        (canonical.0 == name).then_some(canonical)
    }

    pub fn vm_id(&self) -> VmId {
        // Every name is made of an id.
        VmId(Uuid::try_parse(&self.0[Self::PREFIX.len()..][..Self::ID]).unwrap_or_default())
    }

    /// Whether it belongs to a later attempt than the first.
    pub fn is_retry(&self) -> bool {
        self.0.len() > Self::PREFIX.len() + Self::ID
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
    /// Called by `service` only.
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
            &format!("mayfly-{id}-"),
            &format!("mayfly-{id}-1"),
            &format!("mayfly-{id}-02"),
            &format!("mayfly-{id}-2-3"),
            &format!("mayfly-{id}2"),
            &format!("mayfly-{}-2", id.0.simple()),
            "mayfly-ääääääääääääääääääää-2",
        ] {
            assert_eq!(InstanceName::parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn each_attempt_has_a_name_of_its_own() {
        let id = VmId::mint();
        assert_eq!(id.instance_of(1), id.instance());
        let mut names: Vec<InstanceName> = (1..1000).map(|attempt| id.instance_of(attempt)).collect();
        for name in &names {
            assert_eq!(InstanceName::read(name.as_str()).as_ref(), Some(name));
            assert_eq!((name.vm_id(), InstanceName::parse(name.as_str())), (id, Some(id)));
        }
        names.dedup();
        assert_eq!(names.len(), 999);
        assert_eq!(InstanceName::parse(id.instance_of(u32::MAX).as_str()), Some(id));
    }
}
