//! `mayfly template prune`

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{
    super::{
        client::ApiClient,
        failure::CommandFailure,
        output,
        table::{self, Cell, Column},
        text,
    },
    short_digest,
};

#[derive(Args)]
pub(in crate::cli) struct Prune {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Only versions that were not used for this long: seconds, or a duration such as 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = text::parse_long_seconds)]
    older_than: Option<u64>,
    /// How many previous versions to keep for each name
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=10))]
    keep_previous: u32,
    /// Remove only until all templates together are no larger than this, such as 100GiB
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    max_bytes: Option<u64>,
    /// Also remove interrupted pulls that are not in progress
    #[arg(long)]
    partial: bool,
}

const COLUMNS: [Column; 6] = [
    Column::new(""),
    Column::new("DIGEST"),
    Column::new("NAMES"),
    Column::new("SIZE"),
    Column::new("UNUSED"),
    Column::new("WHY").gives_way(),
];

#[derive(Deserialize)]
struct PruneResult {
    removed: Vec<RetainedVersion>,
    kept: Vec<RetainedVersion>,
    freed_bytes: u64,
    total_bytes: u64,
    available_bytes: u64,
}

#[derive(Deserialize)]
struct RetainedVersion {
    kind: String,
    digest: String,
    names: Vec<String>,
    bytes: u64,
    last_used_at: Timestamp,
    why: String,
}

pub(super) async fn run(args: Prune, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut body = json!({ "dry_run": args.dry_run, "keep_previous": args.keep_previous, "partial": args.partial });
    if let Some(seconds) = args.older_than {
        body["older_than_seconds"] = seconds.into();
    }
    if let Some(bytes) = args.max_bytes {
        body["max_bytes"] = bytes.into();
    }
    let value = client.post_patiently(&["templates", "prune"], &body).await?;
    if json {
        return output::json(&value);
    }
    let pruned: PruneResult = client.view(&value)?;
    let (gone, goes) = if args.dry_run { ("would go", "would be freed") } else { ("removed", "freed") };
    let row = |what: &str, h: &RetainedVersion| -> Vec<Cell> {
        let names = if h.names.is_empty() { "-".to_owned() } else { h.names.join(",") };
        let what = if h.kind == "partial_pull" { format!("{what} (pull)") } else { what.to_owned() };
        let cells =
            [what, short_digest(&h.digest), names, text::bytes(h.bytes), text::age(h.last_used_at), h.why.clone()];
        cells.map(Cell::from).into()
    };
    let rows: Vec<_> =
        pruned.removed.iter().map(|h| row(gone, h)).chain(pruned.kept.iter().map(|h| row("kept", h))).collect();
    if rows.is_empty() {
        output::note("no versions: there is nothing to remove");
    } else {
        output::bytes(table::table(&COLUMNS, rows, output::width()).as_bytes())?;
    }
    output::note(&format!(
        "{} of {} {goes} at most (files may share blocks); {} are free",
        text::bytes(pruned.freed_bytes),
        text::bytes(pruned.total_bytes),
        text::bytes(pruned.available_bytes)
    ));
    Ok(())
}
