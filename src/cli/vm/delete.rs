//! `mayfly vm delete`

use clap::Args;
use serde_json::{Value, json};

use super::{
    super::{
        client::ApiClient, exit, failure::CommandFailure, follow, interrupt, output, report, responses::VmResponse,
        stages::Stages, text,
    },
    resolve,
};

#[derive(Args)]
pub(in crate::cli) struct Delete {
    /// Id, the beginning of an id, or name
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
    /// Do not wait for a working runner: its job is lost
    #[arg(long)]
    force: bool,
    /// Wait until the vms are deleted
    #[arg(long)]
    wait: bool,
}

/// One that cannot be ended does not keep the others from being ended. The exit code is that of the first failure.
pub(super) async fn run(args: Delete, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let (mut ended, mut failed): (Vec<Value>, Vec<CommandFailure>) = (Vec::new(), Vec::new());
    for vm in &args.vms {
        match end(vm, args.force, client).await {
            Ok(value) => ended.push(value),
            Err(failure) => failed.push(failure),
        }
    }
    if args.wait {
        let goes_on = "the service ends them without this command; `mayfly vm list` shows how far it is";
        interrupt::or(goes_on, wait(&mut ended, args.force, json, client)).await?;
    }
    if !json {
        for value in &ended {
            let vm: VmResponse = client.view(value)?;
            let ending =
                vm.ending().filter(|_| vm.is_deleted()).map(|ending| format!("  {ending}")).unwrap_or_default();
            output::line(&text::plain(&format!("{}  {}{ending}", vm.name, vm.state)))?;
        }
    } else if let (1, [value]) = (args.vms.len(), ended.as_slice()) {
        output::json(value)?;
    } else if !ended.is_empty() {
        output::json(&json!({ "items": ended }))?;
    }
    for failure in &failed {
        report::report(failure, json);
    }
    Ok(failed.first().map_or(exit::OK, CommandFailure::exit_code))
}

async fn end(vm: &str, force: bool, client: &ApiClient) -> Result<Value, CommandFailure> {
    let id = resolve(vm, client).await?;
    let query: &[(&str, &str)] = if force { &[("force", "true")] } else { &[] };
    Ok(client.delete(&["vms", &id], query).await?)
}

/// Says what is waited for. The requests are with the service, so that ending this command changes nothing.
async fn wait(ended: &mut [Value], force: bool, json: bool, client: &ApiClient) -> Result<(), CommandFailure> {
    let mut advised = force || json;
    for value in ended {
        let vm: VmResponse = client.view(value)?;
        let mut stages = Stages::new(json);
        let seen = |vm: &VmResponse| {
            stages.tell(vm);
            if vm.state == "draining" && !std::mem::replace(&mut advised, true) {
                output::note("--force does not wait for it");
            }
            Ok(())
        };
        *value = follow::watch(client, &vm.id, None, None, seen, VmResponse::is_deleted).await?.0;
    }
    Ok(())
}
