//! Reaching a guest: what it is handed, and the two ways to hand it over.
//!
//! ```text
//! kit        the files of one vm: hooks, settings, token, job
//!   install  one shell script that writes them and runs boot.sh
//!     seed   … on a NoCloud volume, read while the guest boots
//!     ssh    … through a login, once the guest answers
//! readiness  does an SSH server answer there?
//! ```
//!
//! Nothing here knows drivers, rows or budgets: callers give addresses and deadlines and decide what is tried again.

mod install;
pub mod kit;
pub mod readiness;
pub mod seed;
pub mod ssh;

pub use kit::{Kit, KitError, KitFile, KitInput};
pub use readiness::banner;
pub use ssh::{Delivered, Login, SshError, Target, deliver};
