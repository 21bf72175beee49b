//! `mayfly template watch` and `unwatch`

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    super::{
        client::{self, ApiClient},
        failure::CommandFailure,
        output,
        responses::WatchResponse,
        text,
        text::parse_seconds,
    },
    settings::Smoke,
};

#[derive(Args)]
pub(in crate::cli) struct WatchArgs {
    /// Template that follows the tag
    name: String,
    /// The image, as host/namespace:tag
    image: String,
    /// How often the tag is checked, as seconds or a duration such as 30m [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    every: Option<u32>,
    #[command(flatten)]
    smoke: Smoke,
}

pub(super) async fn run(args: WatchArgs, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let mut body = Map::new();
    body.insert("image".to_owned(), args.image.into());
    if let Some(every) = args.every {
        body.insert("every_seconds".to_owned(), every.into());
    }
    args.smoke.put(&mut body)?;
    let value = client.put(&["templates", &args.name, "watch"], &body.into()).await?;
    if json {
        return output::json(&value);
    }
    let watch: WatchResponse = client.view(&value)?;
    output::line(&format!("{}  follows {}", args.name, text::plain(&watch.image)))
}

pub(super) async fn remove(name: &str, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    client.delete(&["templates", name, "watch"], &[]).await?;
    if json {
        return output::json(&json!({ "template": name }));
    }
    output::line(&format!("{name}  follows no tag"))
}

/// `None`: the template follows no tag, or the service does not support it.
pub(super) async fn of(name: &str, client: &ApiClient) -> Result<Option<Value>, CommandFailure> {
    match client.get(&["templates", name, "watch"], &[]).await {
        Ok(watch) => Ok(Some(watch)),
        Err(client::Error::Problem(problem, _)) if problem.status == 404 => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// For `template show`.
pub(super) fn fields(watch: WatchResponse) -> Vec<(&'static str, String)> {
    let every = jiff::SignedDuration::from_secs(watch.every_seconds.into());
    let test = if watch.canary.is_some() { ", with a test" } else { "" };
    let mut fields = vec![("follows", format!("{}, every {}{test}", watch.image, text::duration(every)))];
    if let Some(at) = watch.looked_at {
        fields.push(("looked up", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    if let Some(error) = watch.error {
        fields.push(("last look", format!("{}: {}", error.code, error.detail)));
    }
    fields
}
