//! The time scale of the database around a step of the host's clock.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::platform::Clock;

/// Events take the time of their cause, so one whose cause was seen before a step may be written after it. This moves
/// such a time to the new scale.
#[derive(Clone, Default)]
pub(super) struct ClockScale(Arc<Mutex<Option<LastStep>>>);

struct LastStep {
    clock: Clock,
    /// The part of the step that the clock has not followed yet.
    pending: SignedDuration,
    /// The time of the step on the new scale.
    since: Timestamp,
}

impl ClockScale {
    /// The time on the scale of the database. Before the first step it is returned as it is.
    pub fn settled(&self, at: Timestamp) -> Timestamp {
        match &*self.0.lock() {
            Some(step) => at.max(step.since).min(step.clock.now() + step.pending),
            None => at,
        }
    }

    /// From now on, rows are on the new scale; `clock` shows the old one.
    pub fn begin(&self, clock: Clock, by: SignedDuration) {
        let since = clock.now() + by;
        *self.0.lock() = Some(LastStep { clock, pending: by, since });
    }

    /// The clock follows now.
    pub fn end(&self) {
        if let Some(step) = &mut *self.0.lock() {
            step.pending = SignedDuration::ZERO;
        }
    }

    /// The step was not written.
    pub fn undo(&self) {
        let mut last = self.0.lock();
        if last.as_ref().is_some_and(|step| step.pending != SignedDuration::ZERO) {
            *last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_from_before_a_step_becomes_one_of_the_new_scale() {
        for by in [SignedDuration::from_hours(1), SignedDuration::from_hours(-1)] {
            let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
            let scale = ClockScale::default();
            let before = clock.now();
            assert_eq!(scale.settled(before), before);
            scale.begin(clock.clone(), by);
            assert_eq!(scale.settled(before), before + by);
            scale.end();
            clock.follow(by);
            clock.advance(std::time::Duration::from_secs(5));
            let late = scale.settled(before);
            assert!((before + by..=clock.now()).contains(&late), "{late}");
            assert_eq!(scale.settled(clock.now()), clock.now());
        }
    }
}
