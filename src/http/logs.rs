//! Logs of guests: console, boot script, job.

use std::{
    io::{self, SeekFrom},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::State as FromState,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::{
    Http,
    auth::{Allowed, PathVm, Read},
    extract::Query,
    middleware::RequestPermit,
    problem::Problem,
    vms::no_vm,
};
use crate::{
    domain::{Error, State, VmId},
    service::vms::{LOG_CAP, LogSource},
};

/// Largest response, followed or not.
const FOLLOW_CAP: u64 = 64 * 1024 * 1024;
/// How often a followed file is checked.
const LOOK: Duration = Duration::from_millis(300);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GetVmLog {
    /// Which log; default: `console`.
    source: Option<LogSource>,
    /// Continue until the vm is deleted.
    #[serde(default)]
    follow: bool,
    /// Begin this many bytes before the end; default: one mebibyte.
    #[param(minimum = 0, maximum = 1048576)]
    tail_bytes: Option<u64>,
    /// Begin at this byte of the log, or at its end if it is shorter. To go on with a log that broke off: the
    /// `mayfly-log-offset` of its response, and the length of what was received.
    #[param(minimum = 0, maximum = 9223372036854775807u64)]
    offset: Option<u64>,
    /// Begin with what was written at this time (RFC 3339) or later; up to a second, in very long logs a minute, more may be
    /// included. The console's log has no times.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
}

/// The byte of the log at which a response begins.
const OFFSET: HeaderName = HeaderName::from_static("mayfly-log-offset");

/// Where to begin.
#[derive(Clone, Copy)]
enum Beginning {
    BeforeEnd(u64),
    At(u64),
}

impl GetVmLog {
    fn since(&self, source: LogSource) -> Result<Option<Timestamp>, Problem> {
        let what = match self.since {
            None => return Ok(None),
            Some(_) if self.tail_bytes.is_some() || self.offset.is_some() => {
                "cannot be given with tail_bytes or offset: leave them out"
            }
            Some(_) if source == LogSource::Console => {
                "the console's log has no times: choose the source job, boot or hypervisor"
            }
            since => return Ok(since),
        };
        Err(Problem::invalid("query:since", what))
    }

    fn beginning(&self) -> Result<Beginning, Problem> {
        match (self.tail_bytes, self.offset) {
            (Some(_), Some(_)) => {
                Err(Problem::invalid("query:offset", "cannot be given with tail_bytes: leave one of them out"))
            }
            (Some(tail), None) if tail > LOG_CAP => {
                Err(Problem::invalid("query:tail_bytes", format!("0 to {LOG_CAP}")))
            }
            (tail, None) => Ok(Beginning::BeforeEnd(tail.unwrap_or(LOG_CAP))),
            (None, Some(offset)) if i64::try_from(offset).is_err() => {
                Err(Problem::invalid("query:offset", format!("0 to {}", i64::MAX)))
            }
            (None, Some(offset)) => Ok(Beginning::At(offset)),
        }
    }
}

/// Read or follow a vm's log
///
/// Empty if nothing was logged. Kept as long as the vm's record. The console's log begins anew with each attempt of the vm,
/// and loses its beginning when it is too long; offsets in it are then no longer valid.
#[utoipa::path(
    get, path = "/vms/{id}/logs", tag = "vms",
    params(("id" = String, Path, format = "uuid"), GetVmLog),
    responses((
        status = 200, description = "The log as the guest wrote it", body = String, content_type = "text/plain",
        headers(("mayfly-log-offset" = u64, description = "The byte of the log at which this response begins")),
        example = json!("login: \n"),
    )),
    security(("token" = ["read"])),
)]
pub async fn get_vm_log(
    FromState(http): FromState<Arc<Http>>,
    Allowed { token, .. }: Allowed<Read>,
    PathVm(id): PathVm,
    Query(asked): Query<GetVmLog>,
    permit: RequestPermit,
) -> Result<Response, Problem> {
    let beginning = asked.beginning()?;
    let source = asked.source.unwrap_or(LogSource::Console);
    let since = asked.since(source)?;
    // Their errors show whether the vm exists; the file need not exist.
    http.services.vms.check_own(id, &token).await?;
    let path = http.services.vms.log_file(id, source).await?;
    let beginning = match since {
        Some(since) => Beginning::At(http.services.vms.log_offset(id, source, since).await?),
        None => beginning,
    };
    let file = open(&path, beginning).await.map_err(Error::internal)?;
    let offset = file.as_ref().map_or(0, |(_, offset)| *offset);
    let file = file.map(|(file, _)| file);
    let place = permit.wait()?;
    let (out, body) = mpsc::channel(16);
    let mut follower = Follower { http, id, source, file, attempt: None, left: FOLLOW_CAP, out };
    tokio::spawn(async move {
        let shutdown = follower.http.shutdown.clone();
        let gone = follower.out.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = gone.closed() => {}
            result = follower.run(asked.follow) => {
                if let Err(error) = result {
                    tracing::warn!(vm.id = %id, %error, "cannot read a log to its end");
                }
            }
        }
        drop(place);
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (OFFSET, HeaderValue::from(offset)),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(body))).into_response())
}

/// The file at its beginning, and where that is. `None`: the file does not exist (yet).
async fn open(path: &std::path::Path, beginning: Beginning) -> io::Result<Option<(File, u64)>> {
    let mut file = match File::open(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let len = file.metadata().await?.len();
    let offset = match beginning {
        Beginning::BeforeEnd(tail) => len.saturating_sub(tail),
        Beginning::At(offset) => offset.min(len),
    };
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(Some((file, offset)))
}

struct Follower {
    http: Arc<Http>,
    id: VmId,
    source: LogSource,
    file: Option<File>,
    /// The attempt that `file` belongs to. A retried vm boots again, with a new console.
    attempt: Option<u32>,
    left: u64,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl Follower {
    async fn run(&mut self, follow: bool) -> io::Result<()> {
        loop {
            // Checked before reading, so that everything that is written until the vm is deleted is read afterwards.
            let vm = self.http.services.vms.find(self.id).await.map_err(io::Error::other)?;
            if !self.drain().await? || !follow {
                return Ok(());
            }
            let Some(vm) = vm.filter(|vm| vm.state != State::Deleted) else { return Ok(()) };
            if vm.state.holds_slot() && self.attempt.replace(vm.attempt).is_some_and(|before| before != vm.attempt) {
                self.file = None;
            }
            if self.file.is_none() {
                let path = self.http.services.vms.log_file(self.id, self.source).await.map_err(|e| match e.cause {
                    Some(cause) => io::Error::other(cause),
                    None => io::Error::other(no_vm(self.id)),
                })?;
                self.file = open(&path, Beginning::At(0)).await?.map(|(file, _)| file);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Sends the available bytes. `false`: there will be no more.
    async fn drain(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(true) };
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let n = file.read(&mut buffer).await?;
            if n == 0 {
                return Ok(true);
            }
            let n = n.min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= n as u64;
            if n == 0 || self.out.send(Ok(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return Ok(false);
            }
        }
    }
}
