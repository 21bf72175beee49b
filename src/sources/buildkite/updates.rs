//! Turns Buildkite's jobs, from lists and from their states, into updates.

use super::{
    client::BuildkiteClient,
    model::{JobPhase, ScheduledJob},
    queue::BuildkiteQueue,
};
use crate::{
    domain::{
        RemoteId, Scope, SourceName,
        job::{Job, JobUpdate, UpdateSource},
        job_record::{JobRecord, JobStatus},
    },
    sources::{deliveries::FoundJob, error::SourceError},
};

/// A scheduled job with the settings of its queue.
#[derive(Clone, Debug)]
pub struct BuildkiteJob {
    id: String,
    name: String,
    repository: String,
    build: u64,
    page: String,
    labels: Vec<String>,
    paused: bool,
}

impl BuildkiteJob {
    /// The error says what is wrong with it.
    pub(super) fn of(job: ScheduledJob, queue: &BuildkiteQueue, paused: bool) -> Result<BuildkiteJob, String> {
        let ScheduledJob { id, agent_query_rules, pipeline, build, step } = job;
        // Part of paths and of keys.
        if !uuid::Uuid::try_parse(&id).is_ok_and(|uuid| uuid.to_string() == id) {
            return Err("a job whose id is no UUID".to_owned());
        }
        let slug = pipeline.slug.unwrap_or_default();
        let repository = queue.repository(&slug);
        if Scope::repository(&repository).is_err() {
            return Err(format!("the job {id} without a pipeline"));
        }
        let build = build.number.unwrap_or_default();
        Ok(BuildkiteJob {
            page: queue.job_page(&slug, build, &id),
            name: step.key.filter(|key| !key.is_empty()).unwrap_or_else(|| "job".to_owned()),
            labels: labels(agent_query_rules.unwrap_or_default(), queue.queue()),
            id,
            repository,
            build,
            paused,
        })
    }

    pub fn update(self, source: &SourceName) -> JobUpdate {
        let BuildkiteJob { id, name, repository, build, page, labels, paused } = self;
        JobUpdate {
            record: JobRecord {
                source: source.clone(),
                id: RemoteId::Text(id),
                repository,
                run_id: build,
                // A job that is run again is another one.
                run_attempt: 1,
                name,
                workflow: None,
                status: if paused { JobStatus::Waiting } else { JobStatus::Queued },
                conclusion: None,
                url: Some(page),
                started_at: None,
                completed_at: None,
            },
            labels,
            runner_name: None,
            source: UpdateSource::Poll,
            missing: false,
        }
    }
}

/// The rules of the job, with exactly one for its queue. A job of the cluster's default queue need not name it.
fn labels(rules: Vec<String>, queue: &str) -> Vec<String> {
    let own = std::iter::once(format!("queue={queue}"));
    own.chain(rules.into_iter().filter(|rule| !rule.starts_with("queue="))).collect()
}

impl BuildkiteClient {
    /// What became of jobs that are known here, in their order. Buildkite shows their states only.
    pub async fn jobs(&self, known: &[&Job]) -> Result<Vec<FoundJob>, SourceError> {
        let ids: Vec<String> = known.iter().map(|job| job.record.id.to_string()).collect();
        let (phases, unclear) = self.phases(&ids).await?;
        let found = known.iter().zip(&ids).map(|(job, id)| match phases.get(id) {
            Some(phase) => FoundJob::Here(Box::new(of_phase(job, *phase))),
            None if unclear.contains(id) => FoundJob::Unclear,
            None => FoundJob::Missing,
        });
        Ok(found.collect())
    }
}

fn of_phase(job: &Job, phase: JobPhase) -> JobUpdate {
    let (status, conclusion) = match phase {
        JobPhase::Held => (JobStatus::Waiting, None),
        JobPhase::Waits => (JobStatus::Queued, None),
        JobPhase::Working => (JobStatus::InProgress, None),
        JobPhase::Over(conclusion) => (JobStatus::Completed, conclusion),
    };
    JobUpdate {
        record: JobRecord { status, conclusion: conclusion.map(str::to_owned), ..job.record.clone() },
        labels: job.labels.clone(),
        runner_name: None,
        source: UpdateSource::Poll,
        missing: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "0193a6d2-7c1e-4f6a-9b1d-3f5a7c9e1b2d";

    fn read(change: Value) -> Result<BuildkiteJob, String> {
        let mut job = json!({
            "id": ID, "priority": 0, "agent_query_rules": ["queue=macs", "os=macos"], "scheduled_at": "2026-01-01T00:00:00Z",
            "pipeline": {"slug": "app", "uuid": null}, "build": {"number": 7, "branch": "main", "uuid": null},
            "step": {"key": "test"},
        });
        for (key, value) in change.as_object().unwrap() {
            job[key] = value.clone();
        }
        let queue = BuildkiteQueue::new(None, "acme", "macs", "host-1").unwrap();
        BuildkiteJob::of(serde_json::from_value(job).unwrap(), &queue, false)
    }

    fn update(change: Value) -> JobUpdate {
        read(change).unwrap().update(&SourceName::new("kite").unwrap())
    }

    #[test]
    fn a_scheduled_job_names_its_pipeline_and_its_queue() {
        let job = update(json!({}));
        assert_eq!(
            (job.record.repository.as_str(), job.record.run_id, job.record.name.as_str()),
            ("acme/app", 7, "test")
        );
        assert_eq!(job.record.url.as_deref(), Some(&*format!("https://buildkite.com/acme/app/builds/7#{ID}")));
        assert_eq!(job.labels, ["queue=macs", "os=macos"]);
        // Any value may be null.
        let bare = json!({"agent_query_rules": null, "build": {"number": null}, "step": {"key": null}});
        let job = update(bare);
        assert_eq!((job.record.run_id, job.record.name.as_str()), (0, "job"));
        assert_eq!(job.labels, ["queue=macs"]);
        for wrong in
            [json!({"id": "../finish"}), json!({"pipeline": {"slug": null}}), json!({"pipeline": {"slug": ".."}})]
        {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn jobs_of_a_paused_queue_wait() {
        let queue = BuildkiteQueue::new(None, "acme", "macs", "host-1").unwrap();
        let job = json!({"id": ID, "pipeline": {"slug": "app"}, "build": {}, "step": {}});
        let job = BuildkiteJob::of(serde_json::from_value(job).unwrap(), &queue, true).unwrap();
        assert_eq!(job.update(&SourceName::new("kite").unwrap()).record.status, JobStatus::Waiting);
    }

    #[test]
    fn a_state_keeps_what_is_known_of_the_job() {
        let job = Job::new(update(json!({})), jiff::Timestamp::UNIX_EPOCH);
        let status = |state: &str| {
            let update = of_phase(&job, JobPhase::of(state).unwrap());
            assert_eq!(update.record.key(), job.record.key());
            (update.record.status, update.record.conclusion)
        };
        assert_eq!(status("reserved"), (JobStatus::Queued, None));
        assert_eq!(status("limited"), (JobStatus::Waiting, None));
        assert_eq!(status("accepted"), (JobStatus::InProgress, None));
        assert_eq!(status("finished"), (JobStatus::Completed, None));
        assert_eq!(status("canceled"), (JobStatus::Completed, Some("cancelled".to_owned())));
        assert!(JobPhase::of("dreaming").is_none());
    }
}
