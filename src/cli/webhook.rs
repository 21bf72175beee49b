//! `mayfly webhook …`

use clap::{Args, Subcommand};

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
    /// List the newest deliveries of a source's webhook, and their results
    ///
    /// Deliveries with a wrong signature are not stored and so not listed; the service's metrics count them.
    #[command(visible_alias = "ls")]
    List(DeliveryListArgs),
}

#[derive(Args)]
pub(super) struct DeliveryListArgs {
    /// Source of jobs that sent them
    #[arg(long, value_name = "NAME", default_value = "github")]
    source: String,
    #[command(flatten)]
    format: ListFormat,
}

pub(super) async fn run(command: WebhookCommand, client: &ApiClient, json: bool) -> Result<u8, CommandFailure> {
    let WebhookCommand::List(DeliveryListArgs { source, format }) = command;
    let items = client.list(&["webhooks", &source, "deliveries"], &[]).await?;
    let empty = "no deliveries; `mayfly github check` and `mayfly source check` test the access to the CI system";
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
