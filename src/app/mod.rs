//! Wires everything together, and nothing else: builds each part, runs it, and shuts it down in order.
//!
//! ```text
//! listeners  opens the listeners
//! store      opens the data directory: its lock, the key, the database, the admin token
//! drivers    builds the drivers that the configuration enables
//! templates  builds the catalog and the access to registries
//! sources    builds the sources of jobs: credentials, webhooks, polls
//! build      builds all of these together with the services and the loops
//! tasks      runs the service
//! ```

mod build;
mod drivers;
mod error;
mod listeners;
mod network;
mod sources;
mod store;
mod tasks;
mod templates;

pub use self::{
    build::{Built, Setup, build},
    error::StartError,
    tasks::{App, check, serve},
    templates::RegistryAccess,
};
