//! Names the runner of an attempt, and records what its CI server reports about it.

use std::sync::Arc;

use crate::{
    domain::{Event, State, Vm, source_runner},
    platform::Clock,
    store::{Expect, Ledger, StoreError},
};

/// The name of the runner of the vm's current attempt.
pub(super) fn runner_name(vm: &Vm) -> String {
    source_runner::runner_name(&vm.spec.name, vm.id(), vm.attempt)
}

/// Applies an event about the runner of this attempt, even if the vm has changed meanwhile. `None`: that attempt has
/// ended.
pub(super) async fn record(
    ledger: &Ledger,
    clock: &Clock,
    vm: &Vm,
    event: Event,
) -> Result<Option<Arc<Vm>>, StoreError> {
    let mut generation = vm.generation;
    loop {
        let expect = Expect::Generation(generation);
        let applied = ledger.apply(vm.id(), expect, event.clone(), clock.now()).await?;
        if applied.as_expected {
            return Ok(Some(applied.vm));
        }
        let now = applied.vm;
        if now.attempt != vm.attempt || matches!(now.state, State::Queued | State::Deleted) {
            return Ok(None);
        }
        generation = now.generation;
    }
}
