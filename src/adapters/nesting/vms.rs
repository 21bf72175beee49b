//! Requests of the socket's API to the REST API.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::section::NestingSection;
use crate::{
    adapters::{names::OWNER, retrying_client::RetryingClient, vm_life::VmLife},
    client::{ApiClient, Error, ServiceOptions},
    domain::endpoint::Endpoint,
};

pub(super) const OWNER_NAME: &str = "nesting";
const SLOT: &str = "nesting.slot";
/// How long a request is repeated while the service does not answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// One long poll, in seconds.
const POLL: &str = "30";

/// The parts of a vm that are read here.
#[derive(Debug, Deserialize)]
pub(super) struct NestedVm {
    pub id: String,
    pub name: String,
    pub template: String,
    #[serde(flatten)]
    pub life: VmLife,
    generation: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    pub ssh: Option<Endpoint>,
}

impl NestedVm {
    pub fn is_ours(&self) -> bool {
        self.labels.get(OWNER).is_some_and(|owner| owner == OWNER_NAME)
    }

    /// Without its port. `None`: it is not known, or there is only a socket.
    pub fn address(&self) -> Option<&str> {
        match &self.ssh {
            Some(Endpoint::Address { host, .. }) => Some(host),
            Some(Endpoint::Socket { .. }) | None => None,
        }
    }
}

pub(super) struct NestedVms {
    client: ApiClient,
}

impl NestedVms {
    /// For one call: the token of this machine may be replaced between two of them.
    pub fn new(options: &ServiceOptions) -> Result<Self, Error> {
        Ok(Self { client: ApiClient::new(options)? })
    }

    /// Repeats the request while the service is away. It owns what it sends, because it may move between threads.
    async fn retry<T, F>(&self, request: impl Fn(ApiClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let requests = RetryingClient::new(self.client.clone(), TIMEOUT);
        requests.retry(|| request(self.client.clone())).await
    }

    /// Those that live, newest first; of one slot, or all. An error is never an empty list.
    pub async fn list(&self, slot: Option<i32>) -> Result<Vec<NestedVm>, Error> {
        let list = |client: ApiClient| async move {
            let labels = [Some(format!("{OWNER}={OWNER_NAME}")), slot.map(|slot| format!("{SLOT}={slot}"))];
            let mut query = vec![("limit", "200")];
            query.extend(labels.iter().flatten().map(|label| ("label", label.as_str())));
            client.list(&["vms"], &query).await
        };
        let values = self.retry(list).await?;
        let mut vms = values.iter().map(|value| self.client.view(value)).collect::<Result<Vec<NestedVm>, _>>()?;
        let of_slot = |vm: &NestedVm| slot.is_none_or(|slot| vm.labels.get(SLOT) == Some(&slot.to_string()));
        // What belongs to others is never touched, even if the service did not understand the selection.
        if vms.iter().any(|vm| !vm.is_ours() || !of_slot(vm)) {
            return Err(Error::Other("the service listed vms of another owner; nothing was done".to_owned()));
        }
        vms.retain(|vm| !vm.life.has_ended());
        Ok(vms)
    }

    /// `None`: no vm has this id.
    pub async fn get(&self, id: &str) -> Result<Option<NestedVm>, Error> {
        let id = id.to_owned();
        let get = move |client: ApiClient| {
            let id = id.clone();
            async move {
                match client.get(&["vms", &id], &[]).await {
                    // A text that cannot be an id is refused as such.
                    Err(Error::Problem(problem, _)) if matches!(problem.status, 400 | 404 | 422) => Ok(None),
                    found => found.map(Some),
                }
            }
        };
        let found = self.retry(get).await?;
        found.map(|value| self.client.view(&value)).transpose()
    }

    pub async fn create(&self, template: &str, slot: Option<i32>, section: &NestingSection) -> Result<NestedVm, Error> {
        let mut labels = BTreeMap::from([(OWNER, OWNER_NAME.to_owned())]);
        labels.extend(slot.map(|slot| (SLOT, slot.to_string())));
        let body: Value = json!({
            "template": template,
            "runner": { "kind": "none" },
            "labels": labels,
            "network": section.network.as_str(),
            "budgets": { "lifetime_seconds": section.lifetime_seconds },
        });
        let key = uuid::Uuid::now_v7().to_string();
        let create = move |client: ApiClient| {
            let (body, key) = (body.clone(), key.clone());
            async move { client.post(&["vms"], &body, &[("idempotency-key", &key)]).await }
        };
        let made = self.retry(create).await?;
        self.client.view(&made)
    }

    /// The vm when it has changed, or after half a minute.
    pub async fn changed(&self, vm: &NestedVm) -> Result<NestedVm, Error> {
        let (id, generation) = (vm.id.clone(), vm.generation.to_string());
        let wait = move |client: ApiClient| {
            let (id, generation) = (id.clone(), generation.clone());
            async move {
                let query = [("wait_generation", generation.as_str()), ("timeout_seconds", POLL)];
                client.get(&["vms", &id], &query).await
            }
        };
        let value = self.retry(wait).await?;
        self.client.view(&value)
    }

    /// Logs in to the guest, which makes its address known, and nothing else.
    pub async fn log_in(&self, vm: &NestedVm) -> Result<(), Error> {
        let id = vm.id.clone();
        let open = move |client: ApiClient| {
            let id = id.clone();
            async move { client.open_session(&id).await.map(drop) }
        };
        self.retry(open).await
    }

    /// Ends the vm at once. One that is gone or ending already is left as it is.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        let end = move |client: ApiClient| {
            let id = id.clone();
            async move {
                match client.delete(&["vms", &id], &[("force", "true")]).await {
                    Ok(_) => Ok(()),
                    Err(Error::Problem(problem, _)) if problem.status == 404 => Ok(()),
                    Err(error) => Err(error),
                }
            }
        };
        self.retry(end).await
    }
}
