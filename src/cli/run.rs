//! `mayfly run`: one command in a vm of its own, as if it ran here.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    follow,
    interrupt::Interrupts,
    log_stream::LogStream,
    output, report,
    responses::VmResponse,
    stages::Stages,
    text,
    vm::{SpecArgs, read_env},
};

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    spec: SpecArgs,
    /// Environment of the command, one NAME=VALUE per line; a NAME alone takes the value from this environment
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Do not say what is waited for
    #[arg(long, short)]
    quiet: bool,
    /// On a terminal: print the output unchanged, including escape sequences
    #[arg(long)]
    raw: bool,
    /// One argument: a command line for sh. Several: a program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Every failure has the same exit code, so that none is taken for the job's.
pub(super) async fn run(args: Run, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    match to_its_end(args, client).await {
        Ok(code) => Ok(code),
        Err(failure) => {
            report::report(&failure, json);
            Ok(exit::NO_RESULT)
        }
    }
}

async fn to_its_end(args: Run, client: &ApiClient) -> Result<u8, CommandFailure> {
    let env = args.env_file.as_deref().map(read_env).transpose()?.unwrap_or_default();
    let command = command_line(&args.command)?;
    let body = args.spec.request(json!({ "kind": "command", "command": command, "env": env }));
    let created = client.post(&["vms"], &body, &[]).await?;
    let vm: VmResponse = client.view(&created)?;
    let quiet = args.quiet;
    if !quiet {
        output::note(&format!("{}  {}", vm.name, vm.id));
    }
    let mut filter = (output::is_terminal() && !args.raw).then(text::ControlFilter::default);
    let mut print = |chunk: &[u8]| match &mut filter {
        Some(filter) => output::bytes(&filter.filter(chunk)),
        None => output::bytes(chunk),
    };
    let mut log = LogStream::new(client, &vm.id, "job", None);
    let mut stages = Stages::new(quiet);
    let say = |vm: &VmResponse| {
        stages.tell(vm);
        Ok(())
    };
    let watched = follow::watch(client, &vm.id, None, None, say, VmResponse::is_deleted);
    let mut interrupts = Interrupts::listen()?;
    let ended = tokio::select! {
        both = async { tokio::try_join!(log.follow(&mut print), watched) } => both?.0,
        code = interrupts.next() => {
            end(&vm, client, &mut interrupts).await?;
            return Ok(code);
        }
    };
    let outcome = ended.outcome.as_ref();
    if let Some(how) = ended.job_failure().filter(|_| !quiet) {
        output::note(&format!("{}: failed, {how}", vm.name));
    }
    match ended.job_exit_code().filter(|_| outcome.is_some_and(|outcome| outcome.result == "completed")) {
        // As a shell has it: the lowest byte.
        Some(code) => Ok(code.to_le_bytes()[0]),
        None => {
            let how = outcome.map(|outcome| outcome.text()).unwrap_or_default();
            Err(CommandFailure::Other(format!("{} ended without a result of its command: {how}", vm.name)))
        }
    }
}

/// Ends the vm, and waits for that unless it is interrupted again.
async fn end(vm: &VmResponse, client: &ApiClient, interrupts: &mut Interrupts) -> Result<(), CommandFailure> {
    let _: Value = client.delete(&["vms", &vm.id], &[("force", "true")]).await?;
    output::note(&format!("{} is being ended; Ctrl-C again does not wait for it", vm.name));
    tokio::select! {
        ended = follow::watch(client, &vm.id, None, None, |_| Ok(()), VmResponse::is_deleted) => ended.map(|_| ()),
        _ = interrupts.next() => Ok(()),
    }
}

fn command_line(command: &[String]) -> Result<String, CommandFailure> {
    match command {
        [line] => Ok(line.clone()),
        words => shlex::try_join(words.iter().map(String::as_str))
            .map_err(|error| CommandFailure::Usage(format!("the command cannot be passed on: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::command_line;

    #[test]
    fn one_argument_is_for_the_shell_and_several_are_kept_apart() {
        let line = |words: &[&str]| command_line(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).unwrap();
        assert_eq!(line(&["make test && echo $HOME"]), "make test && echo $HOME");
        assert_eq!(line(&["echo", "a b", "$HOME", "it's"]), r#"echo 'a b' '$HOME' "it's""#);
        assert!(command_line(&["a".into(), "\0".into()]).is_err());
    }
}
