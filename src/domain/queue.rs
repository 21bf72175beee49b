//! The wait of a vm before it gets a slot.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a vm has not been started yet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr, strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum QueueReason {
    /// Its template is not on this host yet.
    Template,
    /// All slots that it fits in are taken.
    Slot,
    /// The host cannot run it now (a fault of the host, not of the vm).
    Host,
    /// An attempt failed; the next one follows after a pause.
    Backoff,
}

impl QueueReason {
    pub const ALL: &'static [QueueReason] = <QueueReason as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What a queued vm waits for, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub reason: QueueReason,
    pub deadline: Timestamp,
    pub not_before: Option<Timestamp>,
}
