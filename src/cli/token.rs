//! `mayfly token …`

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{client::ApiClient, exit, failure::CommandFailure, output, responses::TokenResponse, text};

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token
    ///
    /// Prints the token. It cannot be shown again: the service stores only a hash of it.
    Create {
        /// Name of the token, such as the program that uses it
        name: String,
        /// What the token allows; each scope includes those before it
        #[arg(long, value_enum)]
        scope: TokenScopeArg,
    },
    /// List tokens
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token
    Revoke {
        /// Id or name
        token: String,
    },
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
        TokenCommand::Create { name, scope } => {
            let scope = match scope {
                TokenScopeArg::Read => "read",
                TokenScopeArg::Create => "create",
                TokenScopeArg::Admin => "admin",
            };
            let created = client.post(&["tokens"], &json!({ "name": name, "scope": scope }), &[]).await?;
            if json {
                output::json(&created)?;
            } else {
                let secret = created["token"].as_str().unwrap_or_default();
                output::line(secret)?;
                output::note("this secret is shown only once: keep it where MAYFLY_TOKEN or --token-file find it");
            }
        }
        TokenCommand::List => {
            let items = client.list(&["tokens"], &[]).await?;
            if json {
                output::json(&json!({ "items": items }))?;
            } else {
                list(client, &items)?;
            }
        }
        TokenCommand::Revoke { token } => {
            let id = resolve(&token, client).await?;
            let revoked = client.delete(&["tokens", &id], &[]).await?;
            if json {
                output::json(&if revoked.is_null() { json!({ "id": id }) } else { revoked })?;
            } else {
                output::line(&format!("{token}  revoked"))?;
            }
        }
    }
    Ok(exit::OK)
}

fn list(client: &ApiClient, items: &[Value]) -> Result<(), CommandFailure> {
    let mut rows = Vec::new();
    for item in items {
        let t: TokenResponse = client.view(item)?;
        let state = if t.revoked_at.is_some() { "revoked" } else { "valid" };
        rows.push(vec![t.name, t.scope, state.to_owned(), t.created_at.map(text::age).unwrap_or_default(), t.id]);
    }
    output::bytes(text::table(&["NAME", "SCOPE", "STATE", "AGE", "ID"], &rows, output::width(), 0).as_bytes())
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
