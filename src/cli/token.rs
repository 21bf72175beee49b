//! `mayfly token …`

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    listing::{self, ListFormat, Listable},
    output::{self, Colour},
    responses::TokenResponse,
    table::{Cell, Column},
    text,
};
use crate::platform::clock;

/// The name of the token in the data directory.
const LOCAL_ADMIN: &str = "local-admin";

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token
    ///
    /// Prints the token. It cannot be shown again: the service stores only a hash of it.
    ///
    /// The options for limits are for the scope create. With any of them, the token ends, and reads the logs of, only
    /// vms that were created with it. If --template or --image is given, whatever none of them lists is refused.
    Create(Box<CreateToken>),
    /// List tokens
    #[command(visible_alias = "ls")]
    List(ListFormat),
    /// Show one token: its limits, when it expires and when it was used
    Show {
        /// Id or name
        token: String,
    },
    /// Revoke a token
    Revoke {
        /// Id or name
        token: String,
    },
    /// Replace the admin token of the command line on the service's machine
    ///
    /// Revokes the token local-admin and writes a new one to admin.token in the data directory of the service. Needs no
    /// token there. Use it when that file was disclosed, or when the token in it was revoked.
    RotateLocal,
}

#[derive(Args)]
pub(super) struct CreateToken {
    /// Name of the token, such as the program that uses it
    name: String,
    /// What the token allows; each scope includes those before it
    #[arg(long, value_enum)]
    scope: TokenScopeArg,
    /// When it stops working: a time such as 2027-01-31T12:00:00Z, or from now on, such as 12h or 30d [default: when it
    /// is revoked]
    #[arg(long, value_name = "TIME", value_parser = text::parse_until)]
    expires: Option<Timestamp>,
    /// Sources of jobs at which runners may be registered; * for any characters; may be repeated [default: any; only
    /// github if runners of GitHub are limited]
    #[arg(long = "source", value_name = "PATTERN", help_heading = "Limits")]
    sources: Vec<String>,
    /// Only GitHub runners registered here: owner/name, an organisation, or enterprises/slug; acme/* is every repository
    /// of acme; may be repeated
    #[arg(long = "github-scope", value_name = "PATTERN", help_heading = "Limits")]
    github_scopes: Vec<String>,
    /// Only GitHub runners whose labels are all among these; * stands for any characters; may be repeated
    #[arg(long = "github-label", value_name = "PATTERN", help_heading = "Limits")]
    github_labels: Vec<String>,
    /// Only these templates: name or digest; * stands for any characters; may be repeated
    #[arg(long = "template", value_name = "PATTERN", help_heading = "Limits")]
    templates: Vec<String>,
    /// Only these images: a registry's host, host/namespace or host/namespace:tag; * stands for any characters; may be
    /// repeated
    #[arg(long = "image", value_name = "PATTERN", help_heading = "Limits")]
    images: Vec<String>,
    /// Most cores of a vm
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    max_cpus: Option<u32>,
    /// Most memory of a vm, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..), help_heading = "Limits")]
    max_memory_mib: Option<u32>,
    /// Largest disk of a vm, such as 100GiB
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size, help_heading = "Limits")]
    max_disk: Option<u64>,
    /// Most live vms of the token at once, including those in the queue
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    max_live_vms: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum TokenScopeArg {
    /// Read
    Read,
    /// Create and end vms
    Create,
    /// Everything, including tokens and templates
    Admin,
}

pub(super) async fn run(command: TokenCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    match command {
        TokenCommand::Create(args) => create(*args, client, json).await?,
        TokenCommand::List(format) => {
            let items = client.list(&["tokens"], &[]).await?;
            listing::print::<TokenResponse>(client, &items, format, json, "no tokens")?;
        }
        TokenCommand::Show { token } => {
            let id = resolve(&token, client).await?;
            let value = client.get(&["tokens", &id], &[]).await?;
            if json { output::json(&value)? } else { show(&client.view(&value)?)? }
        }
        TokenCommand::Revoke { token } => {
            let id = resolve(&token, client).await?;
            let revoked = client.delete(&["tokens", &id], &[]).await?;
            if json {
                output::json(&if revoked.is_null() { json!({ "id": id }) } else { revoked.clone() })?;
            } else {
                output::line(&format!("{token}  revoked"))?;
                if revoked["name"] == LOCAL_ADMIN {
                    output::note(
                        "it was the one of the command line on the service's machine; `mayfly token rotate-local` \
                         writes a new one there",
                    );
                }
            }
        }
        TokenCommand::RotateLocal => {
            let value = client.post(&["tokens", LOCAL_ADMIN, "rotate"], &json!({}), &[]).await?;
            if json {
                output::json(&value)?;
            } else {
                let token: TokenResponse = client.view(&value)?;
                output::line(&format!("{}  {}", token.name, token.id))?;
                output::note("the old one is revoked, and admin.token in the service's data directory has the new one");
            }
        }
    }
    Ok(exit::OK)
}

