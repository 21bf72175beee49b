//! `CreateInstance`

use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::{
    super::vm_settings::VmSettings,
    bootstrap::BootstrapRequest,
    environment::GarmEnvironment,
    failure::GarmFailure,
    guest,
    identity::Creation,
    instance,
    instance_token::InstanceTokenClaims,
    service::{BudgetsOfTemplate, GarmVm, ProviderService, TimeToWork, VmSelection},
    settings::ProviderSettings,
};
use crate::{
    adapters::retrying_client::RetryPause,
    client,
    domain::{BudgetsPatch, budgets::MAX_BUDGET_SECONDS},
    platform::clock,
};

/// How long GARM's tokens outlive the time in which it waits for a runner.
const TOKEN_OUTLIVES_BOOTSTRAP: i64 = 300;
/// A shorter wait for a slot would hardly ever give a vm that GARM still wants.
const SHORTEST_WAIT: i64 = 60;
/// How long a creation whose GARM has ended looks for its vm, if the service never said whether it made one.
const TAKING_BACK: Duration = Duration::from_secs(600);
/// The same once the service answers again.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// Creates the vm and answers at once: it may wait for its slot until GARM no longer wants it.
pub(super) async fn run(
    environment: &GarmEnvironment,
    request: BootstrapRequest,
    settings: &ProviderSettings,
    service: &ProviderService,
) -> Result<String, GarmFailure> {
    let controller = environment.controller()?;
    let pool = environment.pool_if_any().or(Some(request.pool_id.as_str())).filter(|pool| !pool.is_empty());
    let pool = pool.ok_or_else(|| GarmFailure::Failed("GARM_POOL_ID is not set".to_owned()))?;
    let vm_settings = settings.vm_settings(Some(&request.flavor), &request.extra_specs)?;
    let token = request.instance_token.expose_secret();
    let claims = InstanceTokenClaims::of(token)?;
    let creation = Creation::new(controller, pool, &request.name, token, claims);
    service.refuse_cleartext("the token of the instance")?;

    let attempt = Attempt { controller, name: &request.name, creation: &creation, service };
    if !attempt.clear_the_way().await? {
        let template = service.budgets_of(&request.image).await?;
        let body = vm_request(&request, &creation, vm_settings, &template, claims)?;
        attempt.create(&body).await?;
        // A creation of the same name that was under way at the same time may have been stored just before.
        attempt.clear_the_way().await?;
    }
    Ok(instance::created(&request.name, &request.os_type, &request.arch).to_string())
}

struct Attempt<'a> {
    controller: &'a str,
    name: &'a str,
    creation: &'a Creation,
    service: &'a ProviderService,
}

