//! `mayfly template pull`

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::super::{
    client::{Client, Failure},
    output,
};

#[derive(Args)]
pub(in crate::cli) struct Pull {
    /// The image, as host/namespace:tag or host/namespace@sha256:...
    image: String,
    /// Name to create vms from it with [default: the last part of the namespace]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Cores of a vm that does not say [default: what the image says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory of a vm that does not say, in MiB [default: what the image says]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// How guests get their runner [default: what the image says, agent for an image in Tart's format]
    #[arg(long, value_parser = ["seed", "ssh", "agent"])]
    handover: Option<String>,
    /// User that runs the runner in the guest, and that SSH logs in as [default: what the image says, admin for an image in Tart's format]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Private key that SSH logs in with
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// File with the password that SSH logs in with where there is no key; only its owner may read it
    #[arg(long, value_name = "FILE")]
    ssh_password_file: Option<PathBuf>,
}

pub(super) async fn run(args: Pull, client: &Client, json: bool) -> Result<(), Failure> {
    let body = pull_request(args);
    output::note(&format!(
        "pulling {}; this takes as long as the network needs",
        body["image"].as_str().unwrap_or_default()
    ));
    let value = client.post_patiently(&["templates"], &body).await?;
    if json {
        return output::json(&value);
    }
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    output::line(format!("{}  {}", text("name"), text("digest")).trim_end())
}

fn pull_request(args: Pull) -> Value {
    let path = |p: Option<PathBuf>| p.map(|p| std::path::absolute(&p).unwrap_or(p).to_string_lossy().into_owned());
    let last = || {
        let path = args.image.split('@').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default().to_owned()
    };
    let mut body = json!({
        "image": args.image, "name": args.name.clone().unwrap_or_else(last), "cpus": args.cpus, "memory_mib": args.memory_mib,
        "handover": args.handover, "user": args.user, "ssh_key": path(args.ssh_key),
        "ssh_password_file": path(args.ssh_password_file),
    });
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| !value.is_null());
    }
    body
}
