//! `mayfly webhook …`

use clap::Subcommand;

use super::{client::ApiClient, exit, failure::CommandFailure, output, responses::DeliveryResponse, text};

#[derive(Subcommand)]
pub(super) enum WebhookCommand {
    /// List the newest deliveries of GitHub's webhook, and their results
    ///
    /// Deliveries with a wrong signature are not stored and so not listed; the service's metrics count them.
    #[command(visible_alias = "ls")]
    List,
}

pub(super) async fn run(command: WebhookCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let WebhookCommand::List = command;
    let value = client.get(&["webhooks", "github", "deliveries"], &[]).await?;
    if json {
        output::json(&value)?;
        return Ok(exit::OK);
    }
    let empty = Vec::new();
    let items = value["items"].as_array().unwrap_or(&empty);
    if items.is_empty() {
        output::note("no deliveries; `mayfly github check` says whether GitHub knows where to send them");
        return Ok(exit::OK);
    }
    let mut rows = Vec::new();
    for item in items {
        let delivery: DeliveryResponse = client.view(item)?;
        let age = delivery.received_at.map(text::age).unwrap_or_default();
        let what = [Some(delivery.event), delivery.action].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let result = match delivery.detail {
            Some(why) => format!("{}: {why}", delivery.result),
            None => delivery.result,
        };
        rows.push(vec![delivery.guid, what, age, result]);
    }
    if output::width().is_some() {
        for row in &mut rows {
            row[0] = row[0].chars().take(8).collect();
            row[3] = super::vm::shorten(&row[3], 36);
        }
    }
    let head = ["DELIVERY", "EVENT", "AGE", "RESULT"];
    output::bytes(text::table(&head, &rows, output::width(), 0).as_bytes())?;
    Ok(exit::OK)
}
