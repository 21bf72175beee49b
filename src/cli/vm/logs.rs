//! `mayfly vm logs`

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, interrupt, log_stream::LogStream, output, text},
    resolve,
};

#[derive(Clone, Copy, ValueEnum)]
enum LogSelector {
    /// The output of the job, the setup script or GitHub's runner
    Job,
    /// The guest's serial console
    Console,
    /// The output of the bootstrap scripts while the guest is provisioned
    Boot,
    /// The hypervisor's own messages, and when it was paused
    Hypervisor,
}

impl LogSelector {
    fn as_str(self) -> &'static str {
        match self {
            LogSelector::Job => "job",
            LogSelector::Console => "console",
            LogSelector::Boot => "boot",
            LogSelector::Hypervisor => "hypervisor",
        }
    }
}

#[derive(Args)]
pub(in crate::cli) struct LogsArgs {
    /// Id, the beginning of an id, or name
    vm: String,
    /// Which log
    #[arg(long, value_enum, default_value = "job")]
    source: LogSelector,
    /// Continue until the vm is deleted
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Begin with what was written since: a time such as 2027-01-31T12:00:00Z, or how long ago, such as 10m or 2h; not for
    /// the console, which has no times
    #[arg(long, value_name = "TIME", value_parser = text::parse_since)]
    since: Option<Timestamp>,
    /// On a terminal: print the guest's output unchanged, including escape sequences
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(args: LogsArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(&args.vm, client).await?;
    let source = args.source.as_str();
    let mut log = LogStream::new(client, &id, source, args.since);
    let mut whole = Vec::new();
    log.read(&mut |chunk: &[u8]| {
        whole.extend_from_slice(chunk);
        Ok(())
    })
    .await?;
    let shown = args.tail.map_or(&whole[..], |lines| last_lines(&whole, lines));
    if json && !args.follow {
        output::json(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(shown) }))?;
        return Ok(exit::OK);
    }
    let mut filter = (output::is_terminal() && !args.raw && !json).then(text::ControlFilter::default);
    let mut print = |chunk: &[u8]| match &mut filter {
        _ if json => {
            output::json_line(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(chunk) }))
        }
        Some(filter) => output::bytes(&filter.filter(chunk)),
        None => output::bytes(chunk),
    };
    if !shown.is_empty() {
        print(shown)?;
    }
    if args.follow {
        let goes_on = format!("the vm goes on; `mayfly vm delete {id}` ends it");
        interrupt::or(goes_on, log.follow(&mut print)).await?;
    } else if whole.is_empty() && args.since.is_some() {
        output::note(&format!("nothing was written to the log {source} since then"));
    } else if whole.is_empty() {
        output::note(&format!("the log {source} is empty; --source shows another one: job, console, boot, hypervisor"));
    }
    Ok(exit::OK)
}

fn last_lines(log: &[u8], lines: usize) -> &[u8] {
    let ends_in_line = log.last().is_some_and(|last| *last != b'\n');
    let breaks = log.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    // The last line ends with the log, or with the last break.
    match breaks.skip(usize::from(!ends_in_line)).nth(lines.wrapping_sub(1)) {
        Some(at) if lines > 0 => &log[at + 1..],
        None if lines > 0 => log,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        for (log, lines, expected) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\n\n", 1, "\n"),
            ("a\nb", 0, ""),
            ("", 3, ""),
            ("a", 1, "a"),
        ] {
            assert_eq!(last_lines(log.as_bytes(), lines), expected.as_bytes(), "{log:?} {lines}");
        }
    }
}
