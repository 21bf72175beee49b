//! Gitea's representation of runners and jobs. Unknown keys are ignored, and keys without a value may be missing.

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// What a server's version says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiteaVersion(String);

impl GiteaVersion {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Gitea 1.24 has the webhook and runners for one job, and no list of jobs.
    pub fn lists_jobs(&self) -> bool {
        self.numbers() >= (1, 25)
    }

    pub(super) fn attempt_rule(&self) -> AttemptRule {
        if self.numbers() >= (1, 27) { AttemptRule::OwnRow } else { AttemptRule::CountsTaken }
    }

    fn numbers(&self) -> (u32, u32) {
        let mut numbers = self.0.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// How a server numbers the attempts of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptRule {
    /// Up to Gitea 1.26: a job that is run again keeps its id, and `run_attempt` counts the attempts that runners have
    /// taken.
    CountsTaken,
    /// From Gitea 1.27 on: each attempt is a job of its own.
    OwnRow,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct GiteaRunner {
    #[serde(deserialize_with = "id")]
    pub id: u64,
    pub name: String,
    pub status: String,
    pub busy: bool,
    /// Whether it gets no more jobs. Missing in versions that cannot disable runners.
    #[serde(default)]
    pub disabled: bool,
}

/// A job: the same object in webhooks and in the API.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct GiteaApiJob {
    #[serde(deserialize_with = "id")]
    pub id: u64,
    #[serde(deserialize_with = "id")]
    pub run_id: u64,
    #[serde(default)]
    pub run_attempt: u32,
    pub name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Vec<String>,
    pub status: String,
    #[serde(default, deserialize_with = "text_or_none")]
    pub conclusion: Option<String>,
    #[serde(default, deserialize_with = "number_or_none")]
    pub runner_id: Option<u64>,
    #[serde(default, deserialize_with = "text_or_none")]
    pub runner_name: Option<String>,
    /// The job in the REST API. It alone names the repository in lists.
    #[serde(default)]
    pub url: String,
    #[serde(default, deserialize_with = "text_or_none")]
    pub html_url: Option<String>,
    #[serde(default, deserialize_with = "time_or_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time_or_none")]
    pub completed_at: Option<Timestamp>,
}

#[derive(Deserialize)]
pub(super) struct GiteaRegistrationToken {
    pub token: SecretString,
}

/// The answer to `Register`.
#[derive(Deserialize)]
pub(super) struct RegisterAnswer {
    pub runner: RegisteredRunner,
}

#[derive(Deserialize)]
pub(super) struct RegisteredRunner {
    /// Numbers of 64 bits are strings in JSON of Protocol Buffers.
    #[serde(deserialize_with = "text_or_number")]
    pub id: u64,
    pub uuid: String,
    pub token: SecretString,
    pub name: String,
}

/// The file `.runner`, with which the runner program starts.
#[derive(Serialize)]
pub(super) struct RunnerFile<'a> {
    #[serde(rename = "WARNING")]
    pub warning: &'static str,
    pub id: u64,
    pub uuid: &'a str,
    pub name: &'a str,
    pub token: &'a str,
    pub address: &'a str,
    /// Each with the way in which its jobs are run.
    pub labels: Vec<String>,
    pub ephemeral: bool,
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Ids are signed numbers of 64 bits at Gitea, and so are the database's.
fn id<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    in_range(u64::deserialize(from)?)
}

fn in_range<E: serde::de::Error>(id: u64) -> Result<u64, E> {
    i64::try_from(id).map_err(|_| E::custom(format!("{id} is too large for an id")))?;
    Ok(id)
}

fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    match Either::deserialize(from)? {
        Either::Text(text) => in_range(text.parse().map_err(|_| D::Error::custom("expected a number"))?),
        Either::Number(number) => in_range(number),
    }
}

fn number_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|n| *n != 0))
}

fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|t| !t.is_empty()))
}

/// A time that is not set is 1970-01-01T00:00:00Z.
fn time_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<Timestamp>::deserialize(from)?.filter(|at| at.as_second() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_says_how_attempts_are_numbered_and_whether_jobs_are_listed() {
        let of = |text: &str| GiteaVersion::new(text.to_owned());
        for text in ["1.25.0", "1.26.3", "1.26.0+rc1", "1.9.0", ""] {
            assert_eq!(of(text).attempt_rule(), AttemptRule::CountsTaken, "{text}");
        }
        for text in ["1.27.0", "1.27.0+dev-12-gabc", "1.30.1", "2.0.0"] {
            assert_eq!(of(text).attempt_rule(), AttemptRule::OwnRow, "{text}");
        }
        assert!(of("1.25.0").lists_jobs() && !of("1.24.7").lists_jobs() && !of("").lists_jobs());
    }
}
