//! What goes wrong, and how often.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
};

use base64::Engine;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    control::{Agent, Control, Guest, Lease},
    failure::Failure,
    home::Home,
    output,
};

/// How a command is bent. All times in milliseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Then {
    /// Any command: waits this long before it does anything.
    pub hang_ms: Option<u64>,
    /// Any command: prints this instead of its own output, and does nothing (or, with `after`, does it all the same).
    pub garbage: Option<Garbage>,
    /// `delete`: says that the VM is running, whatever the truth.
    pub says_running: bool,

    // The rest is for `run`.
    pub guest: Option<Guest>,
    pub agent: Option<Agent>,
    pub lease: Option<Lease>,
    /// Between the checks and the VM's lock.
    pub lock_after_ms: u64,
    /// Between the VM's lock and the start of the guest, when limits and start failures are found.
    pub start_after_ms: u64,
    /// Between the start of the guest and `control.sock`.
    pub socket_after_ms: u64,
    /// The limit's text, with these names.
    pub limit: Option<Limit>,
    pub start_fails: Option<Garbage>,
    /// Counted from the start of the guest.
    pub crash_after_ms: Option<u64>,
    pub crash_text: Option<String>,
    pub power_off_after_ms: Option<u64>,
    pub network_lost_after_ms: Option<u64>,
    /// From the start of the process until a SIGINT is heard.
    pub sigint_window_ms: u64,
    /// How many SIGINTs get lost after that.
    pub lost_sigints: u32,
    /// Between `Stopping VM...` and the end.
    pub stop_takes_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    #[serde(default)]
    pub names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Garbage {
    #[serde(default)]
    pub stdout: String,
    /// What is no text; follows `stdout`.
    #[serde(default)]
    pub stdout_base64: String,
    #[serde(default)]
    pub stderr: String,
    #[serde(default)]
    pub exit: u8,
    #[serde(default)]
    pub after: bool,
}

impl Garbage {
    /// Exactly these bytes: a newline that is meant is written.
    pub fn print(&self) -> Result<u8, Failure> {
        let more = base64::engine::general_purpose::STANDARD
            .decode(&self.stdout_base64)
            .map_err(|e| Failure::Double(format!("double.json: stdout_base64: {e}")))?;
        output::bytes(self.stdout.as_bytes());
        output::bytes(&more);
        use std::io::Write;
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
        Ok(self.exit)
    }
}

impl Then {
    pub fn from_map(map: Map<String, Value>) -> Result<Then, serde_json::Error> {
        serde_json::from_value(Value::Object(map))
    }
}

/// What is in store for this call. Draws one from each rule that applies and is counted.
pub fn draw(home: &Home, control: &Control, command: &str, vm: &str) -> Result<Then, Failure> {
    let mut merged = Map::new();
    for rule in &control.rules {
        if (rule.command == "*" || rule.command == command) && matches(&rule.vm, vm) {
            let key = match &rule.id {
                Some(id) => id.clone(),
                None => serde_json::to_string(rule).map_err(|e| Failure::Double(e.to_string()))?,
            };
            let bounded = rule.times.is_some() || rule.skip > 0;
            let last = rule.times.map_or(u32::MAX, |times| times.saturating_add(rule.skip));
            if !bounded || use_of(home, &key, last).is_some_and(|n| n >= rule.skip) {
                merged.extend(rule.then.clone());
            }
        }
    }
    Then::from_map(merged).map_err(|e| Failure::Double(format!("double.json: {e}")))
}

/// Which use of a rule this is, if it has that many. One file per use, so that commands that run at the same moment count right
/// without a lock.
fn use_of(home: &Home, key: &str, times: u32) -> Option<u32> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let dir = home.state("rules");
    (0..times).find(|n| fs::File::create_new(dir.join(format!("{:016x}-{n}", hasher.finish()))).is_ok())
}

/// `*` is any run of characters, everything else is itself.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter(|i| rest.is_char_boundary(*i)).any(|i| matches(after, &rest[i..]))
        }),
    }
}
