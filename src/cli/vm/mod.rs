//! `mayfly vm …`: one file per verb, and what they share.

use clap::Subcommand;

use super::{client::ApiClient, failure::CommandFailure};
use crate::domain::{Scope, State};

mod create;
mod delete;
mod events;
mod list;
mod live;
mod logs;
mod query;
mod session;
mod show;
mod wait;

pub(super) use create::{SpecArgs, budget, read_env};
pub(super) use list::{VmList, run as list};

#[derive(Subcommand)]
pub(super) enum VmCommand {
    /// Create a vm
    ///
    /// Prints its id. If there is no free slot, the vm is queued; that is not an error. With --follow or --wait the
    /// exit code is 0 only if the vm completed and its job (if it had one) succeeded.
    Create(Box<create::CreateArgs>),
    /// List vms
    #[command(visible_alias = "ls")]
    List(list::VmList),
    /// Show one vm
    Show {
        /// Id, the beginning of an id, or name
        vm: String,
    },
    /// End a vm
    ///
    /// A vm with a working runner is ended when the runner has finished; --force does not wait for that. Ending a
    /// vm twice is harmless. With --wait, ending this command does not change what the service does.
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
    /// Print a vm's logs: by default the output of its job
    ///
    /// With --follow, it goes on over a restart of the service.
    Logs(logs::LogsArgs),
    /// Run a command in a vm's guest, and return its exit code
    ///
    /// The service logs in to the guest with the SSH login of the vm's template, as its user, and passes input and output on;
    /// no key leaves the service. The vm must be running, or kept after a failure (--keep-on-failure). Needs a token with the
    /// scope admin, or the one with which the vm was created. The vm's events say which token was used, and not what was run.
    Exec(session::ExecArgs),
    /// Open a shell in a vm's guest
    ///
    /// Like vm exec. The shell has a terminal if standard input is one; Ctrl-C goes to the guest.
    Ssh(session::SshArgs),
    /// Print a vm's events
    Events(events::EventsArgs),
    /// Wait until a vm reaches a state
    ///
    /// Returns at once if the vm has been in that state before. Exits with 3 if the vm is deleted and can no longer
    /// reach the state, with 6 when the time is over.
    Wait(wait::Wait),
}

fn states() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(State::ALL.iter().map(|state| state.as_str()))
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

pub(super) fn parse_scope(text: &str) -> Result<Scope, String> {
    text.parse()
}

/// Characters of a whole id, and of the shortest beginning that the API finds.
const UUID: usize = 36;
const SHORTEST_PREFIX: usize = 4;
/// The largest page size: fewest requests.
const PAGE: &str = "200";

pub(super) async fn run(command: VmCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    match command {
        VmCommand::Create(args) => create::run(*args, client, json).await,
        VmCommand::List(args) => list::run(args, client, json).await,
        VmCommand::Show { vm } => show::run(&vm, client, json).await,
        VmCommand::Delete(args) => delete::run(args, client, json).await,
        VmCommand::Logs(args) => logs::run(args, client, json).await,
        VmCommand::Exec(args) => session::exec(args, client, json).await,
        VmCommand::Ssh(args) => session::ssh(args, client, json).await,
        VmCommand::Events(args) => events::run(args, client, json).await,
        VmCommand::Wait(args) => wait::run(args, client, json).await,
    }
}

/// The id of the vm that has this id or name (a live one, else the newest that had it), or the only one whose id begins
/// with this.
async fn resolve(vm: &str, client: &ApiClient) -> Result<String, CommandFailure> {
    if vm.parse::<uuid::Uuid>().is_ok() {
        return Ok(vm.to_owned());
    }
    let live = [("name", vm), ("limit", "1")];
    let deleted = [("name", vm), ("limit", "1"), ("state", "deleted")];
    for query in [&live[..], &deleted[..]] {
        // Newest first.
        let page = client.get(&["vms"], query).await?;
        if let Some(id) = page["items"][0]["id"].as_str() {
            return Ok(id.to_owned());
        }
    }
    if (SHORTEST_PREFIX..UUID).contains(&vm.len()) && vm.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        let mut query = vec![("id_prefix", vm), ("limit", "2")];
        query.extend(State::ALL.iter().map(|state| ("state", state.as_str())));
        let page = client.get(&["vms"], &query).await?;
        let ids: Vec<&str> =
            page["items"].as_array().into_iter().flatten().filter_map(|vm| vm["id"].as_str()).collect();
        match ids.as_slice() {
            [] => {}
            [id] => return Ok((*id).to_owned()),
            [one, other, ..] => {
                let several = format!("the ids of several vms begin with {vm:?}, {one} and {other} among them");
                return Err(CommandFailure::Other(format!("{several}: give more of it")));
            }
        }
    }
    Err(CommandFailure::Other(format!(
        "no vm has the name {vm:?} or an id that begins with it; `mayfly vm list --all` shows what there is"
    )))
}
