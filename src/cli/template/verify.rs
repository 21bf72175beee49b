//! `mayfly template verify`

use std::collections::BTreeSet;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    long_request, output,
    responses::{FileFaultView, TemplateResponse},
    text,
};

#[derive(Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("which").args(["names", "all"]).required(true).multiple(true)))]
pub(in crate::cli) struct Verify {
    /// Names or digests
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Every template, and the previous versions that are on this host
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

#[derive(Deserialize)]
struct VerifyResult {
    sound: bool,
    bytes: u64,
    bytes_read: u64,
    faults: Vec<FileFaultView>,
    next: Option<String>,
}

pub(super) async fn run(args: Verify, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let wanted = if args.all { everything(client).await? } else { args.names };
    let (mut items, mut damaged) = (Vec::new(), false);
    for name in &wanted {
        let (path, body) = (["templates", name, "verify"], json!({}));
        let what = format!("verifying {name}; this takes as long as the disk needs");
        let left = "verification has stopped; it changes no file, so it can be repeated";
        let value = long_request::answer(&what, left, client.post_patiently(&path, &body)).await?;
        let found: VerifyResult = client.view(&value)?;
        damaged |= !found.sound;
        if json {
            items.push(value);
            continue;
        }
        let sizes = format!("{}, {} of them on disk", text::bytes(found.bytes), text::bytes(found.bytes_read));
        match found.sound {
            true => output::line(&format!("{name}  sound  {sizes}"))?,
            false => output::line(&format!("{name}  DAMAGED  {sizes}"))?,
        }
        for FileFaultView { file, offset, bytes, what } in &found.faults {
            output::line(&text::plain(&format!("  {file}, {bytes} bytes from byte {offset} on: {what}")))?;
        }
        if let Some(next) = &found.next {
            output::note(&text::plain(next));
        }
    }
    if json {
        output::json(&json!({ "items": items }))?;
    } else if wanted.is_empty() {
        output::note("no templates; `mayfly template add` registers one");
    }
    Ok(if damaged { exit::FAILURE } else { exit::OK })
}

/// Each version once, by a name where it has one.
async fn everything(client: &ApiClient) -> Result<Vec<String>, CommandFailure> {
    let (mut seen, mut wanted, mut previous) = (BTreeSet::new(), Vec::new(), Vec::new());
    for item in &client.list(&["templates"], &[]).await? {
        let t: TemplateResponse = client.view(item)?;
        previous.extend(t.previous.into_iter().map(|v| v.digest));
        if seen.insert(t.digest) {
            wanted.push(t.name);
        }
    }
    wanted.extend(previous.into_iter().filter(|digest| seen.insert(digest.clone())));
    Ok(wanted)
}
