//! What a guest may say of itself.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Service;
use crate::{
    domain::{Code, EndProof, Error, Event, Handover, Result, Vm, VmId, event::ReadyVia, runner::RunnerFact},
    store::{Expect, logs::LogSource},
};

/// A guest's report about itself, sent with the vm's own token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestEvent {
    /// The guest is up and can reach Mayfly.
    GuestReady {},
    /// Runner and hooks are in place and the wrapper runs.
    GuestConfigured {},
    /// The runner waits for a job.
    RunnerOnline {},
    /// The runner has taken a job.
    JobStarted {},
    /// The job ended with this exit code.
    JobResult { exit_code: i32 },
    /// The runner program has returned: its results are uploaded, nothing is left to do in the guest.
    RunnerFinished { exit_code: i32 },
    /// More of a log.
    Log {
        source: GuestLog,
        /// Base64 (RFC 4648 §4) of at most 32 KiB.
        data_base64: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestLog {
    Boot,
    Job,
}

impl Service {
    pub async fn report_guest_event(&self, id: VmId, report: GuestEvent) -> Result<()> {
        let vm = self.live(id).await?;
        let event = match report {
            // Over SSH it is our own login that shows that the guest is ready and configured, and the guest's word adds nothing.
            GuestEvent::GuestReady {} | GuestEvent::GuestConfigured {}
                if vm.draft.spec().is_none_or(|s| s.handover != Handover::Seed) =>
            {
                return Ok(());
            }
            GuestEvent::GuestReady {} => Event::GuestReady { via: ReadyVia::GuestCall },
            GuestEvent::GuestConfigured {} => Event::GuestConfigured,
            GuestEvent::RunnerOnline {} => Event::RunnerChanged { fact: RunnerFact::Online },
            GuestEvent::JobStarted {} => Event::RunnerChanged { fact: RunnerFact::JobStarted },
            GuestEvent::JobResult { exit_code } => Event::JobFinished { exit_code },
            GuestEvent::RunnerFinished { exit_code } => {
                Event::EndProven { proof: EndProof::RunnerFinished, exit_code: Some(exit_code) }
            }
            GuestEvent::Log { source, data_base64 } => {
                let bytes = BASE64.decode(data_base64.as_bytes()).map_err(|_| {
                    Error::new(Code::RequestInvalid, "the log is not base64")
                        .field("/data_base64", "must be base64 (RFC 4648 §4)")
                })?;
                let source = match source {
                    GuestLog::Boot => LogSource::Boot,
                    GuestLog::Job => LogSource::Job,
                };
                return self.logs.append(id, source, bytes).await.map_err(Error::internal);
            }
        };
        self.ledger.apply(id, Expect::Anything, event, self.clock.now()).await?;
        Ok(())
    }

    /// GitHub's runner for this vm's guest: the archive's file, fetched if it is not here yet.
    pub async fn runner_program(&self, id: VmId) -> Result<PathBuf> {
        let vm = self.live(id).await?;
        let none = || Error::new(Code::NotFound, "this host keeps no runner program for this vm");
        let spec = vm.draft.spec().filter(|_| vm.draft.github.is_some()).ok_or_else(none)?;
        let arch = self.catalog.get(&spec.template_digest).await?.arch;
        self.programs.obtain(self.programs.archive(spec.os, arch).ok_or_else(none)?).await
    }

    async fn live(&self, id: VmId) -> Result<Vm> {
        self.reader.vm(id).await?.ok_or_else(|| Error::new(Code::VmNotFound, format!("no vm has the id {id}")))
    }
}
