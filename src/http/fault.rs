//! A fault as the API shows it.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::domain::{Code, Fault};

/// Something that went wrong.
#[derive(Serialize, ToSchema)]
pub struct FaultView {
    pub code: Code,
    pub detail: String,
    pub at: Time,
}

impl From<&Fault> for FaultView {
    fn from(fault: &Fault) -> Self {
        Self { code: fault.code, detail: fault.detail.clone(), at: fault.at.into() }
    }
}
