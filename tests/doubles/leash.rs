//! A process between a double of a Mac's hypervisor and QEMU: on a Mac the VM dies with the process that runs it, however that
//! ends. The doubles share this because it is not a part of what they play.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// The name under which a double starts itself for this.
pub const NAME: &str = "double-leash";

/// `double-leash OWNER PROGRAM ARG…`: becomes the program, which gets SIGKILL when the owner is gone.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let owner: Option<i32> = args.next().and_then(|a| a.to_str()?.parse().ok());
    let (Some(owner), Some(program)) = (owner, args.next()) else { return ExitCode::from(70) };
    if let Err(e) = tie(owner) {
        eprintln!("leash: {e}");
        return ExitCode::from(70);
    }
    let error = Command::new(&program).args(args).exec();
    eprintln!("{}: {error}", program.display());
    ExitCode::from(70)
}

#[cfg(target_os = "linux")]
fn tie(owner: i32) -> std::io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before the line above.
    if getppid().map(|p| p.as_raw_nonzero().get()) != Some(owner) {
        return Err(std::io::Error::other("the owner is gone"));
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn tie(_: i32) -> std::io::Result<()> {
    Err(std::io::Error::other("real guests run on Linux only"))
}
