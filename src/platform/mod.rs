//! What every layer above the domain may use: no rules of this program are in here.

pub mod tasks;
