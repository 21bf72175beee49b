//! Reaching a guest: what it is handed, and the two ways to hand it over.
//!
//! ```text
//! kit        the files of one vm: hooks, settings, token, job
//!   install  one shell script that writes them and runs boot.sh
//!     seed   … on a NoCloud volume, read while the guest boots
//! ```
//!
//! Nothing here knows drivers, rows or budgets: callers give addresses and deadlines and decide what is tried again.

mod install;
pub mod kit;
pub mod seed;

pub use kit::{Kit, KitError, KitFile, KitInput};
