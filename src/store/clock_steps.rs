//! Applies a step of the host's clock to everything that is stored with a deadline, in one transaction.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sqlx::{Row as _, SqliteConnection};

use super::{Change, Ledger, Reader, Result, jobs, ledger, pulls, watches};
use crate::{
    domain::pull::Pull,
    platform::{Clock, clock::ClockReading},
};

type SteppedRows = (Vec<Change>, Vec<Arc<Pull>>);

impl Ledger {
    /// Moves the deadlines of all live vms, pulls, jobs and watches by a step of the system's clock, and lets `clock`
    /// follow it. Also stores the reading of the clocks, so that no later start applies the step again.
    pub async fn clock_stepped(&self, clock: &Clock, by: SignedDuration) -> Result<()> {
        let (begun, shown) = (self.scale.clone(), clock.clone());
        let (changes, scale, clock) = (self.changes().clone(), self.scale.clone(), clock.clone());
        let tell = move |(vms, pulls): &SteppedRows| {
            scale.end();
            // While a task sees only one of the two, the moved deadline or the moved clock, no deadline may seem spent.
            if by.is_negative() {
                clock.follow(by);
            }
            changes.publish(vms);
            for pull in pulls {
                changes.publish_pull(pull);
            }
            changes.signal_watches();
            if !by.is_negative() {
                clock.follow(by);
            }
        };
        let result = self
            .writer
            .write_and_tell(
                move |db| {
                    let reading = shown.reading_after(by);
                    begun.begin(shown, by);
                    Box::pin(async move { apply(db, by, &reading, reading.wall).await })
                },
                tell,
            )
            .await;
        if result.is_err() {
            self.scale.undo();
        }
        result.map(drop)
    }
}

async fn apply(
    db: &mut SqliteConnection,
    by: SignedDuration,
    reading: &ClockReading,
    now: Timestamp,
) -> Result<SteppedRows> {
    let vms = ledger::step_clock(db, by, now).await?;
    let pulls = pulls::step_clock(db, by).await?;
    jobs::step_clock(db, by).await?;
    watches::step_clock(db, by).await?;
    sqlx::query("UPDATE store_state SET clock = ? WHERE id = 1").bind(reading.to_string()).execute(&mut *db).await?;
    Ok((vms, pulls))
}

impl Reader {
    /// The clocks at the last step.
    pub async fn clock_at_last_step(&self) -> Result<Option<ClockReading>> {
        let row = sqlx::query("SELECT clock FROM store_state WHERE id = 1").fetch_one(self.pool()).await?;
        Ok(row.try_get::<Option<String>, _>(0)?.and_then(|text| text.parse().ok()))
    }
}
