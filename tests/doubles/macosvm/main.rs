//! Plays `macosvm` on any system, for tests: the same command line, exit statuses, texts, files and signals, the ugly parts
//! included.
//!
//! It shares no code with the service, so that the two cannot share a mistake. What the real program gets from macOS (the
//! guest, leases, the kernel's limit of guests, entitlements) is simulated as `double.json` says, see `control.rs`: a file in
//! the directory of the link or copy under which this is started. Without that file guests are inert and everything works.

#![allow(clippy::disallowed_methods, reason = "it shares no code with the service")]

mod cli;
mod clones;
mod control;
mod description;
mod kernel;
mod leases;
#[path = "../leash.rs"]
mod leash;
mod life;
mod qemu;
mod words;

use std::{path::PathBuf, process::ExitCode};

use crate::{cli::Ended, control::Control};

fn main() -> ExitCode {
    // The double starts itself under this name between itself and the hypervisor.
    if std::env::args_os().next().is_some_and(|name| name == leash::NAME) {
        return leash::main();
    }
    let started_as = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let home = started_as.parent().map(PathBuf::from).unwrap_or_default();
    let control = match Control::read(&home) {
        Ok(control) => control,
        Err(why) => return failed(&why),
    };
    let args: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match cli::parse(&args, &control).and_then(|options| life::run(&home, &control, options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Printed(text)) => {
            words::print(&text);
            words::flush();
            ExitCode::SUCCESS
        }
        Err(Ended::Usage(text)) => {
            eprintln!("ERROR: {text}");
            ExitCode::FAILURE
        }
        // The real program catches the exception, prints it and ends as if all were well.
        Err(Ended::Exception(text)) => {
            words::log(&format!("Exception in VM init: {text}"));
            ExitCode::SUCCESS
        }
        Err(Ended::Double(why)) => failed(&why),
    }
}

/// Something that the double does not play, or a mistake in a test.
fn failed(why: &str) -> ExitCode {
    eprintln!("macosvm-double: {why}");
    ExitCode::from(70)
}
