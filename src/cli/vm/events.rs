//! `mayfly vm events`

use clap::Args;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{
    super::{client::ApiClient, exit, failure::CommandFailure, follow, interrupt, output, responses::VmResponse, text},
    PAGE, resolve,
};
use crate::domain::RemoteId;

#[derive(Args)]
pub(in crate::cli) struct EventsArgs {
    /// Id, the beginning of an id, or name
    vm: String,
    /// Continue until the vm is deleted
    #[arg(long, short)]
    follow: bool,
}

pub(super) async fn run(args: EventsArgs, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let id = resolve(&args.vm, client).await?;
    if json && !args.follow {
        let items = events_after(client, &id, &mut 0).await?;
        output::json(&json!({ "items": items }))?;
        return Ok(exit::OK);
    }
    let goes_on = if args.follow { format!("the vm goes on; `mayfly vm show {id}` shows it") } else { String::new() };
    interrupt::or(goes_on, print(&id, args.follow, client, json)).await
}

async fn print(id: &str, follow: bool, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let (mut last, mut generation) = (0, None);
    loop {
        // Read before its events, so that the last event of a deleted vm is not missed.
        let deleted = if follow {
            let changed = |vm: &VmResponse| Some(vm.generation) != generation || vm.is_deleted();
            let (_, vm) = follow::watch(client, id, None, generation, |_| Ok(()), changed).await?;
            generation = Some(vm.generation);
            vm.is_deleted()
        } else {
            true
        };
        for event in events_after(client, id, &mut last).await? {
            if json { output::json_line(&event)? } else { output::line(&event_line(&event))? }
        }
        if deleted {
            return Ok(exit::OK);
        }
    }
}

/// The events after the position `last`, which moves on to the last of them.
async fn events_after(client: &ApiClient, id: &str, last: &mut i64) -> Result<Vec<Value>, CommandFailure> {
    let mut events = Vec::new();
    loop {
        let page = client.get(&["vms", id, "events"], &[("after", &last.to_string()), ("limit", PAGE)]).await?;
        for event in page["items"].as_array().into_iter().flatten() {
            let seq = event["seq"].as_i64().unwrap_or(i64::MAX);
            if seq > *last {
                *last = seq;
                events.push(event.clone());
            }
        }
        match page["next_after"].as_i64() {
            Some(next) if next >= *last => *last = next,
            _ => return Ok(events),
        }
    }
}

fn event_line(event: &Value) -> String {
    let text_of = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let at = text_of("at").parse::<jiff::Timestamp>().map_or_else(|_| text_of("at"), text::time);
    let mut line = format!("{at}  {:<11}  {}", text_of("state"), text_of("type"));
    if let Some(words) = of_github(event) {
        return cut(&format!("{line}  {words}"));
    }
    let known = ["seq", "vm_id", "vm_name", "generation", "at", "state", "type", "draft", "budgets"];
    for (key, value) in
        event.as_object().into_iter().flatten().filter(|(k, v)| !known.contains(&k.as_str()) && !v.is_null())
    {
        let value = match value {
            Value::String(s) => s.clone(),
            Value::Object(inner) => {
                let parts: Vec<String> = inner
                    .iter()
                    .filter(|(k, _)| k.as_str() != "at")
                    .map(|(_, v)| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                    .collect();
                parts.join(" ")
            }
            other => other.to_string(),
        };
        line.push_str(&format!("  {key}={value}"));
    }
    cut(&line)
}

/// Describes the GitHub part of an event in one short line.
fn of_github(event: &Value) -> Option<String> {
    let said = match event["type"].as_str()? {
        "runner_registered" => format!("as {}", event["runner"]["name"].as_str()?),
        "job_changed" => {
            let job = &event["job"];
            let status = job["status"].as_str()?.replace('_', " ");
            let conclusion = job["conclusion"].as_str().map(|c| format!(", {c}")).unwrap_or_default();
            format!("{} {status}{conclusion}", RemoteId::deserialize(&job["id"]).ok()?)
        }
        "budgets_paused" => "GitHub does not answer".to_owned(),
        "budgets_resumed" => "GitHub answers again".to_owned(),
        "clock_stepped" => format!("by {} s", event["milliseconds"].as_i64()? / 1000),
        "service_away" => format!("{} s that cost no budget", event["milliseconds"].as_i64()? / 1000),
        "drain_extended" => {
            let until: jiff::Timestamp = event["until"].as_str()?.parse().ok()?;
            format!("at work, until {}", until.strftime("%H:%M:%SZ"))
        }
        _ => return None,
    };
    Some(said)
}

/// One line, cut to the width of the terminal.
fn cut(line: &str) -> String {
    let line = text::plain(line).replace('\n', " ");
    match output::width() {
        Some(width) => text::shorten(&line, width),
        None => line,
    }
}
