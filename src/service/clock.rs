//! The only place that reads the clock. Tests turn its hands.

use std::time::Duration;

use jiff::{Timestamp, Unit};
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub struct Clock {
    /// `None`: the system's clock.
    hands: Option<watch::Sender<Timestamp>>,
}

impl Clock {
    pub fn system() -> Self {
        Self { hands: None }
    }

    /// A clock that stands still until `advance`.
    pub fn manual(start: Timestamp) -> Self {
        Self { hands: Some(watch::Sender::new(start)) }
    }

    /// To the millisecond: what the database keeps, so that a replayed log gives the very same row.
    pub fn now(&self) -> Timestamp {
        let now = match &self.hands {
            Some(hands) => *hands.borrow(),
            None => Timestamp::now(),
        };
        now.round(jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc))
            .expect("truncating to milliseconds stays in range")
    }

    pub fn advance(&self, by: Duration) {
        let hands = self.hands.as_ref().expect("only a manual clock is advanced");
        hands.send_modify(|now| *now += by);
    }

    /// Returns at `at`, at once if that has passed.
    pub async fn sleep_until(&self, at: Timestamp) {
        match &self.hands {
            Some(hands) => {
                let mut hands = hands.subscribe();
                // The sender lives in `self`, so it cannot be gone.
                let _ = hands.wait_for(|now| *now >= at).await;
            }
            None => loop {
                // The system's clock may be set while we sleep: look again at least once a minute.
                let left = at.duration_since(Timestamp::now());
                if !left.is_positive() {
                    return;
                }
                let left = Duration::try_from(left).unwrap_or_default();
                tokio::time::sleep(left.min(Duration::from_secs(60)).max(Duration::from_millis(1))).await;
            },
        }
    }
}
