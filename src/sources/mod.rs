//! Job sources: one folder per CI system, with its client, its webhooks, and the registration of its runners.

pub mod github;
