//! The states of a vm, and the step that each of them has pending.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The state of a vm.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum State {
    /// Accepted and stored; see `queue` for what it waits for.
    Queued,
    /// The template is being cloned for this vm.
    Cloning,
    /// The hypervisor was started; waiting for the guest to answer.
    Booting,
    /// The guest is being given its runner, hooks and token.
    Configuring,
    /// The guest is configured; its runner works or waits for work.
    Running,
    /// The end was announced; the runner is still uploading its result.
    Draining,
    /// The vm failed, and its guest is kept for debugging (`keep_on_failure`): it runs, and holds its slot.
    Kept,
    /// The hypervisor was asked to stop, is being forced, then killed.
    Stopping,
    /// Disk and leftovers are being removed; the driver has not confirmed yet that the instance is gone.
    Deleting,
    /// The end. The record is kept until its retention ends.
    Deleted,
}

impl State {
    pub const ALL: &'static [State] = <State as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(s: &str) -> Option<State> {
        s.parse().ok()
    }

    /// A slot is held from the start of cloning until the driver confirms that the instance is gone.
    pub fn holds_slot(self) -> bool {
        !matches!(self, State::Queued | State::Deleted)
    }

    /// The next step of this state: one idempotent action, repeated after a restart.
    pub fn next_step(self) -> Step {
        match self {
            State::Queued => Step::AwaitSlot,
            State::Cloning => Step::Clone,
            State::Booting => Step::Boot,
            State::Configuring => Step::Configure,
            State::Running | State::Draining | State::Kept => Step::AwaitEnd,
            State::Stopping => Step::Stop,
            State::Deleting => Step::Destroy,
            State::Deleted => Step::Nothing,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AwaitSlot,
    Clone,
    Boot,
    Configure,
    AwaitEnd,
    Stop,
    Destroy,
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
