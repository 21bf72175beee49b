//! Disk images in S3: fetched for an import, made by an export.

use std::path::Path;

use super::Service;
use crate::{
    domain::{Code, Error, Result},
    templates::s3::{Fetched, Location, S3Error, Stored},
};

impl Service {
    /// Fetches an object, or what is missing of it. Its file goes when the result is dropped.
    pub async fn fetch_object(&self, from: &Location) -> Result<Fetched> {
        tracing::info!(s3.bucket = from.bucket(), s3.key = from.key(), "fetching an object");
        let fetched = self.s3.fetch(from, &|_, _| {}).await.map_err(failed)?;
        tracing::info!(s3.bucket = from.bucket(), s3.key = from.key(), bytes = fetched.size, digest = %fetched.digest, "object fetched");
        for notice in &fetched.notices {
            tracing::warn!("{notice}");
        }
        Ok(fetched)
    }

    /// Makes an object of a file; one that is there already is replaced only with `overwrite`.
    pub async fn store_object(&self, from: &Path, to: &Location, overwrite: bool) -> Result<Stored> {
        let stored = self.s3.store(from, to, overwrite, &|_, _| {}).await.map_err(failed)?;
        tracing::info!(s3.bucket = to.bucket(), s3.key = to.key(), bytes = stored.size, digest = %stored.digest, "object stored");
        Ok(stored)
    }
}

fn failed(error: S3Error) -> Error {
    let code = match &error {
        S3Error::Credentials(_)
        | S3Error::Denied { .. }
        | S3Error::NoBucket { .. }
        | S3Error::NoObject { .. }
        | S3Error::Content { .. }
        | S3Error::Refused { .. } => Code::ObjectRefused,
        S3Error::Exists { .. } => Code::ObjectExists,
        S3Error::Changed { .. } | S3Error::Unavailable { .. } => Code::ObjectUnavailable,
        S3Error::Space { .. } | S3Error::Storage(_) => Code::HostUnavailable,
    };
    Error::new(code, error.to_string())
}
