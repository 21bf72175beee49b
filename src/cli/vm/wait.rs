//! `mayfly vm wait`

use std::time::Duration;

use clap::Args;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, follow, output, responses::VmResponse, text},
    resolve, states,
};

#[derive(Args)]
pub(in crate::cli) struct Wait {
    /// Id, the beginning of an id, or name
    vm: String,
    /// State to wait for
    #[arg(long, default_value = "deleted", value_parser = states())]
    state: String,
    /// Longest wait: seconds, or a duration such as 5m [default: no end]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_seconds)]
    timeout: Option<u32>,
}

pub(super) async fn run(args: Wait, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(&args.vm, client).await?;
    let timeout = args.timeout.map(|s| Duration::from_secs(s.into()));
    let over = |vm: &VmResponse| vm.is_deleted() || vm.has_been(&args.state);
    let (value, vm) = follow::watch(client, &id, timeout, None, |_| Ok(()), over).await?;
    if json {
        output::json(&value)?;
    } else {
        output::line(&format!("{}  {}", vm.name, vm.state))?;
    }
    Ok(if vm.has_been(&args.state) { exit::OK } else { exit::VM_NOT_COMPLETED })
}
