//! `mayfly vm delete`

use clap::Args;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, follow, output, responses::VmResponse},
    resolve,
};

#[derive(Args)]
pub(in crate::cli) struct Delete {
    /// Id or name
    vm: String,
    /// Do not wait for a working runner: its job is lost
    #[arg(long)]
    force: bool,
    /// Wait until the vm is deleted
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(args: Delete, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(&args.vm, client).await?;
    let query: &[(&str, &str)] = if args.force { &[("force", "true")] } else { &[] };
    let mut value = client.delete(&["vms", &id], query).await?;
    if args.wait {
        value = follow::watch(client, &id, None, None, |_| Ok(()), VmResponse::is_deleted).await?.0;
    }
    if json {
        output::json(&value)?;
    } else {
        let vm: VmResponse = client.view(&value)?;
        output::line(&format!("{}  {}", vm.name, vm.state))?;
    }
    Ok(exit::OK)
}
