//! `mayfly pool …`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    listing::{self, ListFormat, Listable},
    output::{self, Colour},
    responses::PoolResponse,
    table::{Cell, Column},
    text,
    vm::{budget, parse_scope},
};
use crate::domain::Scope;

#[derive(Subcommand)]
pub(super) enum PoolCommand {
    /// List pools
    #[command(visible_alias = "ls")]
    List(ListFormat),
    /// Show one pool
    Show { name: String },
    /// Create or replace a pool
    ///
    /// From then on, jobs that match the pool get vms from it. Existing vms keep their settings. Replacing
    /// sets every option that is not given to its default. A pool that is set in mayfly.toml can only be changed
    /// there.
    Set(Box<Set>),
    /// Give jobs no new vms from a pool
    ///
    /// Vms that the pool has run on until they end. The other settings of the pool stay as they are.
    Disable { name: String },
    /// Give jobs vms from a pool again
    Enable { name: String },
    /// Remove a pool
    ///
    /// Jobs get no new vms from it. Existing vms run until they end.
    #[command(visible_alias = "rm")]
    Remove { name: String },
}

#[derive(Args)]
pub(super) struct Set {
    /// 1 to 63 letters, digits, '.', '_' or '-'
    name: String,
    /// Template that each vm is cloned from: its name or digest, or an image as host/namespace:tag
    #[arg(long, short, value_name = "NAME")]
    template: String,
    /// Source of its jobs, by its name in the service's configuration [default: github]
    #[arg(long, value_name = "NAME")]
    job_source: Option<String>,
    /// Where its runners are registered: owner/name, an organisation, enterprises/slug (GitHub), or * for the whole server
    /// (Gitea)
    #[arg(long, short, value_name = "SCOPE", value_parser = parse_scope)]
    scope: Scope,
    /// Label of its runners; may be repeated. A job matches if every label that it asks for is among these
    #[arg(long = "runner-label", value_name = "LABEL", required = true)]
    labels: Vec<String>,
    /// Name of the runner group (organisations and enterprises only) [default: GitHub's default group]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only jobs of this repository; either part may be *; may be repeated [default: all of the scope]
    #[arg(long = "repository", value_name = "OWNER/NAME")]
    repositories: Vec<String>,
    /// Live vms at once; further jobs wait [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_vms: Option<u32>,
    /// Cores [default: the template's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory in MiB [default: the template's]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// What the guests may reach: the guest API only, the internet, or everything that the host reaches [default: the
    /// template's, else internet if the host can enforce it]
    #[arg(long, value_name = "MODE", value_parser = text::NETWORK_MODES)]
    network: Option<String>,
    /// Budget that differs from the template's, such as lifetime_seconds=2h; may be repeated
    #[arg(long = "budget", value_name = "NAME=VALUE", value_parser = budget)]
    budgets: Vec<(String, u32)>,
    /// Give jobs no new vms until `mayfly pool enable`
    #[arg(long)]
    disabled: bool,
}

pub(super) async fn run(command: PoolCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    match command {
        PoolCommand::List(format) => {
            let items = client.list(&["pools"], &[]).await?;
            listing::print::<PoolResponse>(client, &items, format, json, "no pools; `mayfly pool set` makes one")?;
        }
        PoolCommand::Show { name } => {
            let value = client.get(&["pools", &name], &[]).await?;
            if json { output::json(&value)? } else { show(&client.view(&value)?)? }
        }
        PoolCommand::Set(args) => set(*args, client, json).await?,
        PoolCommand::Disable { name } => set_enabled(&name, false, client, json).await?,
        PoolCommand::Enable { name } => set_enabled(&name, true, client, json).await?,
        PoolCommand::Remove { name } => {
            client.delete(&["pools", &name], &[]).await?;
            if json {
                output::json(&json!({ "name": name }))?;
            } else {
                output::line(&format!("{name}  removed"))?;
            }
        }
    }
    Ok(exit::OK)
}

async fn set(args: Set, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut body = Map::new();
    for (key, value) in [
        ("template", Some(Value::from(args.template))),
        ("job_source", args.job_source.map(Value::from)),
        ("scope", Some(args.scope.slug().into())),
        ("labels", Some(args.labels.into())),
        ("group", args.group.map(Value::from)),
        ("repositories", (!args.repositories.is_empty()).then(|| args.repositories.into())),
        ("max_vms", args.max_vms.map(Value::from)),
        ("cpus", args.cpus.map(Value::from)),
        ("memory_mib", args.memory_mib.map(Value::from)),
        ("network", args.network.map(Value::from)),
        ("budgets", (!args.budgets.is_empty()).then(|| json!(args.budgets.into_iter().collect::<BTreeMap<_, _>>()))),
        ("enabled", args.disabled.then_some(Value::from(false))),
    ] {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    }
    put(&args.name, body, client, json).await
}

