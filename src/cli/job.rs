//! `mayfly job …`

use clap::{Args, Subcommand};
use serde_json::json;

use super::{client::ApiClient, exit, failure::CommandFailure, output, responses::ListedJobView, text, vm::shorten};

#[derive(Subcommand)]
pub(super) enum JobCommand {
    /// List GitHub's jobs, newest first
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
    /// Also jobs that have ended
    #[arg(long, short)]
    all: bool,
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
    let items = client.list(&["jobs"], &query).await?;
    if json {
        output::json(&json!({ "items": items }))?;
        return Ok(exit::OK);
    }
    if items.is_empty() {
        output::note(if args.all { "no jobs" } else { "no jobs that are not over; --all shows the others" });
        return Ok(exit::OK);
    }
    let mut rows = Vec::new();
    for item in &items {
        let job: ListedJobView = client.view(item)?;
        let pool = job.pool.unwrap_or_else(|| "-".to_owned());
        let stands = job.conclusion.unwrap_or(job.status);
        let vm = job.vm_id.or(job.made_vm_id).unwrap_or_default();
        let age = job.seen_at.map(text::age).unwrap_or_default();
        rows.push(vec![job.id.to_string(), job.repository, job.name, stands, pool, vm, age]);
    }
    if output::width().is_some() {
        for row in &mut rows {
            row[1] = shorten(&row[1], 16);
            row[2] = shorten(&row[2], 12);
            row[4] = shorten(&row[4], 10);
            row[5] = row[5].chars().take(8).collect();
        }
    }
    let head = ["JOB", "REPOSITORY", "NAME", "STATUS", "POOL", "VM", "AGE"];
    output::bytes(text::table(&head, &rows, output::width(), 0).as_bytes())?;
    Ok(exit::OK)
}
