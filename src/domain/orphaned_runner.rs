//! Runners at CI servers that no vm needs any more.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ids::VmId, remote_id::RemoteId, scope::Scope, source_name::SourceName, state::State, vm::Vm};

/// A runner that Mayfly registered (or tried to register) at a CI server and that no vm needs any more. Mayfly
/// removes it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Ghost)]
pub struct OrphanedRunner {
    pub name: String,
    /// The source of jobs where it is registered.
    #[schema(value_type = String, example = "github")]
    pub source: SourceName,
    #[schema(value_type = String, example = "acme")]
    pub scope: Scope,
    /// Null if the server's answer was lost: the runner is looked up by its name.
    pub runner_id: Option<RemoteId>,
    /// The vm that it belonged to.
    #[schema(value_type = String)]
    pub vm_id: VmId,
    /// When its registration was requested.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "super::time::with_milliseconds")]
    pub asked_at: Timestamp,
}

/// Whether the runner of this attempt is no longer needed. `None`: the vm's record is gone as well.
pub fn is_over(attempt: u32, vm: Option<&Vm>) -> bool {
    let ended = |state| match state {
        State::Queued | State::Kept | State::Stopping | State::Deleting | State::Deleted => true,
        State::Cloning | State::Booting | State::Configuring | State::Running | State::Draining => false,
    };
    vm.is_none_or(|vm| vm.attempt != attempt || ended(vm.state))
}
