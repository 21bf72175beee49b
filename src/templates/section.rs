//! The section `[templates]`.

use super::catalog::SpaceLimits;
use crate::platform::settings::section;

/// `doctor` warns below the same value. It is a number of bytes and not a percentage, because the space that guests
/// need does not grow with the disk.
const MIN_FREE_BYTES: u64 = if cfg!(target_os = "macos") { 20 << 30 } else { 2 << 30 };

section! {
    /// Disk space of templates.
    pub struct TemplatesSection {
        /// Largest size of all templates and unfinished pulls together, in bytes. 0: no limit.
        max_bytes: u64 = 0;
        /// Space that must stay free on the disk with the templates, in bytes: for the disks of guests, which grow
        /// while they run, and for the database. With less free space no vm is cloned and nothing is pulled; versions
        /// that nothing needs are removed first.
        min_free_bytes: u64 = MIN_FREE_BYTES, shown as "2147483648 (2 GiB); on macOS 21474836480 (20 GiB)";
        /// Versions that no name, vm or pin needs are removed after this many days without use (0 to 3650). 0: only
        /// when space is needed.
        keep_unused_days: u32 = 7, in 0..=3650;
    }
}

impl TemplatesSection {
    pub fn limits(&self) -> SpaceLimits {
        SpaceLimits {
            max_bytes: self.max_bytes,
            min_free_bytes: self.min_free_bytes,
            keep_unused_days: self.keep_unused_days,
        }
    }
}
