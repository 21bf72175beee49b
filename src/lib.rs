//! Mayfly gives every CI job a fresh virtual machine and takes it away afterwards.
//!
//! Layers; imports point downwards only (a test checks it):
//!
//! ```text
//! main, cli, app, config     wiring and the command line
//! adapters                   what other schedulers start to get vms
//! client                     the client of the REST API, for the command line and the adapters
//! http                       routes, problems, auth, OpenAPI, pages
//! service, reconcile         the verbs; the loops that run the next steps of vms, pulls and jobs
//! store, drivers, registry, templates, sources, guest, gateway     know the domain and the platform; of each other,
//!                            only `templates` uses `registry`
//! platform                   shared parts: clock, child processes, outbound HTTP, files, error texts
//! domain                     plain types and the table; no I/O, no clock
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests measure and start programs as they like"))]

pub mod adapters;
pub mod admission;
pub mod app;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod drivers;
pub mod gateway;
pub mod guest;
pub mod http;
pub mod parts;
pub mod platform;
pub mod reconcile;
pub mod registry;
pub mod service;
pub mod sources;
pub mod store;
pub mod telemetry;
pub mod templates;
