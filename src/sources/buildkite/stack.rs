//! The requests of a stack: jobs are listed, reserved, given to agents, and finished if no agent can run them.

use std::collections::BTreeMap;

use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use serde_json::json;

use super::{
    client::{BuildkiteClient, StackCall},
    model::{AcquisitionTokens, JobPhase, JobStates, Notified, Reservations, ScheduledJobs},
    updates::BuildkiteJob,
};
use crate::{
    domain::{RemoteId, SourceKind},
    sources::{
        error::{SourceError, SourceErrorKind},
        runner::{Claim, NewRegistration, Removed, ServerRunner},
    },
};

/// The largest page, and the largest batch.
const PAGE: usize = 1000;
/// The vendor recommends the first few pages: reserved jobs leave the list.
const MOST_PAGES: usize = 5;
/// How long a job that is waiting for its vm stays reserved without any renewal, in seconds. If the service ends for good, the
/// job comes back after this time.
const RESERVATION: u32 = 900;
/// How long an agent has to register from the moment in which its token is made, in seconds. The guest may be about to boot.
/// A token ends with its reservation at the latest, and a renewal does not prolong a token that was made before.
const TOKEN_LIFETIME: u32 = 1800;
/// Limit of what can be said about a job that is finished from here, in bytes.
const LONGEST_DETAIL: usize = 4096;
/// Limit of a notification, in bytes.
const LONGEST_NOTIFICATION: usize = 255;

impl BuildkiteClient {
    fn call(&self, method: Method, path: &[&str], what: String) -> StackCall {
        let stack = std::iter::once(self.queue().stack());
        StackCall {
            method,
            path: stack.chain(path.iter().copied()).map(str::to_owned).collect(),
            query: Vec::new(),
            body: None,
            what,
            repeatable: true,
        }
    }

    async fn page(&self, limit: usize, after: Option<String>) -> Result<ScheduledJobs, SourceError> {
        let queue = self.queue().queue();
        let mut call = self.call(Method::GET, &["scheduled-jobs"], format!("the scheduled jobs of the queue {queue}"));
        call.query = vec![("queue_key", queue.to_owned()), ("limit", limit.to_string())];
        call.query.extend(after.map(|cursor| ("after", cursor)));
        let page: ScheduledJobs = self.get(&call, StatusCode::OK).await?;
        let paused = page.cluster_queue.is_paused();
        // A queue that may be paused must not be served.
        let paused = paused.ok_or_else(|| self.unparsable(&call.what, "nothing about a pause of the queue"))?;
        *self.paused.write() = Some(paused);
        Ok(page)
    }

    /// The scheduled jobs that no stack has reserved.
    pub async fn queued_jobs(&self) -> Result<Vec<BuildkiteJob>, SourceError> {
        let mut found: BTreeMap<String, BuildkiteJob> = BTreeMap::new();
        let mut after = None;
        for _ in 0..MOST_PAGES {
            let page = self.page(PAGE, after).await?;
            let paused = page.cluster_queue.is_paused().unwrap_or(true);
            for job in page.jobs {
                let id = job.id.clone();
                let job = BuildkiteJob::of(job, self.queue(), paused);
                let job = job.map_err(|why| self.unparsable("the scheduled jobs", &why))?;
                found.insert(id, job);
            }
            after = page.page_info.end_cursor;
            if !page.page_info.has_next_page || after.is_none() {
                break;
            }
        }
        Ok(found.into_values().collect())
    }

    /// Whether the queue can be seen.
    pub async fn visible(&self) -> Result<(), SourceError> {
        self.page(1, None).await.map(drop)
    }

    /// How many jobs are scheduled, as far as one page shows it, and whether the queue is paused.
    pub async fn look(&self) -> Result<(usize, bool), SourceError> {
        let page = self.page(PAGE, None).await?;
        Ok((page.jobs.len(), page.cluster_queue.is_paused().unwrap_or(true)))
    }

