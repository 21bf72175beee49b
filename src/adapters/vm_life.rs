//! What every adapter reads of a vm's life in the answers of the API.

use serde::Deserialize;

use crate::domain::State;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct VmLife {
    pub state: String,
    /// Set once, when the vm begins to end.
    pub outcome: Option<ReportedOutcome>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ReportedOutcome {
    pub result: String,
    #[serde(default)]
    pub code: Option<String>,
    #[serde(default)]
    pub detail: Option<String>,
}

impl VmLife {
    pub fn is_in(&self, state: State) -> bool {
        self.state == state.as_str()
    }

    /// Whether it no longer waits for its slot, boots or works. A runner that uploads the result of its job still works.
    pub fn has_ended(&self) -> bool {
        let ends = [State::Kept, State::Stopping, State::Deleting, State::Deleted];
        self.outcome.is_some() || ends.into_iter().any(|state| self.is_in(state))
    }

    /// How it ended, for messages.
    pub fn end(&self) -> String {
        match &self.outcome {
            Some(ReportedOutcome { result, code: Some(code), .. }) => format!("{result}, {code}"),
            Some(ReportedOutcome { result, code: None, .. }) => result.clone(),
            None => self.state.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_uploads_has_not_ended_and_one_with_an_outcome_has() {
        let life = |text: &str| serde_json::from_str::<VmLife>(text).unwrap();
        for state in ["queued", "cloning", "booting", "configuring", "running", "draining"] {
            let alive = life(&format!(r#"{{"state": "{state}", "outcome": null}}"#));
            assert!(!alive.has_ended() && alive.end() == state, "{state}");
            let ended = life(&format!(r#"{{"state": "{state}", "outcome": {{"result": "lost", "code": "x.y"}}}}"#));
            assert!(ended.has_ended() && ended.end() == "lost, x.y", "{state}");
        }
        for state in ["kept", "stopping", "deleting", "deleted"] {
            assert!(life(&format!(r#"{{"state": "{state}"}}"#)).has_ended(), "{state}");
        }
    }
}
