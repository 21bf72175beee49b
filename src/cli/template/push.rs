//! `mayfly template push`

use clap::Args;
use serde_json::json;

use super::super::{client::ApiClient, failure::CommandFailure, long_request, output, text};

#[derive(Args)]
pub(in crate::cli) struct Push {
    /// Name or digest of the template
    name: String,
    /// Destination, as host/namespace:tag
    image: String,
    /// Upload in parts of this many megabytes [default: each layer in one request]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    chunk_size: Option<u64>,
}

pub(super) async fn run(args: Push, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut body = json!({ "image": args.image });
    if let Some(chunk_size) = args.chunk_size {
        body["chunk_size_mb"] = chunk_size.into();
    }
    let what = format!("pushing {} to {}; this takes as long as the network needs", args.name, args.image);
    let left = "the push has stopped; the same command continues it, without what the registry has by now";
    let path = ["templates", &args.name, "push"];
    let value = long_request::answer(&what, left, client.post_patiently(&path, &body)).await?;
    if json {
        return output::json(&value);
    }
    let said = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let bytes = |key: &str| text::bytes(value[key].as_u64().unwrap_or_default());
    let pairs = [
        ("image", said("image")),
        ("digest", said("digest")),
        ("layers", value["layers"].to_string()),
        ("uploaded", bytes("bytes_uploaded")),
        ("reused", bytes("bytes_reused")),
    ];
    output::bytes(text::fields(&pairs).as_bytes())
}
