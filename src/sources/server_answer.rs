//! One answer of a CI server.

use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};
use secrecy::zeroize::Zeroizing;
use serde::de::DeserializeOwned;

use super::error::{SourceError, SourceErrorKind};
use crate::{
    domain::SourceKind,
    platform::{error_chain, http::bounded_body},
};

/// Limit of an answer, in bytes. A page of a thousand jobs is below 1 MiB.
const LARGEST: usize = 16 << 20;

/// The complete answer. Overwritten when it is dropped, because some answers are secrets.
pub(super) struct ServerAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl ServerAnswer {
    /// Sends a request. `server` and `what` are for the message of a failure.
    pub async fn to(
        request: RequestBuilder,
        kind: SourceKind,
        server: &str,
        what: &str,
    ) -> Result<ServerAnswer, SourceError> {
        let unavailable = |cause: String, sent| {
            let detail = format!("{server} cannot be reached for {what}: {cause}");
            SourceError::new(kind, SourceErrorKind::Unavailable { sent }, detail)
        };
        let broken = |error: reqwest::Error| {
            let sent = !error.is_connect() && !error.is_builder();
            unavailable(error_chain(&error.without_url()), sent)
        };
        let response = request.send().await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = bounded_body(response, LARGEST).await.map_err(broken)?;
        let body = body.ok_or_else(|| unavailable(format!("the answer is larger than {} MiB", LARGEST >> 20), true))?;
        Ok(ServerAnswer { status, headers, body: Zeroizing::new(body) })
    }

    /// The parsed body. The error says where it differs, and quotes no value: some answers are secrets.
    pub fn parsed<T: DeserializeOwned>(&self) -> Result<T, String> {
        let mut reader = serde_json::Deserializer::from_slice(&self.body);
        serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| format!("something else at `{}`, {} bytes in all", error.path(), self.body.len()))
    }
}
