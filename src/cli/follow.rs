//! Watches one vm with long polls until a condition is met, and prints its timeline meanwhile.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    client::ApiClient,
    exit,
    failure::CommandFailure,
    output::{self, Colour, paint},
    patience::{PAUSE, Patience},
    responses::{FaultResponse, VmResponse},
    text,
};
use crate::platform::clock;

/// One long poll, in seconds.
const POLL: u64 = 30;
/// The same during the pull of an image: its progress does not change the vm's generation.
const POLL_PULL: u64 = 2;
/// Reads the vm until `reached` says so; `seen` is called with it as it was read first and after every change. `from` is a
/// generation that was seen already, and need not be answered.
pub(super) async fn watch(
    client: &ApiClient,
    id: &str,
    timeout: Option<Duration>,
    from: Option<i64>,
    mut seen: impl FnMut(&VmResponse) -> Result<(), CommandFailure>,
    reached: impl Fn(&VmResponse) -> bool,
) -> Result<(Value, VmResponse), CommandFailure> {
    let end = timeout.map(|t| clock::monotonic() + t);
    let mut generation = from;
    let mut patience = Patience::default();
    let mut pulls = false;
    loop {
        let left = end.map(|end| end.saturating_duration_since(clock::monotonic()));
        let longest = if pulls { POLL_PULL } else { POLL };
        let poll = left.map_or(longest, |left| left.as_secs_f64().ceil().min(longest as f64) as u64);
        let (wait, poll) = (generation.unwrap_or(0).to_string(), poll.to_string());
        let query = [("wait_generation", wait.as_str()), ("timeout_seconds", poll.as_str())];
        let query: &[(&str, &str)] = if generation.is_some() { &query } else { &[] };
        let asked = clock::monotonic();
        match client.get(&["vms", id], query).await {
            Ok(value) => {
                patience.answered();
                let vm: VmResponse = client.view(&value)?;
                pulls = vm.queue.as_ref().is_some_and(|queue| queue.reason == "template");
                let changed = generation != Some(vm.generation) || pulls;
                if changed {
                    generation = Some(vm.generation);
                    seen(&vm)?;
                }
                if reached(&vm) {
                    return Ok((value, vm));
                }
                // A proxy that does not support long polls must not cause requests without a pause.
                if !changed && clock::elapsed(asked) < PAUSE {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // The vm continues while the service is down, so watching continues as well.
            Err(failure) if generation.is_some() => patience.wait(failure.into()).await?,
            Err(failure) => return Err(failure.into()),
        }
        if end.is_some_and(|end| clock::monotonic() >= end) {
            return Err(CommandFailure::TimedOut(format!(
                "the time given with --timeout is over; `mayfly vm show {id}` says more"
            )));
        }
    }
}

/// The exit code for the end of a vm.
pub(super) fn verdict(vm: &VmResponse) -> u8 {
    match &vm.outcome {
        Some(outcome) if outcome.result == "completed" && vm.ended_well() => exit::OK,
        Some(outcome) if outcome.result == "completed" => exit::JOB_FAILED,
        _ => exit::VM_NOT_COMPLETED,
    }
}

/// Prints a vm's progress: one line for each state that has ended, with its duration.
pub(super) struct Timeline {
    /// Entries whose line is printed.
    printed: usize,
    fault: Option<FaultResponse>,
    /// The stage of waiting that was printed last.
    queue: Option<(String, Option<i64>, Option<u64>)>,
    /// On a terminal: the current state.
    spinner: Option<ProgressBar>,
}

impl Timeline {
    pub fn new() -> Self {
        let spinner = output::is_terminal().then(|| {
            let style = ProgressStyle::with_template(output::bar_template(
                "{spinner:.cyan} {msg} {elapsed:.dim}",
                "{spinner} {msg} {elapsed}",
            ));
            let bar = ProgressBar::new_spinner();
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { printed: 0, fault: None, queue: None, spinner }
    }

    pub fn begin(&self, vm: &VmResponse) -> Result<(), CommandFailure> {
        self.line(&format!("{}  {}  {}", vm.name, vm.id, vm.template))
    }

    pub fn update(&mut self, vm: &VmResponse) -> Result<(), CommandFailure> {
        let fault_before = self.fault.replace_if_new(vm.last_fault.as_ref());
        let current = vm.timeline.len().saturating_sub(1);
        let entered = self.printed < current;
        while self.printed < current {
            let (entry, next) = (&vm.timeline[self.printed], &vm.timeline[self.printed + 1]);
            self.line(&format!("  {:<11}  {:>8}", entry.state, text::duration(next.at.duration_since(entry.at))))?;
            self.printed += 1;
        }
        if let Some(fault) = fault_before {
            self.line(&paint(&format!("  {}: {}", fault.code, text::plain(&fault.detail)), Colour::Yellow))?;
        }
        let now = match &vm.queue {
            Some(queue) => {
                let waits = queue.text();
                let stage = Some(queue.stage());
                if self.spinner.is_none() && stage != self.queue {
                    self.line(&format!("  queued: {waits}"))?;
                }
                self.queue = stage;
                format!("queued: {waits}")
            }
            None => vm.state_text(),
        };
        if let Some(bar) = &self.spinner {
            bar.set_message(now);
            if entered {
                bar.reset_elapsed();
            }
        }
        if vm.is_deleted() {
            self.end(vm)?;
        }
        Ok(())
    }

    fn end(&self, vm: &VmResponse) -> Result<(), CommandFailure> {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
        let total = |at: Timestamp| text::duration(at.duration_since(vm.created_at));
        let ended = vm.deleted_at.or(vm.timeline.last().map(|e| e.at)).unwrap_or(vm.created_at);
        self.line(&format!("  {:<11}  {:>8} in all", "deleted", total(ended)))?;
        let mut pairs = Vec::new();
        if let (Some(ending), Some(colour)) = (vm.whole_ending(), vm.ending_colour()) {
            pairs.push(("outcome", paint(&text::plain(&ending), colour)));
        }
        if let Some(by) = &vm.announced_by {
            let when = vm.announced_at.map(|at| format!(", {} after its creation", total(at))).unwrap_or_default();
            pairs.push(("announced by", format!("{by}{when}")));
        }
        if let Some(signal) = &vm.end_signal {
            pairs.push(("end signal", signal.clone()));
        }
        if let Some(code) = vm.job_exit_code() {
            let colour = if code == 0 { Colour::Green } else { Colour::Red };
            pairs.push(("job", paint(&format!("exit code {code}"), colour)));
        }
        for (name, value) in pairs {
            self.line(&format!("{name:<13}  {value}"))?;
        }
        Ok(())
    }

    fn line(&self, line: &str) -> Result<(), CommandFailure> {
        match &self.spinner {
            Some(bar) => bar.suspend(|| output::line(line)),
            None => output::line(line),
        }
    }
}

trait ReplaceIfNew<T> {
    /// Stores a new value, and returns it if it differs.
    fn replace_if_new(&mut self, new: Option<&T>) -> Option<T>;
}

impl<T: Clone + PartialEq> ReplaceIfNew<T> for Option<T> {
    fn replace_if_new(&mut self, new: Option<&T>) -> Option<T> {
        let new = new.filter(|new| self.as_ref() != Some(*new)).cloned()?;
        *self = Some(new.clone());
        Some(new)
    }
}
