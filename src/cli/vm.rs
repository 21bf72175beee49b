//! `mayfly vm …`

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::{
    client::{Client, Failure},
    exit, follow,
    output::{self, Colour, paint},
    text,
    views::VmView,
};
use crate::domain::State;

#[derive(Subcommand)]
pub(super) enum VmCommand {
    /// Create a vm
    ///
    /// Prints its id. A vm that finds no free slot is queued; that is not an error. With --follow or --wait the exit code is
    /// 0 only if the vm completed and its job (if it had one) succeeded.
    Create(Box<Create>),
    /// List vms
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one vm
    Show { vm: String },
    /// End a vm
    ///
    /// A vm that is at work is ended when its runner is done; --force does not wait for that. Ending a vm twice is harmless.
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Print a vm's logs
    Logs(Logs),
    /// Print what happened to a vm
    Events(Events),
    /// Wait until a vm reaches a state
    ///
    /// A state that the vm has been in before counts. Exits with 3 if the vm is deleted and can no longer reach the state,
    /// with 6 when the time is over.
    Wait(Wait),
}

#[derive(Args)]
pub(super) struct Create {
    /// Template to clone
    #[arg(long, short, value_name = "NAME")]
    template: String,
    /// Name of the vm, unique among live ones [default: made up]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    runner: RunnerArgs,
    /// Environment of the command or script, one NAME=VALUE per line; a NAME alone takes the value from this environment
    #[arg(long, value_name = "FILE", conflicts_with = "none", help_heading = "What the guest runs")]
    env_file: Option<PathBuf>,
    /// Cores [default: the template's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory in MiB [default: the template's]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// Label to search by; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Budget that differs from the template's, such as lifetime_seconds=600 or boot_seconds=2m; may be repeated
    #[arg(long = "budget", value_name = "NAME=VALUE", value_parser = budget)]
    budgets: Vec<(String, u32)>,
    /// Longest wait for a slot: seconds, or a duration such as 5m; 0 means now or not at all [default: the service's]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_seconds)]
    queue_timeout: Option<u32>,
    /// Repeating a request with the same key gives the same vm
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until the vm is deleted; prints nothing but its id
    #[arg(long)]
    wait: bool,
    /// Show its timeline until it is deleted
    #[arg(long, short)]
    follow: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct RunnerArgs {
    /// Job: a command line for sh
    #[arg(long, value_name = "COMMAND", help_heading = "What the guest runs")]
    command: Option<String>,
    /// Job: a file with a script; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "What the guest runs")]
    command_file: Option<PathBuf>,
    /// Set-up script that may install and run a runner of any CI system; - for standard input
    #[arg(long, value_name = "FILE", help_heading = "What the guest runs")]
    script_file: Option<PathBuf>,
    /// Nothing: the vm lives until it is deleted or its lifetime is spent
    #[arg(long, help_heading = "What the guest runs")]
    none: bool,
}

#[derive(Args)]
pub(super) struct List {
    /// Only vms in this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = states())]
    states: Vec<String>,
    /// Only vms with this label; may be repeated, and all of them must match
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Deleted vms, too, as long as their records are kept
    #[arg(long, short, conflicts_with = "states")]
    all: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Args)]
pub(super) struct Delete {
    /// Id or name
    vm: String,
    /// Do not wait for a runner at work: its job is lost
    #[arg(long)]
    force: bool,
    /// Wait until it is gone
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    /// The guest's serial console
    Console,
    /// The boot script's output while the runner is handed over
    Boot,
    /// The job's or set-up script's output
    Job,
}

#[derive(Args)]
pub(super) struct Logs {
    /// Id or name
    vm: String,
    /// Which log
    #[arg(long, value_enum, default_value = "console")]
    source: Source,
    /// Go on until the vm is deleted
    #[arg(long, short)]
    follow: bool,
    /// On a terminal: pass on what the guest sent as it is, escape sequences included
    #[arg(long)]
    raw: bool,
}

