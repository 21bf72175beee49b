//! Shows the failure of a command.

use super::{failure::CommandFailure, output, text::plain, wording};
use crate::domain::Code;

/// Writes the failure to standard error: as JSON, or as text with the remedy.
pub(super) fn report(failure: &CommandFailure, json: bool) {
    let message = match failure {
        CommandFailure::OutputClosed => return,
        CommandFailure::Interrupted { goes_on, .. } => {
            if !goes_on.is_empty() && !json {
                // The terminal has shown the keys that were pressed.
                let begins = if output::notes_are_seen() { "\n" } else { "" };
                output::note(&format!("{begins}{}", plain(goes_on)));
            }
            return;
        }
        CommandFailure::Problem(problem, _) if json => {
            return output::error_json(&serde_json::to_value(problem).unwrap_or_default());
        }
        CommandFailure::Problem(problem, _) => {
            let what = match &problem.detail {
                Some(detail) if !detail.is_empty() => format!("{}: {}", problem.title, detail),
                _ => problem.title.clone(),
            };
            let code = if problem.code.is_empty() { problem.status.to_string() } else { problem.code.clone() };
            format!("{} [{code}]", plain(&what))
        }
        CommandFailure::Usage(m)
        | CommandFailure::NoToken(m)
        | CommandFailure::Unreachable(m)
        | CommandFailure::TimedOut(m)
        | CommandFailure::SessionLost(m)
        | CommandFailure::Other(m) => plain(m),
    };
    if json {
        return output::error_json(&serde_json::json!({ "title": message, "exit_code": failure.exit_code() }));
    }
    output::error(&message);
    if let CommandFailure::Problem(problem, hint) = failure {
        for field in &problem.errors {
            output::note(&format!("  {}: {}", plain(&wording::field(&field.pointer)), plain(&field.detail)));
        }
        let remedy = Code::ALL.iter().find(|c| c.slug() == problem.code).map(|c| wording::remedy(c.remedy()));
        if let Some(hint) = hint.clone().or(remedy).filter(|hint| !hint.is_empty()) {
            output::note(&format!("  {hint}"));
        }
        if let Some(id) = problem.request_id.as_deref().filter(|_| problem.status >= 500) {
            output::note(&format!("  request id: {}", plain(id)));
        }
    }
}
