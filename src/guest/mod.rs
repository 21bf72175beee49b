//! Provisions guests: builds the bootstrap bundle and delivers it.
//!
//! ```text
//! kit        the files of one vm: hooks, settings, token, job
//! ready_kit  the readiness check that the guest makes
//! runner_kit what belongs to the runner of a CI system
//!   install  turns them into one shell script that writes them and runs boot.sh
//!     seed   … on a NoCloud volume, read while the guest boots
//!     ssh    … over SSH, once the guest answers
//!     agent  … through the agent in the guest, without a network
//! session    a command or a shell in the guest, over SSH or through the agent
//! readiness  detects that an SSH server answers
//! output     bounds and cleans output of guests
//! ```
//!
//! This layer knows no drivers, rows or budgets: callers pass addresses and deadlines, and decide what is retried.

pub mod agent;
pub mod host_environment;
mod install;
pub mod kit;
mod output;
pub mod readiness;
pub mod ready_kit;
pub mod runner_kit;
pub mod seed;
pub mod session;
mod session_output;
pub mod ssh;

pub use host_environment::HostEnvironment;
pub use kit::{Kit, KitError, KitFile, KitInput};
pub use output::last_line;
pub use readiness::banner;
pub use ssh::{SshDelivery, SshError, SshLogin, SshTarget, deliver};
