//! Says on standard error what a vm does or waits for, while a command waits for its end.

use super::{output, responses::VmResponse};

pub(super) struct Stages {
    quiet: bool,
    told: Option<String>,
}

impl Stages {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, told: None }
    }

    /// One line for each state, and while it is queued for each change of position and each tenth of a pull.
    pub fn tell(&mut self, vm: &VmResponse) {
        let (stage, text) = match (&vm.queue, vm.state.as_str()) {
            (Some(queue), _) => (format!("{:?}", queue.stage()), format!("queued: {}", queue.text())),
            (None, "draining") => (vm.state.clone(), "draining: waits until its runner has finished".to_owned()),
            (None, _) => (vm.state.clone(), vm.state_text()),
        };
        let is_new = self.told.replace(stage.clone()) != Some(stage);
        if is_new && !self.quiet && !vm.is_deleted() {
            output::note(&format!("{}: {text}", vm.name));
        }
    }
}
