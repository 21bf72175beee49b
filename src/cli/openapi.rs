//! `mayfly openapi`: prints the OpenAPI document without a service.

use super::{exit, failure::CommandFailure, output};
use crate::http;

pub(super) fn run() -> Result<u8, CommandFailure> {
    output::bytes(http::openapi_json().as_bytes())?;
    Ok(exit::OK)
}
