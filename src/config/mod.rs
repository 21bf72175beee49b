//! The configuration: composed of the sections of all parts, read once at the start.
//!
//! ```text
//! load       builds the configuration from file, environment and command line
//!   data_dir where it is, and who may use it
//!   check    checks that involve several keys, table names or files
//!     pools  converts `[pools]` to the domain's type
//!   given    the file, the environment and the command line, checked against the schemas
//! docs       the page docs/configuration.md
//! sections   which sections there are, and where
//!   domain_sections   those whose values are types of the domain
//! error      errors of the configuration
//! ```
//!
//! Every key is declared once, in the section of the part that uses it (`platform::settings`): its type, its default, its range
//! and its description. A setting is taken from the command line, else from the environment, else from
//! `<data-dir>/mayfly.toml`, else it has its default. Unknown keys and invalid values are errors that show where they
//! stand (file and line, variable or option), because an ignored setting would be noticed too late.
//!
//! No setting is a secret: tokens and keys are in separate files.

mod check;
mod data_dir;
pub mod docs;
mod domain_sections;
mod error;
mod given;
mod load;
mod pools;
mod sections;
mod sources;

pub use data_dir::data_dir_or_default;
pub use error::{ConfigError, SettingProblem};
pub use given::FILE;
pub use load::Overrides;
pub use sections::{Config, Drivers, FixedKey, GUEST_PORT, keys};

/// Name of the file in the data directory that holds the first admin token.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
