//! `mayfly template export`

use clap::Args;
use serde_json::json;

use super::{
    super::{client::ApiClient, failure::CommandFailure, long_request, output, text},
    import::{notices, place},
};

#[derive(Args)]
pub(in crate::cli) struct Export {
    /// The template
    name: String,
    /// Destination on the service's machine: a directory, or an image file for qcow2 and raw; an image also to
    /// s3://bucket/key
    path: String,
    /// Layout to write
    #[arg(long, value_parser = ["tart", "shoes-vz", "macosvm", "qcow2", "raw"])]
    layout: String,
    /// Whether the export keeps the machine's identity [default: keep]
    #[arg(long, value_parser = ["keep", "regenerate"])]
    identity: Option<String>,
    /// Whether the export keeps the Ethernet address [default: regenerate]
    #[arg(long, value_parser = ["keep", "regenerate"])]
    mac: Option<String>,
    /// Replace an existing object in S3
    #[arg(long)]
    overwrite: bool,
}

pub(super) async fn run(args: Export, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut body = json!({ "layout": args.layout, "path": place(&args.path), "identity": args.identity, "mac": args.mac, "overwrite": args.overwrite.then_some(true) });
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| !value.is_null());
    }
    let path = ["templates", &args.name, "export"];
    let what = format!("exporting {}; this takes as long as the disk or the network needs", args.name);
    let left = "this command waits no longer; the service stops the export, and what it has written may be there";
    let value = long_request::answer(&what, left, client.post_patiently(&path, &body)).await?;
    if json {
        return output::json(&value);
    }
    notices(&value);
    for file in value["files"].as_array().into_iter().flatten() {
        let size = file["bytes"].as_u64().map(text::bytes).unwrap_or_default();
        output::line(format!("{}  {size}", file["path"].as_str().unwrap_or_default()).trim_end())?;
    }
    Ok(())
}
