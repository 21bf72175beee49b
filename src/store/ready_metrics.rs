//! Metrics of readiness checks. Counted where events are committed, so that each counts once, whatever reported it. The
//! label is the template's and not the guest's.

use crate::domain::{Code, Event, Vm, ready_check::ReadyKind};

#[derive(Clone, Copy)]
pub(super) enum CheckEnd {
    Ready,
    Failed,
}

impl CheckEnd {
    pub fn of(event: &Event) -> Option<CheckEnd> {
        match event {
            Event::GuestChecked { .. } => Some(CheckEnd::Ready),
            Event::AttemptFailed { fault } | Event::GivenUp { fault } if fault.code == Code::GuestCheckFailed => {
                Some(CheckEnd::Failed)
            }
            _ => None,
        }
    }

    pub fn count(self, vm: &Vm) {
        let check = vm.spec.resolved().and_then(|spec| spec.ready.as_ref()?.kind());
        let Some(check) = check.map(ReadyKind::as_str) else { return };
        match self {
            CheckEnd::Ready => {
                let seconds = vm.ready_after().unwrap_or_default().as_secs_f64();
                metrics::histogram!("mayfly_guest_ready_seconds", "check" => check).record(seconds);
            }
            CheckEnd::Failed => {
                metrics::counter!("mayfly_guest_check_failures_total", "check" => check).increment(1);
            }
        }
    }
}
