//! The life of one vm, from its row to its end.
//!
//! ```text
//! drive         the task of one vm: runs the step of its state against its deadline
//! steps         one idempotent step per state
//! template      pulls the image that a queued vm waits for
//! start         checks right before the start of the guest whether its slot is still free
//! provisioning  gives the guest its bootstrap bundle
//! full_disk     handles guests that are paused because the host's disk is full
//! budgets       decides which event follows when a budget is spent
//! observe       interprets the driver's observation of an instance
//! ```

mod budgets;
mod drive;
mod full_disk;
mod network;
mod observe;
mod provisioning;
mod start;
mod steps;
mod template;

pub(super) use self::{
    budgets::{SpentBudgets, drain_extension},
    drive::VmTask,
    provisioning::Provisioner,
    steps::Steps,
};
