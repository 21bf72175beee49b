//! Tests a new version of a template before its name moves: creates an ordinary vm of it in the ordinary queue, and
//! moves the name if the job of the vm succeeds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::results::PullResults;
use crate::{
    admission::VmAdmission,
    domain::{
        BudgetsPatch, Code, Error, Fault, OutcomeResult, Result, RunnerRequest, State, TemplateEvent, Vm, VmId,
        VmRequest,
        pull::{Pull, PullState},
    },
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader},
    templates::Catalog,
};

/// Longest single wait for a change of the vm.
const LOOK: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) struct CanaryTest {
    ledger: Ledger,
    reader: Reader,
    catalog: Arc<Catalog>,
    clock: Clock,
    admission: VmAdmission,
    results: PullResults,
}

impl CanaryTest {
    pub fn new(parts: &Parts, admission: VmAdmission, results: PullResults) -> Self {
        let Parts { ledger, reader, catalog, clock, .. } = parts.clone();
        Self { ledger, reader, catalog, clock, admission, results }
    }

    /// Cancelled with the pull. A repeated call finds the vm that it created.
    pub async fn test(&self, mut pull: Pull) -> Result<()> {
        if let Some(at) = pull.retry_at {
            self.clock.sleep_until(at).await;
        }
        let (Some(canary), Some(digest)) = (pull.spec.canary.clone(), pull.digest.clone()) else {
            return Err(Error::internal("a pull is in test without a test or a template"));
        };
        let id = match pull.vm {
            Some(id) => id,
            None => {
                let lasts = pull.deadline.duration_since(pull.created_at).as_secs().max(60);
                let request = VmRequest {
                    template: digest,
                    name: None,
                    runner: RunnerRequest::Command { command: canary.command.into(), env: BTreeMap::new() },
                    cpus: None,
                    memory_mib: None,
                    network: None,
                    labels: [("mayfly.canary".to_owned(), pull.id.to_string())].into(),
                    queue_timeout_seconds: Some(u32::try_from(lasts).unwrap_or(u32::MAX).min(30 * 24 * 3600)),
                    budgets: BudgetsPatch {
                        lifetime_seconds: Some(canary.timeout_seconds),
                        // The pull waits for the end of its vm.
                        keep_on_failure_seconds: Some(0),
                        ..BudgetsPatch::default()
                    },
                    keep_on_failure: None,
                };
                match self.admission.create_for_test(request, format!("mayfly-canary-{}", pull.id)).await {
                    Ok(created) => {
                        pull.vm = Some(created.vm.id());
                        pull.fault = None;
                        pull.retry_at = None;
                        self.ledger.save_pull(pull, Vec::new(), self.clock.now()).await?;
                        return Ok(());
                    }
                    // The template was removed meanwhile, so it has to be pulled again.
                    Err(error) if error.code == Code::TemplateUnknown => {
                        pull.state = PullState::Pulling;
                        pull.digest = None;
                        self.ledger.save_pull(pull, Vec::new(), self.clock.now()).await?;
                        return Ok(());
                    }
                    Err(error) if error.code.retryable() => return self.results.retry_later(pull, error).await,
                    Err(error) => return self.test_failed(pull, format!("no vm can be made of it: {error}")).await,
                }
            }
        };
        let Some(vm) = self.vm_deleted(id).await? else {
            return self.test_failed(pull, format!("the record of its vm {id} is gone")).await;
        };
        if let Err(why) = verdict(&vm) {
            return self.test_failed(pull, format!("the vm {id} {why}")).await;
        }
        match self.catalog.point_pulled(&pull.spec.name, &digest, "its test passed").await {
            Ok(_) => self.results.done(pull, "its test passed").await,
            Err(error) if error.code == Code::Internal => Err(error),
            Err(error) => {
                pull.fault = Some(Fault { code: error.code, detail: error.detail, at: self.clock.now() });
                self.results.failed(pull, None).await
            }
        }
    }

    /// The vm, once it is deleted. `None`: its record is gone.
    async fn vm_deleted(&self, id: VmId) -> Result<Option<Vm>> {
        let mut generation = 0;
        loop {
            match self.ledger.changes().wait_vm(&self.reader, id, generation, LOOK).await? {
                Some(vm) if vm.state != State::Deleted => generation = vm.generation,
                vm => return Ok(vm),
            }
        }
    }

    async fn test_failed(&self, mut pull: Pull, detail: String) -> Result<()> {
        let event = TemplateEvent::CanaryFailed {
            pull: pull.id,
            digest: pull.digest.clone().unwrap_or_default(),
            vm: pull.vm,
            detail: detail.clone(),
        };
        pull.fault = Some(Fault { code: Code::CanaryFailed, detail, at: self.clock.now() });
        self.results.failed(pull, Some(event)).await
    }
}

/// The reason why the test failed.
fn verdict(vm: &Vm) -> Result<(), String> {
    match (&vm.outcome, vm.job_exit_code) {
        (Some(outcome), Some(0)) if outcome.result == OutcomeResult::Completed => Ok(()),
        (Some(outcome), Some(code)) if outcome.result == OutcomeResult::Completed => {
            Err(format!("ran its test, which ended with exit code {code}"))
        }
        (Some(outcome), _) => {
            let code = outcome.code.map(|code| format!(" ({code})")).unwrap_or_default();
            let detail = outcome.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
            Err(format!("did not come to the end of its test{code}{detail}"))
        }
        (None, _) => Err("ended without an outcome".to_owned()),
    }
}
