//! `mayfly template login` and `logout`, and what `logins` lists

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::super::{
    client::ApiClient,
    failure::CommandFailure,
    listing::Listable,
    output,
    responses::LoginResponse,
    table::{Cell, Column},
    text,
};

/// Longer than any password or token; longer input is a mistake.
const LONGEST: u64 = 64 << 10;

#[derive(Args)]
pub(in crate::cli) struct LoginArgs {
    /// The registry, as host or host:port in image references
    host: String,
    /// User name [default: prompts for it]
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Read the password or token from standard input [default: prompts for it]
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Store the login without testing it at the registry
    #[arg(long)]
    no_check: bool,
}

pub(super) async fn login(args: LoginArgs, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    client.refuse_cleartext("the password")?;
    let username = match args.username {
        Some(username) => username,
        None => ask_username()?,
    };
    let password = if args.password_stdin { read_password()? } else { ask_password()? };
    let body = json!({ "username": username, "password": password.expose_secret(), "check": !args.no_check });
    let value = client.put_patiently(&["registries", &args.host, "login"], &body).await?;
    for notice in value["notices"].as_array().into_iter().flatten().filter_map(|n| n.as_str()) {
        output::note(&text::plain(notice));
    }
    if json {
        return output::json(&value);
    }
    let kept: LoginResponse = client.view(&value)?;
    output::line(&format!("{}  logged in as {}", kept.registry, kept.username))
}

pub(super) async fn logout(host: &str, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let value = client.delete(&["registries", host, "login"], &[]).await?;
    if json {
        return output::json(&if value.is_null() { json!({ "registry": host }) } else { value });
    }
    output::line(&format!("{host}  logged out"))
}

impl Listable for LoginResponse {
    const COLUMNS: &'static [Column] =
        &[Column::new("REGISTRY").gives_way(), Column::new("USER"), Column::new("SOURCE"), Column::new("AGE")];

    fn name(&self) -> String {
        self.registry.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            self.registry.clone().into(),
            self.username.clone().into(),
            self.source.clone().into(),
            self.saved_at.map(text::age).unwrap_or_default().into(),
        ]
    }
}

fn ask_username() -> Result<String, CommandFailure> {
    if !io::stdin().is_terminal() {
        return Err(CommandFailure::Usage("no user name: give one with --username".into()));
    }
    let _ = write!(io::stderr(), "Username: ").and_then(|()| io::stderr().flush());
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|e| CommandFailure::Usage(format!("no user name: {e}")))?;
    Ok(line.trim().to_owned())
}

fn ask_password() -> Result<SecretString, CommandFailure> {
    let answer = rpassword::prompt_password("Password: ").map_err(|e| {
        CommandFailure::Usage(format!(
            "there is no terminal to ask for the password on ({e}): pipe it in, with --password-stdin"
        ))
    })?;
    Ok(answer.into())
}

/// All of standard input, without the end of its last line.
fn read_password() -> Result<SecretString, CommandFailure> {
    let mut text = String::new();
    let wrong = |what: &str| CommandFailure::Usage(format!("--password-stdin: {what}"));
    io::stdin().lock().take(LONGEST + 1).read_to_string(&mut text).map_err(|e| wrong(&e.to_string()))?;
    let whole = SecretString::from(text);
    let text = whole.expose_secret();
    if text.len() as u64 > LONGEST {
        return Err(wrong("standard input is longer than any password"));
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(wrong("standard input is empty"));
    }
    Ok(text.into())
}
