//! `mayfly vm list`

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    super::{
        client::ApiClient,
        exit,
        failure::CommandFailure,
        output,
        responses::{ProgressResponse, VmResponse},
        text,
    },
    PAGE, pair, shorten, states,
};
use crate::domain::{OutcomeResult, State};

#[derive(Args)]
pub(in crate::cli) struct VmList {
    /// Only vms in this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = states())]
    states: Vec<String>,
    /// Only vms with this label; may be repeated, and all of them must match
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Only vms of this template: its name or its digest
    #[arg(long, short, value_name = "NAME")]
    template: Option<String>,
    /// Only vms that ended like this, including deleted vms
    #[arg(long, value_name = "RESULT", value_parser = outcomes())]
    outcome: Option<String>,
    /// Only vms that were made for this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Only vms whose runner was given this job, including deleted vms; the number is in the address of the job's
    /// page at GitHub
    #[arg(long, value_name = "ID")]
    job: Option<u64>,
    /// Also deleted vms whose records are still kept
    #[arg(long, short, conflicts_with = "states")]
    all: bool,
    /// Print ids only; the same as -o id
    #[arg(long, short, conflicts_with = "output")]
    quiet: bool,
    /// What is printed of each vm: more columns, its name or its id
    #[arg(long, short, value_enum, value_name = "FORMAT")]
    output: Option<ListOutput>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListOutput {
    /// Also id, pool, driver, network, and the token that it was created with
    Wide,
    Name,
    Id,
}

fn outcomes() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(OutcomeResult::ALL.iter().map(|result| result.as_str()))
}

pub(in crate::cli) async fn run(args: VmList, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let labels: Vec<String> = args.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let states: Vec<&str> = match args.all {
        true => State::ALL.iter().map(|state| state.as_str()).collect(),
        false => args.states.iter().map(String::as_str).collect(),
    };
    let mut query: Vec<(&str, &str)> = states.into_iter().map(|state| ("state", state)).collect();
    query.extend(labels.iter().map(|label| ("label", label.as_str())));
    let job = args.job.map(|job| job.to_string());
    query.extend(args.template.as_deref().map(|template| ("template", template)));
    query.extend(args.outcome.as_deref().map(|outcome| ("outcome", outcome)));
    query.extend(args.pool.as_deref().map(|pool| ("pool", pool)));
    query.extend(job.as_deref().map(|job| ("job_id", job)));
    query.push(("limit", PAGE));
    let items = client.list(&["vms"], &query).await?;
    if json {
        output::json(&json!({ "items": items }))?;
        return Ok(exit::OK);
    }
    let vms: Vec<VmResponse> = items.iter().map(|vm| client.view(vm)).collect::<Result<_, _>>()?;
    let output = if args.quiet { Some(ListOutput::Id) } else { args.output };
    if let Some(ListOutput::Id | ListOutput::Name) = output {
        for vm in &vms {
            output::line(if output == Some(ListOutput::Id) { &vm.id } else { &vm.name })?;
        }
        return Ok(exit::OK);
    }
    if vms.is_empty() {
        let others = if args.all { "" } else { "; --all shows deleted vms too" };
        output::note(&format!("no vms{others}"));
        return Ok(exit::OK);
    }
    if output == Some(ListOutput::Wide) {
        // As wide as it is: a terminal folds the lines.
        let rows: Vec<Vec<String>> = vms.iter().map(wide).collect();
        output::bytes(text::table(&WIDE, &rows, None, 0).as_bytes())?;
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

const WIDE: [&str; 10] =
    ["NAME", "ID", "STATE", "AGE", "TEMPLATE", "POOL", "DRIVER", "NETWORK", "CREATED BY", "REMARK"];

fn wide(vm: &VmResponse) -> Vec<String> {
    let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        vm.name.clone(),
        vm.id.clone(),
        vm.state.clone(),
        text::age(vm.created_at),
        vm.template.clone(),
        or_dash(&vm.pool),
        or_dash(&vm.driver),
        or_dash(&vm.network),
        or_dash(&vm.created_by),
        remark(vm),
    ]
}

/// The most important fact about a vm, for a list.
fn remark(vm: &VmResponse) -> String {
    if let Some(queue) = &vm.queue {
        let percent = queue.pull.as_ref().and_then(ProgressResponse::percent);
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
