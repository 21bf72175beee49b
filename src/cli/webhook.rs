//! `mayfly webhook …`

use clap::Subcommand;

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    listing::{self, ListFormat, Listable},
    responses::DeliveryResponse,
    table::{Cell, Column},
    text,
};

#[derive(Subcommand)]
pub(super) enum WebhookCommand {
    /// List the newest deliveries of GitHub's webhook, and their results
    ///
    /// Deliveries with a wrong signature are not stored and so not listed; the service's metrics count them.
    #[command(visible_alias = "ls")]
    List(ListFormat),
}

pub(super) async fn run(command: WebhookCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let WebhookCommand::List(format) = command;
    let items = client.list(&["webhooks", "github", "deliveries"], &[]).await?;
    let empty = "no deliveries; `mayfly github check` says whether GitHub knows where to send them";
    listing::print::<DeliveryResponse>(client, &items, format, json, empty)?;
    Ok(exit::OK)
}

impl Listable for DeliveryResponse {
    const COLUMNS: &'static [Column] = &[
        Column::new("DELIVERY").prefix(8),
        Column::new("EVENT"),
        Column::new("AGE"),
        Column::new("RESULT").at_most(36).gives_way(),
    ];

    fn name(&self) -> String {
        self.guid.clone()
    }

    fn cells(&self) -> Vec<Cell> {
        let what = [Some(&self.event), self.action.as_ref()].into_iter().flatten();
        let result = match &self.detail {
            Some(why) => format!("{}: {why}", self.result),
            None => self.result.clone(),
        };
        vec![
            self.guid.clone().into(),
            what.cloned().collect::<Vec<_>>().join(" ").into(),
            self.received_at.map(text::age).unwrap_or_default().into(),
            result.into(),
        ]
    }
}