impl Attempt<'_> {
    fn of_this_name(&self) -> VmSelection<'_> {
        VmSelection { controller: self.controller, name: Some(self.name), ..VmSelection::default() }
    }

    /// Ends the vms of earlier attempts, whose token GARM no longer accepts. `true`: this creation has its vm already.
    async fn clear_the_way(&self) -> Result<bool, GarmFailure> {
        let vms = self.service.list(self.of_this_name()).await?;
        let (own, others): (Vec<&GarmVm>, Vec<&GarmVm>) = vms.iter().partition(|vm| vm.is_of(self.creation));
        let is_later = |vm: &&GarmVm| vm.is_alive() && vm.order().is_some_and(|order| order > self.creation.order());
        if others.iter().any(is_later) {
            self.end_all(&own).await?;
            return Err(self.failed("GARM has asked for it again since, with another token"));
        }
        self.end_all(&others).await?;
        if let Some(ended) = own.iter().find(|vm| !vm.is_alive()) {
            return Err(self.failed(&format!("its vm has ended already ({})", ended.life.end())));
        }
        Ok(!own.is_empty())
    }

    async fn end_all(&self, vms: &[&GarmVm]) -> Result<(), GarmFailure> {
        for vm in vms.iter().filter(|vm| vm.is_alive()) {
            self.service.delete(vm).await?;
        }
        Ok(())
    }

    async fn create(&self, body: &Value) -> Result<(), GarmFailure> {
        let mut retry = RetryPause::default();
        let result = loop {
            if self.service.parent.has_ended() {
                break Err(self.abandoned());
            }
            match self.service.create(body, self.creation.key()).await {
                Ok(vm) if vm.is_alive() => break Ok(()),
                Ok(vm) => break Err(self.failed(&format!("its vm has ended already ({})", vm.life.end()))),
                // The same creation in another process, which had a different time to wait: its vm is this one's.
                Err(client::Error::Problem(problem, _)) if problem.status == 422 => {
                    if self.clear_the_way().await? {
                        break Ok(());
                    }
                    break Err(match problem.code.as_str() {
                        "idempotency.mismatch" => self.failed("its vm has ended already"),
                        _ => client::Error::Problem(problem, None).into(),
                    });
                }
                Err(error) => {
                    if let Err(error) = self.service.pause(&mut retry, error).await {
                        break Err(error.into());
                    }
                }
            }
        };
        if self.service.parent.has_ended() {
            self.take_back().await?;
            return Err(self.abandoned());
        }
        result
    }

    /// GARM has ended, and has not learned of this vm: when it is back, it deletes by name, perhaps before the vm is stored.
    async fn take_back(&self) -> Result<(), GarmFailure> {
        let service = self.service.with_more_time(TAKING_BACK);
        let of = VmSelection { creation: Some(self.creation.key()), ..self.of_this_name() };
        let mut answered = None;
        loop {
            for vm in service.list(of).await? {
                service.delete(&vm).await?;
            }
            if clock::elapsed(*answered.get_or_insert_with(clock::monotonic)) > ON_ITS_WAY {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn failed(&self, why: &str) -> GarmFailure {
        GarmFailure::Failed(format!("{:.100?} was not created: {why}", self.name))
    }

    fn abandoned(&self) -> GarmFailure {
        self.failed("the GARM that asked for it has ended")
    }
}

/// The request for the vm.
fn vm_request(
    request: &BootstrapRequest,
    creation: &Creation,
    settings: VmSettings,
    template: &BudgetsOfTemplate,
    claims: InstanceTokenClaims,
) -> Result<Value, GarmFailure> {
    let budgets = with_the_time_of_garm(settings.budgets, template.own_budgets);
    let boot = budgets.boot_seconds.unwrap_or(template.budgets.boot_seconds);
    let configure = budgets.configure_seconds.unwrap_or(template.budgets.configure_seconds);
    let wait = longest_wait(claims.exp - clock::now().as_second(), boot.into(), configure.into())?;
    let mut labels = settings.labels;
    labels.extend(creation.labels());
    let mut body = Map::new();
    body.insert("template".into(), request.image.as_str().into());
    body.insert("name".into(), creation.vm_name().into());
    body.insert("runner".into(), guest::runner(request)?);
    body.insert("labels".into(), json!(labels));
    body.insert("budgets".into(), json!(budgets));
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
    Ok(body.into())
}

/// GARM decides how long a runner waits for a job and works on it, so Mayfly's own limits are as long as they can be.
fn with_the_time_of_garm(mut budgets: BudgetsPatch, template: TimeToWork) -> BudgetsPatch {
    if template.unobserved_seconds.is_none() {
        budgets.unobserved_seconds.get_or_insert(MAX_BUDGET_SECONDS);
    }
    if template.lifetime_seconds.is_none() {
        budgets.lifetime_seconds.get_or_insert(MAX_BUDGET_SECONDS);
    }
    budgets
}

/// A vm that got its slot later would not be up before GARM gives it up.
fn longest_wait(token_seconds: i64, boot: i64, configure: i64) -> Result<i64, GarmFailure> {
    let wait = token_seconds - TOKEN_OUTLIVES_BOOTSTRAP - boot - configure;
    if wait < SHORTEST_WAIT {
        return Err(GarmFailure::Failed(format!(
            "GARM waits {} s for this runner, of which {boot} s are for the boot (`boot_seconds`) and {configure} s for the \
             configuration (`configure_seconds`) of the guest, so less than {SHORTEST_WAIT} s remain to wait for a slot: \
             raise the runner bootstrap timeout of the pool, or lower these budgets",
            (token_seconds - TOKEN_OUTLIVES_BOOTSTRAP).max(0)
        )));
    }
    Ok(wait.min(MAX_BUDGET_SECONDS.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_waits_as_long_as_it_can_still_be_up_in_time() {
        let wait = |token_seconds| longest_wait(token_seconds, 300, 120);
        assert_eq!(wait(1500).unwrap(), 780);
        assert_eq!(wait(780).unwrap(), 60);
        let error = wait(779).unwrap_err().to_string();
        assert!(error.contains("GARM waits 479 s") && error.contains("boot_seconds"), "{error}");
        assert!(wait(-5).unwrap_err().to_string().contains("GARM waits 0 s"));
        assert_eq!(wait(i64::from(u32::MAX)).unwrap(), i64::from(MAX_BUDGET_SECONDS));
    }

    #[test]
    fn garm_decides_how_long_a_runner_waits_unless_something_was_set() {
        let (none, of_template) = (BudgetsPatch::default(), TimeToWork::default());
        let made = with_the_time_of_garm(none.clone(), of_template);
        assert_eq!(made.lifetime_seconds, Some(MAX_BUDGET_SECONDS));
        let set = BudgetsPatch { lifetime_seconds: Some(60), ..none.clone() };
        assert_eq!(with_the_time_of_garm(set, of_template).lifetime_seconds, Some(60));
        let made = with_the_time_of_garm(none, TimeToWork { lifetime_seconds: Some(60), ..of_template });
        assert_eq!((made.lifetime_seconds, made.unobserved_seconds), (None, Some(MAX_BUDGET_SECONDS)));
    }
}
