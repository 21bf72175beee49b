//! `mayfly doctor` on machines that are not at hand, simulated from `doctor/fixtures`, and on the one that is.

mod here;
mod simulated;

use std::collections::{BTreeMap, BTreeSet};

use mayfly::cli::doctor::{
    examine, exit_code,
    finding::{Finding, Report, Severity, Skipped},
    probe::{HostProbe, System, Unseen},
    show,
};
use simulated::SimulatedMachine;

const MACS: [&str; 4] = ["healthy-mac-mini-m4", "sick-mac", "old-intel-mac", "ssh-to-a-mac"];
const LINUXES: [&str; 3] = ["healthy-linux", "sick-linux", "half-linux"];

async fn look(machine: &SimulatedMachine) -> Report {
    examine(machine, machine.data_dir(), false).await
}

fn text(report: &Report, width: usize) -> String {
    show::text(report, width, |_, word| word.to_owned())
}

/// Without what changes from release to release and from machine to machine.
fn steady(text: &str) -> String {
    text.replace(env!("CARGO_PKG_VERSION"), "VERSION").replace(std::env::consts::ARCH, "ARCH")
}

#[tokio::test]
async fn what_is_said_of_each_machine() {
    for name in MACS.into_iter().chain(LINUXES) {
        let machine = SimulatedMachine::load(name);
        let report = look(&machine).await;
        machine.assert_every_command_was_run();
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("snapshots");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| {
            insta::assert_snapshot!(name, steady(&text(&report, 80)));
            if MACS[..2].contains(&name) {
                let json = show::json(&report, machine.system());
                insta::assert_snapshot!(format!("{name}.json"), steady(&format!("{json:#}")));
            }
        });
    }
}

#[tokio::test]
async fn a_healthy_machine_gives_no_trouble() {
    for name in [MACS[0], LINUXES[0]] {
        let report = look(&SimulatedMachine::load(name)).await;
        let trouble: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|f| f.severity != Severity::Ok && f.skipped != Some(Skipped::NotNeeded))
            .collect();
        assert!(trouble.is_empty(), "{name}: {trouble:#?}");
        assert_eq!(exit_code(&report), 0);
    }
}

#[tokio::test]
async fn a_sick_machine_fails() {
    for name in MACS[1..].iter().chain(&LINUXES[1..]) {
        assert_eq!(exit_code(&look(&SimulatedMachine::load(name)).await), 1, "{name}");
    }
}

/// A check that cannot find anything is none. Each one finds something on some machine, with a remedy.
#[tokio::test]
async fn every_check_can_find_something() {
    let mut found: BTreeMap<&str, bool> = BTreeMap::new();
    for name in MACS.into_iter().chain(LINUXES) {
        let report = look(&SimulatedMachine::load(name)).await;
        let ids: BTreeSet<&str> = report.findings.iter().map(|f| f.id).collect();
        assert_eq!(ids.len(), report.findings.len(), "{name}: an id stands for two findings");
        for finding in report.findings {
            let trouble = finding.severity >= Severity::Warn;
            assert_eq!(trouble, finding.remedy.is_some(), "{name}: {finding:?}");
            *found.entry(finding.id).or_default() |= trouble;
        }
    }
    assert!(found.len() > 40, "{found:?}");
    let never: Vec<&str> = found.into_iter().filter(|(_, found)| !found).map(|(id, _)| id).collect();
    assert!(never.is_empty(), "nothing is ever found by {never:?}");
}

#[tokio::test]
async fn lines_fit_a_terminal() {
    for name in MACS.into_iter().chain(LINUXES) {
        let report = look(&SimulatedMachine::load(name)).await;
        for line in text(&report, 80).lines() {
            // A command is copied as a whole, and a long word cannot be broken.
            let whole = line.starts_with("          ") && !line.starts_with("                          ");
            let long_word = line.split_whitespace().any(|word| word.chars().count() > 54);
            assert!(whole || long_word || line.chars().count() <= 80, "{name}: {line}");
            assert!(line.chars().all(|c| !c.is_control()), "{name}: {line:?}");
        }
    }
}

/// For each command: an answer that nobody understands, one that says nothing, a program that hangs or is missing. None of
/// them may be taken for a good sign.
#[tokio::test]
async fn an_unknown_answer_is_never_ok() {
    // What these say only adds a word to another finding, or is an exception that is not needed on this machine.
    let idle = ["/bin/launchctl managername", "read /var/root/", "read /Library/Preferences/com.apple.network"];
    for name in [MACS[0], LINUXES[0]] {
        let healthy = look(&SimulatedMachine::load(name)).await;
        let commands = SimulatedMachine::load(name).commands();
        assert!(commands.len() >= 4);
        for command in commands.iter().filter(|c| !idle.iter().any(|idle| c.contains(idle))) {
            for answer in [
                simulated::answer(0, "\u{1b}[31m~~ [ what nobody has seen \n"),
                simulated::answer(0, ""),
                Err(Unseen::TimedOut(mayfly::cli::doctor::probe::LOOK)),
                Err(Unseen::Absent),
                Err(Unseen::Denied),
            ] {
                let mut machine = SimulatedMachine::load(name);
                // Not there is what it should be.
                if command.contains("launchctl print system/") && !command.ends_with("timed") {
                    continue;
                }
                // An init system that is not there is no trouble.
                if answer == Err(Unseen::Absent)
                    && (command.starts_with("systemctl") || command.starts_with("timedatectl"))
                {
                    continue;
                }
                machine.set(command, answer.clone());
                let report = look(&machine).await;
                let worse: Vec<&Finding> = report
                    .findings
                    .iter()
                    .filter(|f| f.severity != Severity::Ok)
                    .filter(|f| healthy.findings.iter().any(|h| h.id == f.id && h.severity == Severity::Ok))
                    .collect();
                assert!(!worse.is_empty(), "{name}: {command}: {answer:?} is taken for a good sign");
                assert!(
                    text(&report, 80).chars().all(|c| c == '\n' || !c.is_control()),
                    "{command} drives the terminal"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_unknown_answer_is_shown_in_part() {
    let mut machine = SimulatedMachine::load(MACS[0]);
    machine.set("/opt/homebrew/bin/tart list --format json", simulated::answer(0, &"strange ".repeat(100)));
    let report = look(&machine).await;
    let found = &report.findings.iter().find(|f| f.id == "tart.answers").unwrap().found;
    assert!(found.contains("expected `tart list` to print") && found.contains("strange strange"), "{found}");
    assert!(found.len() < 350, "{found}");
}

#[tokio::test]
async fn could_not_look_has_an_exit_code_of_its_own() {
    let mut machine = SimulatedMachine::load(MACS[0]);
    machine.set("/usr/bin/fdesetup status", Err(Unseen::Denied));
    let report = look(&machine).await;
    assert_eq!(report.count(Severity::Fail), 0);
    assert_eq!(exit_code(&report), 7);
    assert_eq!(show::json(&report, System::Macos)["complete"], false);
}

/// Its storage would be made by asking.
#[tokio::test]
async fn tart_is_not_asked_where_that_would_make_something() {
    let mut machine = SimulatedMachine::load(MACS[0]);
    machine.remove_entry("/Users/admin/.tart");
    machine.forbid("/opt/homebrew/bin/tart list --format json");
    let report = look(&machine).await;
    let answers = report.findings.iter().find(|f| f.id == "tart.answers").unwrap();
    assert_eq!(answers.skipped, Some(Skipped::NotNeeded));
}
