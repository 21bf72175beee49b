//! The section `[retention]`.

use crate::platform::settings::section;

section! {
    /// How long records are kept.
    pub struct RetentionSection {
        /// How long records and logs of deleted vms are kept, in days (0 to 3650).
        deleted_vms_days: u32 = 7, in 0..=3650;
    }
}
