//! Reaching a guest: what it is handed, and the ways to hand it over.
//!
//! ```text
//! kit        the files of one vm: hooks, settings, token, job
//!   install  one shell script that writes them and runs boot.sh
//!     seed   … on a NoCloud volume, read while the guest boots
//!     ssh    … through a login, once the guest answers
//!     agent  … through the agent in the guest, which needs no network
//! readiness  does an SSH server answer there?
//! output     what a guest says, within bounds
//! ```
//!
//! Nothing here knows drivers, rows or budgets: callers give addresses and deadlines and decide what is tried again.

pub mod agent;
mod install;
pub mod kit;
mod output;
pub mod readiness;
pub mod seed;
pub mod ssh;

pub use kit::{Kit, KitError, KitFile, KitInput};
pub use readiness::banner;
pub use ssh::{SshDelivery, SshError, SshLogin, SshTarget, deliver};
