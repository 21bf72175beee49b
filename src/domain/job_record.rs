//! A job of a CI system, as its source reports it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{remote_id::RemoteId, source_name::SourceName};

/// The status of a job. Updates arrive late and in any order: a job never moves backwards.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum JobStatus {
    /// Held back by a rule of its environment.
    Waiting,
    Queued,
    InProgress,
    Completed,
}

impl JobStatus {
    pub const ALL: &'static [JobStatus] = <JobStatus as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(s: &str) -> Option<JobStatus> {
        s.parse().ok()
    }
}

/// A job that a vm's runner was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobRecord {
    /// The name of the source of jobs that it comes from.
    #[serde(default = "SourceName::github")]
    #[schema(value_type = String)]
    pub source: SourceName,
    /// The id of the job at its source. GitHub and Buildkite give a job that is run again another id; other
    /// servers keep it.
    pub id: RemoteId,
    /// `owner/name`; at Buildkite the organisation and the pipeline.
    pub repository: String,
    /// At Buildkite the number of the build.
    pub run_id: u64,
    /// 1 for the first attempt.
    pub run_attempt: u32,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    pub status: JobStatus,
    /// As reported by the source (`success`, `failure`, `cancelled`, …), when the job is completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conclusion: Option<String>,
    /// The address of the job's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
}

/// What identifies a job: ids are those of one server, and some servers keep the id of a job that is run again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    pub source: SourceName,
    pub id: RemoteId,
    /// 1 for the first attempt.
    pub attempt: u32,
}

impl JobRecord {
    pub fn key(&self) -> JobKey {
        JobKey { source: self.source.clone(), id: self.id.clone(), attempt: self.run_attempt }
    }

    /// Merges a newer update of the same job; known values are never lost.
    pub fn merge(&mut self, update: &JobRecord) {
        if update.status < self.status {
            return;
        }
        let old = std::mem::replace(self, update.clone());
        self.workflow = self.workflow.take().or(old.workflow);
        self.conclusion = self.conclusion.take().or(old.conclusion);
        self.url = self.url.take().or(old.url);
        self.started_at = self.started_at.or(old.started_at);
        self.completed_at = self.completed_at.or(old.completed_at);
    }

    /// Whether it failed, or its result is not known yet.
    pub fn may_have_failed(&self) -> bool {
        match self.conclusion.as_deref() {
            Some(conclusion) => matches!(conclusion, "failure" | "timed_out" | "startup_failure"),
            None => true,
        }
    }
}
