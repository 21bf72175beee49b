//! Maps the failure of a pull to an error code by its cause: the caller's reference or rights, the image, or the
//! connection.

use super::PullError;
use crate::{
    domain::{Code, Error},
    registry::RegistryError,
};

const FIELD: &str = "/image";
const NOT_PULLED: &str = "could not be pulled";

impl From<&PullError> for Error {
    fn from(error: &PullError) -> Self {
        let detail = error.to_string();
        let code = match error {
            PullError::Template(error) => {
                return Error {
                    fields: error.fields.clone(),
                    retry_after: error.retry_after,
                    ..Error::new(error.code, error.detail.clone())
                };
            }
            PullError::Registry(error) => return refused(error, detail),
            PullError::Layer { error, .. } => return refused(error, detail),
            PullError::Lost => Code::ImageUnavailable,
            PullError::Manifest { .. } | PullError::Content { .. } | PullError::Settings { .. } => {
                Code::TemplateInvalid
            }
            PullError::Space { error: full, .. } => {
                return Error { retry_after: full.retry_after, ..Error::new(full.code, detail) };
            }
            PullError::Storage(_) | PullError::Disk { .. } => Code::HostUnavailable,
        };
        Error::new(code, detail).field(FIELD, NOT_PULLED)
    }
}

fn refused(error: &RegistryError, detail: String) -> Error {
    let code = if error.is_temporary() { Code::ImageUnavailable } else { Code::ImageRefused };
    Error { retry_after: error.retry_after(), ..Error::new(code, detail) }.field(FIELD, NOT_PULLED)
}
