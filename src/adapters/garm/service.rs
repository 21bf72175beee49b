//! Requests of the provider to the REST API.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        names::{OWNER, label},
        vm_life::VmLife,
    },
    failure::GarmFailure,
    identity::{self, AttemptOrder, Creation},
};
use crate::{
    adapters::{
        parent::ParentProcess,
        retrying_client::{RetryPause, RetryingClient},
    },
    client::{self, ApiClient, ServiceOptions},
    domain::Budgets,
};

/// The parts of a vm that the provider reads.
#[derive(Debug, Deserialize)]
pub(super) struct GarmVm {
    pub id: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub life: VmLife,
}

/// Those budgets of a template that the provider reads.
#[derive(Debug, Deserialize)]
pub(super) struct BudgetsOfTemplate {
    pub budgets: TimeToBoot,
    /// What the template itself sets.
    pub own_budgets: TimeToWork,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct TimeToBoot {
    pub boot_seconds: u32,
    pub configure_seconds: u32,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TimeToWork {
    pub unobserved_seconds: Option<u32>,
    pub lifetime_seconds: Option<u32>,
}

impl Default for BudgetsOfTemplate {
    /// Of an image that is not on the host yet.
    fn default() -> Self {
        let Budgets { boot_seconds, configure_seconds, .. } = Budgets::default();
        Self { budgets: TimeToBoot { boot_seconds, configure_seconds }, own_budgets: TimeToWork::default() }
    }
}

impl GarmVm {
    pub fn is_alive(&self) -> bool {
        !self.life.has_ended()
    }

    pub fn is_of(&self, creation: &Creation) -> bool {
        self.label(identity::CREATION) == creation.key()
    }

    pub fn label(&self, key: &str) -> &str {
        self.labels.get(key).map(String::as_str).unwrap_or_default()
    }

    pub fn order(&self) -> Option<AttemptOrder> {
        AttemptOrder::of(&self.labels)
    }
}

/// Which vms of this GARM to list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VmSelection<'a> {
    pub controller: &'a str,
    pub pool: Option<&'a str>,
    pub name: Option<&'a str>,
    pub creation: Option<&'a str>,
    /// Only records of vms that are gone.
    pub deleted: bool,
}

pub(super) struct ProviderService {
    requests: RetryingClient,
    pub parent: ParentProcess,
}

impl ProviderService {
    pub fn new(options: ServiceOptions, timeout: Duration, parent: ParentProcess) -> Result<Self, GarmFailure> {
        Ok(Self { requests: RetryingClient::new(ApiClient::new(&options)?, timeout), parent })
    }

    pub fn warning(&self) -> Option<&str> {
        self.requests.client.warning()
    }

    /// From now on there is so much time.
    pub fn with_more_time(&self, timeout: Duration) -> Self {
        Self { requests: self.requests.with_time(timeout), parent: self.parent }
    }

    /// Newest first, and all of them: an error is never an empty list.
    pub async fn list(&self, of: VmSelection<'_>) -> Result<Vec<GarmVm>, GarmFailure> {
        let labels = [
            Some((OWNER, identity::owner(of.controller))),
            of.pool.map(|pool| (identity::POOL, label(pool))),
            of.name.map(|name| (identity::NAME, label(name))),
            of.creation.map(|creation| (identity::CREATION, creation.to_owned())),
        ];
        let labels: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let mut query = vec![("limit", "200")];
        query.extend(labels.iter().map(|label| ("label", label.as_str())));
        if of.deleted {
            query.push(("state", "deleted"));
        }
        let values = self.requests.retry(async || self.requests.client.list(&["vms"], &query).await).await?;
        let vms = values.iter().map(|value| self.requests.client.view(value)).collect::<Result<Vec<GarmVm>, _>>()?;
        // What belongs to others is never touched, even if the service did not understand the selection.
        let owner = identity::owner(of.controller);
        if vms.iter().any(|vm| vm.label(OWNER) != owner) {
            return Err(GarmFailure::Failed("the service listed vms of another owner; nothing was done".to_owned()));
        }
        Ok(vms)
    }

    /// The budgets of the template, or the usual ones for an image in a registry.
    pub async fn budgets_of(&self, template: &str) -> Result<BudgetsOfTemplate, GarmFailure> {
        if template.contains('/') {
            return Ok(BudgetsOfTemplate::default());
        }
        let found = self
            .requests
            .retry(async || match self.requests.client.get(&["templates", template], &[]).await {
                Err(client::Error::Problem(problem, _)) if problem.status == 404 => Ok(None),
                found => found.map(Some),
            })
            .await?;
        let found = found.ok_or_else(|| {
            GarmFailure::Failed(format!(
                "image: Mayfly has no template {template:.100?}; `mayfly template list` shows what it has, or name an image as \
                 host/namespace:tag"
            ))
        })?;
        Ok(self.requests.client.view(&found)?)
    }

    /// One attempt, because the caller decides what a repetition means.
    pub async fn create(&self, body: &Value, key: &str) -> Result<GarmVm, client::Error> {
        let headers = [("idempotency-key", key)];
        let value = self.requests.once(self.requests.client.post(&["vms"], body, &headers)).await?;
        self.requests.client.view(&value)
    }

    /// Ends the vm at once: GARM has settled it with GitHub. One that is gone or ending already is left as it is.
    pub async fn delete(&self, vm: &GarmVm) -> Result<(), GarmFailure> {
        let end = async || match self.requests.client.delete(&["vms", &vm.id], &[("force", "true")]).await {
            Ok(_) => Ok(()),
            Err(client::Error::Problem(problem, _)) if problem.status == 404 => Ok(()),
            Err(error) => Err(error),
        };
        Ok(self.requests.retry(end).await?)
    }

    /// Waits before a repetition of a creation; the error, if there is no point in one or no time for it.
    pub async fn pause(&self, retry: &mut RetryPause, error: client::Error) -> Result<(), client::Error> {
        self.requests.pause(retry, error).await
    }

    pub fn refuse_cleartext(&self, what: &str) -> Result<(), GarmFailure> {
        Ok(self.requests.client.refuse_cleartext(what)?)
    }
}
