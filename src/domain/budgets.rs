//! Budgets: how long each part of a vm's life may take. One table defines all of them, with description, default and
//! limits.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    end::EndSignal,
    error::{Code, Error, Result},
};

/// Longest budget; a longer one is a mistake of units.
pub const MAX_BUDGET_SECONDS: u32 = 30 * 24 * 3600;

macro_rules! budgets {
    ($( $(#[doc = $doc:literal])+ $name:ident = $usual:literal, $least:tt to $most:tt; )+) => {
        /// How long each part of a vm's life may take. A spent budget ends the vm (or the attempt) and is named in
        /// its record.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Budgets {
            /// Longest wait for a slot, in seconds. 0: start at once or refuse.
            pub queue_seconds: u32,
            $( $(#[doc = $doc])+ pub $name: u32, )+
        }

        impl Default for Budgets {
            fn default() -> Self {
                Self { queue_seconds: 3600, $( $name: $usual, )+ }
            }
        }

        /// Budgets that differ from the defaults; all in seconds except `max_attempts`.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct BudgetsPatch {
            $(
                $(#[doc = $doc])+
                #[serde(skip_serializing_if = "Option::is_none")]
                #[schema(minimum = $least, maximum = $most)]
                pub $name: Option<u32>,
            )+
        }

        impl BudgetsPatch {
            /// The names of all budgets.
            pub const NAMES: &'static [&'static str] = &[$( stringify!($name), )+];

            /// Sets or removes one of them. `false`: none has this name.
            pub fn set(&mut self, name: &str, value: Option<u32>) -> bool {
                match name {
                    $( stringify!($name) => self.$name = value, )+
                    _ => return false,
                }
                true
            }

            /// The name of the first one that is out of its range, and the range.
            pub fn wrong(&self) -> Option<(&'static str, u32, u32)> {
                $(
                    if self.$name.is_some_and(|value| !($least..=$most).contains(&value)) {
                        return Some((stringify!($name), $least, $most));
                    }
                )+
                None
            }

            /// These, and those of `others` that are not set here.
            pub fn or(&self, others: &BudgetsPatch) -> BudgetsPatch {
                BudgetsPatch { $( $name: self.$name.or(others.$name), )+ }
            }

            /// `base` with these.
            pub fn on(&self, base: &Budgets) -> Budgets {
                Budgets { queue_seconds: base.queue_seconds, $( $name: self.$name.unwrap_or(base.$name), )+ }
            }

            /// All budgets with their values.
            pub fn all(budgets: &Budgets) -> BudgetsPatch {
                BudgetsPatch { $( $name: Some(budgets.$name), )+ }
            }

            /// Those of `budgets` that differ from `usual`.
            pub fn differing(budgets: &Budgets, usual: &Budgets) -> BudgetsPatch {
                BudgetsPatch { $( $name: (budgets.$name != usual.$name).then_some(budgets.$name), )+ }
            }
        }
    };
}

budgets! {
    /// Cloning the template, in seconds.
    clone_seconds = 600, 1 to 2592000;
    /// From the start of the hypervisor until the guest answers, in seconds.
    boot_seconds = 300, 1 to 2592000;
    /// Provisioning the guest and configuring its runner, in seconds.
    configure_seconds = 120, 1 to 2592000;
    /// From the configured guest until the CI system reports the runner online, in seconds (for runner kinds that
    /// register).
    registration_seconds = 300, 1 to 2592000;
    /// How long a runner may be online without a job, in seconds (for runner kinds that wait for jobs).
    idle_seconds = 3600, 1 to 2592000;
    /// How long a script may run without ever reporting whether it has a job, in seconds.
    unobserved_seconds = 21600, 1 to 2592000;
    /// How long the wrapper in a guest with a runner may report nothing, in seconds (at least 2). It reports several
    /// times as often; a guest whose wrapper was killed, or that lost its network, ends here.
    heartbeat_seconds = 180, 2 to 2592000;
    /// From the configured guest to the end of the vm, in seconds: a job that hangs ends here.
    lifetime_seconds = 21600, 1 to 2592000;
    /// From the announced end to the proof that the runner has finished, in seconds.
    drain_seconds = 300, 1 to 2592000;
    /// Upper limit to which `drain_seconds` is extended while the CI server reports the runner as busy, in seconds.
    drain_cap_seconds = 900, 1 to 2592000;
    /// From the CI server's report that the runner has finished to the end of its guest, in seconds: time for the runner's
    /// last steps.
    settle_seconds = 10, 1 to 2592000;
    /// How long a guest may take to power down if its work may be unfinished, in seconds, before it is forced.
    stop_grace_seconds = 10, 0 to 600;
    /// How long the guest of a vm that failed is kept running for debugging, in seconds; it holds its slot. 0: not at all.
    /// At most `slots.max_kept_seconds` of the configuration.
    keep_on_failure_seconds = 0, 0 to 2592000;
    /// How often a vm is booted, each time from a fresh clone, before it is given up.
    max_attempts = 3, 1 to 10;
}

impl BudgetsPatch {
    pub fn check(&self) -> Result<()> {
        match self.wrong() {
            None => Ok(()),
            Some((name, least, most)) => Err(Error::new(Code::RequestInvalid, "a budget is out of range")
                .field(format!("/budgets/{name}"), format!("{least} to {most}"))),
        }
    }

    /// `base` with these, if they are possible.
    pub fn over(&self, base: &Budgets) -> Result<Budgets> {
        self.check()?;
        Ok(self.on(base))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    Queue,
    Clone,
    Boot,
    Configure,
    Registration,
    Idle,
    Unobserved,
    Lifetime,
    Drain,
    Heartbeat,
    KeepOnFailure,
}

impl Budget {
    /// What a vm ends with if this budget is spent. `None`: it has ended before.
    pub fn end(self) -> Option<(EndSignal, Code)> {
        Some(match self {
            Budget::Queue => (EndSignal::QueueBudget, Code::QueueTimeout),
            Budget::Clone => (EndSignal::CloneBudget, Code::CloneTimeout),
            Budget::Boot => (EndSignal::BootBudget, Code::GuestNotReady),
            Budget::Configure => (EndSignal::ConfigureBudget, Code::GuestNotConfigured),
            Budget::Registration => (EndSignal::RegistrationBudget, Code::RunnerNotRegistered),
            Budget::Idle => (EndSignal::IdleBudget, Code::RunnerIdle),
            Budget::Unobserved => (EndSignal::UnobservedBudget, Code::RunnerUnobserved),
            Budget::Lifetime => (EndSignal::LifetimeBudget, Code::LifetimeSpent),
            Budget::Drain => (EndSignal::DrainBudget, Code::DrainSpent),
            Budget::Heartbeat => (EndSignal::HeartbeatBudget, Code::GuestSilent),
            Budget::KeepOnFailure => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_first_counts_most() {
        let asked = BudgetsPatch { boot_seconds: Some(1), ..BudgetsPatch::default() };
        let image = BudgetsPatch { boot_seconds: Some(2), idle_seconds: Some(3), ..BudgetsPatch::default() };
        let made = asked.or(&image).over(&Budgets::default()).unwrap();
        assert_eq!(made, Budgets { boot_seconds: 1, idle_seconds: 3, ..Budgets::default() });
        assert_eq!(BudgetsPatch::differing(&made, &Budgets::default()), asked.or(&image));
        assert_eq!(BudgetsPatch::all(&made).or(&image).on(&Budgets::default()), made);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let wrong = |patch: BudgetsPatch| patch.check().unwrap_err().fields[0].pointer.clone();
        assert_eq!(wrong(BudgetsPatch { max_attempts: Some(11), ..Default::default() }), "/budgets/max_attempts");
        assert_eq!(wrong(BudgetsPatch { idle_seconds: Some(0), ..Default::default() }), "/budgets/idle_seconds");
        assert!(BudgetsPatch { stop_grace_seconds: Some(0), ..Default::default() }.check().is_ok());
        let longest = BudgetsPatch { boot_seconds: Some(MAX_BUDGET_SECONDS), ..Default::default() };
        assert!(longest.check().is_ok());
        assert_eq!(
            wrong(BudgetsPatch { boot_seconds: Some(MAX_BUDGET_SECONDS + 1), ..longest }),
            "/budgets/boot_seconds"
        );
    }

    /// Every budget of a vm can be set by a request.
    #[test]
    fn every_budget_but_the_wait_can_be_requested() {
        let all = serde_json::to_value(Budgets::default()).unwrap();
        let mut names: Vec<&str> = all.as_object().unwrap().keys().map(String::as_str).collect();
        names.retain(|name| *name != "queue_seconds");
        let mut said = BudgetsPatch::NAMES.to_vec();
        said.sort_unstable();
        names.sort_unstable();
        assert_eq!(said, names);
    }
}
