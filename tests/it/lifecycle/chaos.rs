//! Many vms at once while everything goes wrong at random: failures, foreign vms, deletes, restarts. The same seed gives the
//! same script.

use std::time::Duration;

use super::prelude::*;
use crate::support::dice::Dice;

#[tokio::test(flavor = "multi_thread")]
async fn any_interleaving_ends_clean_and_never_exceeds_the_limit() {
    for seed in 1..=6u64 {
        let mut dice = Dice::new(seed);
        let mut host = Host::new(3, 2).await;
        host.play_guests();
        host.world.limit(GuestOs::Macos, Some(2));
        let mut ids = Vec::new();
        for _ in 0..60 {
            match dice.roll(10) {
                0..=3 => ids.push(host.create(request("linux", job())).await),
                4 => ids.push(host.create(request("macos", RunnerRequest::None)).await),
                5 if !ids.is_empty() => {
                    let id = ids[dice.roll(ids.len() as u64) as usize];
                    host.delete(id, dice.roll(2) == 0).await;
                }
                6 => host.world.add_foreign("foreign", GuestOs::Macos, 1, 64),
                7 => host.world.remove_foreign("foreign"),
                8 => {
                    let verb =
                        [Verb::Create, Verb::Start, Verb::Stop, Verb::Destroy, Verb::List][dice.roll(5) as usize];
                    host.world.fail_next(verb, 1, ErrorKind::Retry, Code::Internal, "chaos");
                }
                9 => host.restart().await,
                _ => {}
            }
            if dice.roll(3) == 0 {
                tokio::time::sleep(Duration::from_millis(dice.roll(8))).await;
            }
        }
        host.world.remove_foreign("foreign");
        for id in &ids {
            // The macOS guests have no runner: they live until they are deleted.
            host.delete(*id, true).await;
        }
        for id in &ids {
            host.until_state(*id, State::Deleted).await;
        }
        assert!(host.world.peak_of(GuestOs::Linux) <= 3, "seed {seed}");
        host.assert_clean(&ids).await;
    }
}
