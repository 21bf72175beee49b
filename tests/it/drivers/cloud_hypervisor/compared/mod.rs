//! The program and its double are asked the same, and say the same: what the program said is recorded in `recorded.json`. So the double
//! is held to it on every machine, and the program where it can be run. docs/contributing.md says how to compare another version, and
//! how to record it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::support::cloud_hypervisor::double;

mod cases;
mod stage;

/// A request, an option or a signal, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Entry {
    what: String,
    gave: Value,
}

/// By the case's name.
type Transcript = BTreeMap<String, Vec<Entry>>;

#[derive(Deserialize, Serialize)]
struct Recording {
    /// As the program says it.
    version: String,
    cases: Transcript,
}

fn recording_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/drivers/cloud_hypervisor/compared/recorded.json")
}

fn recorded() -> Recording {
    serde_json::from_slice(&std::fs::read(recording_file()).unwrap()).unwrap()
}

/// Where a transcript differs from the recording. `partial`: objects may lack members.
fn differences(recorded: &Transcript, found: &Transcript, partial: bool) -> Vec<String> {
    let mut all = Vec::new();
    for name in recorded.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let (Some(expected), Some(given)) = (recorded.get(name), found.get(name)) else {
            all.push(format!("{name}: only one of them has this case"));
            continue;
        };
        if expected.len() != given.len() {
            all.push(format!("{name}: {} entries, not {}", given.len(), expected.len()));
        }
        for (number, (expected, given)) in expected.iter().zip(given).enumerate() {
            let at = format!("{name}, {number}. {}", given.what);
            if expected.what != given.what {
                all.push(format!("{at}: {} was recorded", expected.what));
            }
            compare(&expected.gave, &given.gave, partial, &at, &mut all);
        }
    }
    all
}

fn compare(expected: &Value, given: &Value, partial: bool, at: &str, all: &mut Vec<String>) {
    match (expected, given) {
        (Value::Object(expected), Value::Object(given)) => {
            for key in expected.keys().chain(given.keys()).collect::<BTreeSet<_>>() {
                let at = format!("{at}: {key}");
                match (expected.get(key), given.get(key)) {
                    (Some(expected), Some(given)) => compare(expected, given, partial, &at, all),
                    (Some(_), None) if partial => {}
                    (expected, given) => all.push(format!("{at}: {given:?}, not {expected:?}")),
                }
            }
        }
        // A program that ends may lose its last events.
        (Value::Array(expected), Value::Array(given))
            if !partial && at.ends_with(": events") && expected.starts_with(given) => {}
        (Value::Array(expected), Value::Array(given)) if expected.len() == given.len() => {
            for (number, (expected, given)) in expected.iter().zip(given).enumerate() {
                compare(expected, given, partial, &format!("{at}: {number}"), all);
            }
        }
        (expected, given) if expected == given => {}
        (expected, given) => all.push(format!("{at}:\n    {given}\n    not {expected}")),
    }
}

fn summary(transcript: &Transcript) -> String {
    let entries = || transcript.values().flatten();
    let requests = entries().filter(|entry| entry.gave.get("status").is_some());
    let refused = requests.clone().filter(|entry| entry.gave["status"].as_u64() >= Some(400));
    let texts: BTreeSet<String> = refused.map(|entry| entry.gave["body"].to_string()).collect();
    let ends = entries().filter(|entry| entry.gave.get("code").is_some()).count();
    format!(
        "{} cases: {} requests with status, headers and body, {} different errors, {ends} ends with exit code, standard error and events",
        transcript.len(),
        requests.count(),
        texts.len()
    )
}

/// The double leaves out members of the vm's configuration that are not simulated; what it says is what the program says.
#[test]
fn the_double_says_what_the_program_was_recorded_to_say() {
    let found = cases::all(&double());
    let differences = differences(&recorded().cases, &found, true);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    eprintln!("the double is as recorded: {}", summary(&found));
}

/// Nothing is left out.
#[test]
#[ignore = "needs a real cloud-hypervisor, named by MAYFLY_TEST_CLOUD_HYPERVISOR, and /dev/kvm"]
fn the_real_program_says_what_was_recorded() {
    let program = super::real::program();
    let version = std::process::Command::new(&program).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap().lines().next().unwrap_or_default().to_owned();
    let found = cases::all(&program);
    if std::env::var_os("MAYFLY_RECORD").is_some() {
        let recording = Recording { version, cases: found };
        std::fs::write(recording_file(), serde_json::to_string_pretty(&recording).unwrap() + "\n").unwrap();
        return;
    }
    let recorded = recorded();
    let differences = differences(&recorded.cases, &found, false);
    eprintln!("{version} is compared with the recording of {}: {}", recorded.version, summary(&found));
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
