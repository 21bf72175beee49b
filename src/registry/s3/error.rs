//! Errors of S3: their texts, and whether a retry may help.

use std::io;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::registry::aws;

pub(super) type Sdk<E> = SdkError<E, HttpResponse>;

#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error("S3: {what}")]
    Credentials { what: String, temporary: bool },
    #[error(
        "{at}: access is denied: {what} (S3 also answers this for missing objects, if the caller may not list the bucket)"
    )]
    Denied { at: String, what: String },
    #[error(
        "the bucket {bucket:?} does not exist, or is not in this region ({region}): see AWS_REGION and AWS_ENDPOINT_URL_S3"
    )]
    NoBucket { bucket: String, region: String },
    #[error("{at} does not exist")]
    NoObject { at: String },
    #[error("{at} already exists, and is replaced only with `overwrite`")]
    Exists { at: String },
    #[error("{at} was changed while it was read: begin again")]
    Changed { at: String },
    #[error("{at} is not what it should be: {what}")]
    Content { at: String, what: String },
    #[error("{at}: {what}")]
    Refused { at: String, what: String },
    /// May be retried.
    #[error("{at} cannot be reached: {what}")]
    Unavailable { at: String, what: String },
    #[error("{at} takes {needed} bytes and {available} are free here")]
    Space { at: String, needed: u64, available: u64 },
    #[error("here: {0}")]
    Storage(#[from] io::Error),
}

impl S3Error {
    /// The rows of operations are in `meaning`, those of credentials in `aws`.
    pub fn may_pass(&self) -> bool {
        matches!(self, S3Error::Unavailable { .. } | S3Error::Credentials { temporary: true, .. })
    }
}

/// The meaning of an operation's failure. `at` is the object, `bucket` and `region` where it was looked for.
pub(super) fn meaning<E>(error: &Sdk<E>, at: &str, bucket: &str, region: &str) -> S3Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let at = at.to_owned();
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    let Some(refused) = error.as_service_error() else {
        // There was no answer, or none that can be parsed.
        return S3Error::Unavailable { at, what: aws::causes(error) };
    };
    let code = refused.code().unwrap_or_default();
    // For a wrong signature, the message contains the expected request, including the session token.
    let said = refused.message().and_then(|m| m.lines().next()).unwrap_or_default();
    let what = || {
        let said: String = said.chars().take(300).collect();
        match (code, said.as_str()) {
            ("", _) => format!("S3 answered {status} and did not say why"),
            (code, "") => format!("S3 answered {code}"),
            (code, said) => format!("S3 answered {code}: {said}"),
        }
    };
    match (code, status) {
        ("NoSuchBucket", _) => S3Error::NoBucket { bucket: bucket.to_owned(), region: region.to_owned() },
        ("NoSuchKey" | "NoSuchVersion" | "NotFound", _) => S3Error::NoObject { at },
        ("PreconditionFailed" | "InvalidRange", _) | (_, 412 | 416) => S3Error::Changed { at },
        ("SlowDown" | "RequestTimeout" | "ConditionalRequestConflict" | "OperationAborted", _) | (_, 429 | 500..) => {
            S3Error::Unavailable { at, what: what() }
        }
        ("InvalidObjectState", _) => {
            S3Error::Refused { at, what: format!("{}: it is archived, restore it first", what()) }
        }
        (_, 404) => S3Error::NoObject { at },
        (_, 401 | 403) => S3Error::Denied { at, what: what() },
        (_, 301 | 307) => {
            S3Error::Refused { at, what: format!("the bucket is not in {region}: set AWS_REGION to where it is") }
        }
        _ => S3Error::Refused { at, what: what() },
    }
}
