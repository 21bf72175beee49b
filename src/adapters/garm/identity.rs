//! How vms are told apart: by labels, because the provider has no state of its own.
//!
//! GARM asks for the same name again with another token when a creation failed. The first token is void then, so the vm of the
//! earlier attempt can never register and has to go.

use std::collections::BTreeMap;

use super::{
    super::names::{self, OWNER, hash_of, label},
    instance_token::InstanceTokenClaims,
};

pub(super) const NAME: &str = "garm.name";
pub(super) const POOL: &str = "garm.pool";
pub(super) const CREATION: &str = "garm.creation";
const ATTEMPT: &str = "garm.attempt";

/// One creation: the same controller, name and token always give the same one.
#[derive(Clone, Debug)]
pub(super) struct Creation {
    controller: String,
    name: String,
    pool: String,
    hash: String,
    order: AttemptOrder,
}

/// Which of two creations of one name is the later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AttemptOrder {
    attempt: u32,
    expires: i64,
}

impl Creation {
    pub fn new(controller: &str, pool: &str, name: &str, token: &str, claims: InstanceTokenClaims) -> Self {
        // The token has enough entropy that its hash does not disclose it.
        let hash = hash_of(&["mayfly garm creation 1", controller, name, token]);
        let order = AttemptOrder { attempt: claims.create_attempt, expires: claims.exp };
        Self { controller: controller.to_owned(), name: name.to_owned(), pool: pool.to_owned(), hash, order }
    }

    /// What names this creation, in the label and as idempotency key.
    pub fn key(&self) -> &str {
        &self.hash
    }

    pub fn order(&self) -> AttemptOrder {
        self.order
    }

    /// The vm of the next attempt is created while this one is still ending, so the name alone would not be unique.
    pub fn vm_name(&self) -> String {
        names::vm_name(&self.name, "garm", &self.hash)
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            (OWNER, owner(&self.controller)),
            (NAME, label(&self.name)),
            (POOL, label(&self.pool)),
            (CREATION, self.hash.clone()),
            (ATTEMPT, format!("{}.{}", self.order.attempt, self.order.expires)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

impl AttemptOrder {
    /// `None`: a vm without a readable label.
    pub fn of(labels: &BTreeMap<String, String>) -> Option<Self> {
        let (attempt, expires) = labels.get(ATTEMPT)?.split_once('.')?;
        Some(Self { attempt: attempt.parse().ok()?, expires: expires.parse().ok()? })
    }
}

/// The value of the label `owner` for the vms of one installation of GARM.
pub(super) fn owner(controller: &str) -> String {
    label(&format!("garm/{controller}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::is_name;

    fn creation(name: &str, token: &str, attempt: u32) -> Creation {
        let claims = InstanceTokenClaims { exp: 100, create_attempt: attempt };
        Creation::new("controller", "pool", name, token, claims)
    }

    #[test]
    fn a_creation_is_controller_name_and_token() {
        let key = |name: &str, token: &str| creation(name, token, 0).key().to_owned();
        assert_eq!(key("a", "t"), key("a", "t"));
        assert_ne!(key("a", "t"), key("a", "u"));
        assert_ne!(key("a", "bc"), key("ab", "c"));
        let labels = format!("{:?}", creation("garm-x", "hush-hush", 0).labels());
        assert!(!labels.contains("hush"), "{labels}");
    }

    #[test]
    fn every_name_of_garm_gives_a_name_of_a_vm() {
        let long = "x".repeat(200);
        for name in ["garm-a1B2c3", "", "-", "my set ü/x", "....", "\n\"\\", long.as_str()] {
            let vm_name = creation(name, "t", 0).vm_name();
            assert!(is_name(&vm_name), "{vm_name}");
        }
        assert!(creation("garm-a1", "t", 0).vm_name().starts_with("garm-a1-"));
    }

    #[test]
    fn the_later_attempt_is_known_by_its_labels() {
        let order = |attempt| AttemptOrder::of(&creation("a", "t", attempt).labels()).unwrap();
        assert!(order(10) > order(9) && order(1) == creation("a", "u", 1).order());
        assert_eq!(AttemptOrder::of(&BTreeMap::new()), None);
    }
}
