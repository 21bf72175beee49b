//! The settings that a template sets itself and that may be changed after its registration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    budgets::BudgetsPatch,
    error::{Code, Error, Result},
    network::NetworkMode,
    ready_check::ReadyCheck,
};

/// The least memory of a vm, in MiB.
pub const LEAST_MEMORY_MIB: u32 = 32;

/// More than any machine that runs guests has.
const MOST_CPUS: u32 = 4096;
const MOST_MEMORY_MIB: u32 = 64 << 20;

/// What a template sets itself. For everything else the defaults count that the service has when a vm is created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnSettings {
    /// `None`: as it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// `None`: as it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
    pub budgets: BudgetsPatch,
}

/// A change: `None` leaves a setting as it is, `Some(None)` removes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsChange {
    pub cpus: Option<Option<u32>>,
    pub memory_mib: Option<Option<u32>>,
    pub network: Option<Option<NetworkMode>>,
    /// As a whole.
    pub ready: Option<Option<ReadyCheck>>,
    /// By name.
    pub budgets: BTreeMap<String, Option<u32>>,
}

impl SettingsChange {
    pub fn apply_to(&self, mut own: OwnSettings) -> Result<OwnSettings> {
        let invalid = |field: String, what: String| {
            Err(Error::new(Code::RequestInvalid, "the template cannot have these settings").field(field, what))
        };
        if self.cpus.flatten().is_some_and(|cpus| !(1..=MOST_CPUS).contains(&cpus)) {
            return invalid("/cpus".to_owned(), format!("1 to {MOST_CPUS}"));
        }
        if self.memory_mib.flatten().is_some_and(|mib| !(LEAST_MEMORY_MIB..=MOST_MEMORY_MIB).contains(&mib)) {
            return invalid("/memory_mib".to_owned(), format!("{LEAST_MEMORY_MIB} to {MOST_MEMORY_MIB}"));
        }
        own.cpus = self.cpus.unwrap_or(own.cpus);
        own.memory_mib = self.memory_mib.unwrap_or(own.memory_mib);
        own.network = self.network.unwrap_or(own.network);
        if let Some(ready) = &self.ready {
            ready.iter().try_for_each(ReadyCheck::check)?;
            own.ready.clone_from(ready);
        }
        for (name, value) in &self.budgets {
            if !own.budgets.set(name, *value) {
                return invalid(format!("/budgets/{name}"), format!("one of {}", BudgetsPatch::NAMES.join(", ")));
            }
        }
        own.budgets.check()?;
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_touches_what_it_names_and_null_takes_back() {
        let budgets = BudgetsPatch { idle_seconds: Some(5), boot_seconds: Some(6), ..BudgetsPatch::default() };
        let own = OwnSettings { cpus: Some(2), network: Some(NetworkMode::Host), budgets, ..OwnSettings::default() };
        assert_eq!(SettingsChange::default().apply_to(own.clone()).unwrap(), own);
        let change = SettingsChange {
            cpus: Some(None),
            memory_mib: Some(Some(64)),
            network: Some(None),
            ready: None,
            budgets: [("idle_seconds".to_owned(), None), ("max_attempts".to_owned(), Some(1))].into(),
        };
        let changed = change.apply_to(own).unwrap();
        let budgets = BudgetsPatch { boot_seconds: Some(6), max_attempts: Some(1), ..BudgetsPatch::default() };
        assert_eq!(changed, OwnSettings { memory_mib: Some(64), budgets, ..OwnSettings::default() });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let budget = |name: &str, value| [(name.to_owned(), Some(value))].into();
        for (change, field) in [
            (SettingsChange { cpus: Some(Some(0)), ..Default::default() }, "/cpus"),
            (SettingsChange { cpus: Some(Some(4097)), ..Default::default() }, "/cpus"),
            (SettingsChange { memory_mib: Some(Some(u32::MAX)), ..Default::default() }, "/memory_mib"),
            (SettingsChange { memory_mib: Some(Some(31)), ..Default::default() }, "/memory_mib"),
            (SettingsChange { ready: Some(Some(ReadyCheck::default())), ..Default::default() }, "/ready"),
            (SettingsChange { budgets: budget("idle", 5), ..Default::default() }, "/budgets/idle"),
            (SettingsChange { budgets: budget("max_attempts", 11), ..Default::default() }, "/budgets/max_attempts"),
        ] {
            let error = change.apply_to(OwnSettings::default()).unwrap_err();
            assert_eq!(error.fields[0].pointer, field);
        }
    }
}
