//! Requests that the service answers only when all of the work is done: it is said what is waited for, and what an interruption
//! leaves. The service stops the work when its client is gone.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{client, failure::CommandFailure, interrupt, output};

/// Shows `what` on standard error, on a terminal with the time that has passed. `left`: what holds after an interruption.
pub(super) async fn answer<T>(
    what: &str,
    left: &str,
    request: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, CommandFailure> {
    let spinner = output::notes_are_seen().then(|| {
        let template = output::bar_template("{spinner:.cyan} {msg} {elapsed:.dim}", "{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    });
    if spinner.is_none() {
        output::note(what);
    }
    let answered = interrupt::or(left, async { Ok(request.await?) }).await;
    if let Some(bar) = spinner {
        bar.finish_and_clear();
    }
    answered
}
