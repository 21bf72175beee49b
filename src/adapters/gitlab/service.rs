//! Requests of the executor to the REST API.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::{failure::ExecutorFailure, job, job::GitLabJob};
use crate::{
    adapters::{names::OWNER, parent::ParentProcess, retrying_client::RetryingClient, vm_life::VmLife},
    client::{self, ApiClient, ServiceOptions, SessionEvents, SessionInput},
};

/// How often it is checked whether the runner is still there.
const PARENT_CHECK: Duration = Duration::from_secs(1);

/// The parts of a vm that the executor reads.
#[derive(Debug, Deserialize)]
pub(super) struct JobVm {
    pub id: String,
    pub name: String,
    #[serde(flatten)]
    pub life: VmLife,
    pub generation: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    pub queue: Option<JobVmQueue>,
    last_fault: Option<JobVmFault>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct JobVmQueue {
    reason: String,
    position: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct JobVmFault {
    detail: String,
}

impl JobVmQueue {
    /// `waits for a slot, position 3`
    pub fn text(&self) -> String {
        let reason = match self.reason.as_str() {
            "template" => "waits for its template",
            "slot" => "waits for a slot",
            "host" => "waits for the host",
            "backoff" => "waits before the next attempt",
            other => other,
        };
        self.position.map_or(reason.to_owned(), |position| format!("{reason}, position {position}"))
    }
}

impl JobVm {
    /// How it ended, in one line.
    pub fn end(&self) -> String {
        let mut text = self.life.end();
        if let Some(fault) = &self.last_fault {
            text = format!("{text}: {}", fault.detail);
        }
        text.replace(|c: char| c.is_control(), " ")
    }

    /// Whether the job's current attempt of the stage `prepare` created it. True if the stage `config` named no attempt.
    pub fn is_of(&self, job: &GitLabJob) -> bool {
        job.attempt().is_none_or(|attempt| self.label(job::ATTEMPT) == attempt)
    }

    fn label(&self, key: &str) -> &str {
        self.labels.get(key).map(String::as_str).unwrap_or_default()
    }
}

pub(super) struct ExecutorService {
    client: ApiClient,
    timeout: Duration,
    parent: ParentProcess,
}

impl ExecutorService {
    pub fn new(options: ServiceOptions, timeout: Duration, parent: ParentProcess) -> Result<Self, ExecutorFailure> {
        let client = ApiClient::new(&options)?;
        // Scripts hold the job's secrets, and so does their output.
        client.refuse_cleartext("the scripts of jobs")?;
        Ok(Self { client, timeout, parent })
    }

    pub fn warning(&self) -> Option<&str> {
        self.client.warning()
    }

    /// The same service, with so much time for each request from now on.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.clone(), timeout, parent: self.parent }
    }

    /// Returns when the runner that started this process has ended: it cleans up no more.
    pub async fn runner_ended(&self) {
        while !self.parent.has_ended() {
            tokio::time::sleep(PARENT_CHECK).await;
        }
    }

    /// For the next operation, which is repeated while the service is away.
    fn requests(&self) -> RetryingClient {
        RetryingClient::new(self.client.clone(), self.timeout)
    }

    /// All vms of the job, newest first. An error is never an empty list.
    pub async fn vms(&self, of: &GitLabJob, deleted: bool) -> Result<Vec<JobVm>, ExecutorFailure> {
        let labels = [format!("{OWNER}={}", job::OWNER_NAME), format!("{}={}", job::KEY, of.key())];
        let mut query = vec![("limit", "200")];
        query.extend(labels.iter().map(|label| ("label", label.as_str())));
        if deleted {
            query.push(("state", "deleted"));
        }
        let values = self.requests().retry(async || self.client.list(&["vms"], &query).await).await?;
        let vms = values.iter().map(|value| self.client.view(value)).collect::<Result<Vec<JobVm>, _>>()?;
        // What belongs to others is never touched, even if the service did not understand the selection.
        if vms.iter().any(|vm| vm.label(OWNER) != job::OWNER_NAME || vm.label(job::KEY) != of.key()) {
            return Err(ExecutorFailure::System(
                "the service listed vms of another owner; nothing was done".to_owned(),
            ));
        }
        Ok(vms)
    }

    /// The vm in which the job runs: that of the job's attempt, if it has one.
    pub async fn vm(&self, of: &GitLabJob) -> Result<JobVm, ExecutorFailure> {
        let vms = self.vms(of, false).await?;
        let (mut alive, ended): (Vec<JobVm>, Vec<JobVm>) =
            vms.into_iter().filter(|vm| vm.is_of(of)).partition(|vm| !vm.life.has_ended());
        if !alive.is_empty() {
            return Ok(alive.remove(0));
        }
        let gone = self.vms(of, true).await?;
        Err(ExecutorFailure::System(match ended.iter().chain(&gone).find(|vm| vm.is_of(of)) {
            Some(vm) => format!("the vm of this job has ended ({})", vm.end()),
            None => {
                "there is no vm of this job: `prepare_exec` in [runners.custom] of the runner's config.toml makes it"
                    .to_owned()
            }
        }))
    }

    /// How the vm ended, if it has and the service says so.
    pub async fn end_of(&self, vm: &JobVm) -> Option<String> {
        let value = self.client.get(&["vms", &vm.id], &[]).await.ok()?;
        self.client.view::<JobVm>(&value).ok().filter(|vm| vm.life.has_ended()).map(|vm| vm.end())
    }

    pub async fn create(&self, body: &Value, key: &str) -> Result<JobVm, ExecutorFailure> {
        let headers = [("idempotency-key", key)];
        let value = self.requests().retry(async || self.client.post(&["vms"], body, &headers).await).await?;
        Ok(self.client.view(&value)?)
    }

    /// The vm when it has changed, and after so many seconds at the latest.
    pub async fn changed(&self, vm: &JobVm, seconds: u32) -> Result<JobVm, ExecutorFailure> {
        let (generation, seconds) = (vm.generation.to_string(), seconds.to_string());
        let query = [("wait_generation", generation.as_str()), ("timeout_seconds", seconds.as_str())];
        let value = self.requests().retry(async || self.client.get(&["vms", &vm.id], &query).await).await?;
        Ok(self.client.view(&value)?)
    }

    /// Ends the vm at once. One that is gone or ending already is left as it is.
    pub async fn delete(&self, vm: &JobVm) -> Result<(), ExecutorFailure> {
        let end = async || match self.client.delete(&["vms", &vm.id], &[("force", "true")]).await {
            Ok(_) => Ok(()),
            Err(client::Error::Problem(problem, _)) if problem.status == 404 => Ok(()),
            Err(error) => Err(error),
        };
        Ok(self.requests().retry(end).await?)
    }

    /// Logs in to the guest. Nothing runs in it yet, so it is repeated.
    pub async fn open_session(&self, vm: &JobVm) -> Result<(SessionInput, SessionEvents), ExecutorFailure> {
        Ok(self.requests().retry(async || self.client.open_session(&vm.id).await).await?)
    }
}
