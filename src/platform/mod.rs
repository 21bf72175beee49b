//! Shared access to the operating system, the network and the runtime.
//!
//! ```text
//! clock           the time of day and the monotonic clock; a clock that tests can set
//! data_dir        the names of everything below the data directory
//! database        a SQLite database: one task that writes, readers, its integrity, space on a full disk
//! error_chain     an error and its causes: as one line of text, or one by its type
//! files           private files and directories, files that are replaced as a whole, secrets in files
//! host_resources  cores and memory of this machine
//! http            outbound HTTP clients: certificates, redirects, proxies, bodies of bounded size
//! pem             certificates as text, for other programs
//! process         child processes: deadline, bounded output, a small environment, killed with the service
//! reach           which servers a client may connect to
//! retry           pauses between attempts, and those that servers ask for
//! settings        how a part declares its section of the configuration
//! tasks           background tasks that start again after a panic
//! tls             why a server was not trusted
//! version         number and commit of this build
//! ```
//!
//! This layer lies between `domain` and the parts that know one outside system each. It knows nothing of vms.

pub mod clock;
pub mod data_dir;
pub mod database;
pub mod error_chain;
pub mod files;
pub mod host_resources;
pub mod http;
pub mod pem;
pub mod process;
pub mod reach;
pub mod retry;
pub mod settings;
pub mod tasks;
pub mod tls;
pub mod version;

pub use clock::Clock;
pub use error_chain::error_chain;
