//! `mayfly template prune`

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{
    super::{client::ApiClient, failure::CommandFailure, output, text},
    short_digest,
};

#[derive(Args)]
pub(in crate::cli) struct Prune {
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Only versions that were not used for this long: seconds, or a duration such as 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: Option<u64>,
    /// How many previous versions to keep for each name
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=10))]
    keep_previous: u32,
    /// Remove only until all templates together are no larger than this, such as 100GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes: Option<u64>,
    /// Also remove interrupted pulls that are not in progress
    #[arg(long)]
    partial: bool,
}

fn age(given: &str) -> Result<u64, String> {
    let days = given.strip_suffix('d').and_then(|n| n.parse::<u64>().ok());
    match days {
        Some(days) => days.checked_mul(86_400).ok_or_else(|| "that is too long".to_owned()),
        None => text::parse_seconds(given).map(u64::from),
    }
}

fn size(given: &str) -> Result<u64, String> {
    let wrong = || "expected bytes or a size such as 512MiB, 100GiB or 1TiB".to_owned();
    let digits = given.len() - given.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = given.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)
}

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
    let row = |what: &str, h: &RetainedVersion| {
        let names = if h.names.is_empty() { "-".to_owned() } else { h.names.join(",") };
        let what = if h.kind == "partial_pull" { format!("{what} (pull)") } else { what.to_owned() };
        vec![what, short_digest(&h.digest), names, text::bytes(h.bytes), text::age(h.last_used_at), h.why.clone()]
    };
    let rows: Vec<_> =
        pruned.removed.iter().map(|h| row(gone, h)).chain(pruned.kept.iter().map(|h| row("kept", h))).collect();
    if !rows.is_empty() {
        let head = ["", "DIGEST", "NAMES", "SIZE", "UNUSED", "WHY"];
        output::bytes(text::table(&head, &rows, output::width(), 5).as_bytes())?;
    }
    output::note(&format!(
        "{} of {} {goes} at most (files may share blocks); {} are free",
        text::bytes(pruned.freed_bytes),
        text::bytes(pruned.total_bytes),
        text::bytes(pruned.available_bytes)
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_read() {
        for (given, bytes) in [("0", 0), ("17", 17), ("3B", 3), ("2KiB", 2048), ("1 GiB", 1 << 30), ("2T", 2 << 40)] {
            assert_eq!(size(given), Ok(bytes), "{given}");
        }
        for given in ["", "GiB", "1.5GiB", "-1", "1XB", "99999999TiB", "1 GB"] {
            assert!(size(given).is_err(), "{given}");
        }
        assert_eq!((age("7d"), age("90"), age("1h")), (Ok(604_800), Ok(90), Ok(3600)));
        assert!(age("soon").is_err() && age("99999999999999999d").is_err());
    }
}
