//! `mayfly vm wait`

use std::time::Duration;

use clap::Args;

use super::{
    super::{
        client::ApiClient, exit, failure::CommandFailure, follow, interrupt, output, responses::VmResponse,
        stages::Stages, text,
    },
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
    let mut stages = Stages::new(json);
    let say = |vm: &VmResponse| {
        if !over(vm) {
            stages.tell(vm);
        }
        Ok(())
    };
    let goes_on = format!("the vm goes on; `mayfly vm show {id}` shows it");
    let (value, vm) = interrupt::or(goes_on, follow::watch(client, &id, timeout, None, say, over)).await?;
    if json {
        output::json(&value)?;
    } else {
        let ending = vm.ending().map(|ending| format!("  {ending}")).unwrap_or_default();
        output::line(&text::plain(&format!("{}  {}{ending}", vm.name, vm.state)))?;
    }
    Ok(if vm.has_been(&args.state) { exit::OK } else { exit::VM_NOT_COMPLETED })
}
