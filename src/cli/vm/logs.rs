//! `mayfly vm logs`

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, output, text},
    resolve,
};

#[derive(Clone, Copy, ValueEnum)]
enum LogSelector {
    /// The guest's serial console
    Console,
    /// The output of the bootstrap scripts while the guest is provisioned
    Boot,
    /// The output of the job or setup script
    Job,
    /// The hypervisor's own messages, and when it was paused
    Hypervisor,
}

#[derive(Args)]
pub(in crate::cli) struct LogsArgs {
    /// Id or name
    vm: String,
    /// Which log
    #[arg(long, value_enum, default_value = "console")]
    source: LogSelector,
    /// Continue until the vm is deleted
    #[arg(long, short)]
    follow: bool,
    /// On a terminal: print the guest's output unchanged, including escape sequences
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(args: LogsArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(&args.vm, client).await?;
    let source = match args.source {
        LogSelector::Console => "console",
        LogSelector::Boot => "boot",
        LogSelector::Job => "job",
        LogSelector::Hypervisor => "hypervisor",
    };
    let mut query = vec![("source", source)];
    if args.follow {
        query.push(("follow", "true"));
    }
    let mut response = client.stream(&["vms", &id, "logs"], &query).await?;
    let mut filter = (output::is_terminal() && !args.raw && !json).then(text::ControlFilter::default);
    let mut whole = Vec::new();
    loop {
        let chunk = response
            .chunk()
            .await
            .map_err(|error| CommandFailure::Unreachable(format!("the log broke off: {error}")))?;
        let Some(chunk) = chunk else { break };
        match &mut filter {
            _ if json && args.follow => {
                output::json_line(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(&chunk) }))?;
            }
            _ if json => whole.extend_from_slice(&chunk),
            Some(filter) => output::bytes(&filter.filter(&chunk))?,
            None => output::bytes(&chunk)?,
        }
    }
    if json && !args.follow {
        output::json(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(&whole) }))?;
    }
    Ok(exit::OK)
}
