//! `AddInstance`: the living vm of a runner, or a new one.
//!
//! The answer is given when the guest runs the setup script. Until then, the vm belongs to no one if the host ends: one that
//! still waits for its slot is taken back, and one that boots is found by the next AddInstance of its runner.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    super::{retrying_client::RetryPause, vm_settings::VmSettings},
    call_time::CallTime,
    failure::ShoesFailure,
    guest,
    identity::InstanceIdentity,
    messages::{AddInstanceRequest, AddInstanceResponse, ResourceType},
    service::{Persistence, ShoesService, ShoesVm},
    settings::ShoesSettings,
};
use crate::{client, domain::State, platform::clock};

/// myshoes writes it to its own log and metrics.
const SHOES_TYPE: &str = "mayfly";
/// `myshoes-` and a UUID have 44.
const LONGEST_NAME: usize = 256;
/// The environment of a guest is limited to 64 KiB. A usual script has 4 KiB.
const LARGEST_SCRIPT: usize = 60 * 1024;
/// How long a creation without an answer may still be on its way once the service answers again.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

pub(super) struct AddCall<'a> {
    pub settings: &'a ShoesSettings,
    pub service: &'a ShoesService,
    pub request: &'a AddInstanceRequest,
    pub time: CallTime,
    /// The host no longer waits for the answer.
    pub cancelled: CancellationToken,
}

