//! `mayfly doctor`: finds problems of this machine that prevent vms from running, and prints remedies. It needs no
//! service and no token, and changes nothing.
//!
//! `probe` reads from the machine. The other modules gather their facts through it, and have pure functions from
//! facts to findings.

use std::path::PathBuf;

use clap::Args;

use super::{
    exit,
    failure::CommandFailure,
    output::{self, Colour, paint},
};
use crate::config;

mod clock;
mod cloud_hypervisor;
mod data;
pub mod finding;
mod linux;
mod mac;
mod machine;
mod macosvm;
mod modes;
mod network;
pub mod probe;
mod qemu;
mod service;
mod setup;
pub mod show;
mod space;
mod tart;

use finding::{Report, Severity};
use probe::{HostProbe, System};
use setup::DoctorSetup;

/// Find problems that prevent vms from running on this machine, and show what to do
///
/// Checks the machine, the hypervisor, the data directory, the network and, if it runs, the service. Needs no token
/// and changes nothing. Run it as the user that the service runs as, and with the same --data-dir.
///
/// Exit code 0: nothing failed (there may be warnings). 1: something failed. 7: no check failed, but at least one
/// was not possible.
#[derive(Args)]
pub(super) struct Doctor {
    /// Also start a very small guest to find out which accelerator works; takes seconds, at most a minute
    #[arg(long)]
    probe: bool,
}

/// Longest line, so that text stays readable on a wide terminal.
const WIDEST: usize = 100;
const USUAL: usize = 80;

pub(super) fn run(args: &Doctor, data_dir: Option<PathBuf>, json: bool) -> Result<u8, CommandFailure> {
    let data_dir = config::data_dir_or_default(data_dir).map_err(|error| CommandFailure::Usage(error.to_string()))?;
    let machine = machine::MachineFacts::new().map_err(CommandFailure::Other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandFailure::Other(format!("cannot start: {error}")))?;
    let report = runtime.block_on(examine(&machine, data_dir, args.probe));
    // A query to a file system that does not answer still occupies a thread.
    runtime.shutdown_background();
    if json {
        output::json(&show::json(&report, machine.system()))?;
    } else {
        print(&report)?;
    }
    Ok(exit_code(&report))
}

pub(super) fn print(report: &Report) -> Result<(), CommandFailure> {
    let width = output::width().map_or(USUAL, |width| width.min(WIDEST));
    output::bytes(show::text(report, width, coloured).as_bytes())
}

fn coloured(severity: Severity, word: &str) -> String {
    paint(
        word,
        match severity {
            Severity::Ok => Colour::Green,
            Severity::Warn => Colour::Yellow,
            Severity::Fail => Colour::Red,
            Severity::Skip => Colour::Dim,
        },
    )
}

pub fn exit_code(report: &Report) -> u8 {
    if report.count(Severity::Fail) > 0 {
        exit::FAILURE
    } else if report.is_incomplete() {
        exit::INCOMPLETE
    } else {
        exit::OK
    }
}

/// Every check of this system, in the order in which it is shown.
pub async fn examine(probe: &dyn HostProbe, data_dir: PathBuf, boot_guest: bool) -> Report {
    let (setup, configuration) = DoctorSetup::read(probe, data_dir, boot_guest).await;
    let setup = &setup;
    let shared = async {
        tokio::join!(
            clock::examine(probe, setup),
            space::examine(probe, setup),
            data::examine(probe, setup),
            service::examine(probe, setup),
        )
    };
    let mut findings = Vec::new();
    match probe.system() {
        System::Macos => {
            let ((clock, space, data, service), mac, tart, macosvm, network, qemu) = tokio::join!(
                shared,
                mac::look(probe),
                tart::look(probe, setup),
                macosvm::look(probe, setup),
                network::look(probe, setup),
                qemu::examine(probe, setup),
            );
            findings.extend(mac::judge(&mac, setup));
            findings.push(clock);
            findings.extend(space);
            findings.extend(tart::judge(&tart, setup));
            findings.extend(macosvm.iter().flat_map(|facts| macosvm::judge(facts, setup)));
            findings.extend(qemu);
            findings.extend(network::judge(&network, setup, mac.macos()));
            findings.push(configuration);
            findings.extend(data);
            findings.push(mac::agent(&mac, service.runs));
            findings.extend(service.findings);
        }
        System::Linux => {
            let ((clock, space, data, service), linux, qemu, cloud_hypervisor) = tokio::join!(
                shared,
                linux::look(probe),
                qemu::examine(probe, setup),
                cloud_hypervisor::examine(probe, setup),
            );
            findings.extend(linux::judge(&linux, setup));
            findings.push(clock);
            findings.extend(space);
            findings.extend(qemu);
            findings.extend(cloud_hypervisor);
            findings.push(configuration);
            findings.extend(data);
            findings.push(linux::unit(&linux, service.runs));
            findings.extend(service.findings);
        }
    }
    Report { findings }
}
