//! The only place where everything is wired: builds each part, runs it, ends it in order.
//!
//! ```text
//! listeners  where the service listens
//! store      the data directory: its lock, the key, the database, the admin token
//! drivers    the drivers that the configuration enables
//! templates  templates, and the registries that they come from
//! github     credentials and webhooks
//! build      all of these together with the services and the loops
//! tasks      a service that is up
//! ```

mod build;
mod drivers;
mod error;
mod github;
mod listeners;
mod store;
mod tasks;
mod templates;

pub use self::{
    build::{Built, Setup, build},
    error::StartError,
    tasks::{App, check, serve},
    templates::RegistryAccess,
};