impl AddCall<'_> {
    pub async fn run(&self) -> Result<AddInstanceResponse, ShoesFailure> {
        let resource_type = check(self.request)?;
        self.service.refuse_cleartext("the registration token of the runner")?;
        // Of one call, because a repetition with another body would not be the same creation.
        let wait = self.time.longest_wait();
        if wait == 0 {
            return Err(ShoesFailure::unavailable("the host leaves no time for this call"));
        }
        let mut unanswered = false;
        let result = self.attempt(resource_type, wait, &mut unanswered).await;
        if self.cancelled.is_cancelled() {
            self.take_back(unanswered).await;
            return Err(ShoesFailure::cancelled());
        }
        result
    }

    /// `unanswered` is set as long as a creation may have been stored whose answer did not arrive.
    async fn attempt(
        &self,
        resource_type: ResourceType,
        wait: u64,
        unanswered: &mut bool,
    ) -> Result<AddInstanceResponse, ShoesFailure> {
        let mut retry = RetryPause::default();
        loop {
            let records = self.service.of_runner(&self.request.runner_name, self.persistence()).await?;
            let living = records.iter().find(|vm| vm.is_alive()).cloned();
            let is_own = living.is_none();
            let vm = match living {
                Some(vm) => vm,
                None => {
                    let identity =
                        InstanceIdentity::new(&self.request.runner_name, records.first().map(|vm| vm.id.as_str()));
                    let body = self.vm_request(&identity, self.settings.vm_settings(resource_type), wait);
                    match self.create(&body, identity.key(), unanswered).await? {
                        Some(vm) => vm,
                        None => {
                            let conflict = client::Error::Unreachable(
                                "the vm of this runner is created by another call".to_owned(),
                            );
                            self.persistence().pause(&mut retry, conflict).await?;
                            continue;
                        }
                    }
                }
            };
            match self.until_up(vm).await? {
                Waited::Up(vm) => {
                    return Ok(AddInstanceResponse {
                        cloud_id: vm.id.clone(),
                        shoes_type: SHOES_TYPE.to_owned(),
                        ip_address: vm.address(),
                        resource_type: resource_type.into(),
                    });
                }
                Waited::Ended(why) if is_own => return Err(why),
                // The plugin that created it has taken it back, or its job was short: this runner needs a new one.
                Waited::Ended(_) => {}
            }
        }
    }

    fn persistence(&self) -> Persistence<'_> {
        Persistence { until: self.time.answer_by(), cancelled: &self.cancelled }
    }

    /// `None`: another plugin created a vm of this runner at the same time.
    ///
    /// A request that has been sent is not abandoned when the host ends, because the service performs it nevertheless.
    async fn create(&self, body: &Value, key: &str, unanswered: &mut bool) -> Result<Option<ShoesVm>, ShoesFailure> {
        let mut retry = RetryPause::default();
        loop {
            if self.cancelled.is_cancelled() {
                return Err(ShoesFailure::cancelled());
            }
            *unanswered = true;
            match self.service.create(body, key, self.time.answer_by()).await {
                Ok(vm) => {
                    *unanswered = false;
                    return Ok(Some(vm));
                }
                Err(client::Error::Problem(problem, _))
                    if matches!(problem.code.as_str(), "idempotency.mismatch" | "vm.name_in_use") =>
                {
                    *unanswered = false;
                    return Ok(None);
                }
                Err(error) => {
                    if matches!(error, client::Error::Problem(..)) && !error.passes() {
                        *unanswered = false;
                    }
                    self.persistence().pause(&mut retry, error).await?;
                }
            }
        }
    }

    /// Until the guest runs, or as long as the host waits. A vm that boots then is given to the host, which ends it if no
    /// runner appears.
    async fn until_up(&self, mut vm: ShoesVm) -> Result<Waited, ShoesFailure> {
        loop {
            if vm.was_up() && (vm.is_alive() || vm.life.outcome.as_ref().is_some_and(|end| end.result == "completed")) {
                return Ok(Waited::Up(vm));
            }
            if !vm.is_alive() {
                let why = format!("the vm {} has ended: {}", vm.id, vm.end());
                let code = vm.life.outcome.as_ref().and_then(|outcome| outcome.code.as_deref());
                return Ok(Waited::Ended(match code {
                    Some("queue.timeout") => ShoesFailure::no_capacity(why),
                    _ => ShoesFailure::internal(why),
                }));
            }
            if clock::monotonic() >= self.time.answer_by() {
                if !vm.life.is_in(State::Queued) {
                    return Ok(Waited::Up(vm));
                }
                let last = Persistence { until: self.time.end(), cancelled: &self.cancelled };
                self.service.delete(&vm.id, true, last).await?;
                return Err(ShoesFailure::no_capacity(format!(
                    "the vm {} got no slot in the time of this call; it has left the queue",
                    vm.id
                )));
            }
            vm = match self.service.changed(&vm, self.persistence()).await {
                Ok(Some(vm)) => vm,
                Ok(None) => return Ok(Waited::Ended(ShoesFailure::internal(format!("the vm {} is gone", vm.id)))),
                // The time of the call may end within a request.
                Err(_) if !self.cancelled.is_cancelled() && clock::monotonic() >= self.time.answer_by() => {
                    let last = Persistence { until: self.time.end(), cancelled: &self.cancelled };
                    match self.service.get(&vm.id, last).await? {
                        Some(vm) => vm,
                        None => return Ok(Waited::Ended(ShoesFailure::internal(format!("the vm {} is gone", vm.id)))),
                    }
                }
                Err(error) => return Err(error),
            };
        }
    }

    /// The host has ended or given up. A vm that waits for its slot leaves the queue.
    async fn take_back(&self, unanswered: bool) {
        let never = CancellationToken::new();
        // After this, the vm has left the queue by itself.
        let persistence = Persistence { until: self.time.end(), cancelled: &never };
        let mut answered = None;
        loop {
            let Ok(vms) = self.service.of_runner(&self.request.runner_name, persistence).await else { return };
            for vm in vms.iter().filter(|vm| vm.life.is_in(State::Queued) && vm.is_alive()) {
                if self.service.delete(&vm.id, true, persistence).await.is_err() {
                    return;
                }
            }
            if !unanswered || clock::elapsed(*answered.get_or_insert_with(clock::monotonic)) > ON_ITS_WAY {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn vm_request(&self, identity: &InstanceIdentity<'_>, settings: VmSettings, wait: u64) -> Value {
        let mut labels = settings.labels;
        labels.extend(identity.labels(&self.request.labels));
        let mut body = Map::new();
        body.insert("template".into(), self.settings.template(&self.request.labels).into());
        body.insert("name".into(), identity.vm_name().into());
        body.insert("runner".into(), guest::runner(&self.request.setup_script));
        body.insert("labels".into(), json!(labels));
        body.insert("budgets".into(), json!(settings.budgets));
        body.insert("queue_timeout_seconds".into(), wait.into());
        for (key, value) in [
            ("cpus", settings.cpus.map(Value::from)),
            ("memory_mib", settings.memory_mib.map(Value::from)),
            ("network", settings.network.map(|mode| mode.as_str().into())),
        ] {
            if let Some(value) = value {
                body.insert(key.into(), value);
            }
        }
        body.into()
    }
}

enum Waited {
    Up(ShoesVm),
    Ended(ShoesFailure),
}

/// What no setting and no other time could make right.
fn check(request: &AddInstanceRequest) -> Result<ResourceType, ShoesFailure> {
    let AddInstanceRequest { runner_name, setup_script, resource_type, .. } = request;
    let wrong = |what: &str| Err(ShoesFailure::bad_request(what));
    if runner_name.is_empty() || runner_name.len() > LONGEST_NAME || runner_name.contains(char::is_control) {
        return wrong("runner_name: expected 1 to 256 bytes without control characters");
    }
    if setup_script.trim().is_empty() || setup_script.contains('\0') {
        return wrong("setup_script: expected a script");
    }
    if setup_script.len() > LARGEST_SCRIPT {
        return Err(ShoesFailure::bad_request(format!(
            "setup_script: at most {LARGEST_SCRIPT} bytes, found {}",
            setup_script.len()
        )));
    }
    ResourceType::try_from(*resource_type)
        .map_err(|_| ShoesFailure::bad_request(format!("resource_type: {resource_type} is not known")))
}
