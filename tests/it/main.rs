//! Everything that is not a unit test, in one binary.

#![allow(clippy::disallowed_methods, reason = "tests measure and start programs as they like")]

mod adapters;
mod api;
mod buildkite;
mod circles;
mod cli;
mod credentials;
mod database;
mod doctor;
mod drivers;
mod gitea;
mod gitea_double;
mod github;
mod guest_agent;
mod guests;
mod layers;
mod layouts;
mod lifecycle;
mod macosvm_double;
mod names;
mod pull;
mod push;
mod registries;
mod registry_rig;
mod s3;
mod startup;
mod support;
mod tart_double;
