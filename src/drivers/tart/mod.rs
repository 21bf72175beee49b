//! tart
pub mod args;
mod arp;
mod config;
mod fault;
mod leases;
mod list;
mod mac;
mod paths;
mod probe;
mod settings;
mod words;
pub use settings::{Network, Resolver, Settings};
