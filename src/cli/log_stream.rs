//! Reads a vm's log, to its end if that is wanted, and over a restart of the service.

use jiff::Timestamp;

use super::{
    client::ApiClient,
    failure::CommandFailure,
    patience::{PAUSE, Patience},
    responses::VmResponse,
};
use crate::platform::clock;

/// The byte of the log at which a response begins.
const OFFSET: &str = "mayfly-log-offset";

pub(super) struct LogStream<'a> {
    client: &'a ApiClient,
    id: &'a str,
    source: &'static str,
    /// The byte of the log that comes next. `None`: nothing was read yet.
    position: Option<u64>,
    /// Where to begin, unless something was read already.
    since: Option<Timestamp>,
}

impl<'a> LogStream<'a> {
    /// Begins with what was written `since`, or at most one mebibyte before the log's end.
    pub fn new(client: &'a ApiClient, id: &'a str, source: &'static str, since: Option<Timestamp>) -> Self {
        Self { client, id, source, position: None, since }
    }

    /// Reads what is there now.
    pub async fn read(
        &mut self,
        out: &mut impl FnMut(&[u8]) -> Result<(), CommandFailure>,
    ) -> Result<(), CommandFailure> {
        self.response(false, out).await
    }

    /// Reads on until the vm is deleted, also over a restart of the service, and returns the vm.
    pub async fn follow(
        &mut self,
        out: &mut impl FnMut(&[u8]) -> Result<(), CommandFailure>,
    ) -> Result<VmResponse, CommandFailure> {
        let mut patience = Patience::default();
        loop {
            let (asked, before) = (clock::monotonic(), self.position);
            match self.read_on(out).await {
                Ok(vm) if vm.is_deleted() => return Ok(vm),
                Ok(_) => {
                    patience.answered();
                    if clock::elapsed(asked) < PAUSE {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(failure) => {
                    if self.position != before {
                        patience.answered();
                    }
                    patience.wait(failure).await?;
                }
            }
        }
    }

    /// Reads until the response ends. It ends with the vm, but also when the service stops, so only the vm's record shows
    /// whether there will be more.
    async fn read_on(
        &mut self,
        out: &mut impl FnMut(&[u8]) -> Result<(), CommandFailure>,
    ) -> Result<VmResponse, CommandFailure> {
        self.response(true, out).await?;
        let vm: VmResponse = self.client.view(&self.client.get(&["vms", self.id], &[]).await?)?;
        if vm.is_deleted() {
            // What was written after the response had ended.
            self.response(false, out).await?;
        }
        Ok(vm)
    }

    async fn response(
        &mut self,
        follow: bool,
        out: &mut impl FnMut(&[u8]) -> Result<(), CommandFailure>,
    ) -> Result<(), CommandFailure> {
        let offset = self.position.map(|position| position.to_string());
        let since = self.since.filter(|_| offset.is_none()).map(|since| since.to_string());
        let mut query = vec![("source", self.source)];
        query.extend(since.as_deref().map(|since| ("since", since)));
        query.extend(offset.as_deref().map(|offset| ("offset", offset)));
        query.extend(follow.then_some(("follow", "true")));
        let mut response = self.client.stream(&["vms", self.id, "logs"], &query).await?;
        let begins = response.headers().get(OFFSET).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let mut position = begins.or(self.position).unwrap_or(0);
        loop {
            self.position = Some(position);
            let chunk = response
                .chunk()
                .await
                .map_err(|error| CommandFailure::Unreachable(format!("the log broke off: {error}")))?;
            let Some(chunk) = chunk else { return Ok(()) };
            out(&chunk)?;
            position += chunk.len() as u64;
        }
    }
}
