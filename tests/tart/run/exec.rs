//! `tart exec`, through the socket that `run` listens on.

use crate::{control::Control, failure::Failure, home::Home, vm::Vm};

pub fn exec(_: &Home, _: &Control, _name: &str, _interactive: bool, _command: Vec<String>) -> Result<u8, Failure> {
    Err(Failure::not_played("exec"))
}

pub fn resolve(_vm: &Vm) -> Option<String> {
    None
}
