//! Parses `tart list --format json`.

use serde::Deserialize;

use crate::drivers::failure::shown;

/// A VM in Tart's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TartListEntry {
    pub name: String,
    /// Its lock is held: by a running guest, or briefly by another command of Tart.
    pub running: bool,
}

/// Both versions of the output have these keys; other keys are not needed, or differ.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawListEntry {
    name: String,
    source: Option<String>,
    running: Option<bool>,
    state: Option<String>,
}

/// The local VMs. Any other output is an error and never an empty list, because then nothing would be counted.
pub fn parse(stdout: &[u8]) -> Result<Vec<TartListEntry>, String> {
    let expected =
        |what: String| format!("expected `tart list` to print a JSON array of VMs: {what}; found: {}", shown(stdout));
    let json = array(stdout).ok_or_else(|| expected("there is no line that begins with [".to_owned()))?;
    let raw: Vec<RawListEntry> = serde_json::from_slice(json).map_err(|error| expected(error.to_string()))?;
    let mut entries = Vec::new();
    for RawListEntry { name, source, running, state } in raw {
        if source.is_some_and(|source| source != "local") {
            continue;
        }
        let state = match state.as_deref() {
            None => None,
            Some("running") => Some(true),
            Some("suspended" | "stopped") => Some(false),
            Some(other) => return Err(expected(format!("{name:?} is in the unknown state {other:?}"))),
        };
        match running.or(state) {
            Some(running) => entries.push(TartListEntry { name, running }),
            None => return Err(expected(format!("nothing says whether {name:?} runs"))),
        }
    }
    Ok(entries)
}

/// The output without the lines before the array: newer versions of Tart print warnings there.
fn array(stdout: &[u8]) -> Option<&[u8]> {
    if stdout.starts_with(b"[") {
        return Some(stdout);
    }
    let newline = stdout.windows(2).position(|pair| pair == b"\n[")?;
    Some(&stdout[newline + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(entries: &[TartListEntry]) -> Vec<(&str, bool)> {
        entries.iter().map(|e| (e.name.as_str(), e.running)).collect()
    }

    #[test]
    fn both_generations_are_read() {
        let expected = [("macos-base", false), ("mayfly-x", true), ("napping", false)];
        let new = parse(include_bytes!("fixtures/list-2.32.json")).unwrap();
        assert_eq!(names(&new), expected);
        let old = parse(include_bytes!("fixtures/list-2.30.json")).unwrap();
        assert_eq!(names(&old), expected);
        assert_eq!(parse(b"[\n\n]\n").unwrap(), []);
        let warned =
            [b"warning: Tart 2.36.0 is available\n", include_bytes!("fixtures/list-2.32.json").as_slice()].concat();
        assert_eq!(names(&parse(&warned).unwrap()), expected);
    }

    #[test]
    fn anything_else_is_refused_with_what_was_found() {
        for strange in [
            "",
            "Source Name Disk Size Accessed State\n",
            "{}",
            "[{}]",
            "[{\"Name\":\"a\"}]",
            "[{\"Name\":\"a\",\"State\":\"melting\"}]",
            "[{\"Name\":\"a\",\"Running\":\"yes\"}]",
            "[{\"Name\":\"a\",\"Running\":true}",
            "warning: [something]\n",
            "[warning] something\n[]",
        ] {
            let error = parse(strange.as_bytes()).unwrap_err();
            assert!(error.starts_with("expected `tart list`") && error.contains("; found: "), "{error}");
        }
        assert!(parse(&[b'['; 100_000]).unwrap_err().len() < 500);
    }
}
