//! Jobs of GitHub: what the job sources report about them, and what Mayfly did about them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    VmId,
    github::{JobRecord, JobStatus},
};

/// How a job update was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schema(as = Heard)]
pub enum UpdateSource {
    Webhook,
    Poll,
}

impl UpdateSource {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An update of a job. It may be late, repeated, or older than the known state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobUpdate {
    pub record: JobRecord,
    /// The labels that it asks for.
    pub labels: Vec<String>,
    pub runner_name: Option<String>,
    pub source: UpdateSource,
}

/// A job and the vms that were made for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    #[serde(flatten)]
    pub record: JobRecord,
    pub labels: Vec<String>,
    #[serde(default)]
    pub runner_name: Option<String>,
    /// The pool that it matches.
    #[serde(default)]
    pub pool: Option<String>,
    /// The vm that was made for it. GitHub may give that vm another job, and this job another vm.
    #[serde(default)]
    pub made: Option<VmId>,
    /// The vm whose runner has it.
    #[serde(default)]
    pub vm: Option<VmId>,
    /// How many vms were made for it.
    #[serde(default)]
    pub tries: u32,
    /// No other vm is made for it before this time.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    pub first_heard: UpdateSource,
    pub seen_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Job {
    pub fn new(update: JobUpdate, at: Timestamp) -> Job {
        Job {
            record: update.record,
            labels: update.labels,
            runner_name: update.runner_name,
            pool: None,
            made: None,
            vm: None,
            tries: 0,
            not_before: None,
            first_heard: update.source,
            seen_at: at,
            updated_at: at,
        }
    }

    /// Whether the update contained anything new.
    pub fn apply_update(&mut self, update: &JobUpdate, at: Timestamp) -> bool {
        let before = self.clone();
        self.record.merge(&update.record);
        // GitHub may take a job from one runner and give it to another.
        if self.record.status == update.record.status && update.runner_name.is_some() {
            self.runner_name.clone_from(&update.runner_name);
        }
        if *self == before {
            return false;
        }
        self.updated_at = at;
        true
    }

    /// Whether the job still waits for a runner.
    pub fn waits(&self) -> bool {
        self.record.status == JobStatus::Queued
    }

    pub fn is_over(&self) -> bool {
        self.record.status == JobStatus::Completed
    }
}

/// The result of one delivery.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryResult {
    /// Stored, and not processed yet.
    Pending,
    Worked,
    /// It is not about a job.
    Ignored,
    /// It could not be parsed.
    Refused,
}

impl DeliveryResult {
    pub const ALL: &'static [DeliveryResult] = <DeliveryResult as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(s: &str) -> Option<DeliveryResult> {
        s.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(status: JobStatus, runner: Option<&str>) -> JobUpdate {
        JobUpdate {
            record: JobRecord {
                id: 9001,
                repository: "acme/app".into(),
                run_id: 7001,
                run_attempt: 1,
                name: "build".into(),
                workflow: None,
                status,
                conclusion: (status == JobStatus::Completed).then(|| "success".into()),
                url: None,
                started_at: None,
                completed_at: None,
            },
            labels: vec!["macos".into()],
            runner_name: runner.map(str::to_owned),
            source: UpdateSource::Webhook,
        }
    }

    #[test]
    fn whatever_order_news_come_in_the_job_ends_the_same() {
        let all = [
            update(JobStatus::Waiting, None),
            update(JobStatus::Queued, None),
            update(JobStatus::InProgress, Some("vm-1")),
            update(JobStatus::Completed, Some("vm-1")),
        ];
        let at = Timestamp::UNIX_EPOCH;
        let end = |order: &[usize]| {
            let mut job = Job::new(all[order[0]].clone(), at);
            for n in &order[1..] {
                job.apply_update(&all[*n], at);
            }
            (job.record, job.runner_name)
        };
        let expected = end(&[0, 1, 2, 3]);
        assert_eq!(expected.0.status, JobStatus::Completed);
        for order in [[3, 2, 1, 0], [3, 0, 1, 2], [1, 3, 2, 0], [2, 1, 0, 3], [0, 2, 1, 3]] {
            assert_eq!(end(&order), expected, "{order:?}");
        }
        let mut job = Job::new(all[3].clone(), at);
        assert!(!job.apply_update(&all[1], at) && job.is_over() && !job.waits());
    }
}
