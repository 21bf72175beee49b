//! What goes wrong, how often, and for which requests.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Part of the path.
    pub path: String,
    #[serde(default = "once")]
    pub times: u32,
    /// This many that match are left alone first.
    #[serde(default)]
    pub after: u32,
    pub then: Then,
}

fn once() -> u32 {
    1
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Then {
    /// The connection breaks, and nothing was done.
    Drop,
    /// It is done, and the connection breaks before anything is answered.
    LoseReply,
    /// It is done, and the answer does not come while the client waits for it.
    Hang,
    /// Not done, and not answered while the client waits.
    Stall,
    /// Not done.
    Answer {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Value,
    },
    /// Done, and answered with this text and the right status.
    Say(String),
}

/// The fault that a request for this path meets.
pub fn meet(faults: &mut Vec<Fault>, path: &str) -> Option<Then> {
    let at = faults.iter_mut().position(|fault| {
        let fits = path.contains(&fault.path);
        if fits && fault.after > 0 {
            fault.after -= 1;
            return false;
        }
        fits
    })?;
    let then = faults[at].then.clone();
    faults[at].times = faults[at].times.saturating_sub(1);
    if faults[at].times == 0 {
        faults.remove(at);
    }
    Some(then)
}