#[derive(Args)]
pub(super) struct Events {
    /// Id or name
    vm: String,
    /// Go on until the vm is deleted
    #[arg(long, short)]
    follow: bool,
}

#[derive(Args)]
pub(super) struct Wait {
    /// Id or name
    vm: String,
    /// State to wait for
    #[arg(long, default_value = "deleted", value_parser = states())]
    state: String,
    /// Longest wait: seconds, or a duration such as 5m [default: no end]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_seconds)]
    timeout: Option<u32>,
}

fn states() -> clap::builder::PossibleValuesParser {
    State::ALL.map(State::as_str).into()
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// The largest page there is: fewer questions.
const PAGE: &str = "200";

const BUDGETS: [&str; 9] = [
    "clone_seconds",
    "boot_seconds",
    "configure_seconds",
    "registration_seconds",
    "idle_seconds",
    "lifetime_seconds",
    "drain_seconds",
    "stop_grace_seconds",
    "max_attempts",
];

fn budget(text: &str) -> Result<(String, u32), String> {
    let (name, value) = pair(text)?;
    if !BUDGETS.contains(&name.as_str()) {
        return Err(format!("expected one of {}", BUDGETS.join(", ")));
    }
    Ok((name, text::parse_seconds(&value)?))
}

pub(super) async fn run(command: VmCommand, client: &Client, json: bool) -> Result<u8, Failure> {
    match command {
        VmCommand::Create(args) => create(*args, client, json).await,
        VmCommand::List(args) => list(args, client, json).await,
        VmCommand::Show { vm } => show(&vm, client, json).await,
        VmCommand::Delete(args) => delete(args, client, json).await,
        VmCommand::Logs(args) => logs(args, client, json).await,
        VmCommand::Events(args) => events(args, client, json).await,
        VmCommand::Wait(args) => wait(args, client, json).await,
    }
}

async fn create(args: Create, client: &Client, json: bool) -> Result<u8, Failure> {
    let env = args.env_file.as_deref().map(read_env).transpose()?.unwrap_or_default();
    let runner = match args.runner {
        RunnerArgs { command: Some(command), .. } => json!({ "kind": "command", "command": command, "env": env }),
        RunnerArgs { command_file: Some(file), .. } => {
            json!({ "kind": "command", "command": read_text(&file, "--command-file")?, "env": env })
        }
        RunnerArgs { script_file: Some(file), .. } => {
            json!({ "kind": "script", "script": read_text(&file, "--script-file")?, "env": env })
        }
        RunnerArgs { .. } => json!({ "kind": "none" }),
    };
    let mut body = Map::new();
    body.insert("template".into(), args.template.into());
    body.insert("runner".into(), runner);
    for (key, value) in [
        ("name", args.name.map(Value::from)),
        ("cpus", args.cpus.map(Value::from)),
        ("memory_mib", args.memory_mib.map(Value::from)),
        ("queue_timeout_seconds", args.queue_timeout.map(Value::from)),
    ] {
        if let Some(value) = value {
            body.insert(key.into(), value);
        }
    }
    if !args.labels.is_empty() {
        body.insert("labels".into(), json!(args.labels.into_iter().collect::<BTreeMap<_, _>>()));
    }
    if !args.budgets.is_empty() {
        body.insert("budgets".into(), json!(args.budgets.into_iter().collect::<BTreeMap<_, _>>()));
    }
    let key = args.idempotency_key.as_deref();
    let headers: Vec<(&str, &str)> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
    let mut created = client.post(&["vms"], &body.into(), &headers).await?;
    // The guest has its token already; here it would only end up in somebody's build log.
    if let Some(created) = created.as_object_mut() {
        created.remove("callback_token");
    }
    let vm: VmView = client.view(&created)?;
    if !args.wait && !args.follow {
        if json {
            output::json(&created)?
        } else {
            output::line(&vm.id)?
        }
        return Ok(exit::OK);
    }
    let (value, ended) = if args.follow && !json {
        let mut timeline = follow::Timeline::new();
        timeline.begin(&vm)?;
        follow::watch(client, &vm.id, None, None, |vm| timeline.update(vm), VmView::is_deleted).await?
    } else {
        if !json {
            output::line(&vm.id)?;
        }
        follow::watch(client, &vm.id, None, None, |_| Ok(()), VmView::is_deleted).await?
    };
    if json {
        output::json(&value)?;
    }
    Ok(follow::verdict(&ended))
}

async fn list(args: List, client: &Client, json: bool) -> Result<u8, Failure> {
    let labels: Vec<String> = args.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let states: Vec<&str> = match args.all {
        true => State::ALL.map(State::as_str).to_vec(),
        false => args.states.iter().map(String::as_str).collect(),
    };
    let mut query: Vec<(&str, &str)> = states.into_iter().map(|state| ("state", state)).collect();
    query.extend(labels.iter().map(|label| ("label", label.as_str())));
    query.push(("limit", PAGE));
    let items = client.list(&["vms"], &query).await?;
    if json {
        output::json(&json!({ "items": items }))?;
        return Ok(exit::OK);
    }
    let vms: Vec<VmView> = items.iter().map(|vm| client.view(vm)).collect::<Result<_, _>>()?;
    if args.quiet {
        for vm in &vms {
            output::line(&vm.id)?;
        }
        return Ok(exit::OK);
    }
    if vms.is_empty() {
        output::note("no vms");
        return Ok(exit::OK);
    }
    let mut rows: Vec<Vec<String>> = vms
        .iter()
        .map(|vm| vec![vm.name.clone(), vm.state.clone(), text::age(vm.created_at), vm.template.clone(), remark(vm)])
        .collect();
    let head = ["NAME", "STATE", "AGE", "TEMPLATE", "REMARK"];
    let fits = |table: &str, width: usize| table.lines().all(|l| l.chars().count() <= width);
    let mut table = text::table(&head, &rows, None, 0);
    if let Some(width) = output::width().filter(|width| !fits(&table, *width)) {
        for row in &mut rows {
            row[3] = shorten(&row[3], 16);
            row[4] = shorten(&row[4], 23);
        }
        table = text::table(&head, &rows, Some(width), 0);
    }
    output::bytes(table.as_bytes())?;
    Ok(exit::OK)
}

fn shorten(text: &str, to: usize) -> String {
    if text.chars().count() <= to {
        return text.to_owned();
    }
    text.chars().take(to - 1).chain(['…']).collect()
}

/// The one thing worth knowing about a vm in a list.
fn remark(vm: &VmView) -> String {
    if let Some(queue) = &vm.queue {
        let percent = queue.pull.as_ref().and_then(|pull| pull.percent);
        return match queue.position {
            Some(_) if percent.is_some() => format!("{}, {} %", queue.reason, percent.unwrap_or_default()),
            Some(position) => format!("{}, position {position}", queue.reason),
            None => queue.reason.clone(),
        };
    }
    let Some(outcome) = &vm.outcome else {
        let runner = vm.runner.as_ref().map(|r| r.status.as_str()).filter(|status| *status != "none");
        return match (runner, vm.attempt) {
            (Some(status), _) => format!("runner {status}"),
            (None, attempt) if attempt > 1 => format!("attempt {attempt}"),
            (None, _) => String::new(),
        };
    };
    match (&outcome.code, vm.job_exit_code()) {
        (Some(code), _) => code.clone(),
        (None, Some(code)) => format!("{}, exit code {code}", outcome.result),
        (None, None) => outcome.result.clone(),
    }
}

async fn show(vm: &str, client: &Client, json: bool) -> Result<u8, Failure> {
    let id = resolve(vm, client).await?;
    let value = client.get(&["vms", &id], &[]).await?;
    if json {
        output::json(&value)?;
        return Ok(exit::OK);
    }
    let vm: VmView = client.view(&value)?;
    let mut pairs = vec![("name", vm.name.clone()), ("id", vm.id.clone()), ("state", vm.state.clone())];
    if let Some(queue) = &vm.queue {
        pairs.push(("queue", queue.text()));
        if let Some(deadline) = queue.deadline {
            pairs.push(("queue until", text::time(deadline)));
        }
    }
    pairs.push(("template", vm.template.clone()));
    if let Some(digest) = &vm.template_digest {
        pairs.push(("digest", digest.clone()));
    }
    if let (Some(cpus), Some(memory_mib)) = (vm.cpus, vm.memory_mib) {
        pairs.push(("size", format!("{cpus} cores, {memory_mib} MiB")));
    }
    if let (Some(driver), Some(os)) = (&vm.driver, &vm.os) {
        pairs.push(("driver", format!("{driver} ({os})")));
    }
    if let Some(runner) = &vm.runner {
        pairs.push(("runner", format!("{}, {}", runner.kind, runner.status)));
    }
    if let Some(ssh) = &vm.ssh {
        pairs.push(("ssh", format!("{} port {}", ssh.host, ssh.port)));
    }
    if !vm.labels.is_empty() {
        let labels: Vec<String> = vm.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.push(("labels", labels.join(", ")));
    }
    if vm.attempt > 1 {
        pairs.push(("attempt", vm.attempt.to_string()));
    }
    pairs.push(("created", format!("{} ({} ago)", text::time(vm.created_at), text::age(vm.created_at))));
    if let Some(deadline) = &vm.deadline {
        pairs.push(("deadline", format!("{} ({})", text::time(deadline.at), deadline.budget)));
    }
    if let Some(by) = &vm.announced_by {
        let at = vm.announced_at.map(|at| format!(" at {}", text::time(at))).unwrap_or_default();
        pairs.push(("announced by", format!("{by}{at}")));
    }
    if let Some(signal) = &vm.end_signal {
        pairs.push(("end signal", signal.clone()));
    }
    if let Some(code) = vm.job_exit_code() {
        pairs.push(("job", format!("exit code {code}")));
    }
    if let Some(outcome) = &vm.outcome {
        pairs.push(("outcome", outcome.text()));
    }
    if let Some(fault) = &vm.last_fault {
        pairs.push(("last fault", format!("{}: {}", fault.code, fault.detail)));
        if let Some(at) = fault.at {
            pairs.push(("", text::time(at)));
        }
    }
    output::bytes(text::fields(&pairs).as_bytes())?;
    output::line("")?;
    for (n, entry) in vm.timeline.iter().enumerate() {
        let took = match vm.timeline.get(n + 1) {
            Some(next) => text::duration(next.at.duration_since(entry.at)),
            None if vm.is_deleted() => String::new(),
            None => paint(
                &format!("{} so far", text::duration(jiff::Timestamp::now().duration_since(entry.at))),
                Colour::Dim,
            ),
        };
        output::line(format!("{}  {:<11}  {took}", text::time(entry.at), entry.state).trim_end())?;
    }
    Ok(exit::OK)
}

async fn delete(args: Delete, client: &Client, json: bool) -> Result<u8, Failure> {
    let id = resolve(&args.vm, client).await?;
    let query: &[(&str, &str)] = if args.force { &[("force", "true")] } else { &[] };
    let mut value = client.delete(&["vms", &id], query).await?;
    if args.wait {
        value = follow::watch(client, &id, None, None, |_| Ok(()), VmView::is_deleted).await?.0;
    }
    if json {
        output::json(&value)?;
    } else {
        let vm: VmView = client.view(&value)?;
        output::line(&format!("{}  {}", vm.name, vm.state))?;
    }
    Ok(exit::OK)
}

async fn wait(args: Wait, client: &Client, json: bool) -> Result<u8, Failure> {
    let id = resolve(&args.vm, client).await?;
    let timeout = args.timeout.map(|s| Duration::from_secs(s.into()));
    let over = |vm: &VmView| vm.is_deleted() || vm.has_been(&args.state);
    let (value, vm) = follow::watch(client, &id, timeout, None, |_| Ok(()), over).await?;
    if json {
        output::json(&value)?;
    } else {
        output::line(&format!("{}  {}", vm.name, vm.state))?;
    }
    Ok(if vm.has_been(&args.state) { exit::OK } else { exit::VM_NOT_COMPLETED })
}

async fn logs(args: Logs, client: &Client, json: bool) -> Result<u8, Failure> {
    let id = resolve(&args.vm, client).await?;
    let source = match args.source {
        Source::Console => "console",
        Source::Boot => "boot",
        Source::Job => "job",
    };
    let mut query = vec![("source", source)];
    if args.follow {
        query.push(("follow", "true"));
    }
    let mut response = client.stream(&["vms", &id, "logs"], &query).await?;
    let mut tamer = (output::is_terminal() && !args.raw && !json).then(text::Tamer::default);
    let mut whole = Vec::new();
    loop {
        let chunk =
            response.chunk().await.map_err(|error| Failure::Unreachable(format!("the log broke off: {error}")))?;
        let Some(chunk) = chunk else { break };
        match &mut tamer {
            _ if json && args.follow => {
                output::json_line(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(&chunk) }))?;
            }
            _ if json => whole.extend_from_slice(&chunk),
            Some(tamer) => output::bytes(&tamer.tame(&chunk))?,
            None => output::bytes(&chunk)?,
        }
    }
    if json && !args.follow {
        output::json(&json!({ "vm_id": id, "source": source, "text": String::from_utf8_lossy(&whole) }))?;
    }
    Ok(exit::OK)
}

