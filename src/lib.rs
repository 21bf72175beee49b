//! Mayfly gives every CI job a fresh virtual machine and takes it away afterwards.
//!
//! Layers, imports pointing downwards only (a test says so):
//!
//! ```text
//! main, cli, app, config     wiring and the command line
//! http                       routes, problems, auth, OpenAPI, pages
//! service, reconcile         the verbs; the loop that runs owed steps
//! store, drivers, registry, templates, sources, guest     each knows the domain and the platform; of its neighbours, only
//!                            `templates` knows `registry`
//! platform                   what those share: outbound HTTP, error texts, tasks
//! domain                     plain types and the table; no I/O, no clock
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests measure and start programs as they like"))]

pub mod admission;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod drivers;
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
