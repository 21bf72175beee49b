//! GitHub's representation of runners and jobs. Unknown keys are ignored, nullable keys may be missing, and every
//! enumeration accepts unknown values.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

macro_rules! words {
    ($(#[doc = $about:literal])+ $name:ident { $($variant:ident = $text:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($variant,)+
            /// A value that is newer than this program.
            Other(String),
        }

        impl $name {
            pub fn as_str(&self) -> &str {
                match self { $(Self::$variant => $text,)+ Self::Other(text) => text }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                Ok(match text.to_ascii_lowercase().as_str() { $($text => Self::$variant,)+ _ => Self::Other(text) })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// Whether a runner is connected. `offline` does not show that it has ended.
    RunnerStatus { Online = "online", Offline = "offline", }
}

words! {
    /// The status of a job or a run.
    JobStatus {
        Queued = "queued",
        InProgress = "in_progress",
        Completed = "completed",
        Waiting = "waiting",
        Pending = "pending",
        Requested = "requested",
    }
}

words! {
    /// The conclusion of a job.
    Conclusion {
        Success = "success",
        Failure = "failure",
        Cancelled = "cancelled",
        Skipped = "skipped",
        TimedOut = "timed_out",
        ActionRequired = "action_required",
        Neutral = "neutral",
        Stale = "stale",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitHubApiRunner {
    #[serde(deserialize_with = "id")]
    pub id: u64,
    pub name: String,
    /// Has no meaning before the runner's first connection.
    #[serde(default)]
    pub os: Option<String>,
    pub status: RunnerStatus,
    /// May lag, and has been seen false during a job. Only a refused deletion is certain.
    pub busy: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Vec<Label>,
    #[serde(default)]
    pub runner_group_id: Option<u64>,
    #[serde(default)]
    pub ephemeral: Option<bool>,
    #[serde(default)]
    pub version: Option<String>,
}

impl GitHubApiRunner {
    /// Whether the runner takes jobs with these labels. Like GitHub, this ignores case.
    pub fn has_labels(&self, wanted: &[String]) -> bool {
        wanted.iter().all(|w| self.labels.iter().any(|l| l.name.to_lowercase() == w.to_lowercase()))
    }
}

/// A job: the same object in webhooks and in the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowJob {
    /// Id of this attempt: a re-run has another one.
    #[serde(deserialize_with = "id")]
    pub id: u64,
    #[serde(deserialize_with = "id")]
    pub run_id: u64,
    #[serde(default)]
    pub run_attempt: Option<u32>,
    pub name: String,
    #[serde(default)]
    pub workflow_name: Option<String>,
    #[serde(default)]
    pub head_branch: Option<String>,
    pub status: JobStatus,
    #[serde(default)]
    pub conclusion: Option<Conclusion>,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Vec<String>,
    /// The runner that took it. Before that GitHub sends null, 0 or an empty name.
    #[serde(default, deserialize_with = "number_or_none")]
    pub runner_id: Option<u64>,
    #[serde(default, deserialize_with = "text_or_none")]
    pub runner_name: Option<String>,
    #[serde(default, deserialize_with = "number_or_none")]
    pub runner_group_id: Option<u64>,
    #[serde(default)]
    pub html_url: Option<String>,
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Set already while the job is queued.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
}

pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// GitHub's ids are signed numbers of 64 bits (`int64` in its OpenAPI description), and so are the database's.
fn id<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let id = u64::deserialize(from)?;
    i64::try_from(id).map_err(|_| D::Error::custom(format!("{id} is too large for an id")))?;
    Ok(id)
}

fn number_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|n| *n != 0))
}

fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|t| !t.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_runner_is_read_as_lean_and_as_rich_as_it_comes() {
        let lean: GitHubApiRunner = serde_json::from_value(
            json!({"id": 9_007_199_254_740_993_u64, "name": "a", "status": "offline", "busy": false}),
        )
        .unwrap();
        assert_eq!((lean.id, lean.labels.len(), lean.ephemeral), (9_007_199_254_740_993, 0, None));
        let rich: GitHubApiRunner = serde_json::from_value(json!({
            "id": 1, "name": "a", "os": "macOS", "status": "hibernating", "busy": true, "ephemeral": true, "version": "2.336.0",
            "runner_group_id": 1, "labels": [{"id": 0, "name": "self-hosted", "type": "read-only"}, {"name": "macOS-15"}],
            "what_comes_next": {"x": []},
        }))
        .unwrap();
        assert_eq!(rich.status, RunnerStatus::Other("hibernating".into()));
        assert!(rich.has_labels(&["MACOS-15".into()]) && !rich.has_labels(&["linux".into()]));
        for wrong in [
            json!({"id": "1"}),
            json!({"id": 1, "name": "a", "status": "online"}),
            json!({"id": -1, "name": "a", "status": "offline", "busy": false}),
            json!({"id": u64::MAX, "name": "a", "status": "offline", "busy": false}),
            json!([]),
        ] {
            assert!(serde_json::from_value::<GitHubApiRunner>(wrong).is_err());
        }
    }

    #[test]
    fn a_queued_job_has_no_runner_in_any_notation() {
        let mut job = json!({
            "id": 9001, "run_id": 7001, "run_attempt": 1, "name": "build", "status": "queued", "conclusion": null,
            "labels": ["self-hosted", "macos-15"], "started_at": "2026-01-01T12:00:00Z", "completed_at": null,
            "created_at": "2026-01-01T12:00:00.123Z",
        });
        for (id, name) in [(json!(null), json!(null)), (json!(0), json!(""))] {
            job["runner_id"] = id;
            job["runner_name"] = name;
            let job: WorkflowJob = serde_json::from_value(job.clone()).unwrap();
            assert_eq!((job.runner_id, job.runner_name, job.status), (None, None, JobStatus::Queued));
        }
        job["conclusion"] = json!("timed_out");
        let job: WorkflowJob = serde_json::from_value(job).unwrap();
        assert_eq!(job.conclusion, Some(Conclusion::TimedOut));
    }
}
