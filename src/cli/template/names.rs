//! `mayfly template point`, `rollback`, `pin` and `unpin`

use clap::Args;
use serde_json::{Value, json};

use super::{
    super::{
        client::ApiClient,
        failure::CommandFailure,
        output,
        responses::{TemplateResponse, VersionView},
        text,
    },
    short_digest,
};

#[derive(Args)]
pub(in crate::cli) struct Point {
    /// New or existing name
    name: String,
    /// Digest of a version on this host, or a name that points at it
    version: String,
    /// Reason, for the name's history
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
}

#[derive(Args)]
pub(in crate::cli) struct Rollback {
    name: String,
    /// Digest of a previous version, as listed by `mayfly template show` [default: the newest of them]
    #[arg(long, value_name = "DIGEST")]
    to: Option<String>,
}

#[derive(Args)]
pub(in crate::cli) struct PinArgs {
    /// Digest, or a name for the version that it points at now
    version: String,
    /// Reason for keeping it
    #[arg(long, value_name = "TEXT")]
    why: String,
}

pub(super) async fn point(args: Point, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let digest = match args.version.starts_with("sha256:") {
        true => args.version,
        false => {
            let named: TemplateResponse = client.view(&client.get(&["templates", &args.version], &[]).await?)?;
            named.digest
        }
    };
    let mut body = json!({ "digest": digest });
    if let Some(why) = args.why {
        body["why"] = why.into();
    }
    say(&client.put(&["templates", &args.name], &body).await?, client, json)
}

pub(super) async fn roll_back(args: Rollback, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let body = match args.to {
        Some(to) => json!({ "to": whole_digest(&args.name, to, client).await? }),
        None => json!({}),
    };
    say(&client.post(&["templates", &args.name, "rollback"], &body, &[]).await?, client, json)
}

/// Accepts the shortened digests that `template show` prints.
async fn whole_digest(name: &str, given: String, client: &ApiClient) -> Result<String, CommandFailure> {
    let hex = given.strip_prefix("sha256:").unwrap_or(&given);
    if hex.len() == 64 {
        return Ok(format!("sha256:{hex}"));
    }
    let t: TemplateResponse = client.view(&client.get(&["templates", name], &[]).await?)?;
    let mut found = t.previous.into_iter().map(|v| v.digest).filter(|d| short_digest(d) == hex);
    match (found.next(), found.next()) {
        (Some(digest), None) => Ok(digest),
        _ => Err(CommandFailure::Usage(format!(
            "--to: {given:?} is none of the previous versions of {name}; `mayfly template show {name}` lists them"
        ))),
    }
}

pub(super) async fn pin(args: PinArgs, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let value = client.put(&["templates", &args.version, "pin"], &json!({ "why": args.why })).await?;
    if json {
        return output::json(&value);
    }
    output::line(&format!("{}  pinned", args.version))
}

pub(super) async fn unpin(version: &str, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let value = client.delete(&["templates", version, "pin"], &[]).await?;
    if json {
        return output::json(&if value.is_null() { json!({ "version": version }) } else { value });
    }
    output::line(&format!("{version}  not pinned"))
}

fn say(value: &Value, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    if json {
        return output::json(value);
    }
    let t: TemplateResponse = client.view(value)?;
    output::line(&format!("{}  {}", t.name, t.digest))
}

/// The lines of `template show` about versions, below the template's own.
pub(super) fn lines(t: &TemplateResponse) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    let others: Vec<&str> = t.names.iter().filter(|n| **n != t.name).map(String::as_str).collect();
    if !others.is_empty() {
        pairs.push(("also named", others.join(", ")));
    }
    if let Some(at) = t.since {
        let why = t.why.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
        pairs.push(("since", format!("{}{why}", text::time(at))));
    }
    if let Some(pin) = &t.pin {
        pairs.push(("pinned", pin.why.clone()));
    }
    if let Some(at) = t.last_used_at {
        pairs.push(("last used", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    if let Some(at) = t.verified_at {
        pairs.push(("verified", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    if let Some(damage) = &t.damage {
        let faults = damage.faults.iter().take(5).map(|f| format!("{} from byte {}: {}", f.file, f.offset, f.what));
        pairs.push(("DAMAGED", faults.collect::<Vec<_>>().join("; ")));
    }
    for VersionView { digest, since, why } in &t.previous {
        let since = since.map(|at| format!("  {}", text::time(at))).unwrap_or_default();
        let why = why.as_ref().map(|w| format!("  {w}")).unwrap_or_default();
        pairs.push(("previous", format!("{}{since}{why}", short_digest(digest))));
    }
    pairs
}
