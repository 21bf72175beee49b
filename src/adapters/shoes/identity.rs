//! How vms are found again: by labels, because the plugin has no state of its own.
//!
//! myshoes repeats an AddInstance with the same name and perhaps another script, and must get the same vm as long as that
//! lives. Once it is gone, the same name must give a new vm. So a creation is the name and the vm before it: two plugins that
//! ask at the same time ask for the same creation, and the service makes one vm.

use std::collections::BTreeMap;

use super::super::names::{self, OWNER, hash_of, label};

/// The value of the label `owner`.
pub(super) const OF_MYSHOES: &str = "myshoes";
const RUNNER: &str = "myshoes.runner";
const JOB_LABELS: &str = "myshoes.labels";

/// What every vm of this runner is selected by.
pub(super) fn selection(runner_name: &str) -> [String; 2] {
    [format!("{OWNER}={OF_MYSHOES}"), format!("{RUNNER}={}", label(runner_name))]
}

pub(super) fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get(OWNER).is_some_and(|owner| owner == OF_MYSHOES)
}

#[derive(Debug)]
pub(super) struct InstanceIdentity<'a> {
    runner_name: &'a str,
    hash: String,
}

impl<'a> InstanceIdentity<'a> {
    /// `previous` is the id of the last vm of this runner, if there was one.
    pub fn new(runner_name: &'a str, previous: Option<&str>) -> Self {
        let hash = hash_of(&["mayfly shoes instance 1", runner_name, previous.unwrap_or_default()]);
        Self { runner_name, hash }
    }

    /// The idempotency key of the creation. It is kept as long as the record of the vm, so a record that is gone takes its
    /// key with it.
    pub fn key(&self) -> &str {
        &self.hash
    }

    pub fn vm_name(&self) -> String {
        names::vm_name(self.runner_name, "myshoes", &self.hash)
    }

    pub fn labels(&self, job_labels: &[String]) -> BTreeMap<String, String> {
        [(OWNER, OF_MYSHOES.to_owned()), (RUNNER, label(self.runner_name)), (JOB_LABELS, label(&job_labels.join(",")))]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::is_name;

    #[test]
    fn a_creation_is_the_name_and_the_vm_before_it() {
        let key = |name, previous| InstanceIdentity::new(name, previous).key().to_owned();
        assert_eq!(key("a", None), key("a", None));
        assert_eq!(key("a", Some("1")), key("a", Some("1")));
        assert_ne!(key("a", None), key("a", Some("1")));
        assert_ne!(key("a1", None), key("a", Some("1")));
    }

    #[test]
    fn every_runner_gives_a_name_and_labels() {
        let long = "x".repeat(300);
        for name in ["myshoes-0d2f6d4e-8b5c-4c6a-9a53-7a3f6a1b2c3d", "", "ü\"\n", long.as_str()] {
            let identity = InstanceIdentity::new(name, None);
            assert!(is_name(&identity.vm_name()), "{}", identity.vm_name());
            let labels = identity.labels(&["self-hosted".into(), long.clone()]);
            assert!(is_ours(&labels) && labels.values().all(|value| value.chars().count() <= 128), "{labels:?}");
            let [_, runner] = selection(name);
            assert_eq!(runner, format!("{RUNNER}={}", labels[RUNNER]));
        }
        assert!(!is_ours(&BTreeMap::new()));
    }
}
