//! What goes wrong, how often, and for which requests.

use serde::Deserialize;
use serde_json::Value;

use crate::api::ApiRequest;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Any, when there is none.
    #[serde(default)]
    pub method: Option<String>,
    /// Part of the path.
    #[serde(default)]
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
    /// It is done, and half of the answer arrives.
    Truncate,
    /// Not done.
    Answer {
        status: u16,
        #[serde(default)]
        headers: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        body: Value,
    },
    /// Done, and answered with this text and the right status.
    Say(String),
}

/// The fault that this request meets.
pub fn meet(faults: &mut Vec<Fault>, asked: &ApiRequest) -> Option<Then> {
    let path = asked.path.join("/");
    let at = faults.iter_mut().position(|fault| {
        let fits = fault.method.as_ref().is_none_or(|m| *m == asked.method.as_str()) && path.contains(&fault.path);
        if fits && fault.after > 0 {
            fault.after -= 1;
            return false;
        }
        fits
    })?;
    faults[at].times -= 1;
    let then = faults[at].then.clone();
    if faults[at].times == 0 {
        faults.remove(at);
    }
    Some(then)
}
