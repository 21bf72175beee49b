//! Plays `tart` on any system, for tests: the same command line, exit codes, texts, files and locks, the ugly parts included.
//!
//! It shares no code with the service, so that the two cannot share a mistake. What real Tart gets from macOS (the guest,
//! leases, the kernel's limit of guests) is simulated as `$TART_HOME/double.json` says, see `control.rs`. Without that file
//! guests are inert and everything works.
//!
//! What it keeps for itself is under `$TART_HOME/double/`, which real Tart would not look at either.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod cli;
mod clone;
mod commands;
mod config;
mod control;
mod failure;
mod home;
mod json;
mod leases;
#[path = "../leash.rs"]
mod leash;
mod list;
mod locks;
mod oci;
mod output;
mod resolve;
mod rules;
mod run;
mod vm;

use std::process::ExitCode;

use crate::{cli::Call, control::Control, failure::Failure, home::Home, rules::Then};

fn main() -> ExitCode {
    // The double starts itself under this name between `tart run` and the hypervisor.
    if std::env::args_os().next().is_some_and(|name| name == leash::NAME) {
        return leash::main();
    }
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match call(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn call(args: &[String]) -> Result<u8, Failure> {
    let parsed = cli::parse(args)?;
    let home = Home::locate()?;
    let control = Control::read(&home)?;
    let then = rules::draw(&home, &control, parsed.name(), parsed.vm())?;
    if let Some(ms) = then.hang_ms {
        std::thread::sleep(std::time::Duration::from_millis(ms));
    }
    if let Some(garbage) = then.garbage.as_ref().filter(|g| !g.after) {
        return garbage.print();
    }
    match &parsed {
        Call::Version => return told(&control.version),
        Call::Help(text) => return told(text),
        _ => home.make()?,
    }
    if !matches!(parsed, Call::Pull { .. } | Call::Clone { .. }) {
        home.collect_garbage();
    }
    let done = perform(parsed, &home, &control, &then);
    match then.garbage.as_ref().filter(|g| g.after) {
        Some(garbage) => garbage.print(),
        None => done,
    }
}

fn told(text: &str) -> Result<u8, Failure> {
    output::line(text);
    Ok(0)
}

fn perform(call: Call, home: &Home, control: &Control, then: &Then) -> Result<u8, Failure> {
    match call {
        Call::Help(_) | Call::Version => return Ok(0),
        Call::Run(options) => return run::run(home, control, then, *options),
        Call::Exec { name, interactive, tty, command } => {
            return run::exec::exec(home, control, &name, interactive, tty, command);
        }
        Call::List { source, json, quiet } => list::list(home, control, source, json, quiet)?,
        Call::Get { name, json } => list::get(home, &name, json)?,
        Call::Ip { name, wait, resolver } => resolve::ip(home, control, &name, wait, resolver)?,
        Call::Stop { name, timeout } => commands::stop(home, &name, timeout)?,
        Call::Suspend { name } => commands::suspend(home, &name)?,
        Call::Delete { names } => commands::delete(home, &names, then.says_running)?,
        Call::Set(change) => commands::set(home, control, &change)?,
        Call::Rename { from, to } => commands::rename(home, &from, &to)?,
        Call::Create { name, disk_size, asif } => commands::create(home, control, &name, disk_size, asif)?,
        Call::Prune(criteria) => commands::prune(home, &criteria)?,
        Call::Clone { source, target } => clone::clone(home, &source, &target)?,
        Call::Fqn { name } => commands::fqn(home, &name)?,
        Call::Pull { name } => commands::pull(home, &name)?,
        Call::NotSimulated(command) => return Err(Failure::not_simulated(command)),
    }
    Ok(0)
}
