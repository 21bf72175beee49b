//! Requests to Mayfly's REST API that are repeated while the service is away, until the call has to be answered.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        retrying_client::{RetryPause, may_pass},
        vm_life::VmLife,
    },
    failure::ShoesFailure,
    identity,
};
use crate::{
    client::{self, ApiClient, ServiceOptions},
    domain::State,
    platform::clock,
};

/// The parts of a vm that the plugin reads.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ShoesVm {
    pub id: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub life: VmLife,
    #[serde(default)]
    pub generation: i64,
    runner: RunnerOfVm,
    #[serde(default)]
    ssh: Option<AddressOfVm>,
    #[serde(default)]
    timeline: Vec<StateOfVm>,
}

#[derive(Clone, Debug, Deserialize)]
struct RunnerOfVm {
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
struct AddressOfVm {
    #[serde(default)]
    host: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct StateOfVm {
    state: String,
}

impl ShoesVm {
    pub fn is_alive(&self) -> bool {
        !self.life.has_ended()
    }

    /// Whether its guest runs the setup script, or has run it.
    pub fn was_up(&self) -> bool {
        self.timeline.iter().any(|entry| entry.state == State::Running.as_str())
    }

    /// Whether its runner is known to have a job.
    pub fn is_busy(&self) -> bool {
        self.runner.status == "busy"
    }

    /// Where the host finds its guest, for display. Empty if it has no address of its own.
    pub fn address(&self) -> String {
        self.ssh.as_ref().and_then(|ssh| ssh.host.clone()).unwrap_or_default()
    }

    /// How it ended, for messages.
    pub fn end(&self) -> String {
        let detail = self.life.outcome.as_ref().and_then(|outcome| outcome.detail.as_deref());
        detail.map_or_else(|| self.life.end(), |detail| format!("{}, {detail}", self.life.end()))
    }
}

/// Until when requests are repeated, and what ends that earlier.
#[derive(Clone, Copy)]
pub(super) struct Persistence<'a> {
    pub until: Instant,
    pub cancelled: &'a CancellationToken,
}

impl Persistence<'_> {
    fn is_over(self, pause: std::time::Duration) -> bool {
        self.cancelled.is_cancelled() || clock::monotonic() + pause >= self.until
    }

    /// Waits before a repetition; the error, if there is no point in one or no time for it.
    pub async fn pause(self, retry: &mut RetryPause, error: client::Error) -> Result<(), ShoesFailure> {
        let pause = retry.next();
        if !may_pass(&error) || self.is_over(pause) {
            return Err(error.into());
        }
        tokio::select! {
            () = sleep(pause) => Ok(()),
            () = self.cancelled.cancelled() => Err(ShoesFailure::cancelled()),
        }
    }
}

pub(super) struct ShoesService {
    client: ApiClient,
}

impl ShoesService {
    pub fn new(options: ServiceOptions) -> Result<Self, ShoesFailure> {
        Ok(Self { client: ApiClient::new(&options)? })
    }

    pub fn warning(&self) -> Option<&str> {
        self.client.warning()
    }

    pub fn refuse_cleartext(&self, what: &str) -> Result<(), ShoesFailure> {
        Ok(self.client.refuse_cleartext(what)?)
    }

    /// All vms of this runner, and the records of those that are gone, newest first.
    pub async fn of_runner(&self, name: &str, persistence: Persistence<'_>) -> Result<Vec<ShoesVm>, ShoesFailure> {
        let labels = identity::selection(name);
        let mut query = vec![("limit", "200")];
        query.extend(labels.iter().map(|label| ("label", label.as_str())));
        // One query, so that a vm that ends meanwhile is not missed.
        query.extend(State::ALL.iter().map(|state| ("state", state.as_str())));
        let values = self.retry(persistence, || self.client.list(&["vms"], &query)).await?;
        let vms = values.iter().map(|value| self.client.view(value)).collect::<Result<Vec<ShoesVm>, _>>()?;
        // What belongs to others is never touched, even if the service did not understand the selection.
        if vms.iter().any(|vm| !identity::is_ours(&vm.labels)) {
            return Err(ShoesFailure::internal("the service listed vms of another owner; nothing was done"));
        }
        Ok(vms)
    }

    /// One attempt, because the caller decides what a repetition means.
    pub async fn create(&self, body: &Value, key: &str, until: Instant) -> Result<ShoesVm, client::Error> {
        let headers = [("idempotency-key", key)];
        let request = self.client.post(&["vms"], body, &headers);
        let value = timeout_at(until, request).await.unwrap_or_else(|_| Err(self.out_of_time()))?;
        self.client.view(&value)
    }

    /// `None`: there is none, or not for this plugin.
    pub async fn get(&self, id: &str, persistence: Persistence<'_>) -> Result<Option<ShoesVm>, ShoesFailure> {
        let path = ["vms", id];
        let vm = self.retry(persistence, || async { found(self.client.get(&path, &[]).await) }).await?;
        let vm: Option<ShoesVm> = vm.map(|vm| self.client.view(&vm)).transpose()?;
        Ok(vm.filter(|vm| identity::is_ours(&vm.labels)))
    }

    /// The vm once it has changed, or after a while. `None`: its record is gone.
    pub async fn changed(&self, vm: &ShoesVm, persistence: Persistence<'_>) -> Result<Option<ShoesVm>, ShoesFailure> {
        const POLL: u64 = 30;
        let (path, generation) = (["vms", &vm.id], vm.generation.to_string());
        let changed = self
            .retry(persistence, || async {
                let left = persistence.until.saturating_duration_since(clock::monotonic()).as_secs();
                let seconds = left.min(POLL).to_string();
                let query = [("wait_generation", generation.as_str()), ("timeout_seconds", seconds.as_str())];
                found(self.client.get(&path, &query).await)
            })
            .await?;
        Ok(changed.map(|vm| self.client.view(&vm)).transpose()?)
    }

    /// Ends the vm; one that is gone or ending already is left as it is. With `force`, not even the runner's last steps are
    /// waited for.
    pub async fn delete(&self, id: &str, force: bool, persistence: Persistence<'_>) -> Result<(), ShoesFailure> {
        let force = if force { "true" } else { "false" };
        let (path, query) = (["vms", id], [("force", force)]);
        self.retry(persistence, || async { found(self.client.delete(&path, &query).await) }).await.map(|_| ())
    }

    /// Repeats what may succeed in a moment.
    async fn retry<T, F: Future<Output = Result<T, client::Error>>>(
        &self,
        persistence: Persistence<'_>,
        attempt: impl Fn() -> F,
    ) -> Result<T, ShoesFailure> {
        let mut retry = RetryPause::default();
        loop {
            let result = tokio::select! {
                answer = timeout_at(persistence.until, attempt()) => answer.unwrap_or_else(|_| Err(self.out_of_time())),
                () = persistence.cancelled.cancelled() => return Err(ShoesFailure::cancelled()),
            };
            match result {
                Ok(value) => return Ok(value),
                Err(error) => persistence.pause(&mut retry, error).await?,
            }
        }
    }

    fn out_of_time(&self) -> client::Error {
        client::Error::Unreachable(format!(
            "no answer from Mayfly at {} in the time of this call",
            self.client.service_name()
        ))
    }
}

fn found(answer: Result<Value, client::Error>) -> Result<Option<Value>, client::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(client::Error::Problem(problem, _)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
