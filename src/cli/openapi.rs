//! `mayfly openapi`: the document, without a service.

use super::{client::Failure, exit, output};

pub(super) fn run() -> Result<u8, Failure> {
    output::bytes(document()?.as_bytes())?;
    Ok(exit::OK)
}

fn document() -> Result<String, Failure> {
    Err(Failure::Other("this build has no HTTP layer to describe".into()))
}