    /// Phases of jobs. Jobs that Buildkite does not know, or whose state is not known to this program, are left out; the
    /// latter are in the second list.
    pub(super) async fn phases(
        &self,
        ids: &[String],
    ) -> Result<(BTreeMap<String, JobPhase>, Vec<String>), SourceError> {
        let (mut phases, mut unclear) = (BTreeMap::new(), Vec::new());
        for ids in ids.chunks(PAGE) {
            let mut call =
                self.call(Method::POST, &["jobs", "get-states"], format!("the states of {} jobs", ids.len()));
            call.body = Some(json!({ "job_uuids": ids }));
            let found: JobStates = self.get(&call, StatusCode::OK).await?;
            for (id, state) in found.states {
                match JobPhase::of(&state) {
                    Some(phase) => drop(phases.insert(id, phase)),
                    None => unclear.push(id),
                }
            }
        }
        Ok((phases, unclear))
    }

    /// Reserves jobs, or prolongs their reservations. Returns those that are reserved now.
    async fn reserve(&self, ids: &[String], seconds: u32) -> Result<Vec<String>, SourceError> {
        let mut reserved = Vec::new();
        for ids in ids.chunks(PAGE) {
            let what = format!("the reservation of {} jobs", ids.len());
            let mut call = self.call(Method::PUT, &["scheduled-jobs", "batch-reserve"], what);
            call.body = Some(json!({ "job_uuids": ids, "reservation_expiry_seconds": seconds }));
            let answer: Reservations = self.get(&call, StatusCode::OK).await?;
            reserved.extend(answer.reserved);
        }
        Ok(reserved)
    }

    /// Reserves a job for a vm of this host, unless the queue is paused.
    pub async fn claim(&self, job: &str) -> Result<Claim, SourceError> {
        let known = *self.paused.read();
        if known.is_none() {
            self.visible().await?;
        }
        if self.paused.read().unwrap_or(true) {
            return Ok(Claim::Paused);
        }
        let reserved = self.reserve(&[job.to_owned()], RESERVATION).await?;
        Ok(if reserved.iter().any(|id| id == job) { Claim::Granted } else { Claim::Taken })
    }

    /// Prolongs the reservations of jobs whose vms are on their way. One that cannot be prolonged shows in its job's state.
    pub async fn keep_claims(&self, jobs: &[String]) -> Result<(), SourceError> {
        if jobs.is_empty() {
            return Ok(());
        }
        self.reserve(jobs, RESERVATION.max(TOKEN_LIFETIME)).await.map(drop)
    }

    /// Makes a token with which an agent can register and take this job, and no other. The registration of the guest is the
    /// job's id, a space and the token. A repetition makes another token, and leaves nothing that has to be removed.
    pub async fn register(&self, job: &str) -> Result<NewRegistration, SourceError> {
        let gone = |why: &str| {
            let detail =
                format!("the job {job} cannot be given to an agent: {why}; it was cancelled, or another agent has it");
            SourceError::new(SourceKind::Buildkite, SourceErrorKind::Refused, detail)
        };
        let id = [job.to_owned()];
        if !self.reserve(&id, TOKEN_LIFETIME).await?.iter().any(|reserved| reserved == job) {
            return Err(gone("it could not be reserved"));
        }
        let mut call = self.call(Method::POST, &["job-acquisition-tokens"], format!("a token for the job {job}"));
        call.body = Some(json!({ "job_uuids": id, "token_lifetime_seconds": TOKEN_LIFETIME }));
        let answer: AcquisitionTokens = self.get(&call, StatusCode::CREATED).await?;
        let token = answer.job_acquisition_tokens.into_iter().find(|token| token.job_uuid == job);
        let token = token.ok_or_else(|| gone("no token was issued"))?.job_acquisition_token;
        if token.expose_secret().is_empty() || !token.expose_secret().bytes().all(|b| b.is_ascii_graphic()) {
            return Err(self.unparsable(&call.what, "a token that is not one word"));
        }
        let secret = Zeroizing::new(format!("{job} {}", token.expose_secret()));
        Ok(NewRegistration { runner_id: RemoteId::Text(job.to_owned()), secret: SecretString::from(secret.as_str()) })
    }

