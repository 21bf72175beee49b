//! One vm, from its row to its end.
//!
//! ```text
//! drive         the task of one vm: runs the step that its state asks for, against its deadline
//! steps         one idempotent step per state
//! template      the step of a vm that waits for its image
//! start         whether its guest may be started now
//! provisioning  how its guest gets its runner
//! full_disk     guests that are paused because the host's disk is full
//! budgets       what it means that one of its budgets is spent
//! observe       what is made of a look at its instance
//! ```

mod budgets;
mod drive;
mod full_disk;
mod observe;
mod provisioning;
mod start;
mod steps;
mod template;

pub(super) use self::{
    budgets::{SpentBudgets, drain_extension},
    drive::VmDriver,
    provisioning::Provisioner,
    steps::Steps,
};