/// What the API shows of a pool besides its settings.
const NO_SETTINGS: [&str; 7] = ["name", "source", "vms", "jobs_waiting", "last_error", "created_at", "updated_at"];

/// Changes only whether a pool takes jobs.
async fn set_enabled(name: &str, enabled: bool, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let Value::Object(mut pool) = client.get(&["pools", name], &[]).await? else {
        return Err(CommandFailure::Other(format!("the answer of GET /pools/{name} is not an object")));
    };
    // A setting that only the service knows is sent back; without it, the service would set it to its default.
    pool.retain(|key, _| !NO_SETTINGS.contains(&key.as_str()));
    pool.insert("enabled".to_owned(), enabled.into());
    put(name, pool, client, json).await
}

async fn put(name: &str, body: Map<String, Value>, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let value = client.put(&["pools", name], &body.into()).await?;
    if json {
        return output::json(&value);
    }
    let pool: PoolResponse = client.view(&value)?;
    let labels = pool.labels.join(", ");
    let takes = if pool.enabled { "takes" } else { "is disabled, and would take" };
    output::line(&text::plain(&format!("{}  {takes} jobs of {} that ask for {labels}", pool.name, pool.scope)))
}

impl Listable for PoolResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME").gives_way(),
        Column::new("TEMPLATE").at_most(14),
        Column::new("JOBS OF").wide(),
        Column::new("SCOPE").at_most(14),
        Column::new("LABELS").wide(),
        Column::new("GROUP").wide(),
        Column::new("REPOSITORIES").wide(),
        Column::new("SET BY").wide(),
        Column::new("VMS"),
        Column::new("WAITING"),
        Column::new("REMARK"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let remark = match &self.last_error {
            _ if !self.enabled => Cell::painted("disabled", Some(Colour::Dim)),
            Some(fault) => Cell::painted(fault.code.clone(), Some(Colour::Red)),
            None => "".into(),
        };
        let all = |list: &[String]| if list.is_empty() { "-".to_owned() } else { list.join(",") };
        vec![
            self.name.clone().into(),
            self.template.clone().into(),
            self.job_source.clone().into(),
            self.scope.clone().into(),
            all(&self.labels).into(),
            self.group.clone().unwrap_or_else(|| "-".to_owned()).into(),
            all(&self.repositories).into(),
            self.source.clone().into(),
            format!("{}/{}", self.vms.live, self.max_vms).into(),
            self.jobs_waiting.to_string().into(),
            remark,
        ]
    }
}

fn show(pool: &PoolResponse) -> Result<(), CommandFailure> {
    let source = match pool.source.as_str() {
        "config" => "mayfly.toml; it is changed there",
        "api" => "the API",
        other => other,
    };
    let vms = format!("{} live, {} of them queued; at most {}", pool.vms.live, pool.vms.queued, pool.max_vms);
    let mut pairs = vec![
        ("name", pool.name.clone()),
        ("set by", source.to_owned()),
        ("takes jobs", if pool.enabled { "yes" } else { "no: it is disabled" }.to_owned()),
        ("template", pool.template.clone()),
    ];
    let size: Vec<String> = [pool.cpus.map(|n| format!("{n} cores")), pool.memory_mib.map(|n| format!("{n} MiB"))]
        .into_iter()
        .flatten()
        .collect();
    if !size.is_empty() {
        pairs.push(("size", size.join(", ")));
    }
    if let Some(network) = &pool.network {
        pairs.push(("network", network.clone()));
    }
    pairs.push(("jobs of", format!("the source {}", pool.job_source)));
    pairs.push(("scope", pool.scope.clone()));
    pairs.push(("labels", pool.labels.join(", ")));
    if let Some(group) = &pool.group {
        pairs.push(("group", group.clone()));
    }
    let repositories = pool.repositories.join(", ");
    pairs.push(("repositories", if repositories.is_empty() { "all of the scope".to_owned() } else { repositories }));
    pairs.push(("vms", vms));
    pairs.push(("jobs waiting", pool.jobs_waiting.to_string()));
    let budgets: Vec<String> =
        pool.budgets.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
    if !budgets.is_empty() {
        pairs.push(("budgets", budgets.join(", ")));
    }
    if let Some(at) = pool.updated_at {
        pairs.push(("changed", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    if let Some(fault) = &pool.last_error {
        pairs.push(("last error", format!("{}: {}", fault.code, fault.detail)));
        if let Some(at) = fault.at {
            pairs.push(("", format!("{} ({} ago)", text::time(at), text::age(at))));
        }
    }
    output::bytes(text::folded(&pairs, output::width()).as_bytes())
}