    /// The agent of a job. `None`: the job is over. Whether an agent is connected that has not taken the job yet is not shown.
    pub async fn runner(&self, job: &str) -> Result<Option<ServerRunner>, SourceError> {
        let (phases, unclear) = self.phases(&[job.to_owned()]).await?;
        let shown =
            |online, busy| ServerRunner { id: RemoteId::Text(job.to_owned()), name: String::new(), online, busy };
        Ok(match phases.get(job) {
            Some(JobPhase::Working) => Some(shown(Some(true), true)),
            Some(JobPhase::Waits | JobPhase::Held) => Some(shown(Some(false), false)),
            Some(JobPhase::Over(_)) => None,
            None if unclear.is_empty() => None,
            None => Some(shown(None, false)),
        })
    }

    /// Whether the vm of the job's agent may be ended: not while the agent works. A token cannot be revoked; it ends by
    /// itself, and with the job.
    pub async fn release(&self, job: &str) -> Result<Removed, SourceError> {
        match self.runner(job).await? {
            Some(runner) if runner.busy || runner.online.is_none() => {
                let detail = format!("{}: an agent is running the job {job}", self.queue().name());
                Err(SourceError::new(SourceKind::Buildkite, SourceErrorKind::RunnerBusy, detail))
            }
            Some(_) | None => Ok(Removed::Before),
        }
    }

    /// Adds these texts to the pages of their jobs. One that is lost or told twice does no harm.
    pub async fn notify(&self, notes: &[(String, &str)]) -> Result<(), SourceError> {
        for notes in notes.chunks(PAGE) {
            let told_at = self.options.clock.now().to_string();
            let shown = notes.iter().map(|(job, text)| {
                json!({ "job_uuid": job, "detail": cropped(text, LONGEST_NOTIFICATION), "timestamp": told_at })
            });
            let mut call =
                self.call(Method::POST, &["notifications"], format!("notifications of {} jobs", notes.len()));
            call.body = Some(json!({ "notifications": shown.collect::<Vec<_>>() }));
            call.repeatable = false;
            let answer: Notified = self.get(&call, StatusCode::OK).await?;
            for error in answer.errors {
                let jobs = error.indexes.iter().filter_map(|at| notes.get(*at)).map(|(job, _)| job.as_str());
                let jobs = jobs.collect::<Vec<_>>().join(", ");
                // The job may have begun, or been cancelled, meanwhile.
                tracing::debug!(jobs, error = error.error, "Buildkite does not show what these jobs wait for");
            }
        }
        Ok(())
    }

    /// Fails a job for which there can be no vm; `detail` is for the job's page. Buildkite accepts this once for each job, so
    /// it is not repeated by itself: if the answer is lost, the job's state shows whether it was done.
    pub async fn finish(&self, job: &str, detail: &str) -> Result<(), SourceError> {
        let mut call = self.call(Method::POST, &["jobs", job, "finish"], format!("the end of the job {job}"));
        call.body = Some(json!({ "exit_status": -1, "detail": cropped(detail, LONGEST_DETAIL) }));
        call.repeatable = false;
        let answer = self.send(&call).await?;
        if answer.status.is_success() { Ok(()) } else { Err(self.refused(&call, &answer)) }
    }
}

fn cropped(text: &str, longest: usize) -> &str {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cropped_between_characters() {
        let long = format!("a{}", "é".repeat(LONGEST_DETAIL));
        let kept = cropped(&long, LONGEST_DETAIL);
        assert!(kept.len() == LONGEST_DETAIL - 1 && kept.ends_with('é'));
        assert_eq!(cropped("short", LONGEST_DETAIL), "short");
    }
}
