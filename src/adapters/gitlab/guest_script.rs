//! The stage `run`: runs one script of the job in the guest, and passes its output on.
//!
//! The script is the standard input of a shell in the guest. So neither it nor the secrets in it are an argument of a program, here
//! or there.

use std::{io::Read, path::Path, time::Duration};

use bytes::Bytes;

use super::{
    cleanup,
    failure::ExecutorFailure,
    job::GitLabJob,
    output,
    service::{ExecutorService, JobVm},
};
use crate::{
    client::{LARGEST_PIECE, SessionEnd, SessionEvent, SessionLoss, SessionStart},
    platform::files::open_regular,
};

/// The runner writes the job's variables into it.
const LARGEST_SCRIPT: u64 = 64 << 20;
/// The service ends a session in which nothing is sent for half an hour; a script may print nothing for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(600);

pub(super) enum ScriptEnd {
    /// As a shell has it.
    Exit(u8),
    /// It is not known, for this reason.
    None(String),
}

pub(super) async fn run(
    job: &GitLabJob,
    script: &Path,
    name: &str,
    shell: &[String],
    service: &ExecutorService,
) -> Result<(), ExecutorFailure> {
    let text = read(script)?;
    let vm = service.vm(job).await?;
    tokio::select! {
        end = in_guest(&vm, shell, text, service) => match end? {
            ScriptEnd::Exit(0) => Ok(()),
            ScriptEnd::Exit(code) => Err(ExecutorFailure::Script(code)),
            ScriptEnd::None(why) => {
                let vm_end = service.end_of(&vm).await.map(|end| format!("; the vm has ended ({end})")).unwrap_or_default();
                Err(ExecutorFailure::System(format!("{name}: {why}{vm_end}")))
            }
        },
        () = service.runner_ended() => Err(cleanup::for_an_ended_runner(job, service).await),
    }
}

fn read(path: &Path) -> Result<Bytes, ExecutorFailure> {
    let wrong = |what: String| ExecutorFailure::System(format!("the script {}: {what}", path.display()));
    let file = open_regular(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = Vec::new();
    file.take(LARGEST_SCRIPT + 1).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > LARGEST_SCRIPT {
        return Err(wrong(format!("it is larger than {LARGEST_SCRIPT} bytes")));
    }
    Ok(text.into())
}

/// Runs a script and prints its output. Only the login is repeated: a script may have begun when its session is lost.
pub(super) async fn in_guest(
    vm: &JobVm,
    shell: &[String],
    script: Bytes,
    service: &ExecutorService,
) -> Result<ScriptEnd, ExecutorFailure> {
    let (input, mut events) = service.open_session(vm).await?;
    input.start(&SessionStart { command: shell, terminal: None }).await;
    let sending = async {
        for begin in (0..script.len()).step_by(LARGEST_PIECE) {
            if !input.send(script.slice(begin..script.len().min(begin + LARGEST_PIECE))).await {
                break;
            }
        }
        input.end().await;
        loop {
            tokio::time::sleep(KEEP_ALIVE).await;
            input.send(Bytes::new()).await;
        }
    };
    let receiving = async {
        loop {
            match events.next().await {
                Ok(SessionEvent::Stdout(bytes)) => output::stdout(&bytes),
                Ok(SessionEvent::Stderr(bytes)) => output::stderr(&bytes),
                Ok(SessionEvent::Ended(end)) => return end_of(end),
                Err(SessionLoss(why)) => return ScriptEnd::None(format!("the session in the guest was lost: {why}")),
            }
        }
    };
    tokio::select! {
        () = sending => Ok(ScriptEnd::None("the session has ended".to_owned())),
        end = receiving => Ok(end),
    }
}

fn end_of(end: SessionEnd) -> ScriptEnd {
    match end {
        SessionEnd::Exited { code: Some(code), .. } => ScriptEnd::Exit(u8::try_from(code).unwrap_or(1)),
        SessionEnd::Exited { code: None, signal: Some(signal) } => {
            ScriptEnd::Exit(128 + SessionEnd::signal_number(&signal))
        }
        SessionEnd::Exited { code: None, signal: None } => {
            ScriptEnd::None("the guest did not say how it ended".to_owned())
        }
        SessionEnd::Failed { code, title, detail } => ScriptEnd::None(format!("{title} [{code}]: {detail}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_exit_code_or_unknown() {
        let end = |text: &str| match end_of(serde_json::from_str(text).unwrap()) {
            ScriptEnd::Exit(code) => code.to_string(),
            ScriptEnd::None(why) => why,
        };
        assert_eq!(end(r#"{"type": "exited", "code": 7, "signal": null}"#), "7");
        // No exit code of a process, and no success.
        assert_eq!(end(r#"{"type": "exited", "code": 256, "signal": null}"#), "1");
        assert_eq!(end(r#"{"type": "exited", "code": null, "signal": "KILL"}"#), "137");
        assert_eq!(end(r#"{"type": "exited", "code": null, "signal": null}"#), "the guest did not say how it ended");
        assert_eq!(end(r#"{"type": "failed", "code": "vm.ended", "title": "T", "detail": "d"}"#), "T [vm.ended]: d");
    }
}
