//! The sections `[queue]` and `[pulls]`.

use crate::{domain::Budgets, platform::settings::section};

section! {
    /// Vms that wait for a slot.
    pub struct QueueSection {
        /// Vms that may wait at once (0 to 1000000); more are refused with 429.
        max_length: u32 = 1000, in 0..=1_000_000;
        /// How long a vm waits for a slot if its request does not set it, in seconds (0 to 2592000). 0: start at once
        /// or refuse.
        timeout_seconds: u32 = Budgets::default().queue_seconds, in 0..=2_592_000;
    }
}

section! {
    /// Pulls of templates.
    pub struct PullsSection {
        /// How long a pull is retried after temporary failures, counted from its request, in seconds (0 to 2592000). 0:
        /// no retry.
        deadline_seconds: u32 = 6 * 3600, in 0..=2_592_000;
    }
}
