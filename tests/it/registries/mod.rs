//! Registries as their admins set them up: limits, private authorities, logins.

mod bandwidth;
mod login;
mod settings;
