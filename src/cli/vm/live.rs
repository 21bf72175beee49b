//! `mayfly vm list --watch`: the list, and what changes in it.
//!
//! The stream of events only says that something has changed; the list is then read again. So what is shown is always one
//! answer of the service, and a break of the stream costs nothing.

use std::{collections::HashMap, time::Duration};

use anstream::adapter::strip_str;
use serde_json::Value;

use super::{
    super::{
        client::{self, ApiClient},
        failure::CommandFailure,
        interrupt,
        listing::{self, ListFormat, ListOutput},
        output,
        patience::{PAUSE, Patience},
        responses::VmResponse,
        text,
    },
    query::{VmQuery, list},
};
use crate::platform::clock;

/// How often the list is read again at most: many vms may change at once.
const READ_EVERY: Duration = Duration::from_millis(250);
/// How often a terminal shows the ages again.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Goes on until it is interrupted.
pub(super) async fn watch(
    client: &ApiClient,
    query: &VmQuery,
    format: ListFormat,
    json: bool,
    empty: &str,
) -> Result<u8, CommandFailure> {
    let whole = !json && output::is_terminal() && matches!(format.chosen(), None | Some(ListOutput::Wide));
    let display = match whole {
        true => WatchDisplay::Screen { lines: 0, empty: empty.to_owned(), wide: format.chosen().is_some() },
        false => WatchDisplay::Changes { seen: HashMap::new(), format, json, begun: false },
    };
    interrupt::or("", follow(client, query, display)).await
}

async fn follow(client: &ApiClient, query: &VmQuery, mut display: WatchDisplay) -> Result<u8, CommandFailure> {
    let mut patience = Patience::default();
    loop {
        match until_a_break(client, query, &mut display, &mut patience).await {
            Ok(()) => tokio::time::sleep(PAUSE).await,
            Err(failure) if display.has_begun() => patience.wait(failure).await?,
            Err(failure) => return Err(failure),
        }
    }
}

/// Follows one response of events to its end.
async fn until_a_break(
    client: &ApiClient,
    query: &VmQuery,
    display: &mut WatchDisplay,
    patience: &mut Patience,
) -> Result<(), CommandFailure> {
    // Before the list is read: what changes in between is told.
    let mut events = client.stream(&["events"], &[]).await?;
    let mut items = list(client, query).await?;
    display.update(client, &items).await?;
    let mut read = clock::monotonic();
    patience.answered();
    let mut told = false;
    loop {
        let due = if told { read + READ_EVERY } else { clock::monotonic() + SHOW_EVERY };
        match tokio::time::timeout_at(due, events.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                // Comments keep the connection alive; progress of pulls is in the list.
                told |= chunk.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"data:"));
                if clock::elapsed(read) < READ_EVERY {
                    continue;
                }
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(CommandFailure::Unreachable(format!("the events broke off: {error}"))),
            Err(_) => {}
        }
        if std::mem::take(&mut told) {
            items = list(client, query).await?;
            read = clock::monotonic();
            display.update(client, &items).await?;
        } else {
            display.refresh(client, &items)?;
        }
    }
}

/// Where changes appear.
enum WatchDisplay {
    /// The whole list, over the previous one.
    Screen {
        /// Of the previous one.
        lines: usize,
        empty: String,
        wide: bool,
    },
    /// A line for each vm that has changed.
    Changes { seen: HashMap<String, i64>, format: ListFormat, json: bool, begun: bool },
}

impl WatchDisplay {
    /// Whether something was shown, so that a break is not a failure to begin.
    fn has_begun(&self) -> bool {
        match self {
            WatchDisplay::Screen { lines, .. } => *lines > 0,
            WatchDisplay::Changes { begun, .. } => *begun,
        }
    }

    async fn update(&mut self, client: &ApiClient, items: &[Value]) -> Result<(), CommandFailure> {
        match self {
            WatchDisplay::Screen { .. } => self.refresh(client, items),
            WatchDisplay::Changes { seen, format, json, begun } => {
                let first = !std::mem::replace(begun, true);
                let mut changed = Vec::new();
                for item in items {
                    let vm: VmResponse = client.view(item)?;
                    if seen.insert(vm.id, vm.generation) != Some(vm.generation) {
                        changed.push(item.clone());
                    }
                }
                let listed: Vec<&str> = items.iter().filter_map(|item| item["id"].as_str()).collect();
                let gone: Vec<String> = seen.keys().filter(|id| !listed.contains(&id.as_str())).cloned().collect();
                for id in gone {
                    seen.remove(&id);
                    // It no longer matches: most often because it is deleted. Its record may be gone as well.
                    match client.get(&["vms", &id], &[]).await {
                        Ok(vm) => changed.push(vm),
                        Err(client::Error::Problem(problem, _)) if problem.status == 404 => {}
                        Err(failure) => return Err(failure.into()),
                    }
                }
                print_changes(client, &changed, *format, *json, first)
            }
        }
    }

    /// Shows the ages again, where that is possible.
    fn refresh(&mut self, client: &ApiClient, items: &[Value]) -> Result<(), CommandFailure> {
        let WatchDisplay::Screen { lines, empty, wide } = self else { return Ok(()) };
        let vms: Vec<VmResponse> = items.iter().map(|item| client.view(item)).collect::<Result<_, _>>()?;
        let mut shown = match vms.is_empty() {
            true => vec![empty.clone()],
            false => listing::lines(&vms, *wide, output::width()),
        };
        // What has left the screen at its top cannot be written over. The terminal folds what is too long.
        let width = output::width().unwrap_or(80).max(1);
        let folded = |line: &String| strip_str(line).to_string().chars().count().div_ceil(width).max(1);
        let most = output::height().saturating_sub(2).max(2);
        let listed = shown.len();
        while shown.len() > 1 && shown.iter().map(folded).sum::<usize>() > most {
            shown.pop();
        }
        if shown.len() < listed {
            shown.pop();
            shown.push(format!("and {} more", listed - shown.len()));
        }
        let up = if *lines > 0 { format!("\u{1b}[{lines}A") } else { String::new() };
        *lines = shown.iter().map(folded).sum();
        output::bytes(format!("{up}\r\u{1b}[J{}\n", shown.join("\n")).as_bytes())
    }
}

/// With the heads before the first ones.
fn print_changes(
    client: &ApiClient,
    changed: &[Value],
    format: ListFormat,
    json: bool,
    first: bool,
) -> Result<(), CommandFailure> {
    if json {
        return changed.iter().try_for_each(output::json_line);
    }
    let vms: Vec<VmResponse> = changed.iter().map(|item| client.view(item)).collect::<Result<_, _>>()?;
    match format.chosen() {
        Some(ListOutput::Id) => vms.iter().try_for_each(|vm| output::line(&vm.id)),
        Some(ListOutput::Name) => vms.iter().try_for_each(|vm| output::line(&text::plain(&vm.name))),
        chosen => {
            let lines = listing::lines(&vms, chosen.is_some(), output::width());
            let skipped = if first { 0 } else { 1 };
            lines.iter().skip(skipped).try_for_each(|line| output::line(line))
        }
    }
}
