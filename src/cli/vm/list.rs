//! `mayfly vm list`

use clap::Args;
use jiff::Timestamp;

use super::{
    super::{
        client::ApiClient,
        exit,
        failure::CommandFailure,
        listing::{self, ListFormat, Listable},
        output::Colour,
        responses::{ProgressResponse, VmResponse},
        table::{Cell, Column},
        text,
    },
    PAGE, live, pair,
    query::{VmQuery, list},
    states,
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
    /// Only vms that ended like this, including deleted vms; completed includes those whose job failed
    #[arg(long, value_name = "RESULT", value_parser = outcomes())]
    outcome: Option<String>,
    /// Only vms that were made for this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Only vms that were created since: a time such as 2027-01-31T12:00:00Z, or how long ago, such as 2h or 3d
    #[arg(long, value_name = "TIME", value_parser = text::parse_since)]
    since: Option<Timestamp>,
    /// Only vms whose runner was given this job, including deleted vms; the id is in the address of the job's page
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Also deleted vms whose records are still kept
    #[arg(long, short, conflicts_with = "states")]
    all: bool,
    #[command(flatten)]
    format: ListFormat,
    /// Go on, and show what changes: on a terminal the whole list again, otherwise one line for each vm that has changed
    #[arg(long, short)]
    watch: bool,
}

fn outcomes() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(OutcomeResult::ALL.iter().map(|result| result.as_str()))
}

pub(in crate::cli) async fn run(args: VmList, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let query = args.query();
    let empty = if args.all { "no vms" } else { "no vms; --all shows deleted vms too" };
    if args.watch {
        return live::watch(client, &query, args.format, json, empty).await;
    }
    let items = list(client, &query).await?;
    listing::print::<VmResponse>(client, &items, args.format, json, empty)?;
    Ok(exit::OK)
}

impl VmList {
    fn query(&self) -> VmQuery {
        let states: Vec<String> = match self.all {
            true => State::ALL.iter().map(|state| state.as_str().to_owned()).collect(),
            false => self.states.clone(),
        };
        let mut query: VmQuery = states.into_iter().map(|state| ("state", state)).collect();
        query.extend(self.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
        query.extend(self.template.iter().map(|template| ("template", template.clone())));
        query.extend(self.outcome.iter().map(|outcome| ("outcome", outcome.clone())));
        query.extend(self.pool.iter().map(|pool| ("pool", pool.clone())));
        query.extend(self.since.iter().map(|since| ("created_since", since.to_string())));
        query.extend(self.job.iter().map(|job| ("job_id", job.clone())));
        query.push(("limit", PAGE.to_owned()));
        query
    }
}

impl Listable for VmResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME").gives_way(),
        Column::new("ID").wide(),
        Column::new("STATE"),
        Column::new("AGE"),
        Column::new("TEMPLATE").at_most(16),
        Column::new("POOL").wide(),
        Column::new("DRIVER").wide(),
        Column::new("NETWORK").wide(),
        Column::new("CREATED BY").wide(),
        Column::new("REMARK").at_most(23),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.name.clone().into(),
            self.id.clone().into(),
            Cell::painted(self.state.clone(), state_colour(&self.state)),
            text::age(self.created_at).into(),
            self.template.clone().into(),
            or_dash(&self.pool).into(),
            or_dash(&self.driver).into(),
            or_dash(&self.network).into(),
            or_dash(&self.created_by).into(),
            Cell::painted(remark(self), self.ending_colour()),
        ]
    }
}

fn state_colour(state: &str) -> Option<Colour> {
    match state {
        "queued" => Some(Colour::Yellow),
        "running" => Some(Colour::Green),
        "deleted" => Some(Colour::Dim),
        _ => None,
    }
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
    vm.ending().unwrap_or_else(|| {
        let runner = vm.runner.as_ref().map(|r| r.status.as_str()).filter(|status| *status != "none");
        match (runner, vm.attempt) {
            (Some(status), _) => format!("runner {status}"),
            (None, attempt) if attempt > 1 => format!("attempt {attempt}"),
            (None, _) => String::new(),
        }
    })
}
