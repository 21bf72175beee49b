//! Prints a report as text within the width of the terminal, or as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    finding::{Finding, Report, Severity},
    probe::System,
};
use crate::cli::text::{plain, wrap};

/// Narrower than this, nothing is gained by breaking lines.
const NARROWEST: usize = 60;
const TITLE: usize = 18;
/// Severity, title, and two gaps.
const INDENT: usize = 4 + 2 + TITLE + 2;

/// `paint` colours a severity's word, where colours are wanted.
pub fn text(report: &Report, width: usize, paint: impl Fn(Severity, &str) -> String) -> String {
    let width = width.max(NARROWEST);
    let mut text = String::new();
    for finding in &report.findings {
        describe(finding, width, &paint, &mut text);
    }
    let _ = writeln!(text, "\n{}", summary(report));
    text
}

fn describe(finding: &Finding, width: usize, paint: &impl Fn(Severity, &str) -> String, text: &mut String) {
    let word = finding.severity.as_str();
    let padding = " ".repeat(4 - word.len());
    let mut lines = wrap(&plain(&finding.found).replace(['\n', '\t'], " "), width - INDENT).into_iter();
    let first = lines.next().unwrap_or_default();
    let line = format!("{}{padding}  {:TITLE$}  {first}", paint(finding.severity, word), finding.title);
    let _ = writeln!(text, "{}", line.trim_end());
    for line in lines {
        let _ = writeln!(text, "{:INDENT$}{line}", "");
    }
    for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
        // Commands are not wrapped, so that they can be copied.
        let lines = if line.starts_with("    ") { vec![plain(line)] } else { wrap(&plain(line), width - 6) };
        for line in lines {
            let _ = writeln!(text, "      {line}");
        }
    }
}

fn summary(report: &Report) -> String {
    let count = |severity, one: &str, more: &str| {
        let n = report.count(severity);
        (n > 0).then(|| format!("{n} {}", if n == 1 { one } else { more }))
    };
    let parts: Vec<String> = [
        count(Severity::Fail, "failed", "failed"),
        count(Severity::Warn, "warning", "warnings"),
        count(Severity::Ok, "ok", "ok"),
        count(Severity::Skip, "skipped", "skipped"),
    ]
    .into_iter()
    .flatten()
    .collect();
    parts.join(", ")
}

pub fn json(report: &Report, system: System) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": system.as_str(),
        "counts": {
            "fail": report.count(Severity::Fail),
            "warn": report.count(Severity::Warn),
            "ok": report.count(Severity::Ok),
            "skip": report.count(Severity::Skip),
        },
        "complete": !report.is_incomplete(),
        "findings": report.findings,
    })
}
