//! Which vm belongs to a job: labels that every stage of the job can compute.
//!
//! GitLab Runner prepares a job up to three times. It ends each failed try with a cleanup, and the next one needs a vm of its own.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;

use super::job_file::JobFile;
use crate::adapters::names::{OWNER, hash_of, label};

/// The value of the label `owner`.
pub(super) const OWNER_NAME: &str = "gitlab";
pub(super) const KEY: &str = "gitlab.key";
pub(super) const ATTEMPT: &str = "gitlab.attempt";
const JOB: &str = "gitlab.job";
const PROJECT: &str = "gitlab.project";
const SERVER: &str = "gitlab.server";

pub(super) struct GitLabJob {
    key: String,
    attempt: Option<String>,
    id: i64,
    project: String,
    server: Option<String>,
}

impl GitLabJob {
    /// The token is part of the key, because ids are numbers of one server, and authors of jobs can set all variables that name
    /// the server. It has enough entropy that its hash does not disclose it.
    pub fn new(file: &JobFile, attempt: Option<&str>) -> Self {
        let (id, project_id) = (file.id.to_string(), file.project_id().to_string());
        let key = hash_of(&["mayfly gitlab job 1", &project_id, &id, file.token.expose_secret()]);
        let (server, project) = file.place();
        Self { key, attempt: attempt.map(label), id: file.id, project, server }
    }

    /// What all vms of this job have in common.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The try of the preparation, if the stage `config` has named it.
    pub fn attempt(&self) -> Option<&str> {
        self.attempt.as_deref()
    }

    /// One wish for a vm: the same for a repeated request.
    pub fn idempotency_key(&self, attempt: &str) -> String {
        hash_of(&["mayfly gitlab attempt 1", &self.key, attempt])
    }

    /// The vm of a failed try is still ending when the next one is created, so its name differs.
    pub fn vm_name(&self, attempt: &str) -> String {
        format!("gitlab-{}-{}", self.id.unsigned_abs(), &self.idempotency_key(attempt)[..8])
    }

    pub fn labels(&self, attempt: &str) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> = [
            (OWNER, OWNER_NAME.to_owned()),
            (KEY, self.key.clone()),
            (ATTEMPT, attempt.to_owned()),
            (JOB, self.id.to_string()),
            (PROJECT, label(&self.project)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        if let Some(server) = &self.server {
            labels.insert(SERVER.to_owned(), label(server));
        }
        labels
    }
}
