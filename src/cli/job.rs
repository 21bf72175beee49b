//! `mayfly job …`

use clap::{Args, Subcommand};

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    listing::{self, ListFormat, Listable},
    output::Colour,
    responses::ListedJobView,
    table::{Cell, Column},
    text,
};

#[derive(Subcommand)]
pub(super) enum JobCommand {
    /// List jobs of CI systems, newest first
    ///
    /// Lists the jobs that webhooks or the poll reported, whether or not a pool takes them. Without --all, jobs
    /// that have ended are left out.
    #[command(visible_alias = "ls")]
    List(JobList),
}

#[derive(Args)]
pub(super) struct JobList {
    /// Only jobs that match this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Only jobs of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Also jobs that have ended
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    format: ListFormat,
}

const OPEN: [&str; 3] = ["waiting", "queued", "in_progress"];

pub(super) async fn run(command: JobCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let JobCommand::List(args) = command;
    let mut query: Vec<(&str, &str)> = Vec::new();
    if !args.all {
        query.extend(OPEN.map(|status| ("status", status)));
    }
    if let Some(pool) = &args.pool {
        query.push(("pool", pool));
    }
    if let Some(source) = &args.source {
        query.push(("source", source));
    }
    let items = client.list(&["jobs"], &query).await?;
    let empty = if args.all { "no jobs" } else { "no jobs that are not over; --all shows the others" };
    listing::print::<ListedJobView>(client, &items, args.format, json, empty)?;
    Ok(exit::OK)
}

impl Listable for ListedJobView {
    const COLUMNS: &'static [Column] = &[
        Column::new("JOB"),
        Column::new("SOURCE").wide(),
        Column::new("REPOSITORY").at_most(16),
        Column::new("WORKFLOW").wide(),
        Column::new("NAME").at_most(12).gives_way(),
        Column::new("LABELS").wide(),
        Column::new("STATUS"),
        Column::new("POOL").at_most(10),
        Column::new("VM").prefix(8),
        Column::new("RUNNER").wide(),
        Column::new("AGE"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn cells(&self) -> Vec<Cell> {
        let or_dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let given_up = self.given_up.is_some().then(|| "given up".to_owned());
        let stands = self.conclusion.clone().or(given_up).unwrap_or_else(|| self.status.clone());
        let colour = match stands.as_str() {
            "success" | "in_progress" => Some(Colour::Green),
            "queued" | "waiting" => Some(Colour::Yellow),
            "failure" | "timed_out" | "startup_failure" | "given up" => Some(Colour::Red),
            "cancelled" | "skipped" => Some(Colour::Dim),
            _ => None,
        };
        let vm = self.vm_id.clone().or_else(|| self.made_vm_id.clone()).unwrap_or_default();
        vec![
            self.id.to_string().into(),
            self.source.clone().into(),
            self.repository.clone().into(),
            or_dash(&self.workflow).into(),
            self.name.clone().into(),
            self.labels.join(",").into(),
            Cell::painted(stands, colour),
            or_dash(&self.pool).into(),
            vm.into(),
            or_dash(&self.runner_name).into(),
            self.seen_at.map(text::age).unwrap_or_default().into(),
        ]
    }
}
