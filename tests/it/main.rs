//! Everything that is not a unit test, in one binary.

mod api;
mod cli;
mod credentials;
mod doctor;
mod drivers;
mod guest_agent;
mod guests;
mod layers;
mod layouts;
mod lifecycle;
mod pull;
mod registry_rig;
mod startup;
mod support;
mod tart_double;