async fn events(args: Events, client: &Client, json: bool) -> Result<u8, Failure> {
    let id = resolve(&args.vm, client).await?;
    let mut last = 0;
    if json && !args.follow {
        let items = events_after(client, &id, &mut last).await?;
        output::json(&json!({ "items": items }))?;
        return Ok(exit::OK);
    }
    let mut generation = None;
    loop {
        // Read before its events, so that the last event of a deleted vm is not missed.
        let deleted = if args.follow {
            let news = |vm: &VmView| Some(vm.generation) != generation || vm.is_deleted();
            let (_, vm) = follow::watch(client, &id, None, generation, |_| Ok(()), news).await?;
            generation = Some(vm.generation);
            vm.is_deleted()
        } else {
            true
        };
        for event in events_after(client, &id, &mut last).await? {
            if json { output::json_line(&event)? } else { output::line(&event_line(&event))? }
        }
        if deleted {
            return Ok(exit::OK);
        }
    }
}

/// The events after the position `last`, which moves on to the last of them.
async fn events_after(client: &Client, id: &str, last: &mut i64) -> Result<Vec<Value>, Failure> {
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
    let line = text::plain(&line).replace('\n', " ");
    match output::width() {
        Some(width) => shorten(&line, width),
        None => line,
    }
}

/// The id of the vm that has this id or name: a live one, else the newest that had it.
async fn resolve(vm: &str, client: &Client) -> Result<String, Failure> {
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
    Err(Failure::Other(format!("no vm is called {vm:?}; `mayfly vm list --all` shows what there is")))
}

fn read_text(path: &Path, option: &str) -> Result<String, Failure> {
    let wrong = |error: std::io::Error| Failure::Usage(format!("{option}: {}: {error}", path.display()));
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(wrong)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(wrong)
}

/// Values are taken as they are, quotes included. Messages name lines and never repeat them: they hold secrets.
fn read_env(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let text = read_text(path, "--env-file")?;
    let mut env = BTreeMap::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| Failure::Usage(format!("--env-file: {}:{}: {what}", path.display(), n + 1));
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.to_owned())),
            None => (line.trim(), None),
        };
        let plain = !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain {
            return Err(wrong("expected NAME=VALUE, names of letters, digits and _"));
        }
        let value = match value {
            Some(value) => value,
            None => std::env::var(name).map_err(|_| wrong("the name has no value here or in this environment"))?,
        };
        env.insert(name.to_owned(), value);
    }
    Ok(env)
}
