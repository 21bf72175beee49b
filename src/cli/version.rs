//! `mayfly version`

use serde_json::json;

use super::{exit, failure::CommandFailure, output};
use crate::platform::version;

pub(super) fn run(json: bool) -> Result<u8, CommandFailure> {
    if json {
        output::json(&json!({
            "version": version::NUMBER,
            "commit": version::COMMIT,
            "target": version::target(),
            "profile": version::PROFILE,
        }))?;
    } else {
        output::line(&format!("mayfly {}", version::long()))?;
        output::line(&format!("{}, {} build", version::target(), version::PROFILE))?;
    }
    Ok(exit::OK)
}
