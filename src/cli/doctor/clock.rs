//! Checks the clock without the network: a file from the future shows that it was set back, and the system's time
//! service shows whether it is synchronised. CI systems refuse tokens from the future, and leases depend on the
//! clock.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};

use super::{
    finding::{Check, Finding, strange},
    probe::{HostProbe, Probed, Ran, System, Unseen, refusal},
    setup::DoctorSetup,
};
use crate::{cli::text, config};

const CLOCK: Check = Check::new("host.clock", "Clock", "synchronised by the system; no file is from the future");

/// Two clocks that are both kept right differ less.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(120);

#[derive(Debug)]
struct ClockFacts {
    now: Timestamp,
    /// When files were written last that this machine wrote.
    written: Vec<(PathBuf, Timestamp)>,
    keeper: Keeper,
}

#[derive(Debug)]
enum Keeper {
    Timed(Probed<Ran>),
    Systemd(Probed<Ran>),
    /// A container, or another init system.
    Unknown,
}

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Finding {
    judge(&look(probe, setup).await)
}

async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> ClockFacts {
    let files = ["mayfly.db", "mayfly.db-wal", config::ADMIN_TOKEN_FILE].map(|name| setup.at(name));
    let entries = futures_util::future::join_all(files.iter().map(|path| probe.entry(path))).await;
    let written =
        files.into_iter().zip(entries).filter_map(|(path, entry)| Some((path, entry.ok()?.modified))).collect();
    let keeper = match probe.system() {
        System::Macos => {
            Keeper::Timed(probe.run("/bin/launchctl".as_ref(), &["print", "system/com.apple.timed"], &[]).await)
        }
        System::Linux if super::linux::has_systemd(probe).await => {
            Keeper::Systemd(probe.run("timedatectl".as_ref(), &["show", "--property=NTPSynchronized"], &[]).await)
        }
        System::Linux => Keeper::Unknown,
    };
    ClockFacts { now: probe.now(), written, keeper }
}

fn judge(facts: &ClockFacts) -> Finding {
    let newest = facts.written.iter().max_by_key(|(_, at)| *at);
    if let Some((path, at)) = newest
        && at.duration_since(facts.now) > TOLERANCE
    {
        let ahead = text::duration(at.duration_since(facts.now));
        return CLOCK.fail(
            format!("the clock shows {}, but {} was written {ahead} later", text::time(facts.now), path.display()),
            match facts.keeper {
                Keeper::Timed(_) => "set the clock:\n    sudo sntp -sS time.apple.com",
                _ => "set the clock, and let chrony or systemd-timesyncd synchronise it",
            },
        );
    }
    match &facts.keeper {
        Keeper::Unknown => CLOCK.ok("no file is from the future; whether the clock is synchronised is not known"),
        Keeper::Systemd(Err(Unseen::Absent)) => CLOCK.ok("no file is from the future; timedatectl is not installed"),
        Keeper::Systemd(Err(why)) | Keeper::Timed(Err(why)) => CLOCK.could_not_look(why),
        Keeper::Systemd(Ok(ran)) if !ran.succeeded() => CLOCK.could_not_look(format!("timedatectl: {}", refusal(ran))),
        Keeper::Systemd(Ok(ran)) => match ran.stdout.trim() {
            "NTPSynchronized=yes" => CLOCK.ok("synchronised"),
            "NTPSynchronized=no" => CLOCK.warn(
                "not synchronised with any server",
                "let chrony or systemd-timesyncd synchronise it:\n    sudo timedatectl set-ntp true",
            ),
            other => CLOCK.could_not_look(strange("NTPSynchronized=yes or no", other)),
        },
        // Only root can see whether it is synchronised.
        Keeper::Timed(Ok(ran)) if ran.succeeded() && ran.stdout.contains("state = ") => {
            CLOCK.ok("no file is from the future; the time service is loaded")
        }
        Keeper::Timed(Ok(ran)) if ran.succeeded() => {
            CLOCK.could_not_look(strange("the state of com.apple.timed", &ran.stdout))
        }
        Keeper::Timed(Ok(_)) => CLOCK.warn(
            "the time service is not loaded",
            "set the time automatically:\n    sudo systemsetup -setusingnetworktime on",
        ),
    }
}
