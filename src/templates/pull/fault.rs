//! Maps the failure of a pull to an error code by its cause: the caller's reference or rights, the image, or the
//! connection.

use super::PullError;
use crate::{
    domain::{Code, Error},
    registry::RegistryError,
};

impl From<&PullError> for Error {
    fn from(error: &PullError) -> Self {
        let code = match error {
            PullError::Template(error) => {
                return Error {
                    fields: error.fields.clone(),
                    retry_after: error.retry_after,
                    ..Error::new(error.code, error.detail.clone())
                };
            }
            PullError::Registry(
                RegistryError::Settings { .. }
                | RegistryError::Credentials(_)
                | RegistryError::Denied { .. }
                | RegistryError::NotFound { .. },
            ) => Code::ImageRefused,
            PullError::Registry(
                RegistryError::Unreachable { .. } | RegistryError::Refused { .. } | RegistryError::Answer { .. },
            )
            | PullError::Layer { .. }
            | PullError::Lost => Code::ImageUnavailable,
            PullError::Manifest { .. } | PullError::Content { .. } | PullError::Settings { .. } => {
                Code::TemplateInvalid
            }
            PullError::Space { error: full, .. } => {
                return Error { retry_after: full.retry_after, ..Error::new(full.code, error.to_string()) };
            }
            PullError::Storage(_) => Code::HostUnavailable,
        };
        Error::new(code, error.to_string()).field("/image", "could not be pulled")
    }
}
