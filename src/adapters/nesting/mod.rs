//! The API of GitLab's `nesting` on a Unix socket: vms for a GitLab Runner that reaches this host over SSH.
//!
//! Runs in the service, and is a client of its REST API like other adapters: what belongs together is found again by labels of the
//! vms, so a restart forgets no slot. Only whether a client has called `Init` is kept in memory, as the protocol has it.

mod messages;
mod section;
mod server;
mod service;
mod vms;

pub use section::NestingSection;
pub use server::{NestingListener, serve};
