//! Jobs of CI systems: what their sources report about them, and what Mayfly did about them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    VmId,
    job_record::{JobRecord, JobStatus},
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
    /// The CI system answered that it has no such job. The rest is what was known of it.
    pub missing: bool,
}

/// After so many vms in a row that ended without any job, no other vm is made for a job. With the pauses between them that
/// takes about an hour, in which an administrator can repair the template.
pub const MOST_FAILED_VMS: u32 = 10;

/// After so many answers in a row that there is no such job, the job counts as gone. One such answer may be wrong: a
/// replica of the CI system may be late, or a permission may be missing for a moment.
const ABSENT_ANSWERS: u8 = 2;

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
    #[serde(default, rename = "made")]
    pub created_vm: Option<VmId>,
    /// The vm whose runner has it.
    #[serde(default)]
    pub vm: Option<VmId>,
    /// How many vms were made for it.
    #[serde(default)]
    pub tries: u32,
    /// How many of the last ones in a row ended without any job.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_vms: u32,
    /// The last vm that was looked at for this count, so that each is counted once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_vm: Option<VmId>,
    /// No other vm is made for it before this time.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// How often in a row the CI system has answered that it has no such job.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absent_answers: u8,
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
            created_vm: None,
            vm: None,
            tries: 0,
            failed_vms: 0,
            counted_vm: None,
            not_before: None,
            absent_answers: u8::from(update.missing),
            first_heard: update.source,
            seen_at: at,
            updated_at: at,
        }
    }

    /// Whether the update contained anything new.
    pub fn apply_update(&mut self, update: &JobUpdate, at: Timestamp) -> bool {
        let before = self.clone();
        if update.missing {
            self.absent_answers = self.absent_answers.saturating_add(1).min(ABSENT_ANSWERS);
        } else {
            // It is there after all.
            self.absent_answers = 0;
            self.record.merge(&update.record);
        }
        // GitHub may take a job from one runner and give it to another.
        if !update.missing && self.record.status == update.record.status && update.runner_name.is_some() {
            self.runner_name.clone_from(&update.runner_name);
        }
        if *self == before {
            return false;
        }
        self.updated_at = at;
        true
    }

    /// The update of a job of which the server shows another attempt: this attempt is over, and its result is not known.
    pub fn superseded(&self) -> JobUpdate {
        JobUpdate {
            record: JobRecord { status: JobStatus::Completed, ..self.record.clone() },
            labels: self.labels.clone(),
            runner_name: None,
            source: UpdateSource::Poll,
            missing: false,
        }
    }

    /// Whether no other vm is made for the job: so many in a row have ended without a job that another one is no help.
    pub fn is_given_up(&self) -> bool {
        self.waits() && self.failed_vms >= MOST_FAILED_VMS
    }

    /// Whether the job still waits for a runner.
    pub fn waits(&self) -> bool {
        self.status() == JobStatus::Queued
    }

    pub fn is_over(&self) -> bool {
        self.status() == JobStatus::Completed
    }

    /// The newest status that was reported, or `completed` if the CI system has no such job any more.
    pub fn status(&self) -> JobStatus {
        if self.absent_answers >= ABSENT_ANSWERS { JobStatus::Completed } else { self.record.status }
    }
}

fn is_zero<N: Default + PartialEq>(n: &N) -> bool {
    *n == N::default()
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
    use super::{super::SourceName, *};

    fn update(status: JobStatus, runner: Option<&str>) -> JobUpdate {
        JobUpdate {
            record: JobRecord {
                source: SourceName::github(),
                id: 9001.into(),
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
            missing: false,
        }
    }

    #[test]
    fn a_job_is_gone_when_its_absence_was_confirmed_and_comes_back_when_it_is_reported_again() {
        let at = Timestamp::UNIX_EPOCH;
        let missing = JobUpdate { missing: true, ..update(JobStatus::Queued, None) };
        let mut job = Job::new(update(JobStatus::Queued, None), at);
        assert!(job.apply_update(&missing, at) && job.waits());
        // There is a job again: what was answered before does not count.
        assert!(job.apply_update(&update(JobStatus::Queued, None), at));
        job.apply_update(&missing, at);
        assert!(job.waits());
        assert!(job.apply_update(&missing, at) && job.is_over() && !job.waits());
        assert!(!job.apply_update(&missing, at), "it is known");
        assert!(job.apply_update(&update(JobStatus::InProgress, Some("vm-1")), at) && !job.is_over());
        assert_eq!(job.status(), JobStatus::InProgress);
        job.apply_update(&update(JobStatus::Completed, Some("vm-1")), at);
        assert_eq!((job.status(), job.record.conclusion.as_deref()), (JobStatus::Completed, Some("success")));
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