async fn create(args: CreateToken, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let scope = match args.scope {
        TokenScopeArg::Read => "read",
        TokenScopeArg::Create => "create",
        TokenScopeArg::Admin => "admin",
    };
    let list = |patterns: Vec<String>| (!patterns.is_empty()).then(|| Value::from(patterns));
    let limits: Map<String, Value> = [
        ("sources", list(args.sources)),
        ("github_scopes", list(args.github_scopes)),
        ("github_labels", list(args.github_labels)),
        ("templates", list(args.templates)),
        ("images", list(args.images)),
        ("max_cpus", args.max_cpus.map(Value::from)),
        ("max_memory_mib", args.max_memory_mib.map(Value::from)),
        ("max_disk_bytes", args.max_disk.map(Value::from)),
        ("max_live_vms", args.max_live_vms.map(Value::from)),
    ]
    .into_iter()
    .filter_map(|(limit, value)| Some((limit.to_owned(), value?)))
    .collect();
    let mut body = json!({ "name": args.name, "scope": scope });
    if let Some(at) = args.expires {
        body["expires_at"] = json!(at);
    }
    if !limits.is_empty() {
        body["limits"] = limits.into();
    }
    let created = client.post(&["tokens"], &body, &[]).await?;
    if json {
        return output::json(&created);
    }
    let secret = created["token"].as_str().unwrap_or_default();
    output::line(secret)?;
    output::note("this secret is shown only once: keep it where MAYFLY_TOKEN or --token-file find it");
    Ok(())
}

fn state(token: &TokenResponse) -> &'static str {
    match (token.revoked_at, token.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if at <= clock::now() => "expired",
        (None, _) => "valid",
    }
}

impl Listable for TokenResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("NAME").gives_way(),
        Column::new("SCOPE"),
        Column::new("STATE"),
        Column::new("LIMITS"),
        Column::new("AGE"),
        Column::new("CREATED").wide(),
        Column::new("EXPIRES"),
        Column::new("LAST USED"),
        Column::new("ID").prefix(8),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn id(&self) -> String {
        self.id.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let state = state(self);
        let expires = match self.expires_at {
            Some(at) if state == "valid" => format!("in {}", text::until(at)),
            Some(_) => String::new(),
            None => "never".to_owned(),
        };
        let ago = |at: Timestamp| format!("{} ago", text::age(at));
        vec![
            self.name.clone().into(),
            self.scope.clone().into(),
            Cell::painted(state, Some(if state == "valid" { Colour::Green } else { Colour::Dim })),
            if self.limits.is_some() { "yes" } else { "" }.into(),
            self.created_at.map(text::age).unwrap_or_default().into(),
            self.created_at.map(text::time).unwrap_or_default().into(),
            expires.into(),
            self.last_used_at.map_or_else(|| "never".to_owned(), ago).into(),
            self.id.clone().into(),
        ]
    }
}

fn show(token: &TokenResponse) -> Result<(), CommandFailure> {
    let ago = |at: Timestamp| format!("{} ({} ago)", text::time(at), text::age(at));
    let mut pairs = vec![
        ("name", token.name.clone()),
        ("id", token.id.clone()),
        ("scope", token.scope.clone()),
        ("state", state(token).to_owned()),
    ];
    pairs.extend(token.created_at.map(|at| ("created", ago(at))));
    pairs.extend(token.revoked_at.map(|at| ("revoked", ago(at))));
    pairs.push(("expires", token.expires_at.map_or_else(|| "never".to_owned(), text::time)));
    pairs.push(("last used", token.last_used_at.map_or_else(|| "never".to_owned(), ago)));
    if let Some(limits) = &token.limits {
        for (limit, value) in limits {
            let value = match value {
                Value::Null => continue,
                Value::Array(patterns) if patterns.is_empty() => "nothing".to_owned(),
                Value::Array(patterns) => {
                    patterns.iter().map(|p| p.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
                }
                other => other.to_string(),
            };
            pairs.push((limit, value));
        }
    } else if token.scope == "create" {
        pairs.push(("limits", "none".to_owned()));
    }
    output::bytes(text::folded(&pairs, output::width()).as_bytes())
}

async fn resolve(token: &str, client: &ApiClient) -> Result<String, CommandFailure> {
    if token.parse::<uuid::Uuid>().is_ok() {
        return Ok(token.to_owned());
    }
    let tokens = client.list(&["tokens"], &[]).await?;
    tokens
        .iter()
        .find(|t| t["name"] == token && t["revoked_at"].is_null())
        .and_then(|t| t["id"].as_str())
        .map(str::to_owned)
        .ok_or_else(|| {
            CommandFailure::Other(format!(
                "no valid token is called {token:?}; `mayfly token list` shows what there is"
            ))
        })
}
